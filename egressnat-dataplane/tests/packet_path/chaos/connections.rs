//! Connections of TCP: opened, used, left alone and ended in every way, by pods and by servers.
//!
//! One whose way does not change while it lasts has to live: nobody may reset it, and whatever is asked has to be answered.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};

use super::history::History;
use super::{FIRST_TCP_PORT, address, pod_of, repeat};
use crate::network::Network;

/// To the server: answer this.
const ASK: u8 = b'?';
/// To the server: answer this, but not at once.
const ASK_FOR_LATER: u8 = b'l';
/// To the server: say that you have nothing more to say.
const FINISH: u8 = b'f';
/// To the server: reset the connection.
const RESET: u8 = b'r';
/// From the server.
const ANSWER: u8 = b'a';
/// From the server, unasked.
const NEWS: u8 = b'n';

/// How long an answer may take on a way that is open: others may have just broken it, and TCP waits longer each time.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a pod waits for an answer whose way has changed.
const NO_HOPE: Duration = Duration::from_millis(300);
const BRIEF: Duration = Duration::from_millis(20);

impl Network {
    /// A pod that has always one connection to a server of its own, now and then another.
    pub(super) fn start_connections(
        &self,
        flow: usize,
        history: &Arc<History>,
        is_over: &Arc<AtomicBool>,
    ) {
        let port = FIRST_TCP_PORT + flow as u16;
        let to = SocketAddr::from((address(history.addresses.server_of(flow)), port));
        let listener = self.enter("out", move || TcpListener::bind(to).unwrap());
        listener.set_nonblocking(true).unwrap();
        let ending = Arc::clone(is_over);
        repeat(is_over, move || match listener.accept() {
            Ok((stream, _)) => {
                let is_over = Arc::clone(&ending);
                thread::spawn(move || serve(stream, &is_over));
            }
            Err(_) => thread::sleep(BRIEF),
        });
        let (history, is_over) = (Arc::clone(history), Arc::clone(is_over));
        // It ends with the test.
        drop(self.start(pod_of(flow), move || {
            let mut client = Client {
                flow,
                to,
                history,
                rng: Rng::new(),
                failing: None,
            };
            while !is_over.load(Ordering::Relaxed) {
                client.connect();
            }
        }));
    }
}

/// What becomes of something that a client waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It came.
    Came,
    /// The server has nothing more to say.
    Ended,
    /// The connection was reset, or nobody answers any more.
    Broken,
    /// It will not come, since its way has changed.
    Hopeless,
}

struct Client {
    flow: usize,
    to: SocketAddr,
    history: Arc<History>,
    rng: Rng,
    /// Since when no connection could be opened, and what all nodes had then.
    failing: Option<(Instant, usize)>,
}

impl Client {
    /// Opens a connection and uses it up to its end.
    fn connect(&mut self) {
        let since = self.history.applied();
        match TcpStream::connect_timeout(&self.to, Duration::from_secs(1)) {
            Ok(stream) => {
                self.failing = None;
                self.live(&stream, since);
            }
            Err(error) => {
                // Refused by nobody: the server listens all the time.
                if error.kind() == ErrorKind::ConnectionRefused && self.is_steady(since) {
                    self.violate(since, "a new connection was refused");
                }
                match self.failing {
                    Some((start, since)) if self.is_steady(since) => {
                        if start.elapsed() > PATIENCE {
                            self.violate(since, "no connection can be opened");
                        }
                    }
                    _ => self.failing = Some((Instant::now(), since)),
                }
                thread::sleep(BRIEF);
            }
        }
    }

