use super::*;
use crate::model::{Gateway, GatewayKey, Node};
use crate::verify::verify_assignment;
use proptest::prelude::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn node(role: Role, health: Health) -> Node {
    let mut node = Node::new(health);
    node.subnets.insert("192.168.1.0/24".parse().unwrap());
    node.role = role;
    node
}

/// Nodes `(name, role, health)` in 192.168.1.0/24 and one group with these addresses.
fn snapshot(nodes: &[(&str, Role, Health)], addresses: &[&str]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (text, role, health) in nodes {
        snapshot.nodes.insert(name(text), node(*role, *health));
    }
    let key = GatewayKey::group("kube-system".parse().unwrap(), "default".parse().unwrap());
    let gateway = Gateway::new(addresses.iter().map(|a| ip(a)));
    snapshot.gateways.insert(key, gateway);
    snapshot
}

fn holders(assigned: &Assigned) -> Vec<(String, String)> {
    assigned
        .assignment
        .nodes
        .iter()
        .map(|(address, node)| (address.to_string(), node.to_string()))
        .collect()
}

const WORKER: Role = Role::Worker;
const MASTER: Role = Role::ControlPlane;
const SEED_IPS: [&str; 3] = ["192.168.1.100", "192.168.1.101", "192.168.1.102"];

#[test]
fn the_seeds_example_is_assigned_as_the_seed_prints_it_e30() {
    let snapshot = snapshot(
        &[
            ("control-plane", MASTER, Health::Up),
            ("worker1", WORKER, Health::Up),
            ("worker2", WORKER, Health::Up),
        ],
        &SEED_IPS,
    );
    let want = [
        ("192.168.1.100", "worker1"),
        ("192.168.1.101", "worker2"),
        ("192.168.1.102", "worker1"),
    ];
    assert_eq!(
        holders(&assign(&snapshot)),
        want.map(|(a, n)| (a.into(), n.into()))
    );
}

#[test]
fn each_criterion_of_e30_decides_before_the_next() {
    struct Case {
        name: &'static str,
        nodes: &'static [(&'static str, Role, Health)],
        /// Addresses that are placed already, with their node.
        placed: &'static [(&'static str, &'static str)],
        want: Option<&'static str>,
    }
    let cases = [
        Case {
            name: "1: a node that is down is not eligible",
            nodes: &[("a", WORKER, Health::Down), ("b", MASTER, Health::Up)],
            placed: &[],
            want: Some("b"),
        },
        Case {
            name: "2: a worker that holds an IP goes before an empty control-plane node",
            nodes: &[("a", MASTER, Health::Up), ("b", WORKER, Health::Up)],
            placed: &[("192.168.1.100", "b")],
            want: Some("b"),
        },
        Case {
            name: "3: an empty worker goes before one that holds an IP",
            nodes: &[("a", WORKER, Health::Up), ("b", WORKER, Health::Up)],
            placed: &[("192.168.1.100", "a")],
            want: Some("b"),
        },
        Case {
            name: "4: the fewest IPs",
            nodes: &[("a", WORKER, Health::Up), ("b", WORKER, Health::Up)],
            placed: &[
                ("192.168.1.100", "a"),
                ("192.168.1.101", "a"),
                ("192.168.1.102", "b"),
            ],
            want: Some("b"),
        },
        Case {
            name: "5: by name",
            nodes: &[("b", WORKER, Health::Up), ("a", WORKER, Health::Up)],
            placed: &[],
            want: Some("a"),
        },
        Case {
            name: "nobody is up",
            nodes: &[("a", WORKER, Health::Down)],
            placed: &[],
            want: None,
        },
    ];
    for case in cases {
        let mut addresses: Vec<&str> = case.placed.iter().map(|(a, _)| *a).collect();
        addresses.push("192.168.1.200");
        let mut snapshot = snapshot(case.nodes, &addresses);
        for (address, holder) in case.placed {
            snapshot.previous.nodes.insert(ip(address), name(holder));
        }
        let assigned = assign(&snapshot);
        let got = assigned.assignment.nodes.get(&ip("192.168.1.200"));
        assert_eq!(got.map(NodeName::as_str), case.want, "{}", case.name);
    }
}

#[test]
fn an_unassigned_ip_says_why_e34() {
    let mut outside = snapshot(&[("a", WORKER, Health::Up)], &["10.1.1.1"]);
    let assigned = assign(&outside);
    assert_eq!(assigned.unassigned[&ip("10.1.1.1")], Unassigned::NoSubnet);
    assert!(
        assigned.findings[0].message.contains("no node's subnet"),
        "{}",
        assigned.findings[0]
    );

    outside.nodes.insert(name("b"), {
        let mut node = Node::new(Health::Down);
        node.subnets.insert("10.1.1.0/24".parse().unwrap());
        node
    });
    let assigned = assign(&outside);
    assert_eq!(assigned.unassigned[&ip("10.1.1.1")], Unassigned::NoNodeUp);
    assert_eq!(assigned.findings[0].reason, Reason::Unassigned);
}

