//! The servers outside: they answer with the client's address and port as they saw them.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Context, Result};

/// HTTP: `GET /` says who the client is, `GET /icmp` who sent the last echo requests, newest first.
pub const HTTP_PORT: u16 = 80;
/// TCP and UDP echo: each message is answered with who the client is.
pub const ECHO_PORT: u16 = 7;

/// How many echo requests are remembered.
const REMEMBERED: usize = 64;

type Pings = Arc<Mutex<VecDeque<String>>>;

/// Serves on all addresses of the namespace until the process ends.
///
/// # Errors
///
/// A port cannot be listened on.
pub fn serve() -> Result<()> {
    let pings = Pings::default();
    let icmp = icmp_socket().context("could not listen to ICMP")?;
    let remembered = Arc::clone(&pings);
    thread::spawn(move || remember_pings(&icmp, &remembered));
    // A server that answers for several addresses must answer from the one it was asked at, so one socket each.
    for address in crate::topology::SERVERS {
        let udp = UdpSocket::bind((address, ECHO_PORT))
            .with_context(|| format!("could not listen on {address} UDP"))?;
        thread::spawn(move || answer_datagrams(&udp));
    }
    let echo =
        TcpListener::bind(("0.0.0.0", ECHO_PORT)).context("could not listen on the echo port")?;
    thread::spawn(move || accept(&echo, |stream| answer_messages(&stream)));
    let http =
        TcpListener::bind(("0.0.0.0", HTTP_PORT)).context("could not listen on the HTTP port")?;
    accept(&http, move |stream| {
        // A client that goes away early is no failure of the server.
        let _ = answer_http(&stream, &pings);
    });
    Ok(())
}

fn client(address: SocketAddr) -> String {
    format!("client {} port {}\n", address.ip(), address.port())
}

fn accept(listener: &TcpListener, answer: impl Fn(TcpStream) + Clone + Send + 'static) {
    for stream in listener.incoming().flatten() {
        let answer = answer.clone();
        thread::spawn(move || answer(stream));
    }
}

fn answer_datagrams(socket: &UdpSocket) {
    let mut buffer = [0; 65536];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        // The message comes back behind the address, so that a client can tell answers apart.
        let mut answer = client(from).into_bytes();
        answer.extend(&buffer[..length.min(1024)]);
        let _ = socket.send_to(&answer, from);
    }
}

fn answer_messages(mut stream: &TcpStream) {
    let mut buffer = [0; 4096];
    let Ok(from) = stream.peer_addr() else { return };
    while let Ok(length) = stream.read(&mut buffer) {
        if length == 0 || stream.write_all(client(from).as_bytes()).is_err() {
            return;
        }
    }
}

fn answer_http(mut stream: &TcpStream, pings: &Pings) -> std::io::Result<()> {
    let from = stream.peer_addr()?;
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let body = if request.split(' ').nth(1) == Some("/icmp") {
        let pings = pings
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        pings.iter().map(|source| format!("{source}\n")).collect()
    } else {
        client(from)
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

fn icmp_socket() -> std::io::Result<OwnedFd> {
    // SAFETY: no pointers; the descriptor is fresh and ours.
    unsafe {
        let fd = libc::socket(
            libc::AF_INET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::IPPROTO_ICMP,
        );
        if fd < 0 {
            Err(std::io::Error::last_os_error())
        } else {
            Ok(OwnedFd::from_raw_fd(fd))
        }
    }
}

fn remember_pings(socket: &OwnedFd, pings: &Pings) {
    const ECHO_REQUEST: u8 = 8;
    let mut packet = [0u8; 2048];
    loop {
        // SAFETY: the buffer is as long as we say and outlives the call.
        let length = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                packet.as_mut_ptr().cast(),
                packet.len(),
                0,
            )
        };
        let Ok(length) = usize::try_from(length) else {
            return;
        };
        let header = usize::from(packet[0] & 0x0f) * 4;
        if length > header && packet[header] == ECHO_REQUEST {
            let source = format!(
                "{}.{}.{}.{}",
                packet[12], packet[13], packet[14], packet[15]
            );
            let mut pings = pings
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            pings.push_front(source);
            pings.truncate(REMEMBERED);
        }
    }
}
