//! E41: ICMP errors reach the one whose packet they are about, with the addresses that it knows.

use std::io::ErrorKind;

use crate::network::Network;
use crate::side::SIDES;
use crate::traffic::{AWAY, PODS, address, ask};
use crate::wire::Packet;

/// For experiments (RFC 3692): no host has it.
const NO_PROTOCOL: u8 = 253;

#[test]
fn what_the_server_refuses_the_pod_is_told() {
    let network = Network::held_by("n2");
    for side in &SIDES {
        for pod in PODS {
            let socket = network.udp(pod, 0, address(side.server, 81));
            socket.send(b"?").unwrap();
            let refused = socket.recv(&mut [0; 16]).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{pod}");
        }
        let (pod, inside) = (side.pod(AWAY), network.listen(AWAY, "eth0"));
        let packet = Packet::new(&pod, side.server, NO_PROTOCOL, vec![0; 8]);
        network.inject(AWAY, &packet);
        let refused = inside.wait_for("unreachable", |p| p.icmp() == Some(side.unknown_protocol));
        assert!(
            refused.is_from(side.server) && refused.cause().unwrap().is_from(&pod),
            "{refused:?}"
        );
    }
}

#[test]
fn what_the_pod_refuses_the_server_is_told_by_the_floating_ip() {
    let network = Network::held_by("n2");
    let outside = network.listen("out", "eth0");
    for side in &SIDES {
        let (server, floating) = ((side.server, 7000), side.floating);
        network.mirror(server.0, server.1);
        for (pod, port) in PODS.into_iter().zip([5100, 5101]) {
            let socket = network.udp(pod, port, address(server.0, server.1));
            assert_eq!(ask(&socket, 8), address(floating, port));
            drop(socket);
            // The flow is known, and nobody has it any more.
            network.inject("out", &Packet::udp(server, (floating, port), b"late"));
            let refused = outside.wait_for("unreachable", |p| {
                p.icmp() == Some(side.port_unreachable)
                    && p.cause()
                        .is_some_and(|cause| cause.ports() == Some((server.1, port)))
            });
            assert!(refused.is_from(floating), "{refused:?}");
            let cause = refused.cause().unwrap();
            assert!(
                cause.is_from(server.0) && cause.is_to(floating),
                "{cause:?}"
            );
        }
        // No pod's address is in any packet, nor in what it is about.
        let pods = PODS.map(|pod| side.pod(pod));
        let is_told = |p: &Packet| pods.iter().any(|pod| p.is_from(pod) || p.is_to(pod));
        let told = outside.count(|p| is_told(p) || p.cause().is_some_and(|cause| is_told(&cause)));
        assert_eq!(told, 0);
    }
}

#[test]
fn hops_that_count_to_zero_are_told_to_the_pod_from_every_hop() {
    let network = Network::held_by("n2");
    let inside = network.listen(AWAY, "eth0");
    for side in &SIDES {
        network.ip("out", &format!("route add {} dev eth0", side.beyond));
        // The source node, by the address that it has towards the pod, the gateway node, the router: as traceroute sees them.
        let first = match side.is_ipv6() {
            true => side.nodes[0],
            false => "10.10.1.254",
        };
        for (ttl, hop) in [(1, first), (2, side.nodes[1]), (3, side.router)] {
            let (pod, port) = (side.pod(AWAY), 33_434 + u16::from(ttl));
            let mut probe = Packet::udp((&pod, 6000), (side.beyond, port), b"?");
            probe.ttl = ttl;
            network.inject(AWAY, &probe);
            let told = inside.wait_for("time exceeded", |p| {
                p.icmp() == Some(side.time_exceeded)
                    && p.cause()
                        .is_some_and(|cause| cause.ports() == Some((6000, port)))
            });
            assert!(told.is_from(hop), "{ttl}: {told:?}");
            let cause = told.cause().unwrap();
            assert!(cause.is_from(&pod) && cause.is_to(side.beyond), "{cause:?}");
        }
    }
}
