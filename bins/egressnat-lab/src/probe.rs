//! What a client in a namespace sees: asking the servers, waiting for conditions, measuring gaps.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::netns::within;
use crate::server::{ECHO_PORT, HTTP_PORT};

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Waits until `probe` finds something.
///
/// # Errors
///
/// It found nothing in time.
pub fn until<T>(what: &str, patience: Duration, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = probe() {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("waited {patience:?} in vain for {what}");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Over what a server is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP echo.
    Tcp,
    /// UDP echo.
    Udp,
    /// HTTP.
    Http,
}

/// The source address that a server saw, asked from inside `namespace`.
///
/// # Errors
///
/// No answer in time.
pub fn seen_source(namespace: &str, server: Ipv4Addr, protocol: Protocol) -> Result<Ipv4Addr> {
    within(namespace, move || {
        let text = match protocol {
            Protocol::Tcp => tcp(server),
            Protocol::Udp => udp(server),
            Protocol::Http => http(server, "/"),
        };
        let text = text.with_context(|| format!("{protocol:?} to {server} got no answer"))?;
        Ok(*parse_client(&text)?.ip())
    })?
}

/// The sources of the echo requests that a server saw, newest first, asked from inside `namespace`.
///
/// # Errors
///
/// No answer in time.
pub fn seen_pings(namespace: &str, server: Ipv4Addr) -> Result<Vec<String>> {
    within(namespace, move || {
        Ok(http(server, "/icmp")?.lines().map(str::to_owned).collect())
    })?
}

/// Whom a server says it sees: `client ADDRESS port PORT`, and more on further lines.
fn parse_client(text: &str) -> Result<SocketAddrV4> {
    let words: Vec<&str> = text.lines().next().unwrap_or_default().split(' ').collect();
    let ["client", address, "port", port] = words[..] else {
        bail!("the answer was {text:?}");
    };
    Ok(SocketAddrV4::new(address.parse()?, port.parse()?))
}

fn connect(server: Ipv4Addr, port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((server, port)), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn tcp(server: Ipv4Addr) -> Result<String> {
    let mut stream = connect(server, ECHO_PORT)?;
    stream.write_all(b"who am I\n")?;
    let mut buffer = [0; 256];
    let length = stream.read(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn udp(server: Ipv4Addr) -> Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect((server, ECHO_PORT))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"who am I\n")?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn http(server: Ipv4Addr, path: &str) -> Result<String> {
    let mut stream = connect(server, HTTP_PORT)?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (_, body) = text
        .split_once("\r\n\r\n")
        .with_context(|| format!("the answer was {text:?}"))?;
    Ok(body.to_owned())
}

/// A client that asks without pause, to see what an event does to running traffic.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU32>,
    thread: JoinHandle<Result<Observed>>,
}

/// What running traffic saw.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Questions asked.
    pub sent: u32,
    /// Answers that came.
    pub answered: u32,
    /// The longest time between two answers.
    pub longest_gap: Duration,
    /// The addresses that the server saw.
    pub sources: BTreeSet<Ipv4Addr>,
    /// The ports that it saw with them.
    pub ports: BTreeSet<u16>,
}

/// Time between two questions.
const PACE: Duration = Duration::from_millis(20);

/// How long the last answers are waited for.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

impl Traffic {
    /// Starts to ask `server` over UDP from inside `namespace`, one flow, a question each 20 ms.
    ///
    /// # Errors
    ///
    /// The namespace cannot be entered.
    pub fn start(namespace: &str, server: Ipv4Addr) -> Result<Self> {
        let socket = within(namespace, move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect((server, ECHO_PORT))?;
            socket.set_read_timeout(Some(PACE))?;
            std::io::Result::Ok(socket)
        })??;
        let stop = Arc::new(AtomicBool::new(false));
        let answers = Arc::new(AtomicU32::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&answers));
        let thread = thread::spawn(move || ask(&socket, &stopped, &counted));
        Ok(Self {
            stop,
            answers,
            thread,
        })
    }

    /// Waits for `count` more answers.
    ///
    /// # Errors
    ///
    /// They did not come in time.
    pub fn wait_for_answers(&self, count: u32, patience: Duration) -> Result<()> {
        let start = self.answers.load(Ordering::Relaxed);
        until(&format!("{count} answers of one flow"), patience, || {
            (self.answers.load(Ordering::Relaxed) >= start + count).then_some(())
        })
    }

    /// Ends it, waits a moment for answers that are on their way, and tells what it saw.
    ///
    /// # Errors
    ///
    /// An answer made no sense.
    pub fn finish(self) -> Result<Observed> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(observed) => observed,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// A socket stays in the namespace it was made in, so this can run anywhere.
fn ask(socket: &UdpSocket, stop: &AtomicBool, answers: &AtomicU32) -> Result<Observed> {
    let mut observed = Observed::default();
    let mut last_answer = Instant::now();
    let mut next = Instant::now();
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        if Instant::now() >= next {
            // An unreachable holder is what we are here to see.
            let _ = socket.send(&observed.sent.to_be_bytes());
            observed.sent += 1;
            next += PACE;
        }
        if let Ok(length) = socket.recv(&mut buffer) {
            let now = Instant::now();
            observed.longest_gap = observed.longest_gap.max(now - last_answer);
            last_answer = now;
            observed.hear(&buffer[..length])?;
            answers.store(observed.answered, Ordering::Relaxed);
        }
    }
    let silence = last_answer.elapsed().saturating_sub(PACE);
    observed.longest_gap = observed.longest_gap.max(silence);
    // What is on its way is not lost.
    let end = Instant::now() + LAST_ANSWERS;
    while observed.answered < observed.sent && Instant::now() < end {
        if let Ok(length) = socket.recv(&mut buffer) {
            observed.hear(&buffer[..length])?;
        }
    }
    Ok(observed)
}

impl Observed {
    fn hear(&mut self, answer: &[u8]) -> Result<()> {
        let seen = parse_client(&String::from_utf8_lossy(answer))?;
        self.answered += 1;
        self.sources.insert(*seen.ip());
        self.ports.insert(seen.port());
        Ok(())
    }
}

/// The source address that a plain listener in another namespace sees, at its own address.
///
/// # Errors
///
/// No connection in time.
pub fn seen_by_listener(from: &str, to: &str, address: Ipv4Addr) -> Result<Ipv4Addr> {
    let listener = within(to, move || std::net::TcpListener::bind((address, 0)))??;
    let at = listener.local_addr()?;
    let client = within(from, move || TcpStream::connect_timeout(&at, PATIENCE))??;
    // The connection is in the backlog by now.
    let (_, peer) = listener.accept()?;
    drop(client);
    match peer.ip() {
        std::net::IpAddr::V4(address) => Ok(address),
        std::net::IpAddr::V6(address) => bail!("an IPv6 client, {address}"),
    }
}
