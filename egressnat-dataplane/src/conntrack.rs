//! Connections that the kernel tracks: which address they leave with, and how to make it forget one.
//!
//! Source NAT is decided by the first packet of a connection and then stays. When an egress IP comes to this node or leaves
//! it, running connections of this node's own pods have to be decided anew, or they would leave with the wrong address.

use std::collections::BTreeSet;
use std::net::IpAddr;

use egressnat_core::model::Protocol;
use thiserror::Error;

use crate::family::{Family, from_octets};
use crate::netfilter::{AskError, HEADER, ask};

/// Connections could not be listed or forgotten.
#[derive(Debug, Error)]
pub enum ConntrackError {
    /// The kernel did not list them.
    #[error("could not list connections, which takes the module nf_conntrack_netlink")]
    List(#[source] AskError),
    /// The kernel did not forget one.
    #[error("could not forget the connection from {from} to {to}")]
    Forget {
        /// Who opened it.
        from: IpAddr,
        /// To whom.
        to: IpAddr,
        /// What the kernel said.
        #[source]
        source: AskError,
    },
}

/// Message types and attributes of ctnetlink (`linux/netfilter/nfnetlink_conntrack.h`).
const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
const IPV4_SOURCE: u16 = 1;
const IPV4_DESTINATION: u16 = 2;
const IPV6_SOURCE: u16 = 3;
const IPV6_DESTINATION: u16 = 4;

/// Flags that share the attribute type's field.
const NESTED_AND_ORDER: u16 = 0xc000;

/// Bytes of `struct nfgenmsg`.
const GENERIC_HEADER: usize = 4;

/// One tracked connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Connection {
    /// Who opened it.
    pub(crate) source: IpAddr,
    /// To whom.
    pub(crate) destination: IpAddr,
    /// Who answers: another than the destination, if that was translated.
    pub(crate) answered_by: IpAddr,
    /// At which port; 0 for protocols without.
    pub(crate) answering_port: u16,
    /// Whom the other side sees: where replies go to.
    pub(crate) seen_as: IpAddr,
    /// From which port; 0 for protocols without.
    pub(crate) port: u16,
    /// From which port as the other side sees it.
    pub(crate) seen_port: u16,
    /// Over what.
    pub(crate) protocol: Option<Protocol>,
    /// The attributes by which the kernel finds it again.
    pub(crate) identity: Vec<u8>,
}

/// The connections of a family that the kernel tracks now.
pub(crate) fn connections(family: Family) -> Result<Vec<Connection>, ConntrackError> {
    let request = request(family, GET, libc::NLM_F_DUMP, &[]);
    let answer = ask(&request).map_err(ConntrackError::List)?;
    let parsed = answer
        .iter()
        .filter_map(|message| parse(message.payload().get(GENERIC_HEADER..)?));
    Ok(parsed.collect())
}

/// Makes the kernel forget a connection: its next packet is decided like a first one.
pub(crate) fn forget(connection: &Connection) -> Result<(), ConntrackError> {
    let family = Family::of(connection.source);
    match ask(&request(
        family,
        DELETE,
        libc::NLM_F_ACK,
        &connection.identity,
    )) {
        // It ended by itself.
        Err(AskError::Refused(error)) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(source) => Err(ConntrackError::Forget {
            from: connection.source,
            to: connection.destination,
            source,
        }),
        Ok(_) => Ok(()),
    }
}

/// The connections that are seen as coming from one of `addresses`.
pub(crate) fn connections_seen_as(
    addresses: &BTreeSet<IpAddr>,
) -> Result<Vec<Connection>, ConntrackError> {
    let mut seen = Vec::new();
    for family in Family::of_all(addresses) {
        let connections = connections(family)?.into_iter();
        seen.extend(connections.filter(|one| addresses.contains(&one.seen_as)));
    }
    Ok(seen)
}

