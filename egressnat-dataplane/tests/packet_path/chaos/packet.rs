//! What is on the wire of a packet, as far as this test has something to say about it.

use std::net::IpAddr;

/// A packet of UDP or TCP.
pub(super) struct Packet {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// Hops that are left.
    pub(super) hops: u8,
    /// The ports that it comes from and goes to.
    pub(super) ports: [u16; 2],
    pub(super) kind: Kind,
}

/// What tells when a packet was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The change that its sender knew of stands in it.
    Datagram(u16),
    /// Its flags, and what its sender's clock showed (RFC 7323), in milliseconds. Resets that answer a packet have no time.
    Segment(u8, Option<u32>),
}

impl Packet {
    /// Reads an IP packet without options or extension headers.
    pub(super) fn parse(packet: &[u8]) -> Option<Self> {
        const TCP: u8 = 6;
        const UDP: u8 = 17;
        let (protocol, hops, source, destination, header) = match packet.first()? >> 4 {
            4 => (9, 8, 12..16, 16..20, 20),
            6 => (6, 7, 8..24, 24..40, 40),
            _ => return None,
        };
        let address = |range| {
            let octets: &[u8] = packet.get(range)?;
            let ipv4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
            ipv4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from))
                .ok()
        };
        let payload = packet.get(header..)?;
        let kind = match *packet.get(protocol)? {
            UDP => Kind::Datagram(number(payload, 8)?),
            TCP => Kind::Segment(*payload.get(13)?, timestamp(payload)),
            _ => return None,
        };
        Some(Self {
            source: address(source)?,
            destination: address(destination)?,
            hops: *packet.get(hops)?,
            ports: [number(payload, 0)?, number(payload, 2)?],
            kind,
        })
    }
}

fn number(octets: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*octets.get(at..)?.first_chunk()?))
}

/// The sender's time in a TCP segment.
fn timestamp(segment: &[u8]) -> Option<u32> {
    const END: u8 = 0;
    const PADDING: u8 = 1;
    const TIMESTAMPS: u8 = 8;
    let length = usize::from(segment.get(12)? >> 4) * 4;
    let mut options = segment.get(20..length)?;
    loop {
        match options {
            [] | [END, ..] => return None,
            [PADDING, rest @ ..] => options = rest,
            [TIMESTAMPS, 10, rest @ ..] => return Some(u32::from_be_bytes(*rest.first_chunk()?)),
            [_, length, ..] => options = options.get(usize::from(*length).max(2)..)?,
            [_] => return None,
        }
    }
}
