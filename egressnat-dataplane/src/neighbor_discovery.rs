//! Who has an address of IPv6, as told on Ethernet (RFC 4861): questions, announcements, and reading those of others.

use std::net::Ipv6Addr;

use crate::announce::TAG;

/// Types of ICMPv6 messages.
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// Options of neighbor discovery: link-layer addresses of a question's sender and of an announcement's target, the nonce of RFC 7527.
const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;
const NONCE: u8 = 14;
/// For experiments (RFC 4727): whoever does not know it skips it.
const EXPERIMENT: u8 = 253;

/// Of what was sent on this link: a router would have made it less.
const HOP_LIMIT: u8 = 255;
const ICMPV6: u8 = libc::IPPROTO_ICMPV6 as u8;
const ETHERTYPE: [u8; 2] = [0x86, 0xdd];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Bytes of the Ethernet header, of the IPv6 header, and of a message without options.
const ETHERNET: usize = 14;
const IPV6: usize = 40;
const MESSAGE: usize = 24;

/// Tells a sender's questions from those of others, should they come back to it (RFC 7527).
pub(crate) type Nonce = [u8; 6];

/// The two messages that are about one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Asks who has it.
    Solicitation,
    /// Says who has it.
    Advertisement,
}

/// A message about one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: Kind,
    /// From which address; unspecified where the sender asks before it takes the one that it asks for.
    pub(crate) source: Ipv6Addr,
    pub(crate) target: Ipv6Addr,
    /// The link-layer address that it names, or else came from.
    pub(crate) mac: [u8; 6],
    pub(crate) nonce: Option<Nonce>,
    /// An agent of ours sent it about an address that it has, or just gave up.
    pub(crate) is_tagged: bool,
}

impl Message {
    /// Reads a frame; none if it is anything else, or not as RFC 4861 has it (sections 7.1.1 and 7.1.2). The checksum is not looked at:
    /// of what comes from the same machine it may not be there yet.
    pub(crate) fn parse(frame: &[u8]) -> Option<Self> {
        let header = frame.get(ETHERNET..ETHERNET + IPV6)?;
        let is_neighbor_discovery = frame[12..ETHERNET] == ETHERTYPE
            && header[0] >> 4 == 6
            && header[6] == ICMPV6
            && header[7] == HOP_LIMIT;
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let message = frame.get(ETHERNET + IPV6..ETHERNET + IPV6 + length)?;
        let (fixed, mut options) = message.split_at_checked(MESSAGE)?;
        let (kind, names) = match fixed[0] {
            SOLICITATION => (Kind::Solicitation, SOURCE_MAC),
            ADVERTISEMENT => (Kind::Advertisement, TARGET_MAC),
            _ => return None,
        };
        let target = Ipv6Addr::from(*fixed[8..].first_chunk::<16>()?);
        if !is_neighbor_discovery || fixed[1] != 0 || target.is_multicast() {
            return None;
        }
        let mut parsed = Self {
            kind,
            source: Ipv6Addr::from(*header[8..].first_chunk::<16>()?),
            target,
            mac: *frame[6..].first_chunk()?,
            nonce: None,
            is_tagged: false,
        };
        while let [of, units, ..] = *options {
            let length = usize::from(units) * 8;
            let (option, rest) = options.split_at_checked(length).filter(|_| length > 0)?;
            match of {
                NONCE => parsed.nonce = option[2..].first_chunk().copied(),
                EXPERIMENT => parsed.is_tagged = option[2..].starts_with(TAG),
                _ if of == names => parsed.mac = *option[2..].first_chunk()?,
                _ => {}
            }
            options = rest;
        }
        Some(parsed)
    }
}

/// Whether what is sent carries the word by which agents know each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tag {
    Present,
    Absent,
}

/// The frame that tells all nodes of the link, unasked, that `address` is at `mac`.
pub(crate) fn advertisement(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    // A router, as each node that forwards; not asked; and what neighbors have is overridden.
    const ROUTER_AND_OVERRIDE: u8 = 0xa0;
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, ROUTER_AND_OVERRIDE, 0, 0, 0];
    message.extend(address.octets());
    message.extend([TARGET_MAC, 1]);
    message.extend(mac);
    add_tag(&mut message);
    frame(mac, address, ALL_NODES, message)
}

/// The frame that asks for an address without claiming one, as before it is taken (RFC 4862, section 5.4.2).
pub(crate) fn solicitation(mac: [u8; 6], address: Ipv6Addr, nonce: Nonce, tag: Tag) -> Vec<u8> {
    let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(address.octets());
    message.extend([NONCE, 1]);
    message.extend(nonce);
    if tag == Tag::Present {
        add_tag(&mut message);
    }
    let group = solicited_nodes(address);
    frame(mac, Ipv6Addr::UNSPECIFIED, group, message)
}

