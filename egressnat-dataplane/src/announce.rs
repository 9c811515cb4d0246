//! Telling the neighbors who holds an address: gratuitous ARP (RFC 5227, section 3), unsolicited neighbor advertisements
//! (RFC 4861, section 7.2.6).

use std::collections::BTreeMap;
use std::io;
use std::mem::size_of_val;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::task::JoinHandle;

use crate::neighbor_discovery::advertisement;

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

/// Stands in what we send about an address that the cluster has, so that the other nodes know it for the cluster's: in the padding of
/// ARP packets, in an option of neighbor discovery.
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

    /// Announces by another link-layer address from now on.
    pub(crate) fn follow(&mut self, mac: [u8; 6]) {
        self.mac = mac;
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
}
