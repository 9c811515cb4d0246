//! E13: what a network policy drops never was egress traffic, wherever it is dropped. E14: nor are answers to who came from outside.

use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};

use crate::network::{FLOATING, Network, SERVER, eventually};
use crate::side::SIDES;
use crate::traffic::{AWAY, PODS, address};
use crate::wire::{Packet, TCP};

/// Our own program for tunnel devices drops what came through no tunnel: on a pod's interface that is everything.
static DROPS_ALL: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/egressnat.bpf.o"));

fn seen(address: &str) -> Option<String> {
    Some(address.to_owned())
}

impl Network {
    /// A program of somebody else on a pod's interface, until it is dropped.
    fn drop_all(&self, node: &str, interface: &'static str, order: LinkOrder) -> Ebpf {
        let pins = self.pins(node).with_file_name("foreign");
        std::fs::create_dir_all(&pins).unwrap();
        self.enter(node, move || {
            let mut ebpf = EbpfLoader::new()
                .default_map_pin_directory(&pins)
                .load(DROPS_ALL)
                .unwrap();
            let program = ebpf.program_mut("decap").unwrap();
            let program: &mut SchedClassifier = program.try_into().unwrap();
            program.load().unwrap();
            let options = TcAttachOptions::TcxOrder(order);
            program
                .attach_with_options(interface, TcAttachType::Ingress, options)
                .unwrap();
            ebpf
        })
    }

    /// Pods learn their gateways' link-layer addresses: what drops all would drop that question too, and nothing else would ever come.
    fn meet_gateways(&self) {
        for (pod, gateway) in PODS.into_iter().zip(["10.10.2.254", "10.10.1.254"]) {
            assert!(self.is_pinged(pod, gateway), "{pod}");
        }
    }

    /// What each node counts as egress traffic: marked packets, packets out of the tunnel, packets with an address of ours.
    fn egress(&self) -> Vec<(u64, u64, String)> {
        let counted = |node: &str| {
            let counters = self.open(node, async |dataplane| dataplane.counters().unwrap());
            let chain = self.told(
                node,
                "nft list chain ip egressnat decided; nft list chain ip6 egressnat decided",
            );
            (
                counters.steered().packets,
                counters.received().packets,
                chain,
            )
        };
        ["n1", "n2"].map(counted).into()
    }
}

#[test]
fn another_program_that_drops_wins_and_nothing_of_it_is_egress() {
    let network = Network::new();
    network.apply_all("n2");
    network.meet_gateways();
    for is_first in [true, false] {
        let order = || match is_first {
            true => LinkOrder::first(),
            false => LinkOrder::last(),
        };
        let before = network.egress();
        let programs = ["n1", "n2"].map(|node| network.drop_all(node, "veth2", order()));
        for pod in PODS {
            assert_eq!(network.seen_by_udp(pod, SERVER), None, "{pod}");
        }
        // A later one wins as well. Ours has looked at the packet by then.
        assert_eq!(network.egress(), before, "is first: {is_first}");
        drop(programs);
        for pod in PODS {
            eventually(seen(FLOATING), || network.seen_by_udp(pod, SERVER));
        }
    }
}

#[test]
fn a_program_that_was_there_before_ours_stays_before_it() {
    let network = Network::new();
    network.meet_gateways();
    let programs = ["n1", "n2"].map(|node| network.drop_all(node, "veth2", LinkOrder::default()));
    network.apply_all("n2");
    let before = network.egress();
    for pod in PODS {
        assert_eq!(network.seen_by_udp(pod, SERVER), None, "{pod}");
    }
    assert_eq!(network.egress(), before);
    drop(programs);
    for pod in PODS {
        eventually(seen(FLOATING), || network.seen_by_udp(pod, SERVER));
    }
}