    fn live(&mut self, mut stream: &TcpStream, since: usize) {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(BRIEF)).unwrap();
        for _ in 0..self.rng.usize(..12) {
            let many = self.rng.usize(2..4000);
            let outcome = match self.rng.usize(..5) {
                0 | 1 => self.ask(stream, since, &[ASK]),
                2 => self.ask(stream, since, &[ASK_FOR_LATER]),
                3 => self.ask(stream, since, &vec![ASK; many]),
                _ => {
                    thread::sleep(Duration::from_millis(self.rng.u64(..600)));
                    Outcome::Came
                }
            };
            match outcome {
                Outcome::Came => {}
                Outcome::Hopeless => return self.leave(stream),
                Outcome::Ended | Outcome::Broken => {
                    if self.is_steady(since) {
                        self.violate(since, &format!("a connection was {outcome:?}"));
                    }
                    return;
                }
            }
        }
        match self.rng.usize(..6) {
            // The pod has nothing more to say, then the server.
            0 | 1 => {
                let _ = stream.shutdown(Shutdown::Write);
                self.end(stream, since, Outcome::Ended);
            }
            // The server first, and the pod says something more.
            2 => {
                let _ = stream.write_all(&[FINISH]);
                self.end(stream, since, Outcome::Ended);
                let _ = stream.write_all(&[ASK; 3]);
            }
            3 => {
                let _ = stream.write_all(&[RESET]);
                self.end(stream, since, Outcome::Broken);
            }
            // What comes now is answered with a reset.
            4 => {
                let _ = stream.write_all(&[ASK; 500]);
            }
            _ => self.leave(stream),
        }
    }

    /// Waits for the end of a connection, which has to come as it is wanted.
    fn end(&self, stream: &TcpStream, since: usize, want: Outcome) {
        let outcome = self.wait(stream, since, usize::MAX);
        if outcome != want && self.is_steady(since) {
            self.violate(
                since,
                &format!("a connection was {outcome:?}, not {want:?}"),
            );
        }
    }

    /// Leaves a connection without a word, or with a reset.
    fn leave(&mut self, stream: &TcpStream) {
        if self.rng.bool() {
            reset(stream);
        }
    }

    fn ask(&self, mut stream: &TcpStream, since: usize, questions: &[u8]) -> Outcome {
        match stream.write_all(questions) {
            Ok(()) => {
                let outcome = self.wait(stream, since, questions.len());
                if outcome == Outcome::Came {
                    self.history.answer(self.flow);
                }
                outcome
            }
            Err(_) => Outcome::Broken,
        }
    }

    /// Waits for so many answers.
    fn wait(&self, mut stream: &TcpStream, since: usize, mut answers: usize) -> Outcome {
        let start = Instant::now();
        let mut buffer = [0; 4096];
        while answers > 0 {
            match stream.read(&mut buffer) {
                Ok(0) => return Outcome::Ended,
                Ok(length) => {
                    let came = buffer[..length].iter().filter(|byte| **byte == ANSWER);
                    answers = answers.saturating_sub(came.count());
                }
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Outcome::Broken,
                Err(_) => {
                    let is_steady = self.is_steady(since);
                    if !is_steady && start.elapsed() > NO_HOPE {
                        return Outcome::Hopeless;
                    }
                    if start.elapsed() > PATIENCE {
                        self.violate(since, "a connection is stuck");
                        return Outcome::Hopeless;
                    }
                }
            }
        }
        Outcome::Came
    }

    fn is_steady(&self, since: usize) -> bool {
        self.history.is_steady(self.flow, since)
    }

    fn violate(&self, since: usize, what: &str) {
        let (pod, to) = (pod_of(self.flow), self.to);
        let violation =
            format!("{pod} to {to}: {what}, since {since} nothing has changed on its way");
        self.history.violate(violation);
    }
}

/// Ends a connection with a reset once it is dropped.
fn reset(stream: &TcpStream) {
    let at_once = linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // It may have an error already.
    let _ = setsockopt(stream, sockopt::Linger, &at_once);
}

/// A server that does what it is told, and says something by itself now and then, which nobody may hear any more.
fn serve(mut stream: TcpStream, is_over: &AtomicBool) {
    let mut rng = Rng::new();
    let pause = Duration::from_millis(rng.u64(5..400));
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(pause)).unwrap();
    let mut buffer = [0; 4096];
    let mut heard = Instant::now();
    while !is_over.load(Ordering::Relaxed) {
        let said = match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                heard = Instant::now();
                &buffer[..length]
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => &[NEWS][..],
            Err(_) => return,
        };
        // Nobody is there any more, or never will be.
        if heard.elapsed() > 2 * PATIENCE {
            if rng.bool() {
                reset(&stream);
            }
            return;
        }
        let count = |what| said.iter().filter(|byte| **byte == what).count();
        if count(ASK_FOR_LATER) > 0 {
            thread::sleep(Duration::from_millis(rng.u64(..300)));
        }
        let mut told = vec![ANSWER; count(ASK) + count(ASK_FOR_LATER)];
        told.extend(vec![NEWS; count(NEWS)]);
        if stream.write_all(&told).is_err() {
            return;
        }
        if count(RESET) > 0 {
            return reset(&stream);
        }
        if count(FINISH) > 0 {
            // It may be reset already, as the next read tells.
            let _ = stream.shutdown(Shutdown::Write);
        }
    }
}
