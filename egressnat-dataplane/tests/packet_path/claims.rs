//! E40: an address counts on the interface that leads to its pod, and nowhere else: who sends with another pod's address does not leave with
//! that one's egress IP.

use std::collections::BTreeSet;

use crate::network::Network;
use crate::side::{SIDES, plan};
use crate::traffic::address;
use crate::wire::Packet;

/// Who sends with whose address: neighbors on the source node and on the gateway node, and pods of another node.
const CLAIMS: [(&str, &str); 4] = [
    ("10.10.1.3", "10.10.1.2"),
    ("10.10.2.3", "10.10.2.2"),
    ("10.10.2.3", "10.10.1.2"),
    ("10.10.1.3", "10.10.2.2"),
];

const CLAIMED: &[u8] = b"claimed";

/// Has pods send with the addresses of others, in flows that are running and in new ones, and gives the sources that the server's side saw.
fn claim(network: &Network) -> BTreeSet<String> {
    let outside = network.listen("out", "eth0");
    for (number, side) in (0..).zip(&SIDES) {
        let server = (side.server, 7000);
        for (port, (claimant, owner)) in (5400 + 100 * number..).step_by(10).zip(CLAIMS) {
            let running = network.udp(owner, port, address(server.0, server.1));
            let sends = |text: &[u8]| {
                running.send(text).unwrap();
                outside.wait_for(owner, |p| {
                    p.is_from(side.floating)
                        && p.ports() == Some((port, server.1))
                        && p.payload.get(8..) == Some(text)
                });
            };
            sends(b"before");
            for port in [port, port + 1] {
                let packet = Packet::udp((&side.pod(owner), port), server, CLAIMED);
                network.inject(claimant, &packet);
            }
            // What it sends with its own address takes the same way behind it, and the owner's flow goes on.
            network.seen_by_udp(claimant, side.server);
            sends(b"after");
        }
    }
    let packets = outside.packets().into_iter();
    let claimed = packets.filter(|p| p.payload.get(8..) == Some(CLAIMED));
    claimed.map(|p| p.source.to_string()).collect()
}

/// The network, with nodes that would take any source address from any interface.
fn credulous() -> Network {
    let network = Network::dual_stack();
    for node in ["n1", "n2"] {
        for interface in ["all", "default", "veth2", "veth3"] {
            network.sysctl(node, &format!("net.ipv4.conf.{interface}.rp_filter=0"));
        }
    }
    for side in &SIDES {
        // Answers would go to the owners.
        let drops = ["udp dport 7000 drop".to_owned()];
        side.add_rules(
            &network,
            "out",
            "filter hook prerouting priority -400",
            &drops,
        );
    }
    network
}

#[test]
fn who_sends_with_anothers_address_reaches_no_strict_destination() {
    let network = credulous();
    network.apply_sides("n2");
    let seen = claim(&network);
    let own = |address: &String| {
        CLAIMS
            .iter()
            .any(|(_, owner)| SIDES.iter().any(|side| side.pod(owner) == *address))
    };
    // A node guards its own pods' addresses.
    assert!(seen.iter().all(own), "{seen:?}");
}

#[test]
fn who_sends_with_anothers_address_gets_no_egress_ip_where_the_policy_is_not_strict_either() {
    let network = credulous();
    for node in ["n2", "n1"] {
        let mut plan = plan(node, "n2");
        plan.guard_ranges.clear();
        assert_eq!(network.apply(node, plan).failures, []);
    }
    let seen = claim(&network);
    let is_egress_ip = |address: &String| SIDES.iter().any(|side| side.floating == address);
    assert!(!seen.iter().any(is_egress_ip), "{seen:?}");
}
