use std::ffi::{c_char, c_void};
use std::io;
use std::mem::size_of_val;
use std::os::fd::AsRawFd;

use nftnl::{FinalizedBatch, ProtoFamily};
use nftnl_sys as sys;
use thiserror::Error;

use crate::netfilter::{AskError, Header};

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
}

/// Sends a batch and waits until the kernel has committed it.
///
/// The whole batch is one datagram: sent page by page, the kernel would take each page for a batch of its own.
pub(super) fn commit(batch: &FinalizedBatch, what: &str) -> Result<(), NftError> {
    let socket = mnl::Socket::new(mnl::Bus::Netfilter).map_err(NftError::Socket)?;
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
    // SAFETY: a plain integer option on a socket that lives; a failure leaves the default, and the send then fails.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUFFORCE,
            (&raw const size).cast(),
            size_of_val(&size) as libc::socklen_t,
        );
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
    if unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, 0) } < 0 {
        return Err(NftError::Send {
            bytes,
            source: io::Error::last_os_error(),
        });
    }

    // The kernel queues every answer before sendmsg returns, so what there is can be read without waiting.
    let mut buffer = vec![0u8; 1 << 16];
    let mut refused: Option<io::Error> = None;
    loop {
        let (address, capacity) = (buffer.as_mut_ptr().cast(), buffer.len());
        // SAFETY: `buffer` is as long as we say and outlives the call.
        let length =
            unsafe { libc::recv(socket.as_raw_fd(), address, capacity, libc::MSG_DONTWAIT) };
        match usize::try_from(length) {
            Ok(length) => {
                if let Some(code) = first_error(&buffer[..length]) {
                    refused.get_or_insert_with(|| io::Error::from_raw_os_error(-code));
                }
            }
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => break,
                error => return Err(NftError::Receive(error)),
            },
        }
    }
    match refused {
        Some(source) => Err(NftError::Refused {
            what: what.to_owned(),
            source,
        }),
        None => Ok(()),
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
fn first_error(mut bytes: &[u8]) -> Option<i32> {
    while let Some(header) = Header::of(bytes) {
        if i32::from(header.kind) == libc::NLMSG_ERROR && header.code(bytes) != 0 {
            return Some(header.code(bytes));
        }
        bytes = header.after(bytes);
    }
    None
}
