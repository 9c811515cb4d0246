//! Asking netfilter over netlink, for nftables and connection tracking alike.

use std::io;

use thiserror::Error;

/// Netfilter gave no answer, or refused.
#[derive(Debug, Error)]
pub enum AskError {
    /// No netlink socket.
    #[error("could not open a netfilter netlink socket: it takes CAP_NET_ADMIN")]
    Socket(#[source] io::Error),
    /// The request could not be sent.
    #[error("could not send a request of {bytes} bytes")]
    Send {
        /// Its size.
        bytes: usize,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The answer could not be read.
    #[error("could not read the answer")]
    Receive(#[source] io::Error),
    /// The kernel refused.
    #[error("the kernel refused")]
    Refused(#[source] io::Error),
}

/// Bytes of a message header.
pub(crate) const HEADER: usize = size_of::<libc::nlmsghdr>();

/// A dump is taken again when somebody changed what it reads meanwhile; after so many times what there is must do.
const ATTEMPTS: u32 = 10;

/// One message of an answer, aligned as its header needs.
pub(crate) struct Message {
    words: Vec<u32>,
    length: usize,
}

impl Message {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let word = |chunk: &[u8]| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            u32::from_ne_bytes(word)
        };
        Self {
            words: bytes.chunks(4).map(word).collect(),
            length: bytes.len(),
        }
    }

    /// The message with its header, as libnftnl wants it.
    pub(crate) fn as_ptr(&self) -> *const libc::nlmsghdr {
        self.words.as_ptr().cast()
    }

    /// What follows the header.
    pub(crate) fn payload(&self) -> &[u8] {
        // SAFETY: the words hold `length` initialized bytes, and bytes need no alignment.
        let bytes =
            unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast::<u8>(), self.length) };
        bytes.get(HEADER..).unwrap_or_default()
    }
}

/// Sends one request and gives all messages of the answer.
pub(crate) fn ask(request: &[u8]) -> Result<Vec<Message>, AskError> {
    for _ in 1..ATTEMPTS {
        match ask_once(request)? {
            (messages, Dump::Whole) => return Ok(messages),
            (_, Dump::Interrupted) => {}
        }
    }
    Ok(ask_once(request)?.0)
}

enum Dump {
    Whole,
    Interrupted,
}

fn ask_once(request: &[u8]) -> Result<(Vec<Message>, Dump), AskError> {
    let socket = mnl::Socket::new(mnl::Bus::Netfilter).map_err(AskError::Socket)?;
    let bytes = request.len();
    socket
        .send(request)
        .map_err(|source| AskError::Send { bytes, source })?;
    let mut buffer = vec![0u8; 1 << 16];
    let mut messages = Vec::new();
    let mut dump = Dump::Whole;
    loop {
        let length = socket.recv_raw(&mut buffer).map_err(AskError::Receive)?;
        let mut rest = &buffer[..length];
        while let Some(header) = Header::of(rest) {
            if header.flags & libc::NLM_F_DUMP_INTR as u16 != 0 {
                dump = Dump::Interrupted;
            }
            match i32::from(header.kind) {
                libc::NLMSG_DONE => return Ok((messages, dump)),
                libc::NLMSG_ERROR => {
                    return match header.code(rest) {
                        0 => Ok((messages, dump)),
                        code if -code == libc::EINTR => Ok((messages, Dump::Interrupted)),
                        code => Err(AskError::Refused(io::Error::from_raw_os_error(-code))),
                    };
                }
                _ => messages.push(Message::new(header.message(rest))),
            }
            rest = header.after(rest);
        }
    }
}

/// The fields of a message header that matter here.
pub(crate) struct Header {
    length: usize,
    pub(crate) kind: u16,
    flags: u16,
    /// Of the socket that asked for what the message tells.
    pub(crate) port: u32,
}

impl Header {
    /// The header at the start of `bytes`.
    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        let header = bytes.first_chunk::<HEADER>()?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
        Some(Self {
            length: (length as usize).max(HEADER),
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            port: u32::from_ne_bytes([header[12], header[13], header[14], header[15]]),
        })
    }

    /// The code of an error message: 0 acknowledges, the others are negative.
    pub(crate) fn code(&self, bytes: &[u8]) -> i32 {
        let code = bytes.get(HEADER..).and_then(|rest| rest.first_chunk());
        code.map_or(0, |code| i32::from_ne_bytes(*code))
    }

    pub(crate) fn message<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[..self.length.min(bytes.len())]
    }

    /// What follows the message.
    pub(crate) fn after<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        bytes
            .get(self.length.next_multiple_of(4)..)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_keeps_its_bytes_and_its_odd_length() {
        let bytes: Vec<u8> = (0..HEADER as u8 + 5).collect();
        assert_eq!(Message::new(&bytes).payload(), &bytes[HEADER..]);
    }

    #[test]
    fn a_cut_off_header_is_none() {
        assert!(Header::of(&[0; HEADER - 1]).is_none());
        // A length of 0 would never end.
        let zero = [0; HEADER + 4];
        assert_eq!(Header::of(&zero).unwrap().after(&zero).len(), 4);
    }
}
