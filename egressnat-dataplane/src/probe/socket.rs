//! A packet socket for what hosts on one interface say about addresses of one family.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::mem::size_of_val;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nix::sys::socket::{MsgFlags, recv};
use tokio::io::unix::AsyncFd;

use super::arp::{self, Arp};
use super::statement::Statement;
use super::{Mac, Purpose};
use crate::announce::send;
use crate::family::Family;
use crate::neighbor_discovery::{Message, Nonce, Tag, solicitation};

/// Lets neighbor solicitations (ICMPv6 type 135) and advertisements (136) into the socket, and nothing else of IPv6: all else is the
/// node's traffic. In the kernel's classic BPF, over a frame with its Ethernet header.
const NEIGHBOR_DISCOVERY: [libc::sock_filter; 7] = {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    const JUMP: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    const fn operation(code: u32, k: u32, [jt, jf]: [u8; 2]) -> libc::sock_filter {
        let code = code as u16;
        libc::sock_filter { code, jt, jf, k }
    }
    [
        operation(LOAD, 20, [0, 0]), // what follows the IPv6 header
        operation(JUMP, libc::IPPROTO_ICMPV6 as u32, [0, 3]),
        operation(LOAD, 54, [0, 0]), // the type of the message
        operation(JUMP, 135, [2, 0]),
        operation(JUMP, 136, [1, 0]),
        operation(RETURN, 0, [0, 0]),
        operation(RETURN, u32::MAX, [0, 0]),
    ]
};

/// Sends probes, and receives all that comes in at the interface about addresses of its family.
pub(super) struct Socket {
    fd: AsyncFd<OwnedFd>,
    family: Family,
    ifindex: u32,
    /// The interface's, which may change: by it an answer finds back, and what this node says itself is known.
    mac: Mutex<Mac>,
    nonce: Nonce,
}

impl Socket {
    pub(super) fn open(family: Family, ifindex: u32, mac: Mac) -> io::Result<Self> {
        let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers. Protocol 0 receives nothing before the socket is bound to its interface.
        let fd = unsafe { libc::socket(libc::AF_PACKET, flags, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let protocol = match family {
            Family::Ipv4 => libc::ETH_P_ARP,
            Family::Ipv6 => {
                let_in(&fd, &NEIGHBOR_DISCOVERY)?;
                libc::ETH_P_IPV6
            }
        };
        // SAFETY: all-zero is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (protocol as u16).to_be();
        address.sll_ifindex = ifindex.cast_signed();
        let length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: pointer and length are those of `address`, which outlives the call.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: an `OwnedFd` keeps its descriptor open, and the same, until it is dropped with the registration.
        let fd = unsafe { AsyncFd::register(fd)? };
        // What the standard library seeds its maps with is random.
        let random = RandomState::new().build_hasher().finish().to_ne_bytes();
        let [nonce @ .., _, _] = random;
        Ok(Self {
            fd,
            family,
            ifindex,
            mac: Mutex::new(mac),
            nonce,
        })
    }

    pub(super) fn family(&self) -> Family {
        self.family
    }

    pub(super) fn mac(&self) -> Mac {
        *self.mac.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the interface has another link-layer address now.
    pub(super) fn set_mac(&self, mac: Mac) {
        *self.mac.lock().unwrap_or_else(PoisonError::into_inner) = mac;
    }

    /// Asks who has an address.
    pub(super) fn ask(&self, address: IpAddr, purpose: Purpose) -> io::Result<()> {
        let frame = match address {
            IpAddr::V4(address) => arp::probe(self.mac(), address, purpose),
            IpAddr::V6(address) => {
                let tag = match purpose {
                    Purpose::Take => Tag::Absent,
                    Purpose::GiveUp => Tag::Present,
                };
                solicitation(self.mac().0, address, self.nonce, tag)
            }
        };
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

    /// The next thing that was said about an address.
    pub(super) fn receive(&self) -> Option<Statement> {
        let mut frame = [0; 256];
        loop {
            match recv(self.fd.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    if let Some(said) = self.read(&frame[..length]) {
                        return Some(said);
                    }
                }
                // An interface that went down is told once, and the socket goes on.
                Err(nix::Error::ENETDOWN | nix::Error::EINTR) => {}
                Err(_) => return None,
            }
        }
    }

    fn read(&self, frame: &[u8]) -> Option<Statement> {
        match self.family {
            Family::Ipv4 => Arp::parse(frame).map(Statement::from),
            Family::Ipv6 => {
                let message = Message::parse(frame)?;
                // A network may give back what it was given, under another link-layer address too (RFC 7527).
                let is_own = message.nonce == Some(self.nonce);
                (!is_own).then(|| Statement::from(message))
            }
        }
    }
}

/// Has a socket receive only what a filter lets in.
fn let_in(fd: &OwnedFd, filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    let length = size_of_val(&program) as libc::socklen_t;
    // SAFETY: pointers and lengths are those of `program` and `filter`, which outlive the call; the kernel copies and does not write them.
    let set = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            length,
        )
    };
    match set {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
