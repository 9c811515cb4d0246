//! E41: ICMP errors reach the one whose packet they are about, with the addresses that it knows.

use std::io::ErrorKind;

use crate::network::{FLOATING, Network, SERVER};
use crate::traffic::{AWAY, PODS, address, ask};
use crate::wire::{BEYOND, DESTINATION_UNREACHABLE, Packet};

const PROTOCOL: u8 = 2;
const PORT: u8 = 3;
const TIME_EXCEEDED: (u8, u8) = (11, 0);

#[test]
fn what_the_server_refuses_the_pod_is_told() {
    let network = Network::new();
    network.apply_all("n2");
    for pod in PODS {
        let socket = network.udp(pod, 0, 81);
        socket.send(b"?").unwrap();
        let refused = socket.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{pod}");
    }
    let inside = network.listen(AWAY, "eth0");
    network.inject(AWAY, &Packet::new(AWAY, SERVER, 253, vec![0; 8]));
    let refused = inside.wait_for("unreachable", |p| {
        p.icmp() == Some((DESTINATION_UNREACHABLE, PROTOCOL))
    });
    assert!(
        refused.is_from(SERVER) && refused.cause().unwrap().is_from(AWAY),
        "{refused:?}"
    );
}

#[test]
fn what_the_pod_refuses_the_server_is_told_by_the_floating_ip() {
    let network = Network::new();
    network.apply_all("n2");
    network.mirror(7000);
    let outside = network.listen("out", "eth0");
    for (pod, port) in PODS.into_iter().zip([5100, 5101]) {
        let socket = network.udp(pod, port, 7000);
        assert_eq!(ask(&socket, 8), address(FLOATING, port));
        drop(socket);
        // The flow is known, and nobody has it any more.
        network.inject(
            "out",
            &Packet::udp((SERVER, 7000), (FLOATING, port), b"late"),
        );
        let refused = outside.wait_for("unreachable", |p| {
            p.icmp() == Some((DESTINATION_UNREACHABLE, PORT))
                && p.cause()
                    .is_some_and(|cause| cause.ports() == Some((7000, port)))
        });
        assert!(refused.is_from(FLOATING), "{refused:?}");
        let cause = refused.cause().unwrap();
        assert!(cause.is_from(SERVER) && cause.is_to(FLOATING), "{cause:?}");
    }
}

#[test]
fn hops_that_count_to_zero_are_told_to_the_pod_from_every_hop() {
    let network = Network::new();
    network.apply_all("n2");
    network.ip("out", &format!("route add {BEYOND}/32 dev eth0"));
    let inside = network.listen(AWAY, "eth0");
    // The source node, the gateway node, the router: as traceroute sees them.
    for (ttl, hop) in [(1, "10.10.1.254"), (2, "192.168.1.2"), (3, "192.168.1.254")] {
        let port = 33_434 + u16::from(ttl);
        let mut probe = Packet::udp((AWAY, 6000), (BEYOND, port), b"?");
        probe.ttl = ttl;
        network.inject(AWAY, &probe);
        let told = inside.wait_for("time exceeded", |p| {
            p.icmp() == Some(TIME_EXCEEDED)
                && p.cause()
                    .is_some_and(|cause| cause.ports() == Some((6000, port)))
        });
        assert!(told.is_from(hop), "{ttl}: {told:?}");
        let cause = told.cause().unwrap();
        assert!(cause.is_from(AWAY) && cause.is_to(BEYOND), "{cause:?}");
    }
}
