//! E47: who is no node of the cluster, and who belongs to no flow, gets nothing in and no answer.

use egressnat_core::gateway::EgressId;
use egressnat_dataplane::Counters;

use crate::network::{Network, eventually};
use crate::side::{SIDES, Side};
use crate::traffic::AWAY;
use crate::wire::{Packet, TCP, Wire};

#[test]
fn an_unknown_flow_and_a_stranger_get_no_answer_at_all() {
    const SYN: u8 = 2;
    const SYN_ACK: u8 = 0x12;
    const ACK: u8 = 0x10;
    let network = Network::held_by("n2");
    let outside = network.listen("out", "eth0");
    for side in &SIDES {
        let (server, floating) = ((side.server, 443), (side.floating, 80));
        let mut strangers = vec![
            Packet::udp(server, floating, b"?"),
            Packet::echo_request(side.server, side.floating),
        ];
        strangers.extend([SYN, SYN_ACK, ACK].map(|flags| Packet::tcp(server, floating, flags)));
        let before = inbound_drops(&network);
        for packet in &strangers {
            network.inject("out", packet);
        }
        // So many were dropped by the one rule that should drop them.
        eventually(strangers.len() as u64, || inbound_drops(&network) - before);
        assert_eq!(from_floating(&outside, side), 0);
        // The node's own address refuses as ever.
        let node = side.nodes[1];
        network.inject("out", &Packet::tcp(server, (node, 80), ACK));
        outside.wait_for("reset", |p| p.protocol == TCP && p.is_from(node));
        assert_eq!(from_floating(&outside, side), 0);
    }
}

/// What is from a floating IP, but that somebody has it.
fn from_floating(wire: &Wire, side: &Side) -> usize {
    wire.count(|packet| packet.is_from(side.floating) && !packet.is_neighbor_discovery())
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
    let network = Network::held_by("n2");
    let outside = network.listen("out", "eth0");
    for side in &SIDES {
        let [node, gateway] = side.nodes;
        let vni = EgressId::of(side.floating.parse().unwrap()).vni();
        let inner = |port| Packet::udp((&side.pod(AWAY), port), (side.server, 53), b"?");
        let before = network.counters("n2").blocked;

        // From the router, which is no node.
        for to in [side.floating, gateway] {
            network.inject("out", &inner(6001).tunneled(side.router, to, vni));
        }
        eventually(2, || {
            network.counters("n2").blocked.unknown_peer - before.unknown_peer
        });
        // From a node, for an address that is not here.
        network.inject("n1", &inner(6001).tunneled(node, side.floating, vni ^ 1));
        eventually(1, || {
            network.counters("n2").blocked.unknown_egress_id - before.unknown_egress_id
        });
        // From a node, as it should be: what was refused before would have been here by now.
        network.inject("n1", &inner(6002).tunneled(node, side.floating, vni));
        outside.wait_for("the node's packet", |p| {
            p.is_from(side.floating) && p.ports() == Some((6002, 53))
        });
        assert_eq!(outside.count(|p| p.ports() == Some((6001, 53))), 0);
    }
}

#[test]
fn a_pod_that_makes_tunnel_packets_itself_is_no_node() {
    // Neither does its own node lend it its address on the way, for all that it masquerades.
    let network = Network::held_by("n2");
    let (outside, arriving) = (network.listen("out", "eth0"), network.listen("n2", "eth0"));
    let pods = ["10.10.1.3", "10.10.2.3"];
    for side in &SIDES {
        let vni = EgressId::of(side.floating.parse().unwrap()).vni();
        let before = network.counters("n2").blocked;
        for pod in pods {
            let inner = Packet::udp((&side.pod(AWAY), 6001), (side.server, 53), b"?");
            let packet = inner.tunneled(&side.pod(pod), side.floating, vni);
            network.inject(pod, &packet);
        }
        eventually(2, || {
            network.counters("n2").blocked.unknown_peer - before.unknown_peer
        });
        let is_it = |p: &Packet| p.is_tunneled() && p.is_to(side.floating);
        let tunneled = arriving.wait_for("its packet", is_it);
        assert!(tunneled.is_from(&side.pod(pods[0])), "{tunneled:?}");
        assert_eq!(from_floating(&outside, side), 0);
    }
}
