//! E13: what a network policy drops never was egress traffic, wherever it is dropped. E14: nor are answers to who came from outside.

use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};

use crate::network::{FLOATING, Network, SERVER, eventually};
use crate::traffic::{AWAY, PODS};
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

    /// What each node counts as egress traffic: marked packets, packets out of the tunnel, packets with an address of ours.
    fn egress(&self) -> Vec<(u64, u64, String)> {
        let counted = |node: &str| {
            let counters = self.open(node, async |dataplane| dataplane.counters().unwrap());
            let chain = self.exec(node, "nft list chain ip egressnat decided");
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
fn an_earlier_program_that_drops_wins_and_ours_never_sees_the_packet() {
    let network = Network::new();
    network.apply_all("n2");
    for order in [LinkOrder::first(), LinkOrder::last()] {
        let before = network.egress();
        let is_first = format!("{order:?}") == format!("{:?}", LinkOrder::first());
        let programs = [
            network.drop_all("n1", "veth2", order),
            network.drop_all("n2", "veth2", LinkOrder::first()),
        ];
        for pod in PODS {
            assert_eq!(network.seen_by_udp(pod, SERVER), None, "{pod}");
        }
        let after = network.egress();
        assert_eq!(
            (after[1].clone(), after[0].1),
            (before[1].clone(), before[0].1)
        );
        // A later one wins as well; ours has looked at the packet by then.
        assert_eq!(after[0].0 == before[0].0, is_first);
        drop(programs);
        for pod in PODS {
            eventually(seen(FLOATING), || network.seen_by_udp(pod, SERVER));
        }
    }
}

#[test]
fn a_drop_in_the_forward_chain_or_in_the_pod_wins_and_nothing_of_it_is_egress() {
    let network = Network::new();
    network.apply_all("n2");
    let places = [
        (
            "n1",
            "hook forward priority 0",
            "ip saddr 10.10.1.2 ip daddr 8.8.8.8 drop",
        ),
        (
            "n2",
            "hook forward priority 0",
            "ip saddr 10.10.2.2 ip daddr 8.8.8.8 drop",
        ),
    ];
    for (node, hook, rule) in places {
        network.exec(node, "nft add table ip policies");
        network.exec(
            node,
            &format!("nft add chain ip policies deny {{ type filter {hook} ; }}"),
        );
        network.exec(node, &format!("nft add rule ip policies deny {rule}"));
    }
    let (uplink, outside) = (network.listen("n1", "eth0"), network.listen("out", "eth0"));
    let before = network.egress();
    for pod in PODS {
        assert_eq!(network.seen_by_udp(pod, SERVER), None, "{pod}");
        assert_eq!(network.seen_by_tcp(pod, SERVER), None, "{pod}");
    }
    let after = network.egress();
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((before.1, &before.2), (after.1, &after.2));
    }
    assert_eq!(uplink.count(Packet::is_tunneled), 0);
    assert_eq!(outside.count(|p| p.is_to(SERVER)), 0);
    for (node, ..) in places {
        network.exec(node, "nft delete table ip policies");
    }
    for pod in PODS {
        network.exec(pod, "nft add table ip policies");
        network.exec(
            pod,
            "nft add chain ip policies deny { type filter hook output priority 0 ; policy drop ; }",
        );
        let before = network.egress();
        let udp = network.udp(pod, 0, 80);
        assert!(udp.send(b"?").is_err(), "{pod}");
        assert_eq!(network.egress(), before, "{pod}");
        network.exec(pod, "nft delete table ip policies");
        assert_eq!(network.seen_by_udp(pod, SERVER), seen(FLOATING), "{pod}");
    }
}

#[test]
fn answers_of_a_node_port_are_never_steered_e14() {
    const NODE: &str = "192.168.1.1";
    let network = Network::new();
    network.serve(AWAY, AWAY);
    // As kube-proxy does for a service that keeps the client's address.
    for command in [
        "add table ip foreign".to_owned(),
        "add chain ip foreign services { type nat hook prerouting priority -100 ; }".to_owned(),
        format!(
            "add rule ip foreign services ip daddr {NODE} meta l4proto {{ tcp, udp }} th dport 80 dnat to {AWAY}"
        ),
    ] {
        network.exec("n1", &format!("nft {command}"));
    }
    network.ip("out", &format!("route add {NODE}/32 dev eth0 src {SERVER}"));
    for holder in ["n2", "n1"] {
        network.apply_all(holder);
        let (uplink, outside) = (network.listen("n1", "eth0"), network.listen("out", "eth0"));
        // The policy's range has the client.
        assert_eq!(network.seen_by_tcp("out", NODE), seen(SERVER), "{holder}");
        assert_eq!(network.seen_by_udp("out", NODE), seen(SERVER), "{holder}");
        outside.wait_for("the answer", |p| p.protocol == TCP && p.is_from(NODE));
        assert_eq!(outside.count(|p| p.is_from(FLOATING) || p.is_from(AWAY)), 0);
        assert_eq!(uplink.count(Packet::is_tunneled), 0);
        // While what it begins itself is steered.
        assert_eq!(
            network.seen_by_tcp(AWAY, SERVER),
            seen(FLOATING),
            "{holder}"
        );
    }
}
