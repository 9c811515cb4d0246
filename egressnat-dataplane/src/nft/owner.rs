//! The one socket that writes our tables. They belong to it: while it lives the kernel refuses changes that come by any
//! other, and `nft flush ruleset` passes them by.
//!
//! When the process ends, however it ends, the tables stay, unprotected. The next run adopts them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::mem::size_of_val;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nftnl::{Batch, FinalizedBatch, MsgType, ProtoFamily};

use super::batch::{NftError, first_error};
use super::events::Events;
use super::query::{self, PresentTable};
use super::table::Named;
use crate::config::TableOwnership;
use crate::lock::{PATIENCE, PAUSE};
use crate::process::Process;

/// `NFT_TABLE_F_OWNER` (since 5.12) and `NFT_TABLE_F_PERSIST` (since 6.9) of `linux/netfilter/nf_tables.h`.
pub(super) const OWNED: u32 = 0x2;
pub(super) const PERSISTENT: u32 = 0x4;

/// `NFT_TABLE_F_DORMANT`: its chains are not asked.
const DORMANT: u32 = 0x1;

/// The families that we may have a table of.
pub(super) const FAMILIES: [ProtoFamily; 3] =
    [ProtoFamily::Ipv4, ProtoFamily::Ipv6, ProtoFamily::Arp];

/// The owner, for all who write our tables. Clones are of one thing.
#[derive(Debug, Clone)]
pub(crate) struct SharedOwner(Arc<Mutex<Owner>>);

impl SharedOwner {
    /// Opens the socket, once nobody else owns our tables. They are made and adopted later.
    pub(crate) async fn open(ownership: TableOwnership) -> Result<Self, NftError> {
        let owner = Owner::open(ownership)?;
        owner.until_free().await?;
        Ok(Self(Arc::new(Mutex::new(owner))))
    }

    /// Keeps the others from writing: what is read and then written is one thing, and so are a batch and its answer. Not to be
    /// held for longer than that.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Owner> {
        // Whoever panicked left no batch half written: the kernel takes them whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A socket that owns the tables it makes.
#[derive(Debug)]
pub(crate) struct Owner {
    socket: OwnedFd,
    /// What the kernel calls the socket.
    port: u32,
    protection: Protection,
    /// Families and layouts of the tables that are seen to be this socket's: nobody else takes them away or alters them any more.
    owned: Vec<(ProtoFamily, Vec<u8>)>,
    /// The fenced addresses, and until when each may be used, as far as this owner has read or written it.
    pub(super) fenced: BTreeMap<IpAddr, Instant>,
}

/// Whether the kernel keeps others from our tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protection {
    Owned,
    None,
}

/// What there is to do about a table.
pub(super) enum Standing {
    /// Nobody but us can have changed it.
    Owned,
    /// It says that it is of this layout. Others could have changed it.
    Open(PresentTable),
    /// It is not there, or is another.
    Other(Option<PresentTable>),
}

impl Owner {
    /// Opens the socket. Tables are made and adopted later.
    pub(crate) fn open(ownership: TableOwnership) -> Result<Self, NftError> {
        let (socket, port) = bound_socket(0)?;
        Ok(Self {
            socket,
            port,
            protection: match ownership {
                TableOwnership::WherePossible => Protection::Owned,
                TableOwnership::Never => Protection::None,
            },
            owned: Vec::new(),
            fenced: BTreeMap::new(),
        })
    }

    /// What others do to our tables. Nothing is told where they can do nothing.
    pub(crate) fn events(&self) -> Result<Option<Events>, NftError> {
        match self.protection {
            Protection::Owned => Ok(None),
            Protection::None => Events::open(self.port).map(Some),
        }
    }

