//! E41: what else than plain TCP and UDP goes through the tunnel and through translation, both ways.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use egressnat_core::{PolicySetId, Steering};

use crate::network::{FLOATING, Network, SERVER, eventually, plan};
use crate::wire::{Packet, SCTP, Wire};

/// One pod beside the floating IP and one that it is reached through the tunnel by.
pub(crate) const PODS: [&str; 2] = ["10.10.2.2", "10.10.1.2"];
pub(crate) const AWAY: &str = PODS[1];
const SECOND: &str = "192.168.1.101";

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn address(text: &str, port: u16) -> SocketAddr {
    SocketAddr::from((text.parse::<Ipv4Addr>().unwrap(), port))
}

fn seen(address: &str) -> Option<String> {
    Some(address.to_owned())
}

impl Network {
    /// A UDP server outside that answers each datagram with one of the same size, which begins with the client's address.
    pub(crate) fn mirror(&self, port: u16) {
        let socket = self.enter("out", move || {
            UdpSocket::bind(address(SERVER, port)).unwrap()
        });
        thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                let mut answer = format!("{peer}\n").into_bytes();
                answer.resize(length.max(answer.len()), b'.');
                socket.send_to(&answer, peer).unwrap();
            }
        });
    }

    /// A UDP socket in a namespace, connected to the server.
    pub(crate) fn udp(&self, from: &str, port: u16, to: u16) -> UdpSocket {
        self.enter(from, move || {
            let socket = UdpSocket::bind(address("0.0.0.0", port)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect(address(SERVER, to)).unwrap();
            socket
        })
    }
}

/// Asks the mirror with so many bytes, and gives the address and port that it saw.
pub(crate) fn ask(socket: &UdpSocket, length: usize) -> SocketAddr {
    let mut answer = vec![0; 65_536];
    socket.send(&vec![b'?'; length]).unwrap();
    let received = socket.recv(&mut answer).unwrap();
    assert!(received >= length, "{received} of {length} bytes");
    let text = String::from_utf8_lossy(&answer[..received]).into_owned();
    text.lines().next().unwrap().parse().unwrap()
}

#[test]
fn echo_requests_are_translated_on_the_wire() {
    let network = Network::new();
    network.apply_all("n2");
    let wire = network.listen("out", "eth0");
    for pod in PODS {
        assert!(network.is_pinged(pod, SERVER), "{pod}");
    }
    eventually(PODS.len(), || {
        wire.count(|p| p.icmp() == Some((8, 0)) && p.is_from(FLOATING) && p.is_to(SERVER))
    });
    assert_eq!(wire.count(|p| p.is_from(PODS[0]) || p.is_from(PODS[1])), 0);
}

#[test]
fn sctp_is_translated_both_ways_with_a_right_checksum() {
    // Without the kernel's sctp module no association is made here: these are its packets, and conntrack has to know them.
    const INIT: [u8; 20] = [1, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];
    const INIT_ACK: [u8; 20] = [2, 0, 0, 20, 0, 0, 0, 9, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];
    let network = Network::new();
    network.apply_all("n2");
    // A host without SCTP refuses the protocol; here somebody answers.
    for command in [
        "add table ip quiet",
        "add chain ip quiet in { type filter hook input priority 0 ; }",
        "add rule ip quiet in meta l4proto 132 drop",
    ] {
        network.exec("out", &format!("nft {command}"));
    }
    let outside = network.listen("out", "eth0");
    for (pod, port) in PODS.into_iter().zip([5000, 5001]) {
        let inside = network.listen(pod, "eth0");
        network.inject(pod, &Packet::sctp((pod, port), (SERVER, 3868), 0, &INIT));
        let init = outside.wait_for("INIT", |p| {
            p.protocol == SCTP && p.payload[12] == 1 && p.ports() == Some((port, 3868))
        });
        assert!(init.is_from(FLOATING), "{init:?}");
        let [found, want] = init.sctp_checksums();
        assert_eq!(found, want, "{pod}");
        network.inject(
            "out",
            &Packet::sctp((SERVER, 3868), (FLOATING, port), 7, &INIT_ACK),
        );
        let answer = inside.wait_for("INIT ACK", |p| p.protocol == SCTP && p.payload[12] == 2);
        assert_eq!((answer.is_from(SERVER), answer.is_to(pod)), (true, true));
        assert_eq!(answer.ports(), Some((3868, port)));
        let [found, want] = answer.sctp_checksums();
        assert_eq!(found, want, "{pod}");
    }
}

