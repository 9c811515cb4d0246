//! What ends a connection, or nearly does, after the decision about it has changed: no packet of it has the pod's own address (E14, E43).

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use crate::network::{FLOATING, Network, SERVER, eventually, plan};
use crate::redecided::{of_second_node, of_two_egress_ips, unselected};
use crate::traffic::PATIENCE;

const POD: &str = "10.10.1.2";
const PORT: u16 = 7000;

impl Network {
    /// A connection of the pod to a server, with both of its ends.
    fn connection(&self) -> [TcpStream; 2] {
        let to = SocketAddr::from((SERVER.parse::<IpAddr>().unwrap(), PORT));
        let listener = self.enter("out", move || TcpListener::bind(to).unwrap());
        let client = self.enter(POD, move || TcpStream::connect_timeout(&to, PATIENCE));
        let (server, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip().to_string(), FLOATING);
        [client.unwrap(), server]
    }
}

#[test]
fn a_connection_that_went_on_without_its_policy_ends_unheard_once_its_floating_ip_is_gone_e43() {
    let network = Network::new();
    network.apply_all("n1");
    let [client, server] = network.connection();
    // It goes on as it is when its policy goes, and has no address any more when that goes.
    for holder in ["n1", "n2"] {
        let report = network.apply("n1", unselected(plan("n1", holder)));
        assert_eq!(report.failures, []);
    }
    let end = format!("ip saddr {POD} tcp dport {PORT} tcp flags & fin != 0");
    network.count("n1", "ends", &end);
    network.count("out", "own", &format!("ip saddr {POD}"));
    drop(client);
    eventually(true, || network.counted("n1", "watch", "ends") > 0);
    assert_eq!(network.counted("out", "watch", "own"), 0);
    drop(server);
}

#[test]
fn what_a_strict_destination_sends_in_a_forgotten_connection_opens_none_from_outside_e14_e43() {
    let network = Network::new();
    network.apply_all("n2");
    let [mut client, mut server] = network.connection();
    network.count(
        "n1",
        "pushes",
        &format!("ip saddr {SERVER} tcp sport {PORT}"),
    );
    network.count("out", "own", &format!("ip saddr {POD}"));
    // As after edits to and fro, and so long a silence that nobody expects an answer any more.
    network.exec("n1", "conntrack -F");
    server.write_all(b"!").unwrap();
    eventually(true, || network.counted("n1", "watch", "pushes") > 1);
    assert_eq!(network.counted("out", "watch", "own"), 0);
    // Once the pod has spoken it is its own connection again.
    client
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    client.write_all(b"?").unwrap();
    client.read_exact(&mut [0]).unwrap();
    assert_eq!(network.counted("out", "watch", "own"), 0);
}

#[test]
fn a_pod_that_does_not_hear_that_its_new_flow_is_refused_ends_it_unheard_e14_e43() {
    let network = Network::new();
    let [snapshot, edited] = of_two_egress_ips();
    let apply = |node, plan| assert_eq!(network.apply(node, plan).failures, []);
    for node in ["n1", "n2"] {
        apply(node, of_second_node(&snapshot, node));
    }
    let [mut client, mut server] = network.connection();
    // It does not take the reset, as where that has another sequence number than the one it waits for.
    for command in [
        "add table ip deaf",
        "add chain ip deaf in { type filter hook input priority 0 ; }",
        "add rule ip deaf in tcp flags & rst != 0 drop",
    ] {
        network.exec(POD, &format!("nft {command}"));
    }
    network.count("n1", "resets", "tcp flags & rst != 0");
    let end = format!("ip saddr {POD} tcp dport {PORT} tcp flags & fin != 0");
    network.count("n1", "ends", &end);
    network.count("out", "own", &format!("ip saddr {POD}"));
    for node in ["n1", "n2"] {
        apply(node, of_second_node(&edited, node));
    }
    // The pod acknowledges it in a new flow, which the server refuses.
    server.write_all(b"!").unwrap();
    client.read_exact(&mut [0]).unwrap();
    eventually(true, || network.counted("n1", "watch", "resets") > 0);
    // The kernel does it by itself where none of the server's segments came before the reset.
    network.exec("n1", &format!("conntrack -D -p tcp --dport {PORT}"));
    // As long as it may take until it is edited again.
    thread::sleep(Duration::from_millis(1500));
    apply("n1", unselected(of_second_node(&edited, "n1")));
    drop(client);
    eventually(true, || network.counted("n1", "watch", "ends") > 0);
    assert_eq!(network.counted("out", "watch", "own"), 0);
}
