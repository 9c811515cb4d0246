use std::io::{Read, Write};
use std::net::TcpStream;

use egressnat_core::Report;

use super::*;

fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE * 2)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn get(address: SocketAddr, path: &str) -> String {
    ask(
        address,
        &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    )
}

fn served(pulse: &Pulse) -> SocketAddr {
    serve_health("127.0.0.1:0".parse().unwrap(), pulse.clone()).unwrap()
}

#[test]
fn probes_are_answered_with_what_the_loop_tells() {
    let pulse = Pulse::default();
    let address = served(&pulse);
    let answer = get(address, "/healthz");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let answer = get(address, "/readyz");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("objects: not all seen yet"), "{answer}");
    pulse.synced();
    pulse.applied(&Report::default());
    let answer = get(address, "/readyz?verbose");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("plan: applied\n"), "{answer}");
}

#[test]
fn a_loop_that_hangs_fails_its_probe_although_somebody_listens() {
    let pulse = Pulse::default();
    let address = served(&pulse);
    pulse.turned_long_ago();
    let answer = get(address, "/healthz");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("loop: turned 30 s ago"), "{answer}");
}

#[test]
fn what_is_no_probe_is_refused_with_a_hint() {
    let address = served(&Pulse::default());
    let answer = get(address, "/metrics");
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    assert!(answer.contains("/healthz"), "{answer}");
    let answer = ask(
        address,
        "POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    let answer = ask(address, "nonsense\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[test]
fn clients_that_say_nothing_keep_nobody_from_an_answer() {
    let address = served(&Pulse::default());
    let silent: Vec<TcpStream> = (0..2 * CLIENTS)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    // After at most two rounds of them; the read has a deadline.
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE * 4)).unwrap();
    stream
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    drop(silent);
}

#[test]
fn an_address_that_is_taken_is_an_error() {
    let address = served(&Pulse::default());
    let error = serve_health(address, Pulse::default()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&address.to_string()), "{text}");
    assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
}
