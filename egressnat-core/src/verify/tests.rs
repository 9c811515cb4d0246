use std::collections::BTreeSet;
use std::net::IpAddr;

use super::*;
use crate::assignment::{Assignment, assign};
use crate::model::{
    EgressSource, Gateway, GatewayKey, Health, Node, NodeName, Pod, PodKey, Policy, Role, Snapshot,
    Source,
};
use crate::plan::{NodePlan, Steering, plan_node};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn worker() -> NodeName {
    "worker1".parse().unwrap()
}

fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for n in 1..=2u8 {
        let mut node = Node::new(Health::Up);
        node.addresses.insert(IpAddr::from([192, 168, 1, n]));
        node.subnets.insert("192.168.1.0/24".parse().unwrap());
        node.pod_ranges
            .insert(format!("10.10.{n}.0/24").parse().unwrap());
        snapshot
            .nodes
            .insert(format!("worker{n}").parse().unwrap(), node);
    }
    snapshot
        .namespaces
        .insert("alice".parse().unwrap(), Default::default());
    let mut pod = Pod::new(worker());
    pod.ips.insert(ip("10.10.1.2"));
    snapshot.pods.insert(
        PodKey::new("alice".parse().unwrap(), "p".parse().unwrap()),
        pod,
    );
    let key = GatewayKey::group("kube-system".parse().unwrap(), "default".parse().unwrap());
    let policy = Policy::snat(
        [Source::everything()],
        ["8.8.8.0/24".parse().unwrap(), "10.0.0.0/8".parse().unwrap()],
        EgressSource::from(&key),
    );
    snapshot
        .gateways
        .insert(key, Gateway::new([ip("192.168.1.100")]));
    snapshot.policies.insert("egress".parse().unwrap(), policy);
    snapshot
}

fn rules(violations: &[Violation]) -> Vec<&'static str> {
    violations.iter().map(|v| v.rule).collect()
}

#[test]
fn what_the_planner_makes_has_no_violations() {
    let snapshot = snapshot();
    let assignment = assign(&snapshot).assignment;
    assert_eq!(verify_assignment(&snapshot, &assignment), []);
    let plan = plan_node(&snapshot, &assignment, &worker()).plan;
    assert_eq!(
        verify_node_plan(&snapshot, &assignment, &worker(), &plan),
        []
    );
}

#[test]
fn every_kind_of_wrong_assignment_is_found() {
    let mut snapshot = snapshot();
    let good = assign(&snapshot).assignment;
    snapshot
        .nodes
        .insert("far".parse().unwrap(), Node::new(Health::Up));
    let mut down = snapshot.nodes[&worker()].clone();
    down.health = Health::Down;
    down.addresses.clear();
    snapshot.nodes.insert("dead".parse().unwrap(), down);
    snapshot.previous = good.clone();
    for (address, holder, want) in [
        ("192.168.1.100", "far", vec!["E30", "E32"]),
        ("192.168.1.100", "dead", vec!["E31", "E32"]),
        ("192.168.1.100", "nowhere", vec!["E31", "E32"]),
        ("192.168.1.100", "worker2", vec!["E32"]),
        ("192.168.1.101", "worker1", vec!["E23", "E30"]),
        ("192.168.1.2", "worker1", vec!["E23", "E30", "E33"]),
    ] {
        let mut wrong = good.clone();
        wrong.nodes.insert(ip(address), holder.parse().unwrap());
        assert_eq!(
            rules(&verify_assignment(&snapshot, &wrong)),
            want,
            "{address} on {holder}"
        );
    }
    let nothing = Assignment::default();
    assert_eq!(
        rules(&verify_assignment(&snapshot, &nothing)),
        ["E32", "E32", "E34"]
    );

    let change = |change: &dyn Fn(&mut Node)| {
        let mut changed = snapshot.clone();
        change(changed.nodes.get_mut(&worker()).unwrap());
        rules(&verify_assignment(&changed, &good))
    };
    assert_eq!(change(&|node| node.draining = true), ["E35"]);
    assert_eq!(change(&|node| node.capacity = Some(0)), ["E35"]);
    let mut fresh = snapshot.clone();
    fresh.previous = Assignment::default();
    fresh.nodes.get_mut(&worker()).unwrap().role = Role::ControlPlane;
    assert_eq!(rules(&verify_assignment(&fresh, &good)), ["E30"]);
}

#[test]
fn every_kind_of_wrong_plan_is_found() {
    let snapshot = snapshot();
    let assignment = assign(&snapshot).assignment;
    let good = plan_node(&snapshot, &assignment, &worker()).plan;
    let check = |change: &dyn Fn(&mut NodePlan)| {
        let mut plan = good.clone();
        change(&mut plan);
        let violations = verify_node_plan(&snapshot, &assignment, &worker(), &plan);
        rules(&violations).into_iter().collect::<BTreeSet<_>>()
    };
    assert_eq!(check(&|plan| plan.pods.clear()), ["E11", "E43"].into());
    assert_eq!(
        check(&|plan| plan
            .destinations
            .retain(|_, steering| *steering != Steering::Forward)),
        ["E12"].into(),
        "a hole for the pods of the cluster is missing"
    );
    assert_eq!(check(&|plan| plan.deciders.clear()), ["E16"].into());
    assert_eq!(
        check(&|plan| {
            let other = || "other".parse().unwrap();
            plan.deciders.values_mut().for_each(|name| *name = other());
        }),
        ["E16"].into()
    );
    assert_eq!(
        check(&|plan| {
            let set = *plan.pods.values().next().unwrap();
            plan.pods.insert(ip("10.10.1.77"), set);
        }),
        ["E15"].into()
    );
    assert_eq!(
        check(&|plan| {
            plan.floating_ips.insert(ip("192.168.1.101"));
        }),
        ["E33"].into()
    );
    assert_eq!(check(&|plan| plan.peers.clear()), ["E47"].into());
    assert_eq!(
        check(&|plan| {
            plan.peers.insert(ip("192.168.1.66"));
        }),
        ["E47"].into()
    );
}
