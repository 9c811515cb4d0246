//! Telling the neighbors who holds an address: gratuitous ARP (RFC 5227, section 3), unsolicited neighbor advertisements
//! (RFC 4861, section 7.2.6).
//!
//! A few times when it is taken, and then now and again for as long as it is held. Who was cut off meanwhile, a host or a switch, would
//! send to the old holder until its own kernel asks again, and that of a host that only answers may never.

mod rota;

use std::collections::BTreeMap;
use std::io;
use std::mem::size_of_val;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::task::JoinHandle;

use crate::jitter::jitter;
use crate::neighbor_discovery::advertisement;
use crate::nft::{Fence, SharedOwner};
use rota::Rota;

/// No announcement can be sent.
#[derive(Debug, Error)]
#[error("could not open a packet socket for announcements: it takes CAP_NET_RAW")]
pub struct AnnounceError(#[source] pub(crate) io::Error);

/// When an address is announced after it was taken. The first counts; the others are for neighbors that lost it. Who misses all of them
/// is told when the address has its turn.
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

/// Announces addresses of one interface.
///
/// # Guarantees
///
/// An address whose deadline has come is not announced, also by a process that goes on after it was frozen: another node may have it.
pub(crate) struct Announcer {
    voice: Arc<Voice>,
    pending: BTreeMap<IpAddr, JoinHandle<()>>,
    rota: Arc<Mutex<Rota>>,
    repeating: JoinHandle<()>,
}

impl Announcer {
    /// `every` says how often each address is announced that is held: see [`Config`](crate::Config).
    pub(crate) fn open(
        ifindex: u32,
        mac: [u8; 6],
        nft: SharedOwner,
        every: Duration,
    ) -> Result<Self, AnnounceError> {
        let voice = Arc::new(Voice {
            socket: open_socket()?,
            ifindex,
            mac: Mutex::new(mac),
            nft,
        });
        let rota = Arc::new(Mutex::new(Rota::new(every)));
        let repeating = tokio::spawn(repeat(Arc::clone(&voice), Arc::clone(&rota)));
        Ok(Self {
            voice,
            pending: BTreeMap::new(),
            rota,
            repeating,
        })
    }

    /// Announces by another link-layer address from now on.
    pub(crate) fn follow(&mut self, mac: [u8; 6]) {
        *self.voice.mac() = mac;
    }

    /// Announces `address` now and a few times more, and then as it has its turn.
    pub(crate) fn announce(&mut self, address: IpAddr) {
        self.withdraw(address);
        lock(&self.rota).add(address);
        let voice = Arc::clone(&self.voice);
        let tell = move || {
            if let Err(error) = voice.tell(address) {
                tracing::warn!(%address, %error, "announcement not sent");
            }
        };
        tell();
        let task = tokio::spawn(async move {
            for pause in DELAYS.windows(2).map(|pair| pair[1] - pair[0]) {
                tokio::time::sleep(pause).await;
                tell();
            }
        });
        self.pending.insert(address, task);
    }

    /// Announces these addresses as they have their turn, or no more: each with whether it is in use. Those that an earlier run
    /// took are among them.
    pub(crate) fn keep(&mut self, counted: &[(IpAddr, bool)]) {
        let mut rota = lock(&self.rota);
        for (address, is_used) in counted {
            match is_used {
                true => rota.add(*address),
                false => rota.remove(*address),
            }
        }
    }

    /// Announces `address` no more.
    pub(crate) fn withdraw(&mut self, address: IpAddr) {
        lock(&self.rota).remove(address);
        if let Some(task) = self.pending.remove(&address) {
            task.abort();
        }
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        self.repeating.abort();
        for task in self.pending.values() {
            task.abort();
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever panicked has left no half of anything behind.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Announces whose turn it is, for ever.
async fn repeat(voice: Arc<Voice>, rota: Arc<Mutex<Rota>>) {
    loop {
        let [earliest, latest] = lock(&rota).pause();
        tokio::time::sleep(jitter(earliest, latest, [])).await;
        let address = lock(&rota).next();
        if let Some(address) = address
            && let Err(error) = voice.tell(address)
        {
            // An interface that is off for hours is nothing to tell of each time.
            tracing::debug!(%address, %error, "announcement not sent");
        }
    }
}

/// A socket that stays open: opening one takes a thousand times as long as sending.
struct Voice {
    socket: OwnedFd,
    ifindex: u32,
    mac: Mutex<[u8; 6]>,
    nft: SharedOwner,
}

impl Voice {
    fn mac(&self) -> MutexGuard<'_, [u8; 6]> {
        lock(&self.mac)
    }

    /// Announces an address once, unless its deadline has come.
    fn tell(&self, address: IpAddr) -> io::Result<()> {
        // A packet socket sends past the tables that would keep us silent.
        if Fence::is_silent(&self.nft.lock(), address) {
            return Ok(());
        }
        let mac = *self.mac();
        let frames = match address {
            IpAddr::V4(address) => vec![
                frame(mac, address, Form::Request),
                frame(mac, address, Form::Reply),
            ],
            IpAddr::V6(address) => vec![advertisement(mac, address)],
        };
        frames
            .iter()
            .try_for_each(|frame| send(&self.socket, self.ifindex, frame))
    }
}

fn open_socket() -> Result<OwnedFd, AnnounceError> {
    let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers; protocol 0 receives nothing.
    let fd = unsafe { libc::socket(libc::AF_PACKET, flags, 0) };
    if fd < 0 {
        return Err(AnnounceError(io::Error::last_os_error()));
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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