    /// Waits until no process that runs owns one of our tables: one that was just killed may take a while to be gone, and so may a child
    /// that it was about to start. Refuses after a while.
    pub(crate) async fn until_free(&self) -> Result<(), NftError> {
        let start = tokio::time::Instant::now();
        loop {
            match self.check_free() {
                Err(NftError::Owned { .. }) if start.elapsed() < PATIENCE => {}
                checked => return checked,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Refuses if a process that runs owns one of our tables.
    fn check_free(&self) -> Result<(), NftError> {
        for family in FAMILIES {
            // A kernel that knows no tables of a family has none.
            if let Ok(Some(table)) = query::table(family) {
                self.check_owner(family, &table)?;
            }
        }
        Ok(())
    }

    fn check_owner(&self, family: ProtoFamily, table: &PresentTable) -> Result<(), NftError> {
        match table.owner {
            Some(port) if port != self.port => Err(NftError::Owned {
                family: match family {
                    ProtoFamily::Arp => "arp",
                    ProtoFamily::Ipv6 => "ip6",
                    _ => "ip",
                },
                process: Process::from(process_of(port)),
            }),
            _ => Ok(()),
        }
    }

    /// Looks at our table of a family. One of this layout that an earlier run left is adopted.
    pub(super) fn look(
        &mut self,
        family: ProtoFamily,
        layout: &[u8],
    ) -> Result<Standing, NftError> {
        let mut owned = self.owned.iter();
        if owned.any(|(other, of)| *other == family && of == layout) {
            return Ok(Standing::Owned);
        }
        let Some(table) = query::table(family)? else {
            return Ok(Standing::Other(None));
        };
        self.check_owner(family, &table)?;
        if table.userdata != layout || table.flags & DORMANT != 0 {
            return Ok(Standing::Other(Some(table)));
        }
        match (self.protection, table.owner) {
            (_, Some(_)) => {
                self.owned.retain(|(other, _)| *other != family);
                self.owned.push((family, layout.to_owned()));
                Ok(Standing::Owned)
            }
            (Protection::None, None) => Ok(Standing::Open(table)),
            (Protection::Owned, None) if table.flags & PERSISTENT != 0 => {
                let mut batch = Batch::new();
                batch.add(&self.named(family, &[]), MsgType::Add);
                self.commit(&batch.finalize(), "to adopt the tables of an earlier run")?;
                Ok(Standing::Open(table))
            }
            // A table that was made without an owner takes none.
            (Protection::Owned, None) => Ok(Standing::Other(Some(table))),
        }
    }

    /// Whether the table of a family is known to be this socket's.
    pub(super) fn owns(&self, family: impl Into<ProtoFamily>) -> bool {
        let family = family.into();
        self.owned.iter().any(|(other, _)| *other == family)
    }

    /// A table of this owner, to be made or adopted.
    pub(super) fn named<'a>(
        &self,
        family: impl Into<ProtoFamily>,
        userdata: &'a [u8],
    ) -> Named<'a> {
        Named {
            family: family.into(),
            userdata,
            flags: match self.protection {
                Protection::Owned => OWNED | PERSISTENT,
                Protection::None => 0,
            },
        }
    }

    /// Makes a table, in place of `present` if that is another. A kernel that lets nobody own a table that lasts gets one that
    /// anybody may change. Returns whether anything was written.
    pub(super) fn make(
        &mut self,
        present: Option<&PresentTable>,
        layout: &[u8],
        what: &str,
        batch: impl Fn(&Self) -> FinalizedBatch,
    ) -> Result<bool, NftError> {
        let refused = match self.commit(&batch(self), what) {
            Ok(()) => return Ok(true),
            Err(error) if self.protection == Protection::Owned && error.is_unsupported() => error,
            Err(error) => return Err(error.of_table()),
        };
        self.protection = Protection::None;
        let is_right = present.is_some_and(|table| table.userdata == layout);
        let made = match is_right {
            true => Ok(false),
            false => self.commit(&batch(self), what).map(|()| true),
        };
        match made {
            Ok(_) => tracing::info!(
                "this kernel protects no tables (that takes Linux 6.9): what others change in ours is found and undone"
            ),
            // So it was something else.
            Err(_) => {
                self.protection = Protection::Owned;
                return Err(refused.of_table());
            }
        }
        made
    }

    /// Sends a batch and waits until the kernel has committed it.
    ///
    /// The whole batch is one datagram: sent page by page, the kernel would take each page for a batch of its own.
    pub(super) fn commit(&self, batch: &FinalizedBatch, what: &str) -> Result<(), NftError> {
        let pages: Vec<libc::iovec> = batch
            .iter()
            .map(|page| libc::iovec {
                iov_base: page.as_ptr().cast_mut().cast(),
                iov_len: page.len(),
            })
            .collect();
        let bytes: usize = pages.iter().map(|page| page.iov_len).sum();
        let size =
            libc::c_int::try_from(bytes.saturating_mul(2).max(1 << 20)).unwrap_or(libc::c_int::MAX);
        // Each message is acknowledged, which takes less room than the message.
        for buffer in [libc::SO_SNDBUFFORCE, libc::SO_RCVBUFFORCE] {
            // SAFETY: a plain integer option on a socket that lives; a failure leaves the default, and what is too large then fails.
            unsafe {
                libc::setsockopt(
                    self.socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    buffer,
                    (&raw const size).cast(),
                    size_of_val(&size) as libc::socklen_t,
                );
            }
        }
        // SAFETY: all-zero is a valid sockaddr_nl and msghdr.
        let (mut kernel, mut message): (libc::sockaddr_nl, libc::msghdr) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        kernel.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        message.msg_name = (&raw mut kernel).cast();
        message.msg_namelen = size_of_val(&kernel) as libc::socklen_t;
        message.msg_iov = pages.as_ptr().cast_mut();
        message.msg_iovlen = pages.len();
        // SAFETY: the message points to `kernel` and `pages`, which point into `batch`; all outlive the call.
        if unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const message, 0) } < 0 {
            return Err(NftError::Send {
                bytes,
                source: io::Error::last_os_error(),
            });
        }
        match self.first_refusal()? {
            Some(source) => Err(NftError::Refused {
                what: what.to_owned(),
                source,
            }),
            None => Ok(()),
        }
    }

    /// The kernel queues every answer before the send returns, so what there is can be read without waiting.
    fn first_refusal(&self) -> Result<Option<io::Error>, NftError> {
        let mut buffer = vec![0u8; 1 << 16];
        let mut refused: Option<io::Error> = None;
        loop {
            let (address, capacity) = (buffer.as_mut_ptr().cast(), buffer.len());
            let socket = self.socket.as_raw_fd();
            // SAFETY: `buffer` is as long as we say and outlives the call.
            let length = unsafe { libc::recv(socket, address, capacity, libc::MSG_DONTWAIT) };
            match usize::try_from(length) {
                Ok(length) => {
                    if let Some(code) = first_error(&buffer[..length]) {
                        refused.get_or_insert_with(|| io::Error::from_raw_os_error(-code));
                    }
                }
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::WouldBlock => return Ok(refused),
                    error => return Err(NftError::Receive(error)),
                },
            }
        }
    }
}