#[test]
fn a_drop_in_the_forward_chain_wins_and_nothing_of_it_is_egress() {
    let network = Network::held_by("n2");
    let (uplink, outside) = (network.listen("n1", "eth0"), network.listen("out", "eth0"));
    for side in &SIDES {
        for (node, pod) in ["n2", "n1"].into_iter().zip(PODS) {
            let family = side.family();
            let (own, server) = (side.pod(pod), side.server);
            let rule = format!("{family} saddr {own} {family} daddr {server} drop");
            side.add_rules(&network, node, "filter hook forward priority 0", &[rule]);
        }
        let before = network.egress();
        let counted = || ["n1", "n2"].map(|node| network.read_counters(node));
        let counters = counted();
        for pod in PODS {
            assert_eq!(network.seen_by_udp(pod, side.server), None, "{pod}");
            assert_eq!(network.seen_by_tcp(pod, side.server), None, "{pod}");
        }
        assert_eq!(network.egress(), before);
        for (before, now) in counters.iter().zip(counted()) {
            assert_eq!(
                (&now.egress, &now.policies),
                (&before.egress, &before.policies)
            );
        }
        let steered = |p: &Packet| p.is_tunneled() && p.is_to(side.floating);
        assert_eq!(uplink.count(steered), 0);
        assert_eq!(outside.count(|p| p.is_to(side.server)), 0);
        for (node, pod) in ["n2", "n1"].into_iter().zip(PODS) {
            side.delete_rules(&network, node);
            assert_eq!(network.seen_by_udp(pod, side.server), seen(side.floating));
        }
    }
}

#[test]
fn a_drop_in_the_pod_wins_and_nothing_of_it_is_egress() {
    let network = Network::held_by("n2");
    for side in &SIDES {
        let drops = ["drop".to_owned()];
        for pod in PODS {
            let output = "filter hook output priority 0";
            side.add_rules(&network, pod, output, &drops);
            let before = network.egress();
            let udp = network.udp(pod, 0, address(side.server, 80));
            assert!(udp.send(b"?").is_err(), "{pod}");
            assert_eq!(network.egress(), before, "{pod}");
            side.delete_rules(&network, pod);
            assert_eq!(network.seen_by_udp(pod, side.server), seen(side.floating));
        }
    }
}

#[test]
fn answers_to_who_came_from_outside_are_never_steered_e14() {
    let network = Network::dual_stack();
    for side in &SIDES {
        let (own, node) = (side.pod(AWAY), side.nodes[0]);
        network.serve(AWAY, &own);
        // As kube-proxy does for a service that keeps the client's address.
        let to = match side.is_ipv6() {
            true => format!("[{own}]"),
            false => own.clone(),
        };
        let service = format!(
            "{} daddr {node} meta l4proto {{ tcp, udp }} th dport 80 dnat to {to}",
            side.family()
        );
        side.add_rules(
            &network,
            "n1",
            "nat hook prerouting priority -100",
            &[service],
        );
        // The client has the server's address, which the policy of the pod covers.
        let server = side.server;
        network.ip("out", &format!("route add {node} dev eth0 src {server}"));
        network.ip("out", &format!("route add {own} via {node} src {server}"));
    }
    for holder in ["n2", "n1"] {
        network.apply_sides(holder);
        for side in &SIDES {
            let (uplink, outside) = (network.listen("n1", "eth0"), network.listen("out", "eth0"));
            let own = side.pod(AWAY);
            // A NodePort, and the pod's own address.
            for to in [side.nodes[0], &own] {
                assert_eq!(
                    network.seen_by_tcp("out", to),
                    seen(side.server),
                    "{holder}"
                );
                assert_eq!(
                    network.seen_by_udp("out", to),
                    seen(side.server),
                    "{holder}"
                );
                assert!(network.is_pinged("out", to), "{holder}");
                outside.wait_for("the answer", |p| p.protocol == TCP && p.is_from(to));
                let is_else = |p: &Packet| {
                    [side.floating, &own]
                        .iter()
                        .any(|other| *other != to && p.is_from(other))
                        && !p.is_neighbor_discovery()
                };
                assert_eq!(outside.count(is_else), 0, "{to}, {holder}");
                // Of the other family something may still be on its way.
                let steered = uplink.count(|p| p.is_tunneled() && p.is_to(side.floating));
                assert_eq!(steered, 0, "{to}, {holder}");
            }
            // While what it begins itself is steered.
            let begun = network.seen_by_tcp(AWAY, side.server);
            assert_eq!(begun, seen(side.floating), "{holder}");
        }
    }
}
