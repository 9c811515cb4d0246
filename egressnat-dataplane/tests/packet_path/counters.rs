//! What is counted is what was sent.

use std::net::IpAddr;

use egressnat_core::Steering;
use egressnat_dataplane::Blocked;

use crate::network::{FLOATING, Network, OTHER_SERVER, SERVER, plan};

fn floating() -> IpAddr {
    FLOATING.parse().unwrap()
}

#[test]
fn packets_and_new_connections_are_counted_for_each_egress_ip_on_both_nodes() {
    let network = Network::new();
    network.apply_all("n2");
    network.count(
        "out",
        "arrived",
        &format!("ip saddr {FLOATING} udp dport 80"),
    );
    for _ in 0..5 {
        assert_eq!(
            network.seen_by_udp("10.10.1.2", SERVER).as_deref(),
            Some(FLOATING)
        );
    }
    // Not egress, and not counted.
    network.seen_by_udp("10.10.1.3", SERVER);
    network.seen_by_udp("10.10.1.2", OTHER_SERVER);
    let arrived = network.counted("out", "watch", "arrived");
    assert!(arrived >= 5);
    let source = network.counters("n1").egress[&floating()];
    assert_eq!(source.steered.packets, arrived);
    assert!(source.steered.bytes >= arrived * 42, "{source:?}");
    assert_eq!((source.received.packets, source.connections), (0, 0));
    let gateway = network.counters("n2").egress[&floating()];
    assert_eq!(gateway.received.packets, arrived);
    assert_eq!(gateway.steered.packets, 0);
    assert_eq!(gateway.connections, 5, "a socket each time");

    // The holder's own pod goes through no tunnel.
    network.seen_by_tcp("10.10.2.2", SERVER);
    let own = network.counters("n2").egress[&floating()];
    assert!(own.steered.packets >= 3, "{own:?}");
    assert_eq!(own.received, gateway.received);
    assert_eq!(own.connections, 6);
}

#[test]
fn what_is_blocked_is_counted_by_reason() {
    let network = Network::new();
    network.apply_all("n2");
    // The tunnel device itself says something over IPv6, which is no egress.
    let none = Blocked {
        no_egress: 0,
        ..network.counters("n1").blocked
    };
    assert_eq!(none, Blocked::default());

    let mut closed = plan("n1", "n2");
    for steering in closed.destinations.values_mut() {
        *steering = Steering::Drop;
    }
    closed.pods.remove(&IpAddr::from([10, 10, 1, 3]));
    network.apply("n1", closed);
    assert_eq!(network.seen_by_udp("10.10.1.2", SERVER), None);
    assert_eq!(network.seen_by_udp("10.10.1.3", SERVER), None);
    let blocked = network.counters("n1").blocked;
    assert!(blocked.dropped > 0 && blocked.undecided > 0, "{blocked:?}");

    // The gateway node knows neither the sender nor the egress IP.
    network.apply("n1", plan("n1", "n2"));
    let mut alone = plan("n2", "n2");
    alone.peers.clear();
    network.apply("n2", alone);
    assert_eq!(network.seen_by_udp("10.10.1.2", SERVER), None);
    assert!(network.counters("n2").blocked.unknown_peer > 0);
    assert_eq!(network.seen_by_tcp("out", FLOATING), None);
    assert!(network.counters("n2").blocked.inbound > 0);
}