#[test]
fn fragments_go_both_ways() {
    const LENGTH: usize = 6000;
    let network = Network::new();
    network.apply_all("n2");
    network.mirror(7000);
    let outside = network.listen("out", "eth0");
    for pod in PODS {
        let inside = network.listen(pod, "eth0");
        let socket = network.udp(pod, 0, 7000);
        assert_eq!(ask(&socket, LENGTH).ip().to_string(), FLOATING, "{pod}");
        let fragments =
            |wire: &Wire, from, to| wire.count(|p| p.is_fragment && p.is_from(from) && p.is_to(to));
        // Each where it comes in: what goes out is the kernel's to change afterwards, also for who looks.
        for (wire, from, to) in [(&outside, FLOATING, SERVER), (&inside, SERVER, pod)] {
            let at_least = LENGTH / 1480 + 1;
            eventually((from, at_least), || {
                (from, fragments(wire, from, to).min(at_least))
            });
        }
    }
    assert_eq!(
        outside.count(|p| PODS.into_iter().any(|pod| p.is_from(pod))),
        0
    );
    // A ping whose fragments each fit the pod's interface and not the tunnel.
    for pod in PODS {
        network.exec(pod, &format!("ping -c1 -W5 -q -s 8000 {SERVER}"));
    }
}

#[test]
fn several_egress_ips_of_one_node_stay_apart() {
    let network = Network::new();
    for node in ["n1", "n2"] {
        let mut plan = plan(node, "n2");
        let second = PolicySetId(4242);
        for (pod, set) in &mut plan.pods {
            if pod.to_string().ends_with(".3") {
                *set = second;
            }
        }
        let egress_ip = SECOND.parse().unwrap();
        let destination = (second, "8.8.8.0/24".parse().unwrap());
        plan.destinations
            .insert(destination, Steering::Snat(egress_ip));
        if node == "n2" {
            plan.floating_ips.insert(egress_ip);
        }
        assert_eq!(network.apply(node, plan).failures, []);
    }
    for (host, want) in [(2, FLOATING), (3, SECOND)] {
        for node in [1, 2] {
            let pod = format!("10.10.{node}.{host}");
            assert_eq!(network.seen_by_tcp(&pod, SERVER), seen(want), "{pod}");
            assert_eq!(network.seen_by_udp(&pod, SERVER), seen(want), "{pod}");
            assert!(network.is_pinged(&pod, SERVER), "{pod}");
        }
    }
}

#[test]
fn a_source_port_is_kept_where_it_is_free_and_else_another_is_found() {
    let network = Network::new();
    network.apply_all("n2");
    network.mirror(7000);
    let mut others = Vec::new();
    for port in [5200, 5201, 5202] {
        let [first, second] = PODS.map(|pod| network.udp(pod, port, 7000));
        assert_eq!(ask(&first, 8), address(FLOATING, port));
        let other = ask(&second, 8);
        assert_eq!(other.ip().to_string(), FLOATING);
        assert_ne!(other.port(), port);
        // Each gets its own answers all the same, and keeps its port.
        assert_eq!((ask(&first, 8).port(), ask(&second, 8)), (port, other));
        others.push(i32::from(other.port()) - i32::from(port));
    }
    assert!(
        others.windows(2).any(|pair| pair[0] != pair[1]),
        "not random: {others:?}"
    );
}
