//! E47: who is no node of the cluster, and who belongs to no flow, gets nothing in and no answer.

use egressnat_core::gateway::EgressId;
use egressnat_dataplane::Counters;

use crate::network::{FLOATING, Network, SERVER, eventually};
use crate::traffic::AWAY;
use crate::wire::{ICMP, Packet, TCP, TUNNEL_PORT, Wire};

const GATEWAY: &str = "192.168.1.2";

#[test]
fn an_unknown_flow_and_a_stranger_get_no_answer_at_all() {
    const SYN: u8 = 2;
    const SYN_ACK: u8 = 0x12;
    const ACK: u8 = 0x10;
    let network = Network::new();
    network.apply_all("n2");
    let outside = network.listen("out", "eth0");
    let floating = (FLOATING, 80);
    let mut echo = Packet::new(SERVER, FLOATING, ICMP, vec![8, 0, 0, 0, 0, 1, 0, 1]);
    echo.payload[2..4].copy_from_slice(&(!0x0802u16).to_be_bytes());
    let mut strangers = vec![Packet::udp((SERVER, 53), floating, b"?"), echo];
    strangers.extend([SYN, SYN_ACK, ACK].map(|flags| Packet::tcp((SERVER, 443), floating, flags)));
    for packet in &strangers {
        network.inject("out", packet);
    }
    // So many were dropped by the one rule that should drop them.
    eventually(strangers.len() as u64, || inbound_drops(&network));
    assert_eq!(from_floating(&outside), 0);
    // The node's own address refuses as ever.
    network.inject("out", &Packet::tcp((SERVER, 443), ("192.168.1.2", 80), ACK));
    outside.wait_for("reset", |p| p.protocol == TCP && p.is_from("192.168.1.2"));
    assert_eq!(from_floating(&outside), 0);
}

fn from_floating(wire: &Wire) -> usize {
    wire.count(|packet| packet.is_from(FLOATING))
}

/// What n2 dropped because a floating IP takes no new connections.
fn inbound_drops(network: &Network) -> u64 {
    network.counters("n2").blocked.inbound
}

impl Network {
    pub(crate) fn counters(&self, node: &str) -> Counters {
        self.open(node, async |dataplane| dataplane.counters().unwrap())
    }
}

#[test]
fn tunnel_packets_are_taken_from_nodes_only() {
    let network = Network::new();
    network.apply_all("n2");
    let outside = network.listen("out", "eth0");
    let vni = EgressId::of(FLOATING.parse().unwrap()).vni();
    let inner = |port| Packet::udp((AWAY, port), (SERVER, 53), b"?");
    let before = network.counters("n2");

    // From the router, which is no node.
    for gateway in [FLOATING, GATEWAY] {
        let packet = inner(6001).tunneled("192.168.1.254", gateway, vni);
        network.inject("out", &packet);
    }
    eventually(2, || {
        network.counters("n2").blocked.unknown_peer - before.blocked.unknown_peer
    });
    // From a node, for an address that is not here.
    network.inject(
        "n1",
        &inner(6001).tunneled("192.168.1.1", FLOATING, vni ^ 1),
    );
    let unknown =
        || network.counters("n2").blocked.unknown_egress_id - before.blocked.unknown_egress_id;
    eventually(1, unknown);
    // From a node, as it should be: what was refused before would have been here by now.
    network.inject("n1", &inner(6002).tunneled("192.168.1.1", FLOATING, vni));
    outside.wait_for("the node's packet", |p| {
        p.is_from(FLOATING) && p.ports() == Some((6002, 53))
    });
    assert_eq!(outside.count(|p| p.ports() == Some((6001, 53))), 0);
}

#[test]
fn a_pod_that_makes_tunnel_packets_itself_is_no_node() {
    // Neither does its own node lend it its address on the way, for all that it masquerades.
    let network = Network::new();
    network.apply_all("n2");
    let outside = network.listen("out", "eth0");
    let arriving = network.listen("n2", "eth0");
    let vni = EgressId::of(FLOATING.parse().unwrap()).vni();
    let before = network.counters("n2");
    let pods = ["10.10.1.3", "10.10.2.3"];
    for pod in pods {
        let inner = Packet::udp((AWAY, 6001), (SERVER, 53), b"?");
        network.inject(pod, &inner.tunneled(pod, FLOATING, vni));
    }
    eventually(2, || {
        network.counters("n2").blocked.unknown_peer - before.blocked.unknown_peer
    });
    let tunneled = arriving.wait_for("its packet", |p| {
        p.ports().is_some_and(|ports| ports.1 == TUNNEL_PORT)
    });
    assert!(tunneled.is_from(pods[0]), "{tunneled:?}");
    assert_eq!(from_floating(&outside), 0);
}
