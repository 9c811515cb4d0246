//! The two families of addresses. Each has a table, an ip rule and a route table of its own.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nftnl::ProtoFamily;

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub(crate) const ALL: [Family; 2] = [Family::Ipv4, Family::Ipv6];

    /// The family of an address.
    pub(crate) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Family::Ipv4,
            IpAddr::V6(_) => Family::Ipv6,
        }
    }

    /// The families that some addresses are of.
    pub(crate) fn of_all<'a>(addresses: impl IntoIterator<Item = &'a IpAddr>) -> BTreeSet<Self> {
        addresses.into_iter().copied().map(Self::of).collect()
    }

    /// The family of a range.
    pub(crate) fn of_range(range: &IpNet) -> Self {
        Self::of(range.addr())
    }

    /// The address that is none.
    pub(crate) fn unspecified(self) -> IpAddr {
        match self {
            Family::Ipv4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::Ipv6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// Bits of an address.
    pub(crate) fn width(self) -> u8 {
        match self {
            Family::Ipv4 => 32,
            Family::Ipv6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Ipv4 => "IPv4",
            Family::Ipv6 => "IPv6",
        })
    }
}

impl From<Family> for ProtoFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::Ipv4 => ProtoFamily::Ipv4,
            Family::Ipv6 => ProtoFamily::Ipv6,
        }
    }
}

/// An address in network byte order.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The address of 4 or 16 octets.
pub(crate) fn from_octets(octets: &[u8]) -> Option<IpAddr> {
    let ipv4 = |octets: [u8; 4]| IpAddr::from(octets);
    let ipv6 = |octets: [u8; 16]| IpAddr::from(octets);
    let short = octets.try_into().ok().map(ipv4);
    short.or_else(|| octets.try_into().ok().map(ipv6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_known_again_by_its_octets() {
        for text in ["0.0.0.0", "192.168.1.100", "::", "fd00::100"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(from_octets(&octets(address)), Some(address));
        }
        for length in [0, 3, 5, 15, 17] {
            assert_eq!(from_octets(&vec![0; length]), None);
        }
    }
}
