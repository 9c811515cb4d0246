//! E41: what else than plain TCP and UDP goes through the tunnel and through translation, both ways.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use egressnat_core::{PolicySetId, Steering};

use crate::network::{Network, eventually};
use crate::side::{SIDES, plan};
use crate::wire::{Packet, SCTP, Wire};

/// One pod beside the floating IP and one that it is reached through the tunnel by.
pub(crate) const PODS: [&str; 2] = ["10.10.2.2", "10.10.1.2"];
pub(crate) const AWAY: &str = PODS[1];

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn address(text: &str, port: u16) -> SocketAddr {
    SocketAddr::from((text.parse::<IpAddr>().unwrap(), port))
}

fn seen(address: &str) -> Option<String> {
    Some(address.to_owned())
}

impl Network {
    /// A UDP server outside that answers each datagram with one of the same size, which begins with the client's address.
    pub(crate) fn mirror(&self, server: &str, port: u16) {
        self.mirror_at("out", server, port);
    }

    /// The same in any namespace.
    pub(crate) fn mirror_at(&self, host: &str, server: &str, port: u16) {
        let at = address(server, port);
        let socket = self.enter(host, move || UdpSocket::bind(at).unwrap());
        thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                let mut answer = format!("{peer}\n").into_bytes();
                answer.resize(length.max(answer.len()), b'.');
                socket.send_to(&answer, peer).unwrap();
            }
        });
    }

    /// A UDP socket of a port of a namespace, connected to a server.
    pub(crate) fn udp(&self, from: &str, port: u16, to: SocketAddr) -> UdpSocket {
        self.enter(from, move || {
            let any: IpAddr = match to {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((any, port)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect(to).unwrap();
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
    let network = Network::held_by("n2");
    let wire = network.listen("out", "eth0");
    for side in &SIDES {
        for pod in PODS {
            assert!(network.is_pinged(pod, side.server), "{pod}");
        }
        let kind = if side.is_ipv6() { 128 } else { 8 };
        let is_request = |p: &Packet| p.icmp() == Some((kind, 0)) && p.is_to(side.server);
        eventually(PODS.len(), || {
            wire.count(|p| is_request(p) && p.is_from(side.floating))
        });
        assert_eq!(wire.count(is_request), PODS.len());
    }
}

#[test]
fn sctp_is_translated_both_ways_with_a_right_checksum() {
    // Without the kernel's sctp module no association is made here: these are its packets, and conntrack has to know them.
    const INIT: [u8; 20] = [1, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];
    const INIT_ACK: [u8; 20] = [2, 0, 0, 20, 0, 0, 0, 9, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];
    let network = Network::held_by("n2");
    let outside = network.listen("out", "eth0");
    for side in &SIDES {
        // A host without SCTP refuses the protocol; here somebody answers.
        let quiet = ["meta l4proto 132 drop".to_owned()];
        side.add_rules(&network, "out", "filter hook input priority 0", &quiet);
        let (server, floating) = ((side.server, 3868), side.floating);
        for (pod, port) in PODS.into_iter().zip([5000, 5001]) {
            let (inside, from) = (network.listen(pod, "eth0"), side.pod(pod));
            network.inject(pod, &Packet::sctp((&from, port), server, 0, &INIT));
            let init = outside.wait_for("INIT", |p| {
                p.protocol == SCTP
                    && p.payload[12] == 1
                    && p.ports() == Some((port, 3868))
                    && p.is_to(side.server)
            });
            assert!(init.is_from(floating), "{init:?}");
            let [found, want] = init.sctp_checksums();
            assert_eq!(found, want, "{pod}");
            let answer = Packet::sctp(server, (floating, port), 7, &INIT_ACK);
            network.inject("out", &answer);
            let answer = inside.wait_for("INIT ACK", |p| {
                p.protocol == SCTP && p.payload[12] == 2 && p.is_to(&from)
            });
            assert!(answer.is_from(side.server), "{answer:?}");
            assert_eq!(answer.ports(), Some((3868, port)));
            let [found, want] = answer.sctp_checksums();
            assert_eq!(found, want, "{pod}");
        }
    }
}

#[test]
fn fragments_go_both_ways() {
    const LENGTH: usize = 6000;
    let network = Network::held_by("n2");
    let outside = network.listen("out", "eth0");
    for side in &SIDES {
        network.mirror(side.server, 7000);
        for pod in PODS {
            let (inside, own) = (network.listen(pod, "eth0"), side.pod(pod));
            let socket = network.udp(pod, 0, address(side.server, 7000));
            // No router fragments IPv6: what goes first is lost, and the pod is told what fits.
            eventually(true, || {
                let _ = socket.send(&[0; LENGTH]);
                !fragments(&inside, side.server, &own).is_empty()
            });
            let seen = ask(&socket, LENGTH).ip().to_string();
            assert_eq!(seen, side.floating, "{pod}");
            // Each where it comes in: what goes out is the kernel's to change afterwards, also for who looks.
            for (wire, from, to) in [
                (&outside, side.floating, side.server),
                (&inside, side.server, &own),
            ] {
                let at_least = LENGTH / 1480 + 1;
                eventually((from, true), || {
                    (from, fragments(wire, from, to).len() >= at_least)
                });
            }
            assert_eq!(outside.count(|p| p.is_from(&own)), 0);
            // A ping whose fragments each fit the pod's interface and not the tunnel; of IPv6 it knows by now what fits.
            network.exec(pod, &format!("ping -c1 -W5 -q -s 8000 {}", side.server));
        }
    }
}

fn fragments(wire: &Wire, from: &str, to: &str) -> Vec<Packet> {
    let mut packets = wire.packets();
    packets.retain(|p| p.is_fragment && p.is_from(from) && p.is_to(to));
    packets
}

#[test]
fn several_egress_ips_of_one_node_stay_apart() {
    let network = Network::dual_stack();
    for node in ["n2", "n1"] {
        let mut plan = plan(node, "n2");
        let second = PolicySetId(4242);
        for (pod, set) in &mut plan.pods {
            if pod.to_string().ends_with("3") {
                *set = second;
            }
        }
        for (side, range) in SIDES.iter().zip(["8.8.8.0/24", "2001:db8:8::/48"]) {
            let egress_ip = side.second.parse().unwrap();
            let destination = (second, range.parse().unwrap());
            plan.destinations
                .insert(destination, Steering::Snat(egress_ip));
            if node == "n2" {
                plan.floating_ips.insert(egress_ip);
            }
        }
        assert_eq!(network.apply(node, plan).failures, []);
    }
    for side in &SIDES {
        for (host, want) in [(2, side.floating), (3, side.second)] {
            for node in [1, 2] {
                let pod = format!("10.10.{node}.{host}");
                assert_eq!(network.seen_by_tcp(&pod, side.server), seen(want), "{pod}");
                assert_eq!(network.seen_by_udp(&pod, side.server), seen(want), "{pod}");
                assert!(network.is_pinged(&pod, side.server), "{pod}");
            }
        }
    }
}

#[test]
fn a_source_port_is_kept_where_it_is_free_and_else_another_is_found() {
    let network = Network::held_by("n2");
    for side in &SIDES {
        network.mirror(side.server, 7000);
        let mut others = Vec::new();
        for port in [5200, 5201, 5202] {
            let to = address(side.server, 7000);
            let [first, second] = PODS.map(|pod| network.udp(pod, port, to));
            assert_eq!(ask(&first, 8), address(side.floating, port));
            let other = ask(&second, 8);
            assert_eq!(other.ip().to_string(), side.floating);
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
}
