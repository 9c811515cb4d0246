use super::*;
use crate::arbitrary;
use crate::model::{Gateway, GatewayKey, Health, Node, Role};
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

proptest! {
    #[test]
    fn no_assignment_has_a_violation(snapshot in arbitrary::snapshot()) {
        prop_assert_eq!(verify_assignment(&snapshot, &assign(&snapshot).assignment), vec![]);
    }

    #[test]
    fn planning_again_changes_nothing(mut snapshot in arbitrary::snapshot()) {
        let first = assign(&snapshot);
        snapshot.previous = first.assignment.clone();
        prop_assert_eq!(assign(&snapshot), first);
    }

    #[test]
    fn losing_a_node_moves_exactly_its_ips_e32(mut snapshot in arbitrary::snapshot(), lost in arbitrary::node_name()) {
        snapshot.previous = assign(&snapshot).assignment;
        if let Some(node) = snapshot.nodes.get_mut(&lost) {
            node.health = Health::Down;
        }
        let after = assign(&snapshot).assignment;
        for (address, holder) in &snapshot.previous.nodes {
            if *holder == lost {
                prop_assert_ne!(after.nodes.get(address), Some(holder));
            } else {
                prop_assert_eq!(after.nodes.get(address), Some(holder));
            }
        }
    }

    #[test]
    fn a_returning_node_takes_only_what_nobody_could_hold_e32(
        mut snapshot in arbitrary::snapshot(),
        lost in arbitrary::node_name(),
    ) {
        let whole = snapshot.nodes.get(&lost).cloned();
        if let Some(node) = snapshot.nodes.get_mut(&lost) {
            node.health = Health::Down;
        }
        let without = assign(&snapshot);
        snapshot.previous = without.assignment.clone();
        if let Some(node) = whole {
            snapshot.nodes.insert(lost, node);
        }
        let after = assign(&snapshot).assignment;
        for (address, holder) in &without.assignment.nodes {
            // A node that is being drained, or holds too many, was waiting for room.
            if !without.stuck.contains_key(address) {
                prop_assert_eq!(after.nodes.get(address), Some(holder));
            }
        }
    }

    #[test]
    fn adding_nodes_and_ips_moves_nothing_that_is_well_placed_e32(
        mut snapshot in arbitrary::snapshot(),
        added in arbitrary::node(),
        address in arbitrary::floating_ip(),
    ) {
        let first = assign(&snapshot);
        snapshot.previous = first.assignment.clone();
        snapshot.nodes.insert(name("added"), Node { addresses: Default::default(), ..added });
        if let Some(gateway) = snapshot.gateways.values_mut().next() {
            gateway.floating_ips.push(address);
        }
        let after = assign(&snapshot);
        for (address, holder) in &first.assignment.nodes {
            if !first.stuck.contains_key(address) && after.gateways.owners.contains_key(address) {
                prop_assert_eq!(after.assignment.nodes.get(address), Some(holder));
            }
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
    fn the_order_of_floating_ips_in_a_group_does_not_matter(mut snapshot in arbitrary::snapshot()) {
        // Of two IPs with one tunnel id the first in the group keeps it: there the order says something.
        let has_conflict = |assigned: &Assigned| {
            assigned.findings.iter().any(|finding| finding.reason == Reason::EgressIdConflict)
        };
        let want = assign(&snapshot);
        for gateway in snapshot.gateways.values_mut() {
            gateway.floating_ips.reverse();
        }
        if !has_conflict(&want) {
            prop_assert_eq!(assign(&snapshot).assignment, want.assignment);
        }
    }
}

#[test]
fn a_node_that_is_drained_gives_away_what_others_can_take_e35() {
    let mut snapshot = snapshot(
        &[
            ("worker1", WORKER, Health::Up),
            ("worker2", WORKER, Health::Up),
        ],
        &SEED_IPS,
    );
    snapshot.previous = assign(&snapshot).assignment;
    snapshot.nodes.get_mut(&name("worker1")).unwrap().draining = true;
    snapshot.nodes.get_mut(&name("worker2")).unwrap().capacity = Some(2);
    let assigned = assign(&snapshot);
    let want = [
        ("192.168.1.100", "worker2"),
        ("192.168.1.101", "worker2"),
        ("192.168.1.102", "worker1"),
    ];
    assert_eq!(
        holders(&assigned),
        want.map(|(a, n)| (a.into(), n.into())),
        "worker2 has room for one; the other stays where it works"
    );
    assert_eq!(assigned.stuck[&ip("192.168.1.102")], Stuck::Draining);
    assert_eq!(assigned.findings[0].reason, Reason::CannotMove);
    assert!(assigned.findings[0].message.contains("worker1"));
}

#[test]
fn a_capacity_is_kept_by_new_placements_and_moves_what_is_too_many_if_it_can_e35() {
    let mut snapshot = snapshot(&[("worker1", WORKER, Health::Up)], &SEED_IPS);
    snapshot.nodes.get_mut(&name("worker1")).unwrap().capacity = Some(2);
    let assigned = assign(&snapshot);
    assert_eq!(assigned.assignment.nodes.len(), 2);
    assert_eq!(
        assigned.unassigned[&ip("192.168.1.102")],
        Unassigned::NoRoom
    );

    snapshot.previous = assigned.assignment;
    snapshot.nodes.get_mut(&name("worker1")).unwrap().capacity = Some(1);
    let assigned = assign(&snapshot);
    assert_eq!(
        assigned.stuck,
        [(ip("192.168.1.101"), Stuck::OverCapacity)].into()
    );

    snapshot
        .nodes
        .insert(name("worker2"), node(WORKER, Health::Up));
    let assigned = assign(&snapshot);
    let want = [
        ("192.168.1.100", "worker1"),
        ("192.168.1.101", "worker2"),
        ("192.168.1.102", "worker2"),
    ];
    assert_eq!(holders(&assigned), want.map(|(a, n)| (a.into(), n.into())));
    assert_eq!(assigned.findings, []);
}

#[test]
fn where_all_are_cordoned_an_ip_is_better_there_than_nowhere_e34_e35() {
    let mut snapshot = snapshot(&[("worker1", WORKER, Health::Up)], &SEED_IPS);
    let worker = snapshot.nodes.get_mut(&name("worker1")).unwrap();
    worker.draining = true;
    worker.capacity = Some(2);
    let assigned = assign(&snapshot);
    assert_eq!(assigned.assignment.nodes.len(), 2);
    assert_eq!(assigned.stuck[&ip("192.168.1.100")], Stuck::Draining);
    assert_eq!(
        assigned.unassigned[&ip("192.168.1.102")],
        Unassigned::NoRoom
    );

    snapshot.previous = assigned.assignment;
    let worker = node(WORKER, Health::Up);
    snapshot.nodes.insert(name("worker2"), worker);
    let assigned = assign(&snapshot);
    assert!(
        assigned
            .assignment
            .nodes
            .values()
            .all(|holder| holder == &name("worker2"))
    );
    assert_eq!(assigned.findings, []);
}
