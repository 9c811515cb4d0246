//! A port of the machine that leads into a namespace.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use anyhow::Result;

use crate::netns::within;

/// Accepts connections for ever, and hands each to `to` as it is reached from inside `namespace`.
pub(crate) fn relay(listener: &TcpListener, namespace: &str, to: SocketAddr) {
    for client in listener.incoming().flatten() {
        let namespace = namespace.to_owned();
        thread::spawn(move || {
            // A server that is not there is seen by the client as a connection that ends.
            let _ = join(client, &namespace, to);
        });
    }
}

/// A listener on a free port of loopback.
pub(crate) fn listen() -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
}

fn join(client: TcpStream, namespace: &str, to: SocketAddr) -> Result<()> {
    let server = within(namespace, move || TcpStream::connect(to))??;
    let (client, server) = (Arc::new(client), Arc::new(server));
    let back = {
        let (client, server) = (Arc::clone(&client), Arc::clone(&server));
        thread::spawn(move || pass_on(&server, &client))
    };
    pass_on(&client, &server);
    let _ = back.join();
    Ok(())
}

/// Passes on what one side says until it has nothing more to say.
fn pass_on(mut from: &TcpStream, mut to: &TcpStream) {
    // However it ends: the other side is to know.
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
