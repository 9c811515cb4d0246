//! What each policy sent and what it blocked, of IPv6.

use super::*;

#[test]
fn two_policies_of_ipv6_count_apart_what_the_wire_has_and_what_they_block_e43() {
    let network = Network::dual_stack();
    let mut snapshot = snapshot();
    let other = |range: &str| -> BTreeSet<IpNet> { [range.parse().unwrap()].into() };
    let mut policy = snapshot.policies[&"egress6".parse().unwrap()].clone();
    policy.destinations = other("2001:db8:9::/48");
    snapshot.policies.insert("other6".parse().unwrap(), policy);
    // Its group has no address of this family.
    let ipv4_only = snapshot.policies.get_mut(&"egress".parse().unwrap());
    ipv4_only
        .unwrap()
        .destinations
        .extend(other("2001:db8:7::/48"));
    for node in ["n1", "n2"] {
        let holders = [(FLOATING, "n1"), (FLOATING6, "n2")];
        let report = network.apply(node, planned(&snapshot, node, &holders));
        assert_eq!(report.failures, [], "{node}");
    }
    for (counter, server) in [("egress6", SERVER6), ("other6", OTHER_SERVER6)] {
        let matches = format!("ip6 saddr {FLOATING6} ip6 daddr {server}");
        network.count6(counter, &matches);
    }
    for _ in 0..3 {
        assert_eq!(network.seen_by_udp(PODS[0], SERVER6), seen(FLOATING6));
    }
    for _ in 0..2 {
        assert_eq!(network.seen_by_tcp(PODS[0], OTHER_SERVER6), seen(FLOATING6));
    }
    assert_eq!(network.seen_by_udp(PODS[0], "2001:db8:7::7"), None);
    for policy in ["egress6", "other6"] {
        // What is left of a connection goes on for a moment.
        let difference = || {
            let wire = network.counted6(policy);
            wire.abs_diff(network.policy(policy).sent.packets)
        };
        eventually(0, difference);
    }
    let counted = ["egress6", "other6", "egress"].map(|policy| network.policy(policy));
    let connections = counted.map(|counted| (counted.connections, counted.blocked));
    assert_eq!(connections, [(3, 0), (2, 0), (0, 1)]);
    assert!(
        counted[0].sent.packets >= 3 && counted[1].sent.packets >= 8,
        "{counted:?}"
    );
    assert_eq!(counted[2].sent.packets, 0);
}
