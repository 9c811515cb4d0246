//! Probes over HTTP: `/healthz` says whether a loop turns, `/readyz` whether it has done what the objects want.
//!
//! Behind the feature `health`. Answered by a thread of its own, so that a loop that hangs is told rather than silent.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::pulse::Pulse;

/// How long a client may take for its whole request and for reading the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the kernel may take to end a process that had the port.
const PREDECESSOR: Duration = Duration::from_secs(2);

/// How many clients are answered at once: a kubelet is one.
const CLIENTS: usize = 16;

/// Probes cannot be answered.
#[derive(Debug, Error)]
#[error("no probes can be answered on {address}: name another by --health-address")]
pub struct HealthError {
    /// Where they were to be.
    address: SocketAddr,
    /// Why not.
    source: io::Error,
}

/// Answers probes on an address for as long as the process lives. Returns the address, which has a port where none was chosen, and
/// logs it.
///
/// # Errors
///
/// The address cannot be listened on.
pub fn serve_health(address: SocketAddr, pulse: Pulse) -> Result<SocketAddr, HealthError> {
    let served = serve(address, pulse).map_err(|source| HealthError { address, source })?;
    tracing::info!(address = %served, "probes are answered");
    Ok(served)
}

fn serve(address: SocketAddr, pulse: Pulse) -> io::Result<SocketAddr> {
    let listener = bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let listener = {
        let _context = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    thread::Builder::new()
        .name("health".to_owned())
        .spawn(move || runtime.block_on(accept(&listener, &pulse)))?;
    Ok(address)
}

/// A process that was killed a moment ago, and that this one follows, may still have the port.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let end = Instant::now() + PREDECESSOR;
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => {
                thread::sleep(Duration::from_millis(20));
            }
            bound => return bound,
        }
    }
}

async fn accept(listener: &tokio::net::TcpListener, pulse: &Pulse) {
    let clients = Arc::new(Semaphore::new(CLIENTS));
    loop {
        // Who comes while all places are taken waits in the queue of the kernel.
        let place = Arc::clone(&clients).acquire_owned().await;
        match listener.accept().await {
            Ok((stream, _)) => {
                let pulse = pulse.clone();
                tokio::spawn(async move {
                    // A client that goes away early is no failure of ours.
                    let _ = tokio::time::timeout(PATIENCE, converse(stream, &pulse)).await;
                    drop(place);
                });
            }
            // Out of descriptors, perhaps: not for long, or the loop has other troubles.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn converse(stream: TcpStream, pulse: &Pulse) -> hyper::Result<()> {
    let service =
        service_fn(async |request: Request<Incoming>| Ok::<_, Infallible>(answer(&request, pulse)));
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn answer(request: &Request<Incoming>, pulse: &Pulse) -> Response<String> {
    let verdict = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/healthz") => Ok(pulse.liveness()),
        (&Method::GET | &Method::HEAD, "/readyz") => Ok(pulse.readiness()),
        (&Method::GET | &Method::HEAD, _) => Err(StatusCode::NOT_FOUND),
        _ => Err(StatusCode::METHOD_NOT_ALLOWED),
    };
    let (status, text) = match verdict {
        Ok(verdict) if verdict.is_well => (StatusCode::OK, verdict.to_string()),
        Ok(verdict) => (StatusCode::SERVICE_UNAVAILABLE, verdict.to_string()),
        Err(status) => (status, "ask for /healthz or /readyz\n".to_owned()),
    };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests;
