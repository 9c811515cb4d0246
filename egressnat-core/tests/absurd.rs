//! Input of absurd size and shape: planned in bounded time, told, and nothing else is harmed.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::net::{IpAddr, Ipv4Addr};

use egressnat_core::model::{
    EgressSource, Event, Gateway, GatewayKey, Health, Labels, Node, NodeName, Pod, PodKey, Policy,
    Source,
};
use egressnat_core::plan::MAX_DESTINATIONS;
use egressnat_core::selector::Selector;
use egressnat_core::{
    Decision, NodeEngine, Reason, Snapshot, assign, plan_cluster, plan_node, verify_assignment,
};
use ipnet::IpNet;

fn node_name() -> NodeName {
    "worker1".parse().unwrap()
}

fn group(name: &str) -> GatewayKey {
    GatewayKey::group("kube-system".parse().unwrap(), name.parse().unwrap())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// One worker, a pod `shop/good` that policy `good` sends to 8.8.8.0/24 with 192.168.1.100, and a pod `shop/bad`.
fn cluster() -> Snapshot {
    let mut snapshot = Snapshot::default();
    let mut node = Node::new(Health::Up);
    node.addresses.insert(ip("192.168.1.1"));
    node.subnets.insert("192.168.1.0/24".parse().unwrap());
    node.pod_ranges.insert("10.10.1.0/24".parse().unwrap());
    snapshot.nodes.insert(node_name(), node);
    snapshot
        .namespaces
        .insert("shop".parse().unwrap(), Labels::new());
    for (n, name) in [(2, "good"), (3, "bad")] {
        let mut pod = Pod::new(node_name());
        pod.ips.insert(IpAddr::from([10, 10, 1, n]));
        pod.labels.insert("app".into(), name.into());
        let key = PodKey::new("shop".parse().unwrap(), name.parse().unwrap());
        snapshot.pods.insert(key, pod);
    }
    let gateway = Gateway::new([ip("192.168.1.100")]);
    snapshot.gateways.insert(group("good"), gateway);
    let policy = policy("good", ["8.8.8.0/24".parse().unwrap()]);
    snapshot.policies.insert("good".parse().unwrap(), policy);
    snapshot
}

/// A policy for the pods with this label.
fn policy(app: &str, destinations: impl IntoIterator<Item = IpNet>) -> Policy {
    let source = Source {
        namespaces: Selector::default(),
        pods: Selector::from_labels([("app", app)]),
    };
    Policy::snat([source], destinations, EgressSource::from(&group("good")))
}

/// What the good pod's packets do, whatever else there is; from nothing and event by event.
fn good_decision(snapshot: &Snapshot) -> Decision {
    let assignment = assign(snapshot).assignment;
    assert_eq!(verify_assignment(snapshot, &assignment), []);
    let planned = plan_node(snapshot, &assignment, &node_name());
    assert!(planned.plan.destinations.len() <= MAX_DESTINATIONS);
    let mut engine = NodeEngine::new(node_name(), 1);
    for event in snapshot.clone() {
        engine.apply(event);
    }
    for (address, node) in assignment.nodes {
        engine.set_holder(address, Some(node));
    }
    assert_eq!(engine.plan(), &planned.plan);
    planned.plan.decide(ip("10.10.1.2"), ip("8.8.8.8"), None)
}

fn snat() -> Decision {
    Decision::Snat(ip("192.168.1.100"))
}

fn reasons(snapshot: &Snapshot) -> Vec<Reason> {
    let findings = plan_cluster(snapshot).findings;
    findings.iter().map(|finding| finding.reason).collect()
}

#[test]
fn ten_thousand_selectors_in_one_policy_and_in_as_many_policies() {
    let mut snapshot = cluster();
    let mut many = policy("bad", ["9.0.0.0/8".parse().unwrap()]);
    many.sources = (0..10_000)
        .map(|n| Source {
            namespaces: Selector::default(),
            pods: Selector::from_labels([("app", format!("app-{n}"))]),
        })
        .collect();
    snapshot.policies.insert("many".parse().unwrap(), many);
    for n in 0..10_000 {
        let name = format!("policy-{n}").parse().unwrap();
        let one = policy(&format!("app-{n}"), ["9.0.0.0/8".parse().unwrap()]);
        snapshot.policies.insert(name, one);
    }
    assert_eq!(good_decision(&snapshot), snat());
}

#[test]
fn a_hundred_thousand_ranges_in_a_policy() {
    let mut snapshot = cluster();
    let ranges =
        (0..100_000u32).map(|n| IpNet::from(IpAddr::V4(Ipv4Addr::from(0x2000_0000 + 2 * n))));
    let large = policy("bad", ranges);
    snapshot.policies.insert("large".parse().unwrap(), large);
    assert_eq!(good_decision(&snapshot), snat());
    let assignment = assign(&snapshot).assignment;
    let planned = plan_node(&snapshot, &assignment, &node_name());
    let decision = planned.plan.decide(ip("10.10.1.3"), ip("32.0.0.2"), None);
    assert_eq!(decision, snat(), "they fit, so they are applied");
}

#[test]
fn everything_and_nothing_as_a_destination_and_ranges_twice() {
    let mut snapshot = cluster();
    let odd = [
        "0.0.0.0/0",
        "::/0",
        "1.2.3.4/0",
        "9.9.9.9/8",
        "9.0.0.0/8",
        "::ffff:9.9.9.0/120",
    ];
    let odd = policy("bad", odd.map(|text| text.parse().unwrap()));
    snapshot.policies.insert("odd".parse().unwrap(), odd);
    assert_eq!(good_decision(&snapshot), snat());
    let reasons = reasons(&snapshot);
    assert!(reasons.contains(&Reason::InvalidDestination), "{reasons:?}");
    assert!(reasons.contains(&Reason::NoEgressIpOfFamily), "{reasons:?}");
}

#[test]
fn gateways_that_overlap_and_addresses_that_cannot_be() {
    let mut snapshot = cluster();
    for n in 0..100 {
        let addresses = [
            "192.168.1.100",
            "192.168.1.1",
            "0.0.0.0",
            "::ffff:192.168.1.9",
            "255.255.255.255",
        ];
        let mut gateway = Gateway::new(addresses.map(ip));
        gateway.created.0 = 1;
        snapshot.gateways.insert(group(&format!("g{n}")), gateway);
    }
    assert_eq!(good_decision(&snapshot), snat(), "the oldest keeps it");
    let reasons = reasons(&snapshot);
    for reason in [
        Reason::DuplicateFloatingIp,
        Reason::FloatingIpIsNodeAddress,
        Reason::InvalidFloatingIp,
    ] {
        assert!(reasons.contains(&reason), "{reason} in {reasons:?}");
    }
}

#[test]
fn two_nodes_with_one_address() {
    let mut snapshot = cluster();
    let twin = snapshot.nodes[&node_name()].clone();
    snapshot.nodes.insert("twin".parse().unwrap(), twin);
    assert_eq!(good_decision(&snapshot), snat());
    assert_eq!(reasons(&snapshot), [Reason::DuplicateNodeAddress]);
}

#[test]
fn no_nodes_and_nothing_at_all() {
    let mut snapshot = cluster();
    snapshot.nodes.clear();
    let planned = plan_cluster(&snapshot);
    assert!(planned.assigned.assignment.nodes.is_empty());
    assert!(reasons(&snapshot).contains(&Reason::Unassigned));
    assert_eq!(plan_cluster(&Snapshot::default()).findings, []);
    let nothing = plan_node(&Snapshot::default(), &Default::default(), &node_name());
    assert_eq!(nothing, Default::default());
}

#[test]
fn ten_thousand_addresses_and_a_thousand_nodes_that_are_all_down() {
    let mut snapshot = cluster();
    for n in 0..1000u32 {
        let mut node = Node::new(Health::Down);
        node.subnets.insert("10.64.0.0/10".parse().unwrap());
        node.addresses
            .insert(IpAddr::V4(Ipv4Addr::from(0x0b00_0000 + n)));
        snapshot
            .nodes
            .insert(format!("down-{n}").parse().unwrap(), node);
    }
    let addresses = (0..10_000u32).map(|n| IpAddr::V4(Ipv4Addr::from(0x0a40_0000 + n)));
    let mut gateway = Gateway::new(addresses);
    gateway.created.0 = 1;
    snapshot.gateways.insert(group("many"), gateway);
    assert_eq!(good_decision(&snapshot), snat());
    assert_eq!(plan_cluster(&snapshot).assigned.unassigned.len(), 10_000);
}

#[test]
fn the_same_event_a_thousand_times_changes_nothing() {
    let snapshot = cluster();
    let mut engine = NodeEngine::new(node_name(), 1);
    let events: Vec<Event> = snapshot.into_iter().collect();
    for event in &events {
        engine.apply(event.clone());
    }
    for _ in 0..1000 {
        for event in &events {
            assert_eq!(engine.apply(event.clone()), []);
        }
    }
}