#[test]
fn a_returning_node_takes_nothing_back_e32() {
    let mut snapshot = snapshot(
        &[
            ("worker1", WORKER, Health::Up),
            ("worker2", WORKER, Health::Up),
        ],
        &SEED_IPS,
    );
    snapshot.previous = assign(&snapshot).assignment;

    snapshot.nodes.get_mut(&name("worker1")).unwrap().health = Health::Down;
    let after_loss = assign(&snapshot).assignment;
    assert!(
        after_loss
            .nodes
            .values()
            .all(|holder| holder == &name("worker2"))
    );

    snapshot.previous = after_loss.clone();
    snapshot.nodes.get_mut(&name("worker1")).unwrap().health = Health::Up;
    assert_eq!(assign(&snapshot).assignment, after_loss);
}

/// Up to 12 nodes in three subnets, up to 40 floating IPs in them and beside them, any previous assignment.
fn arbitrary_snapshot() -> impl Strategy<Value = Snapshot> {
    let node = (0..12u8, 0..3u8, any::<bool>(), prop::bool::weighted(0.8));
    let nodes = prop::collection::vec(node, 0..12);
    let addresses = prop::collection::btree_set((0..4u8, 100..120u8), 0..40);
    let previous = prop::collection::vec((0..4u8, 100..120u8, 0..14u8), 0..20);
    (nodes, addresses, previous).prop_map(|(nodes, addresses, previous)| {
        let mut snapshot = Snapshot::default();
        for (n, subnet, control_plane, up) in nodes {
            let mut node = Node::new(if up { Health::Up } else { Health::Down });
            node.role = if control_plane { MASTER } else { WORKER };
            node.subnets
                .insert(format!("192.168.{subnet}.0/24").parse().unwrap());
            snapshot.nodes.insert(name(&format!("n{n}")), node);
        }
        let address = |subnet: u8, host: u8| IpAddr::from([192, 168, subnet, host]);
        let key = GatewayKey::group("kube-system".parse().unwrap(), "default".parse().unwrap());
        let gateway = Gateway::new(addresses.into_iter().map(|(s, h)| address(s, h)));
        snapshot.gateways.insert(key, gateway);
        for (s, h, n) in previous {
            snapshot
                .previous
                .nodes
                .insert(address(s, h), name(&format!("n{n}")));
        }
        snapshot
    })
}

proptest! {
    #[test]
    fn no_assignment_has_a_violation(snapshot in arbitrary_snapshot()) {
        prop_assert_eq!(verify_assignment(&snapshot, &assign(&snapshot).assignment), vec![]);
    }

    #[test]
    fn planning_again_changes_nothing(mut snapshot in arbitrary_snapshot()) {
        let first = assign(&snapshot);
        snapshot.previous = first.assignment.clone();
        prop_assert_eq!(assign(&snapshot).assignment, first.assignment);
    }

    #[test]
    fn losing_a_node_moves_exactly_its_ips_e32(mut snapshot in arbitrary_snapshot(), lost in 0..12u8) {
        snapshot.previous = assign(&snapshot).assignment;
        let lost = name(&format!("n{lost}"));
        snapshot.nodes.remove(&lost);
        let after = assign(&snapshot).assignment;
        for (address, holder) in &snapshot.previous.nodes {
            if *holder != lost {
                prop_assert_eq!(after.nodes.get(address), Some(holder));
            }
        }
    }

    #[test]
    fn adding_nodes_and_ips_moves_nothing_e32(
        mut snapshot in arbitrary_snapshot(),
        node in (0..3u8, any::<bool>()),
        host in 120..250u8,
    ) {
        snapshot.previous = assign(&snapshot).assignment;
        let mut added = Node::new(Health::Up);
        added.subnets.insert(format!("192.168.{}.0/24", node.0).parse().unwrap());
        added.role = if node.1 { MASTER } else { WORKER };
        snapshot.nodes.insert(name("added"), added);
        let gateway = snapshot.gateways.values_mut().next().unwrap();
        gateway.floating_ips.insert(0, IpAddr::from([192, 168, node.0, host]));
        let after = assign(&snapshot).assignment;
        for (address, holder) in &snapshot.previous.nodes {
            prop_assert_eq!(after.nodes.get(address), Some(holder));
        }
    }

    #[test]
    fn a_fresh_placement_is_balanced_within_one(nodes in 1..8usize, addresses in 0..40u8) {
        let mut snapshot = snapshot(&[], &[]);
        for n in 0..nodes {
            snapshot.nodes.insert(name(&format!("n{n}")), node(WORKER, Health::Up));
        }
        let gateway = snapshot.gateways.values_mut().next().unwrap();
        gateway.floating_ips = (0..addresses).map(|h| IpAddr::from([192, 168, 1, h])).collect();
        let assigned = assign(&snapshot).assignment;
        let loads: Vec<usize> = snapshot.nodes.keys().map(|n| assigned.held_by(n).count()).collect();
        prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1, "{:?}", loads);
    }

    #[test]
    fn the_order_of_floating_ips_in_a_group_does_not_matter(mut snapshot in arbitrary_snapshot()) {
        let want = assign(&snapshot).assignment;
        let gateway = snapshot.gateways.values_mut().next().unwrap();
        gateway.floating_ips.reverse();
        prop_assert_eq!(assign(&snapshot).assignment, want);
    }
}
