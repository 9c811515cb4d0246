//! A packet socket for ARP on one interface.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::sys::socket::{MsgFlags, recv};
use tokio::io::unix::AsyncFd;

use super::Mac;
use super::arp::{Arp, Purpose, probe};
use crate::announce::send;

/// Sends probes, and receives all ARP packets that come in at the interface.
pub(super) struct ArpSocket {
    fd: AsyncFd<OwnedFd>,
    ifindex: u32,
    mac: Mac,
}

impl ArpSocket {
    pub(super) fn open(ifindex: u32, mac: Mac) -> io::Result<Self> {
        let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers. Protocol 0 receives nothing before the socket is bound to its interface.
        let fd = unsafe { libc::socket(libc::AF_PACKET, flags, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all-zero is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ARP as u16).to_be();
        address.sll_ifindex = ifindex.cast_signed();
        let length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: pointer and length are those of `address`, which outlives the call.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: an `OwnedFd` keeps its descriptor open, and the same, until it is dropped with the registration.
        let fd = unsafe { AsyncFd::register(fd)? };
        Ok(Self { fd, ifindex, mac })
    }

    pub(super) fn mac(&self) -> Mac {
        self.mac
    }

    /// Whether there are link-layer addresses at all.
    pub(super) fn is_ethernet(&self) -> bool {
        self.mac != Mac([0; 6])
    }

    /// Asks who has an address.
    pub(super) fn ask(&self, address: Ipv4Addr, purpose: Purpose) -> io::Result<()> {
        let frame = probe(self.mac, address, purpose);
        send(self.fd.get_ref(), self.ifindex, &frame)
    }

    /// Waits until something came in. False when the socket is of no use any more.
    pub(super) async fn readable(&self) -> bool {
        match self.fd.readable().await {
            Ok(mut guard) => {
                // What is there is taken next; the kernel then tells of what comes later.
                guard.clear_ready();
                true
            }
            Err(_) => false,
        }
    }

    /// The next ARP packet that has come in.
    pub(super) fn receive(&self) -> Option<Arp> {
        let mut frame = [0; 128];
        loop {
            match recv(self.fd.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    if let Some(packet) = Arp::parse(&frame[..length]) {
                        return Some(packet);
                    }
                }
                // An interface that went down is told once, and the socket goes on.
                Err(nix::Error::ENETDOWN | nix::Error::EINTR) => {}
                Err(_) => return None,
            }
        }
    }
}
