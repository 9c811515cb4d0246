//! ARP packets (RFC 826) for IPv4 on Ethernet.

use std::net::Ipv4Addr;

use super::Mac;

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
}

impl Arp {
    /// Reads a frame; none if it is anything else.
    pub(super) fn parse(frame: &[u8]) -> Option<Self> {
        let frame: &[u8; LENGTH] = frame.first_chunk()?;
        if frame[12..20] != FIXED {
            return None;
        }
        let address = |at: usize| Some(Ipv4Addr::from(*frame.get(at..)?.first_chunk::<4>()?));
        Some(Self {
            sender_mac: Mac(*frame[22..].first_chunk()?),
            sender: address(28)?,
            target: address(38)?,
        })
    }

    /// Whether the sender asks before it takes the address: it does not say that it has it.
    pub(super) fn is_probe(&self) -> bool {
        self.sender.is_unspecified()
    }
}

/// The frame that asks for an address without claiming one (RFC 5227, section 2.1.1), padded to the smallest frame.
pub(super) fn probe(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::with_capacity(60);
    frame.extend([0xff; 6]);
    frame.extend(mac.0);
    frame.extend(FIXED);
    frame.extend([0, 1]); // a request
    frame.extend(mac.0);
    frame.extend([0; 4]);
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame.resize(60, 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_reads_back_and_claims_nothing() {
        let (mac, address) = (Mac([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(192, 168, 1, 100));
        let frame = probe(mac, address);
        let packet = Arp::parse(&frame).unwrap();
        assert_eq!((packet.sender_mac, packet.target), (mac, address));
        assert!(packet.is_probe());
        for cut in 0..LENGTH {
            assert_eq!(Arp::parse(&frame[..cut]), None);
        }
        let mut other = frame.clone();
        other[13] = 0;
        assert_eq!(Arp::parse(&other), None);
    }
}