fn request(family: Family, kind: u16, flags: i32, attributes: &[u8]) -> Vec<u8> {
    let length = HEADER + GENERIC_HEADER + attributes.len();
    let flags = (libc::NLM_F_REQUEST | flags) as u16;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend((SUBSYSTEM << 8 | kind).to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]); // sequence and port: the socket is used once
    let family = match family {
        Family::Ipv4 => libc::AF_INET,
        Family::Ipv6 => libc::AF_INET6,
    };
    bytes.extend([family as u8, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

fn parse(attributes: &[u8]) -> Option<Connection> {
    let original = find(attributes, TUPLE_ORIGINAL)?;
    let reply = find(attributes, TUPLE_REPLY)?;
    let identity = Attributes(attributes)
        .filter(|attribute| [TUPLE_ORIGINAL, ID, ZONE].contains(&attribute.kind))
        .flat_map(|attribute| attribute.whole)
        .copied()
        .collect();
    Some(Connection {
        source: source(original)?,
        destination: destination(original)?,
        answered_by: source(reply)?,
        port: port(original, SOURCE_PORT),
        seen_port: port(reply, DESTINATION_PORT),
        answering_port: port(reply, SOURCE_PORT),
        seen_as: destination(reply)?,
        protocol: find(original, TUPLE_PROTOCOL)
            .and_then(|protocol| find(protocol, PROTOCOL_NUMBER)?.first())
            .map(|number| Protocol(*number)),
        identity,
    })
}

fn source(tuple: &[u8]) -> Option<IpAddr> {
    address(tuple, [IPV4_SOURCE, IPV6_SOURCE])
}

fn destination(tuple: &[u8]) -> Option<IpAddr> {
    address(tuple, [IPV4_DESTINATION, IPV6_DESTINATION])
}

fn port(tuple: &[u8], kind: u16) -> u16 {
    let protocol = find(tuple, TUPLE_PROTOCOL);
    let port = protocol.and_then(|protocol| find(protocol, kind)?.first_chunk());
    port.map_or(0, |port| u16::from_be_bytes(*port))
}

/// A tuple has the address of one family.
fn address(tuple: &[u8], kinds: [u16; 2]) -> Option<IpAddr> {
    let addresses = find(tuple, TUPLE_IP)?;
    let octets = kinds.into_iter().find_map(|kind| find(addresses, kind))?;
    from_octets(octets)
}

fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    Attributes(attributes)
        .find(|attribute| attribute.kind == kind)
        .map(|attribute| attribute.value)
}

struct Attribute<'a> {
    kind: u16,
    value: &'a [u8],
    /// With header and padding.
    whole: &'a [u8],
}

/// Netlink attributes, one after the other.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let [a, b, c, d] = *self.0.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let kind = u16::from_ne_bytes([c, d]) & !NESTED_AND_ORDER;
        let value = self.0.get(4..length)?;
        let (whole, rest) = self
            .0
            .split_at(length.next_multiple_of(4).min(self.0.len()));
        self.0 = rest;
        Some(Attribute { kind, value, whole })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::octets;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = (value.len() as u16 + 4).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn tuple(kind: u16, source: &str, destination: &str) -> Vec<u8> {
        let (source, destination): (IpAddr, IpAddr) =
            (source.parse().unwrap(), destination.parse().unwrap());
        let kinds = match Family::of(source) {
            Family::Ipv4 => [IPV4_SOURCE, IPV4_DESTINATION],
            Family::Ipv6 => [IPV6_SOURCE, IPV6_DESTINATION],
        };
        let ip = [
            attribute(kinds[0], &octets(source)),
            attribute(kinds[1], &octets(destination)),
        ]
        .concat();
        let protocol = [
            attribute(PROTOCOL_NUMBER, &[17]),
            attribute(SOURCE_PORT, &443u16.to_be_bytes()),
            attribute(DESTINATION_PORT, &40_000u16.to_be_bytes()),
        ]
        .concat();
        let parts = [
            attribute(TUPLE_IP | 0x8000, &ip),
            attribute(TUPLE_PROTOCOL | 0x8000, &protocol),
        ];
        attribute(kind | 0x8000, &parts.concat())
    }

    #[test]
    fn a_translated_connection_is_seen_as_the_egress_ip() {
        for (pod, server, egress_ip) in [
            ("10.10.1.2", "8.8.8.8", "192.168.1.100"),
            ("fd00:10:10:1::2", "2001:db8::8", "fd00:192:168:1::100"),
        ] {
            let original = tuple(TUPLE_ORIGINAL, pod, server);
            let id = attribute(ID, &[0, 0, 0, 7]);
            let bytes = [
                original.clone(),
                tuple(TUPLE_REPLY, server, egress_ip),
                attribute(3, &[1, 2, 3, 4]),
                id.clone(),
            ]
            .concat();
            let connection = parse(&bytes).unwrap();
            assert_eq!(connection.source.to_string(), pod);
            assert_eq!(connection.destination.to_string(), server);
            assert_eq!(connection.answered_by, connection.destination);
            assert_eq!(connection.answering_port, 443);
            assert_eq!((connection.port, connection.seen_port), (443, 40_000));
            assert_eq!(connection.seen_as.to_string(), egress_ip);
            assert_eq!(connection.protocol, Some(Protocol::UDP));
            assert_eq!(connection.identity, [original, id].concat());
        }
    }

    #[test]
    fn garbage_is_no_connection() {
        for bytes in [&[][..], &[1], &[3, 0, 1, 0], &[255, 255, 1, 0, 9], &[0; 64]] {
            assert_eq!(parse(bytes), None, "{bytes:?}");
        }
    }
}
