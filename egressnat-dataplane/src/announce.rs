//! Telling the neighbors who holds an address: gratuitous ARP (RFC 5227, section 3), unsolicited neighbor advertisements
//! (RFC 4861, section 7.2.6).

use std::collections::BTreeMap;
use std::io;
use std::mem::size_of_val;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::task::JoinHandle;

/// No announcement can be sent.
#[derive(Debug, Error)]
#[error("could not open a packet socket for announcements: it takes CAP_NET_RAW")]
pub struct AnnounceError(#[source] pub(crate) io::Error);

/// When an address is announced after it was taken. The first counts; the others are for neighbors that lost it. A
/// neighbor that misses all of them sends to the old holder until its entry is probed, tens of seconds later.
const DELAYS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(1000),
    Duration::from_millis(3000),
];

/// Stands in the padding of what we send about an address that the cluster has, so that the other nodes know it for the
/// cluster's.
pub(crate) const TAG: &[u8] = b"egressnat";

/// Announces addresses of one interface over one socket that stays open: opening one takes a thousand times as long as
/// sending.
pub(crate) struct Announcer {
    socket: Arc<OwnedFd>,
    ifindex: u32,
    mac: [u8; 6],
    pending: BTreeMap<IpAddr, JoinHandle<()>>,
}

impl Announcer {
    pub(crate) fn open(ifindex: u32, mac: [u8; 6]) -> Result<Self, AnnounceError> {
        let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers; protocol 0 receives nothing.
        let fd = unsafe { libc::socket(libc::AF_PACKET, flags, 0) };
        if fd < 0 {
            return Err(AnnounceError(io::Error::last_os_error()));
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let socket = Arc::new(unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(Self {
            socket,
            ifindex,
            mac,
            pending: BTreeMap::new(),
        })
    }

    /// Announces `address` now and a few times more.
    pub(crate) fn announce(&mut self, address: IpAddr) {
        self.withdraw(address);
        let frames = match address {
            IpAddr::V4(address) => vec![
                frame(self.mac, address, Form::Request),
                frame(self.mac, address, Form::Reply),
            ],
            IpAddr::V6(address) => vec![advertisement(self.mac, address)],
        };
        let (socket, ifindex) = (Arc::clone(&self.socket), self.ifindex);
        let send_all = move || {
            for frame in &frames {
                if let Err(error) = send(&socket, ifindex, frame) {
                    tracing::warn!(%address, %error, "announcement not sent");
                }
            }
        };
        send_all();
        let task = tokio::spawn(async move {
            for pause in DELAYS.windows(2).map(|pair| pair[1] - pair[0]) {
                tokio::time::sleep(pause).await;
                send_all();
            }
        });
        self.pending.insert(address, task);
    }

    /// Announces `address` no more.
    pub(crate) fn withdraw(&mut self, address: IpAddr) {
        if let Some(task) = self.pending.remove(&address) {
            task.abort();
        }
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        for task in self.pending.values() {
            task.abort();
        }
    }
}

/// Some neighbors learn from one form only.
#[derive(Clone, Copy)]
enum Form {
    Request,
    Reply,
}

/// An ARP packet whose sender and target are both `address` (RFC 826 for the layout), padded to the smallest frame.
fn frame(mac: [u8; 6], address: Ipv4Addr, form: Form) -> Vec<u8> {
    const BROADCAST: [u8; 6] = [0xff; 6];
    let (operation, target) = match form {
        Form::Request => (1, [0; 6]),
        Form::Reply => (2, BROADCAST),
    };
    let mut frame = Vec::with_capacity(60);
    frame.extend(BROADCAST);
    frame.extend(mac);
    frame.extend([0x08, 0x06]); // EtherType ARP
    frame.extend([0, 1, 0x08, 0x00, 6, 4, 0, operation]); // Ethernet, IPv4, their lengths
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend(target);
    frame.extend(address.octets());
    frame.extend(TAG);
    frame.resize(60, 0);
    frame
}

/// A neighbor advertisement for all nodes of the link, of `address` by itself.
fn advertisement(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
    const ICMPV6: u8 = libc::IPPROTO_ICMPV6 as u8;
    // A router, as each node that forwards; not asked; and what neighbors have is overridden.
    const ROUTER_AND_OVERRIDE: u8 = 0xa0;
    let mut message = vec![136, 0, 0, 0, ROUTER_AND_OVERRIDE, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]); // the target's link-layer address, in units of 8 bytes
    message.extend(mac);
    let length = message.len() as u8;

    let mut pseudo_header = [address.octets(), ALL_NODES.octets()].concat();
    pseudo_header.extend([0, 0, 0, length, 0, 0, 0, ICMPV6]);
    let sum = checksum(&[pseudo_header, message.clone()].concat());
    message[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut frame = Vec::with_capacity(86);
    frame.extend(ALL_NODES_MAC);
    frame.extend(mac);
    frame.extend([0x86, 0xdd]); // EtherType IPv6
    frame.extend([0x60, 0, 0, 0, 0, length, ICMPV6, 255]); // a router would have made the hop limit less
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
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

/// Sends one frame out of an interface.
pub(crate) fn send(socket: &OwnedFd, ifindex: u32, frame: &[u8]) -> io::Result<()> {
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_protocol = u16::from_ne_bytes([frame[12], frame[13]]);
    to.sll_ifindex = ifindex as i32;
    to.sll_halen = 6;
    to.sll_addr[..6].copy_from_slice(&frame[..6]);
    // SAFETY: pointers and lengths are those of `frame` and `to`, which outlive the call.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of_val(&to) as libc::socklen_t,
        )
    };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_has_the_address_as_sender_and_target() {
        let mac = [2, 0, 0, 0, 0, 1];
        let frame = frame(mac, Ipv4Addr::new(192, 168, 1, 100), Form::Request);
        assert_eq!(frame.len(), 60);
        assert_eq!(frame[6..12], mac);
        assert_eq!(frame[20..22], [0, 1]);
        assert_eq!(frame[28..32], [192, 168, 1, 100]);
        assert_eq!(frame[38..42], [192, 168, 1, 100]);
    }

    #[test]
    fn an_advertisement_overrides_and_its_checksum_is_right() {
        let mac = [2, 0, 0, 0, 0, 1];
        let address: Ipv6Addr = "fd00::100".parse().unwrap();
        let frame = advertisement(mac, address);
        assert_eq!(frame.len(), 86);
        assert_eq!(frame[22..38], address.octets());
        assert_eq!(frame[54..56], [136, 0]);
        assert_eq!(frame[58] & 0x20, 0x20, "override");
        assert_eq!(frame[62..78], address.octets());
        assert_eq!(frame[80..], mac);
        // Over pseudo-header and message with its checksum the sum is 0.
        let pseudo_header = [&frame[22..54], &[0, 0, 0, 32, 0, 0, 0, 58]].concat();
        assert_eq!(checksum(&[&pseudo_header, &frame[54..]].concat()), 0);
    }
}
