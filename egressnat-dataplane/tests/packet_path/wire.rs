//! What is on the wire, and packets that no socket would send.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recvfrom,
    sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::network::{Network, eventually};

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const SCTP: u8 = 132;

/// UDP port of the tunnel.
pub(crate) const TUNNEL_PORT: u16 = 8473;

const DONT_FRAGMENT: u16 = 0x4000;
const ETHERNET: usize = 14;
const VXLAN: usize = 8;

/// IPv6's extension header of fragments.
const FRAGMENT: u8 = 44;
/// Types of neighbor discovery (RFC 4861).
const NEIGHBOR_DISCOVERY: std::ops::RangeInclusive<u8> = 133..=137;

/// An IP packet of either family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    pub(crate) tos: u8,
    /// Nobody on the way may fragment it, which goes for all of IPv6.
    pub(crate) dont_fragment: bool,
    /// The header's length is right, and its checksum where it has one.
    pub(crate) has_right_header: bool,
    /// More fragments follow, or this is not the first.
    pub(crate) is_fragment: bool,
    pub(crate) payload: Vec<u8>,
}

impl Packet {
    /// Reads an IP header and what follows.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::parse_ipv4(bytes),
            6 => Self::parse_ipv6(bytes),
            _ => None,
        }
    }

    fn parse_ipv4(bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(..20)?;
        let length = usize::from(header[0] & 0xf) * 4;
        let flags = u16::from_be_bytes([header[6], header[7]]);
        let address = |at: usize| IpAddr::from(*header[at..].first_chunk::<4>().unwrap());
        Some(Self {
            source: address(12),
            destination: address(16),
            protocol: header[9],
            ttl: header[8],
            tos: header[1],
            has_right_header: checksum(bytes.get(..length)?) == 0
                && usize::from(u16::from_be_bytes([header[2], header[3]])) == bytes.len(),
            dont_fragment: flags & DONT_FRAGMENT != 0,
            is_fragment: flags & 0x3fff != 0,
            payload: bytes.get(length..)?.to_vec(),
        })
    }

    fn parse_ipv6(bytes: &[u8]) -> Option<Self> {
        let (header, rest) = bytes.split_at_checked(40)?;
        let is_fragment = header[6] == FRAGMENT;
        let (protocol, payload) = match is_fragment {
            true => (*rest.first()?, rest.get(8..)?),
            false => (header[6], rest),
        };
        let address = |at: usize| IpAddr::from(*header[at..].first_chunk::<16>().unwrap());
        Some(Self {
            source: address(8),
            destination: address(24),
            protocol,
            ttl: header[7],
            tos: header[0] << 4 | header[1] >> 4,
            has_right_header: usize::from(u16::from_be_bytes([header[4], header[5]])) == rest.len(),
            dont_fragment: true,
            is_fragment,
            payload: payload.to_vec(),
        })
    }

    /// A packet that may be fragmented and goes 64 hops.
    pub(crate) fn new(source: &str, destination: &str, protocol: u8, payload: Vec<u8>) -> Self {
        Self {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol,
            ttl: 64,
            tos: 0,
            has_right_header: true,
            dont_fragment: false,
            is_fragment: false,
            payload,
        }
    }

    /// A UDP datagram. Over IPv4 it has no checksum.
    pub(crate) fn udp(source: (&str, u16), destination: (&str, u16), data: &[u8]) -> Self {
        let length = u16::try_from(8 + data.len()).unwrap();
        let mut payload = [source.1, destination.1, length, 0]
            .map(u16::to_be_bytes)
            .concat();
        payload.extend(data);
        let packet = Self::new(source.0, destination.0, UDP, payload);
        match packet.source {
            IpAddr::V4(_) => packet,
            IpAddr::V6(_) => packet.with_checksum(6),
        }
    }

    /// A TCP segment without data, by its flags.
    pub(crate) fn tcp(source: (&str, u16), destination: (&str, u16), flags: u8) -> Self {
        let mut payload = [source.1, destination.1].map(u16::to_be_bytes).concat();
        payload.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        Self::new(source.0, destination.0, TCP, payload).with_checksum(16)
    }

    /// An echo request.
    pub(crate) fn echo_request(source: &str, destination: &str) -> Self {
        let echo = |kind| vec![kind, 0, 0, 0, 0, 1, 0, 1];
        let mut packet = Self::new(source, destination, ICMP, echo(8));
        if packet.source.is_ipv6() {
            (packet.protocol, packet.payload) = (ICMPV6, echo(128));
            return packet.with_checksum(2);
        }
        let sum = checksum(&packet.payload);
        packet.payload[2..4].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    /// With the checksum of a protocol that sums the addresses up too, which has its place in the payload.
    fn with_checksum(mut self, at: usize) -> Self {
        let sum = self.sum();
        self.payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        self
    }

    /// Of the pseudo header (RFC 9293, section 3.1; RFC 8200, section 8.1) and the payload. The words of either family's sum up to the same.
    fn sum(&self) -> u16 {
        let mut summed = [octets(self.source), octets(self.destination)].concat();
        summed.extend(u16::try_from(self.payload.len()).unwrap().to_be_bytes());
        summed.extend([0, self.protocol]);
        summed.extend(&self.payload);
        checksum(&summed)
    }

    /// An SCTP packet of one chunk.
    pub(crate) fn sctp(
        source: (&str, u16),
        destination: (&str, u16),
        tag: u32,
        chunk: &[u8],
    ) -> Self {
        let mut payload = [source.1, destination.1].map(u16::to_be_bytes).concat();
        payload.extend(tag.to_be_bytes());
        payload.extend([0; 4]);
        payload.extend(chunk);
        let sum = crc32c(&payload);
        payload[8..12].copy_from_slice(&sum.to_le_bytes());
        Self::new(source.0, destination.0, SCTP, payload)
    }

    /// What an SCTP packet's checksum is, and what it should be.
    pub(crate) fn sctp_checksums(&self) -> [u32; 2] {
        let mut zeroed = self.payload.clone();
        zeroed[8..12].fill(0);
        let found = u32::from_le_bytes(*self.payload[8..].first_chunk().unwrap());
        [found, crc32c(&zeroed)]
    }

    /// This packet as it goes through the tunnel: inside VXLAN from `source` to `gateway`.
    pub(crate) fn tunneled(&self, source: &str, gateway: &str, vni: u32) -> Self {
        let mut data = vec![0x08, 0, 0, 0];
        data.extend((vni << 8).to_be_bytes());
        data.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        data.extend(match self.source {
            IpAddr::V4(_) => [0x08, 0x00],
            IpAddr::V6(_) => [0x86, 0xdd],
        });
        data.extend(self.bytes());
        Self::udp((source, 40_000), (gateway, TUNNEL_PORT), &data)
    }

    /// Whether it is one of the tunnel.
    pub(crate) fn is_tunneled(&self) -> bool {
        self.protocol == UDP && self.ports().is_some_and(|(_, to)| to == TUNNEL_PORT)
    }

    /// What a packet of the tunnel has inside, and its VNI.
    pub(crate) fn inner(&self) -> Option<(u32, Self)> {
        let vxlan = self.payload.get(8..).filter(|_| self.is_tunneled())?;
        let vni = u32::from_be_bytes(*vxlan.get(4..)?.first_chunk()?) >> 8;
        Some((vni, Self::parse(vxlan.get(VXLAN + ETHERNET..)?)?))
    }

    /// The packet that an ICMP error is about; a part of it.
    pub(crate) fn cause(&self) -> Option<Self> {
        Self::parse(self.payload.get(8..)?)
    }

    /// Type and code of an ICMP message.
    pub(crate) fn icmp(&self) -> Option<(u8, u8)> {
        let is_icmp = [ICMP, ICMPV6].contains(&self.protocol) && self.payload.len() >= 2;
        is_icmp.then(|| (self.payload[0], self.payload[1]))
    }

    /// Whether it asks or says who has an address of IPv6.
    pub(crate) fn is_neighbor_discovery(&self) -> bool {
        self.protocol == ICMPV6 && NEIGHBOR_DISCOVERY.contains(&self.payload[0])
    }

    /// The next hop's MTU in a "fragmentation needed" or a "packet too big", which has two octets more for it.
    pub(crate) fn told_mtu(&self) -> u16 {
        u16::from_be_bytes([self.payload[6], self.payload[7]])
    }

    /// Source and destination port.
    pub(crate) fn ports(&self) -> Option<(u16, u16)> {
        let port = |at: usize| Some(u16::from_be_bytes(*self.payload.get(at..)?.first_chunk()?));
        Some((port(0)?, port(2)?))
    }

    pub(crate) fn is_from(&self, address: &str) -> bool {
        self.source == address.parse::<IpAddr>().unwrap()
    }

    pub(crate) fn is_to(&self, address: &str) -> bool {
        self.destination == address.parse::<IpAddr>().unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = match self.source {
            IpAddr::V4(_) => self.ipv4_header(),
            IpAddr::V6(_) => self.ipv6_header(),
        };
        bytes.extend(&self.payload);
        bytes
    }

    fn ipv4_header(&self) -> Vec<u8> {
        let length = u16::try_from(20 + self.payload.len()).unwrap();
        let flags = if self.dont_fragment { DONT_FRAGMENT } else { 0 };
        let mut bytes = vec![0x45, self.tos];
        bytes.extend(length.to_be_bytes());
        bytes.extend([0, 1]);
        bytes.extend(flags.to_be_bytes());
        bytes.extend([self.ttl, self.protocol, 0, 0]);
        bytes.extend(octets(self.source));
        bytes.extend(octets(self.destination));
        let sum = checksum(&bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn ipv6_header(&self) -> Vec<u8> {
        let length = u16::try_from(self.payload.len()).unwrap();
        let mut bytes = vec![0x60 | self.tos >> 4, self.tos << 4, 0, 0];
        bytes.extend(length.to_be_bytes());
        bytes.extend([self.protocol, self.ttl]);
        bytes.extend(octets(self.source));
        bytes.extend(octets(self.destination));
        bytes
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match *pair {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        [high] => u32::from(high) << 8,
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// SCTP's checksum (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |mut crc, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
        crc
    })
}

/// Everything that one interface sends and receives, until it is dropped.
pub(crate) struct Wire {
    packets: Arc<Mutex<Vec<Packet>>>,
    stop: Arc<AtomicBool>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Wire {
    /// The packets so far, oldest first.
    pub(crate) fn packets(&self) -> Vec<Packet> {
        self.packets.lock().unwrap().clone()
    }

    /// How many packets so far match.
    pub(crate) fn count(&self, matches: impl Fn(&Packet) -> bool) -> usize {
        self.packets()
            .iter()
            .filter(|packet| matches(packet))
            .count()
    }

    /// Waits for a packet and gives it.
    pub(crate) fn wait_for(&self, what: &str, matches: impl Fn(&Packet) -> bool) -> Packet {
        let find = || self.packets().into_iter().find(|packet| matches(packet));
        eventually((what, true), || (what, find().is_some()));
        find().unwrap()
    }
}

impl Network {
    /// Listens on an interface. What is sent after this call returns is seen.
    pub(crate) fn listen(&self, name: &str, interface: &'static str) -> Wire {
        let (socket, index) = self.enter(name, move || {
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::empty(),
                SockProtocol::EthAll,
            )
            .unwrap();
            // A bulk transfer should not overflow it: nothing but memory is lost.
            let _ = setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20));
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50)).unwrap();
            let index = nix::net::if_::if_nametoindex(interface).unwrap();
            (socket, index)
        });
        let (packets, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let wire = Wire { packets, stop };
        let (packets, stop) = (Arc::clone(&wire.packets), Arc::clone(&wire.stop));
        thread::spawn(move || {
            let mut buffer = vec![0; 128 << 10];
            while !stop.load(Ordering::Relaxed) {
                let Ok((length, Some(from))) =
                    recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer)
                else {
                    continue;
                };
                if from.ifindex() == index as usize
                    && let Some(frame) = buffer.get(ETHERNET..length)
                {
                    packets.lock().unwrap().extend(Packet::parse(frame));
                }
            }
        });
        wire
    }

    /// Sends a packet as it is.
    pub(crate) fn inject(&self, from: &str, packet: &Packet) {
        let (bytes, to) = (packet.bytes(), packet.destination);
        self.enter(from, move || {
            let family = match to {
                IpAddr::V4(_) => AddressFamily::Inet,
                IpAddr::V6(_) => AddressFamily::Inet6,
            };
            let socket =
                socket(family, SockType::Raw, SockFlag::empty(), SockProtocol::Raw).unwrap();
            let to = SockaddrStorage::from(SocketAddr::new(to, 0));
            let sent = sendto(socket.as_raw_fd(), &bytes, &to, MsgFlags::empty());
            assert_eq!(sent.unwrap(), bytes.len());
        });
    }
}
