//! What others do to our tables, told by nf_tables.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use tokio::io::unix::AsyncFd;

use super::batch::NftError;
use super::owner::bound_socket;
use super::ruleset::TABLE;
use crate::netfilter::{HEADER, Header};

/// `NFNL_SUBSYS_NFTABLES` and `NFNLGRP_NFTABLES` (`linux/netfilter/nfnetlink.h`).
const SUBSYSTEM: u16 = 10;
static GROUP: libc::c_int = 7;

/// Bytes of `struct nfgenmsg`, which follows the header.
const GENERIC_HEADER: usize = 4;

/// The attribute that names the table: the same number in messages about tables, chains, rules, sets, elements and objects.
const TABLE_NAME: u16 = 1;

/// Notifications of nf_tables in the namespace they were opened in.
pub(crate) struct Events {
    socket: AsyncFd<OwnedFd>,
    /// Who is not told about: the socket that writes our tables.
    own: u32,
}

impl Events {
    pub(crate) fn open(own: u32) -> Result<Self, NftError> {
        let (socket, _) = bound_socket(libc::SOCK_NONBLOCK)?;
        // SAFETY: a plain integer option on a socket that lives.
        let joined = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_NETLINK,
                libc::NETLINK_ADD_MEMBERSHIP,
                (&raw const GROUP).cast(),
                size_of_val(&GROUP) as libc::socklen_t,
            )
        };
        if joined < 0 {
            return Err(NftError::Socket(io::Error::last_os_error()));
        }
        // SAFETY: an owned descriptor is the same and open until it is dropped, which is after its registration.
        let socket = unsafe { AsyncFd::register(socket) };
        Ok(Self {
            socket: socket.map_err(|error| NftError::Socket(error.into()))?,
            own,
        })
    }

    /// Whether somebody else touched a table of ours, by what is told until now.
    pub(crate) fn have_come(&mut self) -> bool {
        let mut is_ours = false;
        loop {
            match receive(self.socket.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return is_ours,
                // Any other error than lost messages would come again and again.
                Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => return true,
                told => is_ours |= self.concern(told),
            }
        }
    }

    /// Waits until somebody else touched a table of ours, and takes all that is told already.
    ///
    /// Cancel safe.
    pub(crate) async fn changed(&mut self) {
        loop {
            let Ok(mut ready) = self.socket.readable().await else {
                // No more events; the audit remains.
                return std::future::pending().await;
            };
            let mut is_ours = false;
            while let Ok(told) = ready.try_io(|socket| receive(socket.get_ref())) {
                is_ours |= self.concern(told);
            }
            if is_ours {
                return;
            }
        }
    }

    fn concern(&self, told: io::Result<Vec<u8>>) -> bool {
        match told {
            Ok(bytes) => concerns(&bytes, self.own),
            // More was told than the socket takes: it may have been about us.
            Err(_) => true,
        }
    }
}

fn receive(socket: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0u8; 1 << 16];
    let (address, capacity) = (buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: `buffer` is as long as we say and outlives the call.
    let length = unsafe { libc::recv(socket.as_raw_fd(), address, capacity, 0) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    buffer.truncate(length);
    Ok(buffer)
}

/// Whether a notification is about a table of ours, and not of our own making.
fn concerns(mut bytes: &[u8], own: u32) -> bool {
    while let Some(header) = Header::of(bytes) {
        let is_about_us = header.kind >> 8 == SUBSYSTEM
            && header.port != own
            && table_of(header.message(bytes))
                .is_some_and(|name| name == TABLE.to_bytes_with_nul());
        if is_about_us {
            return true;
        }
        bytes = header.after(bytes);
    }
    false
}

/// The name of the table that a message is about, with its NUL.
fn table_of(message: &[u8]) -> Option<&[u8]> {
    let mut attributes = message.get(HEADER + GENERIC_HEADER..)?;
    while let Some(&[low, high, kind_low, kind_high]) = attributes.first_chunk() {
        let length = usize::from(u16::from_ne_bytes([low, high])).max(GENERIC_HEADER);
        if u16::from_ne_bytes([kind_low, kind_high]) == TABLE_NAME {
            return attributes.get(GENERIC_HEADER..length);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, port: u32, table: &[u8]) -> Vec<u8> {
        let attribute = (GENERIC_HEADER + table.len()) as u16;
        let length = HEADER + GENERIC_HEADER + usize::from(attribute).next_multiple_of(4);
        let mut bytes = (length as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 6]);
        bytes.extend(port.to_ne_bytes());
        bytes.extend([2, 0, 0, 0]);
        bytes.extend(attribute.to_ne_bytes());
        bytes.extend(TABLE_NAME.to_ne_bytes());
        bytes.extend(table);
        bytes.resize(length, 0);
        bytes
    }

    #[test]
    fn only_what_others_do_to_a_table_of_ours_concerns_us() {
        const OWN: u32 = 7;
        for (kind, port, table, want) in [
            (0xa03, 8, &b"egressnat\0"[..], true),
            (0xa03, OWN, b"egressnat\0", false),
            (0xa03, 8, b"egressnat2\0", false),
            (0xa03, 8, b"filter\0", false),
            (0x103, 8, b"egressnat\0", false),
        ] {
            let one = message(kind, port, table);
            assert_eq!(concerns(&one, OWN), want, "{kind} {port} {table:?}");
            let two = [message(0xa00, 9, b"nat\0"), one].concat();
            assert_eq!(concerns(&two, OWN), want);
        }
        assert!(!concerns(&[0; HEADER + 2], OWN));
    }
}
