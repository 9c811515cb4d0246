//! Flows of UDP: pods and servers that send without end.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use fastrand::Rng;

use super::history::History;
use super::{FIRST_PORT, address, pod_of, repeat};
use crate::network::Network;

impl Network {
    /// A pod that sends now often, now seldom, from one port, and its server, which goes on sending to whoever it heard from.
    pub(super) fn start_datagrams(
        &self,
        flow: usize,
        history: &Arc<History>,
        is_over: &Arc<AtomicBool>,
    ) {
        const BRIEF: Duration = Duration::from_millis(1);
        let port = FIRST_PORT + flow as u16;
        let own = (history.addresses.pod)(pod_of(flow));
        let to = SocketAddr::from((address(history.addresses.server_of(flow)), port));
        let client = self.enter(pod_of(flow), move || {
            let client = UdpSocket::bind((own, port)).unwrap();
            client.connect(to).unwrap();
            client
        });
        let (history, mut rng) = (Arc::clone(history), Rng::new());
        repeat(is_over, move || {
            let sent_in = history.applied() as u16;
            // Refused, or no route: as for any application.
            let _ = client.send(&sent_in.to_be_bytes());
            thread::sleep(BRIEF * [0, 1, 1, 5, 20][rng.usize(..5)]);
        });
        let socket = self.enter("out", move || UdpSocket::bind(to).unwrap());
        socket.set_read_timeout(Some(BRIEF)).unwrap();
        let mut peers: Vec<SocketAddr> = Vec::new();
        repeat(is_over, move || {
            let mut buffer = [0; 16];
            if let Ok((_, peer)) = socket.recv_from(&mut buffer)
                && !peers.contains(&peer)
            {
                peers.push(peer);
                // Those of the last few changes.
                let old = peers.len().saturating_sub(4);
                peers.drain(..old);
            }
            for peer in &peers {
                let _ = socket.send_to(b"news", peer);
            }
        });
    }
}
