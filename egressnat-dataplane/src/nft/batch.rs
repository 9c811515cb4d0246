use std::ffi::{c_char, c_void};
use std::io;

use nftnl::ProtoFamily;
use nftnl_sys as sys;
use thiserror::Error;

use crate::netfilter::{AskError, Header};
use crate::process::Process;

/// Talking nftables with the kernel failed.
#[derive(Debug, Error)]
pub enum NftError {
    /// No netlink socket.
    #[error(
        "could not open a netfilter netlink socket: it takes CAP_NET_ADMIN and the nf_tables module"
    )]
    Socket(#[source] io::Error),
    /// The batch could not be handed over.
    #[error("could not send a batch of {bytes} bytes to nf_tables")]
    Send {
        /// Its size.
        bytes: usize,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The answer could not be read.
    #[error("could not read the answer of nf_tables")]
    Receive(#[source] io::Error),
    /// What is there could not be read back.
    #[error("could not read back from nf_tables")]
    Query(#[from] AskError),
    /// The kernel refused a message, and with it the batch.
    #[error("nf_tables refused {what}")]
    Refused {
        /// What the batch was for.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel does not have what a table is made of.
    #[error(
        "the kernel cannot have {what}: it takes Linux 5.18 or later with nf_tables and of that ct, nat, masq, counters, and sets of \
         intervals and with timeouts"
    )]
    Lacking {
        /// The table.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A process that runs owns the table.
    #[error(
        "table {family} egressnat belongs to {process}, an agent that runs on this node: stop it first"
    )]
    Owned {
        /// The table's family.
        family: &'static str,
        /// Whose it is.
        process: Process,
    },
}

impl NftError {
    /// The same about a table that was to be made: a module that is not there reads as something that is not found.
    pub(super) fn of_table(self) -> Self {
        const LACKING: [i32; 4] = [
            libc::ENOENT,
            libc::EOPNOTSUPP,
            libc::EAFNOSUPPORT,
            libc::EINVAL,
        ];
        match self {
            NftError::Refused { what, source }
                if source
                    .raw_os_error()
                    .is_some_and(|code| LACKING.contains(&code)) =>
            {
                NftError::Lacking { what, source }
            }
            other => other,
        }
    }

    /// Whether the kernel does not know what it was asked for.
    pub(super) fn is_unsupported(&self) -> bool {
        let codes = [Some(libc::EOPNOTSUPP), Some(libc::EINVAL)];
        matches!(self, NftError::Refused { source, .. } if codes.contains(&source.raw_os_error()))
    }
}

/// Starts one message of a family in a batch.
///
/// # Safety
///
/// `buffer` has room for a message.
pub(super) unsafe fn header(
    buffer: *mut c_void,
    family: ProtoFamily,
    kind: i32,
    flags: i32,
    sequence: u32,
) -> *mut libc::nlmsghdr {
    // SAFETY: the caller's promise.
    unsafe {
        sys::nftnl_nlmsg_build_hdr(
            buffer.cast::<c_char>(),
            kind as u16,
            family as u16,
            flags as u16,
            sequence,
        )
    }
}

/// A request of its own, outside of a batch: its payload is written by `build`.
pub(super) fn request(
    family: ProtoFamily,
    kind: i32,
    flags: i32,
    build: impl FnOnce(*mut libc::nlmsghdr),
) -> Vec<u8> {
    let mut buffer = vec![0u8; 4096];
    // SAFETY: there is room for a header and what our requests say, which is a few names.
    let length = unsafe {
        let header = header(buffer.as_mut_ptr().cast(), family, kind, flags, 1);
        build(header);
        (*header).nlmsg_len as usize
    };
    buffer.truncate(length);
    buffer
}

/// The first error among the messages of one answer. Acknowledgments are errors of code 0.
pub(super) fn first_error(mut bytes: &[u8]) -> Option<i32> {
    while let Some(header) = Header::of(bytes) {
        if i32::from(header.kind) == libc::NLMSG_ERROR && header.code(bytes) != 0 {
            return Some(header.code(bytes));
        }
        bytes = header.after(bytes);
    }
    None
}

/// Writes all of `items` in one batch. What the kernel refuses is written by halves, and those by halves again, until all is there
/// but what is refused by itself: that is returned, with the reason.
pub(crate) fn all_but_refused<T: Clone>(
    items: &[T],
    write: &mut impl FnMut(&[T]) -> Result<(), NftError>,
) -> Vec<(T, NftError)> {
    if items.is_empty() {
        return Vec::new();
    }
    match (write(items), items) {
        (Ok(()), _) => Vec::new(),
        (Err(error), [item]) => vec![(item.clone(), error)],
        (Err(_), items) => {
            let (one, other) = items.split_at(items.len() / 2);
            let mut refused = all_but_refused(one, write);
            refused.extend(all_but_refused(other, write));
            refused
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_lacks_what_a_table_is_made_of_is_told_from_one_that_refuses() {
        let refused = |code| {
            let source = io::Error::from_raw_os_error(code);
            let what = "table ip egressnat".to_owned();
            let error = NftError::Refused { what, source }.of_table();
            error.to_string()
        };
        for code in [
            libc::ENOENT,
            libc::EOPNOTSUPP,
            libc::EAFNOSUPPORT,
            libc::EINVAL,
        ] {
            let text = refused(code);
            for part in ["table ip egressnat", "Linux 5.18", "nf_tables"] {
                assert!(text.contains(part), "{text}");
            }
        }
        let text = refused(libc::EPERM);
        assert_eq!(text, "nf_tables refused table ip egressnat");
    }

    #[test]
    fn all_is_written_but_what_is_refused_and_at_once_where_nothing_is() {
        for (bad, most_batches) in [(&[][..], 1), (&[7], 9), (&[0, 7], 13)] {
            let (mut written, mut batches) = (Vec::new(), 0);
            let items: Vec<u32> = (0..10).collect();
            let refused = all_but_refused(&items, &mut |part| {
                batches += 1;
                if part.iter().any(|item| bad.contains(item)) {
                    return Err(NftError::Receive(io::ErrorKind::Other.into()));
                }
                written.extend_from_slice(part);
                Ok(())
            });
            let refused: Vec<u32> = refused.into_iter().map(|(item, _)| item).collect();
            assert_eq!(refused, bad);
            assert_eq!(written.len() + refused.len(), items.len());
            assert!(batches <= most_batches, "{batches} for {bad:?}");
        }
    }
}