/// The group that questions about an address go to (RFC 4291, section 2.7.1).
pub(crate) fn solicited_nodes(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    let [high, low] = [[0xff, a], [b, c]].map(u16::from_be_bytes);
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, high, low)
}

fn add_tag(message: &mut Vec<u8>) {
    let units = (2 + TAG.len()).div_ceil(8);
    message.extend([EXPERIMENT, units as u8]);
    message.extend(TAG);
    message.resize(message.len().next_multiple_of(8), 0);
}

/// A message to a group, with its checksum and all headers.
fn frame(mac: [u8; 6], source: Ipv6Addr, group: Ipv6Addr, mut message: Vec<u8>) -> Vec<u8> {
    let length = message.len() as u8;
    let mut pseudo_header = [source.octets(), group.octets()].concat();
    pseudo_header.extend([0, 0, 0, length, 0, 0, 0, ICMPV6]);
    let sum = checksum(&[pseudo_header, message.clone()].concat());
    message[2..4].copy_from_slice(&sum.to_be_bytes());

    let [.., a, b, c, d] = group.octets();
    let mut frame = Vec::with_capacity(ETHERNET + IPV6 + message.len());
    frame.extend([0x33, 0x33, a, b, c, d]);
    frame.extend(mac);
    frame.extend(ETHERTYPE);
    frame.extend([0x60, 0, 0, 0, 0, length, ICMPV6, HOP_LIMIT]);
    frame.extend(source.octets());
    frame.extend(group.octets());
    frame.extend(message);
    frame
}

/// The checksum of the Internet (RFC 1071) over an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2);
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const NUMBER: Nonce = [1, 2, 3, 4, 5, 6];

    fn address() -> Ipv6Addr {
        "fd00::12:3456".parse().unwrap()
    }

    /// What a checksum over pseudo-header and message is, the message's own included: 0 where it is right.
    fn sum_of(frame: &[u8]) -> u16 {
        let length = frame.len() - ETHERNET - IPV6;
        let pseudo_header = [&frame[22..54], &[0, 0, 0, length as u8, 0, 0, 0, 58]].concat();
        checksum(&[&pseudo_header, &frame[54..]].concat())
    }

    #[test]
    fn an_advertisement_overrides_and_its_checksum_is_right() {
        let frame = advertisement(OWN, address());
        assert_eq!(frame[..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(frame[22..38], address().octets());
        assert_eq!(frame[58] & 0x20, 0x20, "override");
        assert_eq!(sum_of(&frame), 0);
        let message = Message::parse(&frame).unwrap();
        assert_eq!(
            (message.kind, message.target, message.mac),
            (Kind::Advertisement, address(), OWN)
        );
        assert!(message.is_tagged);
    }

    #[test]
    fn a_question_before_an_address_is_taken_claims_nothing_and_is_known_by_its_nonce() {
        for (tag, is_tagged) in [(Tag::Absent, false), (Tag::Present, true)] {
            let frame = solicitation(OWN, address(), NUMBER, tag);
            assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
            let group: Ipv6Addr = "ff02::1:ff12:3456".parse().unwrap();
            assert_eq!(frame[38..54], group.octets());
            assert_eq!(sum_of(&frame), 0);
            let want = Message {
                kind: Kind::Solicitation,
                source: Ipv6Addr::UNSPECIFIED,
                target: address(),
                mac: OWN,
                nonce: Some(NUMBER),
                is_tagged,
            };
            assert_eq!(Message::parse(&frame), Some(want));
        }
    }

    #[test]
    fn who_has_an_address_is_in_the_option_where_another_sends_the_frame() {
        let mut frame = advertisement(OWN, address());
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        assert_eq!(Message::parse(&frame).unwrap().mac, OWN);
        // Another option in its place.
        frame[78] = 77;
        let message = Message::parse(&frame).unwrap();
        assert_eq!(message.mac, [2, 0, 0, 0, 0, 9]);
    }

    #[test]
    fn what_is_cut_or_something_else_is_not_read() {
        let frame = advertisement(OWN, address());
        for cut in 0..frame.len() {
            assert_eq!(Message::parse(&frame[..cut]), None, "{cut} bytes");
        }
        for (at, byte, what) in [
            (13, 0, "another EtherType"),
            (20, 17, "another protocol"),
            (21, 254, "came through a router"),
            (54, 137, "another type"),
            (55, 1, "another code"),
            (62, 0xff, "about a group"),
            (79, 0, "an option without end"),
            (79, 9, "an option longer than the message"),
        ] {
            let mut other = frame.clone();
            other[at] = byte;
            assert_eq!(Message::parse(&other), None, "{what}");
        }
        // What follows the packet in its frame is none of it.
        let padded = [frame.clone(), vec![255; 9]].concat();
        assert_eq!(Message::parse(&padded), Message::parse(&frame));
    }
}
