//! ARP packets (RFC 826) for IPv4 on Ethernet.

use std::net::Ipv4Addr;

use super::{Mac, Purpose};
use crate::announce::TAG;

/// Bytes of an Ethernet header and an ARP packet.
const LENGTH: usize = 42;

/// EtherType ARP, hardware Ethernet, protocol IPv4, and the lengths of their addresses.
const FIXED: [u8; 8] = [0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4];

/// Who says what about which address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arp {
    pub(super) sender_mac: Mac,
    pub(super) sender: Ipv4Addr,
    pub(super) target: Ipv4Addr,
    /// An agent of ours sent it about an address that it has, or just gave up.
    pub(super) is_of_cluster: bool,
}

impl Arp {
    /// Reads a frame; none if it is anything else.
    pub(super) fn parse(frame: &[u8]) -> Option<Self> {
        let padding = frame.get(LENGTH..)?;
        let is_of_cluster = padding.starts_with(TAG);
        let frame: &[u8; LENGTH] = frame.first_chunk()?;
        if frame[12..20] != FIXED {
            return None;
        }
        let address = |at: usize| Some(Ipv4Addr::from(*frame.get(at..)?.first_chunk::<4>()?));
        Some(Self {
            sender_mac: Mac(*frame[22..].first_chunk()?),
            sender: address(28)?,
            target: address(38)?,
            is_of_cluster,
        })
    }
}

/// The frame that asks for an address without claiming one (RFC 5227, section 2.1.1), padded to the smallest frame.
pub(super) fn probe(mac: Mac, address: Ipv4Addr, purpose: Purpose) -> Vec<u8> {
    let mut frame = Vec::with_capacity(60);
    frame.extend([0xff; 6]);
    frame.extend(mac.0);
    frame.extend(FIXED);
    frame.extend([0, 1]); // a request
    frame.extend(mac.0);
    frame.extend([0; 4]);
    frame.extend([0; 6]);
    frame.extend(address.octets());
    if purpose == Purpose::GiveUp {
        frame.extend(TAG);
    }
    frame.resize(60, 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_reads_back_and_claims_nothing() {
        let (mac, address) = (Mac([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(192, 168, 1, 100));
        for (purpose, is_of_cluster) in [(Purpose::Take, false), (Purpose::GiveUp, true)] {
            let packet = Arp::parse(&probe(mac, address, purpose)).unwrap();
            assert_eq!((packet.sender_mac, packet.target), (mac, address));
            assert!(packet.sender.is_unspecified());
            assert_eq!(packet.is_of_cluster, is_of_cluster);
        }
        let frame = probe(mac, address, Purpose::Take);
        for cut in 0..LENGTH {
            assert_eq!(Arp::parse(&frame[..cut]), None);
        }
        let mut other = frame.clone();
        other[13] = 0;
        assert_eq!(Arp::parse(&other), None);
    }
}
