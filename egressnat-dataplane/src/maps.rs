//! The maps of the eBPF programs, as Rust sees them.

use std::net::Ipv4Addr;

use aya::Pod;

/// Value of a destination that is left to normal forwarding.
pub(crate) const FORWARD: u32 = 0;
/// Value of a destination whose packets keep the pod's address.
pub(crate) const KEEP: u32 = 1;
/// Value of a destination whose packets do not leave.
pub(crate) const DROP: u32 = u32::MAX;
/// The first index of an egress IP.
pub(crate) const FIRST_EGRESS: u32 = 2;
/// As in the C source.
pub(crate) const MAX_EGRESS: u32 = 1024;

/// Key of `pods`: an address counts on its own interface only.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PodKey {
    /// In network byte order.
    address: [u8; 4],
    pub(crate) ifindex: u32,
}

impl PodKey {
    pub(crate) fn new(address: Ipv4Addr, ifindex: u32) -> Self {
        Self {
            address: address.octets(),
            ifindex,
        }
    }

    pub(crate) fn address(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.address)
    }
}

/// Key of `destinations` behind its prefix length.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct DestinationKey {
    pub(crate) set: u32,
    /// In network byte order.
    address: [u8; 4],
}

impl DestinationKey {
    /// Bits of the key before the address.
    pub(crate) const SET_BITS: u32 = 32;

    pub(crate) fn new(set: u32, address: Ipv4Addr) -> Self {
        Self {
            set,
            address: address.octets(),
        }
    }

    pub(crate) fn address(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.address)
    }
}

/// Value of `egress_ips`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Egress {
    /// In network byte order; 0.0.0.0 is a free slot.
    address: [u8; 4],
    vni: u32,
    local: u32,
}

impl Egress {
    pub(crate) fn new(address: Ipv4Addr, vni: u32, local: bool) -> Self {
        Self {
            address: address.octets(),
            vni,
            local: u32::from(local),
        }
    }

    pub(crate) fn address(&self) -> Option<Ipv4Addr> {
        let address = Ipv4Addr::from(self.address);
        (!address.is_unspecified()).then_some(address)
    }

    pub(crate) fn vni(&self) -> u32 {
        self.vni
    }

    pub(crate) fn is_local(&self) -> bool {
        self.local != 0
    }
}

// SAFETY: plain integers and bytes, `repr(C)`, no padding.
unsafe impl Pod for PodKey {}
// SAFETY: as above.
unsafe impl Pod for DestinationKey {}
// SAFETY: as above.
unsafe impl Pod for Egress {}