/// A netfilter socket, and what the kernel calls it. One that is not bound would be told nothing.
pub(super) fn bound_socket(flags: libc::c_int) -> Result<(OwnedFd, u32), NftError> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | flags;
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_NETFILTER) };
    if socket < 0 {
        return Err(NftError::Socket(io::Error::last_os_error()));
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all-zero is a valid sockaddr_nl: the kernel chooses the port.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    let mut length = size_of_val(&address) as libc::socklen_t;
    let raw = (&raw mut address).cast();
    // SAFETY: address and length outlive both calls, and are as large as they say.
    let failed = unsafe {
        libc::bind(socket.as_raw_fd(), raw, length) < 0
            || libc::getsockname(socket.as_raw_fd(), raw, &raw mut length) < 0
    };
    if failed {
        return Err(NftError::Socket(io::Error::last_os_error()));
    }
    Ok((socket, address.nl_pid))
}

/// The process that has a netlink socket open: the first socket of a process is mostly called as the process, the others
/// never are.
fn process_of(port: u32) -> Option<u32> {
    let sockets = fs::read_to_string("/proc/thread-self/net/netlink").ok()?;
    let inode = inode_of(&sockets, port)?;
    let name = format!("socket:[{inode}]");
    let has_it = |process: &Path| {
        let descriptors = fs::read_dir(process.join("fd")).ok()?.flatten();
        let mut links = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
        links.find(|link| link.as_os_str() == name.as_str())
    };
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let id = entry.file_name().to_str()?.parse::<u32>().ok()?;
        has_it(&entry.path()).map(|_| id)
    })
}

/// The inode of a netfilter socket among the netlink sockets of a namespace.
fn inode_of(sockets: &str, port: u32) -> Option<&str> {
    sockets.lines().find_map(|line| {
        // Address, protocol, port, groups, memory twice, dump, references, drops, inode.
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_it = words.get(1)?.parse() == Ok(libc::NETLINK_NETFILTER)
            && words.get(2)?.parse() == Ok(port);
        is_it.then(|| words.get(9).copied()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_found_by_protocol_and_port() {
        let sockets = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
                       0000000000000000 0   77         00000000 0        0        0     2        0        11\n\
                       0000000000000000 12  77         00000000 0        0        0     2        0        12\n\
                       0000000000000000 12  3735928559 00000000 0        0        0     2        0        13\n";
        assert_eq!(inode_of(sockets, 77), Some("12"));
        assert_eq!(inode_of(sockets, 3_735_928_559), Some("13"));
        assert_eq!(inode_of(sockets, 78), None);
    }

    #[test]
    fn our_own_socket_is_of_our_own_process() {
        let owner = Owner::open(TableOwnership::Never).unwrap();
        assert_eq!(process_of(owner.port), Some(std::process::id()));
    }
}
