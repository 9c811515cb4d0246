//! The packet path in real kernels: which address does the server see?
//!
//! Each test makes its own namespaces, and takes them down again.

#![expect(
    clippy::unwrap_used,
    reason = "a test whose network cannot be made fails there"
)]

mod alone;
mod announce;
mod answers;
mod bridge;
mod burst;
mod chaos;
mod claims;
mod cleanup;
mod clsact;
mod container;
mod counters;
mod departures;
mod encapsulation;
mod endings;
mod enforcement;
mod entries;
mod explained;
mod failures;
mod fence;
mod foreign;
mod guard;
mod heal;
mod icmp_errors;
mod incremental;
mod ipv6;
mod kernel;
mod leaks;
mod masquerade;
mod mtu;
mod network;
mod owner;
mod planned_move;
mod policies;
mod port_use;
mod precedence;
mod probe;
mod redecided;
mod restart;
mod room;
mod side;
mod strangers;
mod traffic;
mod wire;

use network::{FLOATING, Network, OTHER_SERVER, SERVER, plan};

fn seen(address: &str) -> Option<String> {
    Some(address.to_owned())
}

#[test]
fn a_selected_pod_leaves_with_the_floating_ip_from_any_node() {
    let network = Network::new();
    network.apply_all("n2");
    for pod in ["10.10.1.2", "10.10.2.2"] {
        assert_eq!(
            network.seen_by_tcp(pod, SERVER),
            seen(FLOATING),
            "{pod} over TCP"
        );
        assert_eq!(
            network.seen_by_udp(pod, SERVER),
            seen(FLOATING),
            "{pod} over UDP"
        );
        assert!(network.is_pinged(pod, SERVER), "{pod} by ping");
    }
}

#[test]
fn all_else_leaves_with_the_nodes_address() {
    let network = Network::new();
    network.apply_all("n2");
    for (pod, node) in [("10.10.1.3", "192.168.1.1"), ("10.10.2.3", "192.168.1.2")] {
        assert_eq!(
            network.seen_by_tcp(pod, SERVER),
            seen(node),
            "{pod} is not selected"
        );
    }
    for (pod, node) in [("10.10.1.2", "192.168.1.1"), ("10.10.2.2", "192.168.1.2")] {
        assert_eq!(
            network.seen_by_tcp(pod, OTHER_SERVER),
            seen(node),
            "{pod} to another destination (E11)"
        );
    }
}

#[test]
fn pods_see_each_others_addresses() {
    let network = Network::new();
    network.apply_all("n2");
    network.serve("10.10.2.3", "10.10.2.3");
    for pod in ["10.10.1.2", "10.10.1.3", "10.10.2.2"] {
        assert_eq!(network.seen_by_tcp(pod, "10.10.2.3"), seen(pod), "E12");
    }
}

#[test]
fn applying_again_changes_nothing_also_after_a_restart() {
    let network = Network::new();
    let changes = network.open("n1", async |mut dataplane| {
        let mut changes = Vec::new();
        for _ in 0..3 {
            changes.push(dataplane.apply(&plan("n1", "n1")).await.changes);
        }
        changes
    });
    assert!(changes[0] > 10, "{changes:?}");
    assert_eq!(changes[1..], [0, 0]);
    let report = network.apply("n1", plan("n1", "n1"));
    assert_eq!((report.changes, report.failures), (0, vec![]), "E45");
    assert_eq!(*report.floating_ips, [FLOATING.parse().unwrap()].into());
}

#[test]
fn replies_of_connections_from_outside_are_never_steered() {
    let network = Network::new();
    network.serve("10.10.1.2", "10.10.1.2");
    for holder in ["n2", "n1"] {
        network.apply_all(holder);
        // The server connects from 8.8.8.8, which the policy of the pod covers.
        network.ip(
            "out",
            "route replace 10.10.1.0/24 via 192.168.1.1 src 8.8.8.8",
        );
        assert_eq!(
            network.seen_by_tcp("out", "10.10.1.2"),
            seen(SERVER),
            "E14, held by {holder}"
        );
    }
}

#[test]
fn an_address_that_somebody_else_put_on_the_uplink_is_not_taken_over() {
    let network = Network::new();
    network.ip("n1", &format!("addr add {FLOATING}/32 dev eth0"));
    let report = network.apply("n1", plan("n1", "n1"));
    assert_eq!(report.failures.len(), 1, "{report:?}");
    network.clean("n1");
    assert!(network.ip("n1", "addr show dev eth0").contains(FLOATING));
}

#[test]
fn a_running_connection_follows_its_floating_ip() {
    let network = Network::new();
    network.apply_all("n2");
    let mut connection = network.connect("10.10.1.2", SERVER).unwrap();
    assert_eq!(connection.ask(), seen(FLOATING));
    for holder in ["n1", "n2"] {
        network.apply_all(holder);
        assert_eq!(connection.ask(), seen(FLOATING), "held by {holder} (E42)");
        assert_eq!(network.seen_by_tcp("10.10.1.2", SERVER), seen(FLOATING));
    }
}

#[test]
fn a_connection_of_a_pod_that_is_selected_no_more_does_not_leave_with_the_pods_address() {
    let network = Network::new();
    network.apply_all("n2");
    let mut connection = network.connect("10.10.1.2", SERVER).unwrap();
    assert_eq!(connection.ask(), seen(FLOATING));
    let mut unselected = plan("n1", "n2");
    unselected.pods.clear();
    unselected.destinations.clear();
    network.apply("n1", unselected);
    for command in [
        "add table ip t",
        "add counter ip t leaked",
        "add chain ip t c { type filter hook prerouting priority -400 ; }",
        "add rule ip t c ip saddr 10.10.1.2 ip daddr 8.8.8.8 counter name leaked",
    ] {
        network.exec("out", &format!("nft {command}"));
    }
    connection.ask();
    let counted = network.exec("out", "nft list counter ip t leaked");
    assert!(counted.contains("packets 0"), "{counted}");
}

#[test]
fn a_floating_ip_takes_no_new_connections() {
    let network = Network::new();
    network.apply_all("n2");
    assert!(!network.is_pinged("out", FLOATING));
    assert!(network.is_pinged("out", "192.168.1.2"));
    assert_eq!(network.seen_by_tcp("out", FLOATING), None);
}

#[test]
fn what_others_removed_comes_back_with_the_next_apply() {
    let network = Network::new();
    network.apply_all("n2");
    network.exec("n2", "nft flush ruleset");
    network.ip("n1", "link del egressnat0");
    network.apply_all("n2");
    assert_eq!(network.seen_by_tcp("10.10.1.2", SERVER), seen(FLOATING));
}

#[test]
fn a_new_pod_is_steered_once_its_interface_is_there() {
    let mut network = Network::new();
    network.apply_all("n2");
    let mut wanted = plan("n1", "n2");
    let set = *wanted.pods.values().next().unwrap();
    wanted.pods.insert("10.10.1.4".parse().unwrap(), set);
    let report = network.apply("n1", wanted.clone());
    assert_eq!(report.failures[0].object, "pod 10.10.1.4");
    network.add_pod("10.10.1.4");
    assert_eq!(network.apply("n1", wanted).failures, []);
    assert_eq!(network.seen_by_tcp("10.10.1.4", SERVER), seen(FLOATING));
}
