use super::*;
use crate::arbitrary;
use crate::assignment::assign;
use crate::diff::{Change, diff};
use crate::finding::{Reason, Subject};
use crate::model::{
    EgressSource, Gateway, GatewayKey, Health, Labels, MasqueradeMatch, Node, Pod, PodKey,
    PodPhase, Source, Timestamp,
};
use crate::selector::Selector;
use crate::verify::verify_node_plan;
use proptest::prelude::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn node_name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(k, v)| ((*k).into(), (*v).into()))
        .collect()
}

fn group(name: &str) -> GatewayKey {
    GatewayKey::group("kube-system".parse().unwrap(), name.parse().unwrap())
}

fn rule(user: &str, role: &str) -> Source {
    Source {
        namespaces: Selector::from_labels([("user", user)]),
        pods: Selector::from_labels([("role", role)]),
    }
}

fn add_pod(
    snapshot: &mut Snapshot,
    key: (&str, &str),
    node: &str,
    address: &str,
    role: &str,
) -> PodKey {
    let key = PodKey::new(key.0.parse().unwrap(), key.1.parse().unwrap());
    let mut pod = Pod::new(node_name(node));
    pod.ips.insert(ip(address));
    pod.labels = labels(&[("role", role)]);
    snapshot.pods.insert(key.clone(), pod);
    key
}

/// The cluster of the seeds: worker1 and worker2, the group `default`, the policy `egress`.
fn seed() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for n in 1..=2u8 {
        let mut node = Node::new(Health::Up);
        node.addresses.insert(IpAddr::from([192, 168, 1, n]));
        node.subnets.insert(net("192.168.1.0/24"));
        node.pod_ranges
            .insert(format!("10.10.{n}.0/24").parse().unwrap());
        snapshot
            .nodes
            .insert(node_name(&format!("worker{n}")), node);
    }
    for (namespace, user) in [("alice", "alice"), ("paul", "paul"), ("other", "other")] {
        snapshot
            .namespaces
            .insert(namespace.parse().unwrap(), labels(&[("user", user)]));
    }
    let addresses = ["192.168.1.100", "192.168.1.101", "192.168.1.102"];
    snapshot
        .gateways
        .insert(group("default"), Gateway::new(addresses.map(ip)));
    let policy = Policy::snat(
        [rule("alice", "frontend"), rule("paul", "frontend")],
        [net("8.8.8.0/24")],
        EgressSource::from(&group("default")),
    );
    snapshot.policies.insert("egress".parse().unwrap(), policy);
    add_pod(
        &mut snapshot,
        ("alice", "frontend"),
        "worker1",
        "10.10.1.2",
        "frontend",
    );
    add_pod(
        &mut snapshot,
        ("paul", "frontend"),
        "worker1",
        "10.10.1.3",
        "frontend",
    );
    add_pod(
        &mut snapshot,
        ("alice", "backend"),
        "worker1",
        "10.10.1.4",
        "backend",
    );
    add_pod(
        &mut snapshot,
        ("other", "frontend"),
        "worker1",
        "10.10.1.5",
        "frontend",
    );
    add_pod(
        &mut snapshot,
        ("alice", "remote"),
        "worker2",
        "10.10.2.2",
        "frontend",
    );
    snapshot
}

fn plan(snapshot: &Snapshot, node: &str) -> Planned {
    plan_node(snapshot, &assign(snapshot).assignment, &node_name(node))
}

fn decide(snapshot: &Snapshot, source: &str, destination: &str) -> Decision {
    plan(snapshot, "worker1")
        .plan
        .decide(ip(source), ip(destination), None)
}

#[test]
fn the_seeds_policy_selects_what_the_seed_says_e10_e11() {
    let snapshot = seed();
    let snat = Decision::Snat(ip("192.168.1.100"));
    for (source, destination, want, why) in [
        ("10.10.1.2", "8.8.8.8", snat, "user=alice, role=frontend"),
        (
            "10.10.1.3",
            "8.8.8.8",
            snat,
            "user=paul, role=frontend: rules are ORed",
        ),
        ("10.10.1.4", "8.8.8.8", Decision::Masquerade, "another role"),
        (
            "10.10.1.5",
            "8.8.8.8",
            Decision::Masquerade,
            "another namespace",
        ),
        (
            "10.10.1.2",
            "8.8.9.8",
            Decision::Masquerade,
            "another destination",
        ),
        ("10.10.1.2", "10.10.2.2", Decision::Keep, "E12: pod to pod"),
        (
            "10.10.2.2",
            "8.8.8.8",
            Decision::Keep,
            "a pod of another node is not this node's",
        ),
    ] {
        assert_eq!(decide(&snapshot, source, destination), want, "{why}");
    }
    // Pods with equal policy sets share one entry.
    let planned = plan(&snapshot, "worker1");
    assert_eq!(
        planned.plan.pods[&ip("10.10.1.2")],
        planned.plan.pods[&ip("10.10.1.3")]
    );
    assert_eq!(planned.selected[&"egress".parse().unwrap()], 2);
}

#[test]
fn a_plan_has_the_gateway_side_of_its_node() {
    let planned = plan(&seed(), "worker1").plan;
    assert_eq!(
        planned.floating_ips,
        [ip("192.168.1.100"), ip("192.168.1.102")].into()
    );
    assert_eq!(planned.peers, [ip("192.168.1.2")].into());
    assert_eq!(planned.pod_ranges, [net("10.10.1.0/24")].into());
    assert!(planned.internal_ranges.contains(&net("10.10.2.0/24")));
    assert!(planned.internal_ranges.contains(&net("192.168.1.1/32")));
}

#[test]
fn destinations_inside_the_cluster_are_never_egress_e12() {
    let mut snapshot = seed();
    snapshot.cluster_ranges.insert(net("10.96.0.0/12"));
    let policy = snapshot.policies.values_mut().next().unwrap();
    policy.destinations = [net("0.0.0.0/0"), net("10.10.2.2/32"), net("10.96.0.1/32")].into();
    for (destination, want) in [
        ("8.8.8.8", Decision::Snat(ip("192.168.1.100"))),
        ("10.10.2.2", Decision::Keep),
        ("10.96.0.1", Decision::Keep),
        ("192.168.1.2", Decision::Keep),
        ("192.168.1.9", Decision::Snat(ip("192.168.1.100"))),
    ] {
        assert_eq!(
            decide(&snapshot, "10.10.1.2", destination),
            want,
            "{destination}"
        );
    }
}

#[test]
fn overlap_goes_to_the_longest_prefix_then_the_oldest_then_the_first_name_e16() {
    let mut snapshot = seed();
    for (name, address) in [
        ("g1", "192.168.1.111"),
        ("g2", "192.168.1.112"),
        ("g3", "192.168.1.113"),
    ] {
        snapshot
            .gateways
            .insert(group(name), Gateway::new([ip(address)]));
    }
    let policy = |gateway, created, destination| Policy {
        created: Timestamp(created),
        ..Policy::snat(
            [Source::everything()],
            [net(destination)],
            EgressSource::from(&group(gateway)),
        )
    };
    snapshot.policies.clear();
    snapshot
        .policies
        .insert("wide".parse().unwrap(), policy("g1", 1, "8.0.0.0/8"));
    snapshot
        .policies
        .insert("young".parse().unwrap(), policy("g2", 9, "8.8.8.0/24"));
    snapshot
        .policies
        .insert("old".parse().unwrap(), policy("g3", 5, "8.8.8.0/24"));
    assert_eq!(
        decide(&snapshot, "10.10.1.2", "8.1.1.1"),
        Decision::Snat(ip("192.168.1.111"))
    );
    assert_eq!(
        decide(&snapshot, "10.10.1.2", "8.8.8.8"),
        Decision::Snat(ip("192.168.1.113"))
    );
    let findings = plan(&snapshot, "worker1").findings;
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(
        findings[0].subject,
        Subject::Policy("young".parse().unwrap())
    );
    assert!(findings[0].message.contains("old"), "{}", findings[0]);

    for policy in snapshot.policies.values_mut() {
        policy.created = Timestamp(1);
    }
    assert_eq!(
        decide(&snapshot, "10.10.1.2", "8.8.8.8"),
        Decision::Snat(ip("192.168.1.113")),
        "old < young"
    );
}

#[test]
fn pods_that_send_nothing_of_their_own_are_not_selected_e15() {
    let mut snapshot = seed();
    let host = add_pod(
        &mut snapshot,
        ("alice", "host"),
        "worker1",
        "192.168.1.1",
        "frontend",
    );
    snapshot.pods.get_mut(&host).unwrap().host_network = true;
    let finished = add_pod(
        &mut snapshot,
        ("alice", "job"),
        "worker1",
        "10.10.1.9",
        "frontend",
    );
    snapshot.pods.get_mut(&finished).unwrap().phase = PodPhase::Finished;
    let planned = plan(&snapshot, "worker1");
    assert!(!planned.plan.pods.contains_key(&ip("192.168.1.1")));
    assert!(!planned.plan.pods.contains_key(&ip("10.10.1.9")));
    assert_eq!(planned.findings.len(), 1);
    assert_eq!(
        planned.findings[0].subject,
        Subject::Policy("egress".parse().unwrap())
    );
    assert!(planned.findings[0].message.contains(&host.to_string()));
    assert_eq!(planned.findings[0].reason, Reason::HostNetworkPod);
}

#[test]
fn an_address_that_two_pods_tell_counts_for_the_first() {
    let mut snapshot = seed();
    add_pod(
        &mut snapshot,
        ("other", "a-thief"),
        "worker1",
        "10.10.1.3",
        "backend",
    );
    assert_eq!(
        decide(&snapshot, "10.10.1.3", "8.8.8.8"),
        Decision::Masquerade,
        "other/a-thief < paul/frontend"
    );
}

#[test]
fn no_snat_keeps_the_pod_ip_e5() {
    let mut snapshot = seed();
    let keep = Policy {
        created: Timestamp::default(),
        sources: vec![],
        destinations: [net("8.8.8.8/32")].into(),
        action: Action::NoSnat,
        enforcement: Enforcement::Strict,
    };
    snapshot.policies.insert("default".parse().unwrap(), keep);
    assert_eq!(decide(&snapshot, "10.10.1.2", "8.8.8.8"), Decision::Keep);
    assert_eq!(
        decide(&snapshot, "10.10.1.5", "8.8.8.8"),
        Decision::Keep,
        "every pod"
    );
    assert_eq!(
        decide(&snapshot, "10.10.1.2", "8.8.8.9"),
        Decision::Snat(ip("192.168.1.100"))
    );
}

#[test]
fn a_plan_names_the_policy_that_decides_about_a_destination_e16() {
    let mut snapshot = seed();
    let first = snapshot.policies.keys().next().unwrap().clone();
    // The same decision by another policy, which is older; and one in a narrower range.
    for (name, created, range) in [("older", -1, "8.8.8.0/24"), ("narrow", 1, "8.8.8.128/25")] {
        let policy = Policy {
            created: Timestamp(created),
            destinations: [net(range)].into(),
            ..snapshot.policies[&first].clone()
        };
        snapshot.policies.insert(name.parse().unwrap(), policy);
    }
    let plan = plan(&snapshot, "worker1").plan;
    let decider = |to| {
        plan.decider(ip("10.10.1.2"), ip(to))
            .map(PolicyName::as_str)
    };
    assert_eq!(decider("8.8.8.8"), Some("older"));
    assert_eq!(decider("8.8.8.200"), Some("narrow"));
    assert_eq!(decider("9.9.9.9"), None);
    // Ranges inside the cluster are nobody's.
    let decided = plan.destinations.iter();
    let decided = decided.filter(|(_, steering)| **steering != Steering::Forward);
    let decided: BTreeSet<_> = decided.map(|(key, _)| *key).collect();
    assert_eq!(decided, plan.deciders.keys().copied().collect());
}

#[test]
fn a_policy_edit_keeps_the_ids_of_policy_sets() {
    let before = plan(&seed(), "worker1").plan;
    let mut edited = seed();
    edited
        .policies
        .values_mut()
        .next()
        .unwrap()
        .destinations
        .insert(net("9.9.9.0/24"));
    let after = plan(&edited, "worker1").plan;
    let id = before.pods[&ip("10.10.1.2")];
    let snat = Steering::Snat(ip("192.168.1.100"));
    assert_eq!(
        diff(&before, &after),
        [
            Change::AddGuardRange(net("9.9.9.0/24")),
            Change::SetDestination(id, net("9.9.9.0/24"), snat)
        ]
    );
}

#[test]
fn of_a_policy_that_keeps_and_one_that_translates_the_second_wins_the_same_prefix_e16() {
    let mut snapshot = seed();
    let keep = Policy {
        created: Timestamp(-1),
        sources: vec![],
        destinations: [net("8.8.8.0/24")].into(),
        action: Action::NoSnat,
        enforcement: Enforcement::Strict,
    };
    snapshot.policies.insert("default".parse().unwrap(), keep);
    let snat = Decision::Snat(ip("192.168.1.100"));
    assert_eq!(decide(&snapshot, "10.10.1.2", "8.8.8.8"), snat);
    assert_eq!(
        decide(&snapshot, "10.10.1.5", "8.8.8.8"),
        Decision::Keep,
        "a pod that only the second selects"
    );
}

#[test]
fn each_family_has_its_egress_ip_and_without_one_strict_drops_e43() {
    let mut snapshot = seed();
    let pod = PodKey::new("alice".parse().unwrap(), "frontend".parse().unwrap());
    let pod = snapshot.pods.get_mut(&pod).unwrap();
    pod.ips.insert(ip("fd10::2"));
    let policy = snapshot.policies.values_mut().next().unwrap();
    policy.destinations = [net("8.8.8.0/24"), net("2001:db8::/32")].into();
    let v6 = |snapshot: &Snapshot| decide(snapshot, "fd10::2", "2001:db8::1");

    assert_eq!(v6(&snapshot), Decision::Drop);
    snapshot.policies.values_mut().next().unwrap().enforcement = Enforcement::BestEffort;
    assert_eq!(v6(&snapshot), Decision::Masquerade);
    let gateway = snapshot.gateways.values_mut().next().unwrap();
    gateway.floating_ips.push(ip("fd00::100"));
    for node in snapshot.nodes.values_mut() {
        node.subnets.insert(net("fd00::/64"));
    }
    assert_eq!(v6(&snapshot), Decision::Snat(ip("fd00::100")));
    assert_eq!(
        decide(&snapshot, "10.10.1.2", "8.8.8.8"),
        Decision::Snat(ip("192.168.1.100"))
    );
}

#[test]
fn best_effort_falls_back_to_the_node_ip_while_nobody_holds_the_egress_ip_e43() {
    let mut snapshot = seed();
    for node in snapshot.nodes.values_mut() {
        node.health = Health::Down;
    }
    let snat = Decision::Snat(ip("192.168.1.100"));
    assert_eq!(
        decide(&snapshot, "10.10.1.2", "8.8.8.8"),
        snat,
        "strict: steered to nobody"
    );
    snapshot.policies.values_mut().next().unwrap().enforcement = Enforcement::BestEffort;
    assert_eq!(
        decide(&snapshot, "10.10.1.2", "8.8.8.8"),
        Decision::Masquerade
    );
}

#[test]
fn an_address_of_the_nodes_range_that_no_pod_has_cannot_reach_strict_destinations_e43() {
    let mut snapshot = seed();
    let unknown = "10.10.1.77";
    assert_eq!(decide(&snapshot, unknown, "8.8.8.8"), Decision::Drop);
    assert_eq!(decide(&snapshot, unknown, "8.8.9.8"), Decision::Masquerade);
    assert_eq!(decide(&snapshot, unknown, "10.10.2.2"), Decision::Keep);
    snapshot.policies.values_mut().next().unwrap().enforcement = Enforcement::BestEffort;
    assert_eq!(decide(&snapshot, unknown, "8.8.8.8"), Decision::Masquerade);
}

#[test]
fn masquerade_rules_decide_what_no_policy_does() {
    let mut snapshot = seed();
    let rules = &mut snapshot.masquerade.rules;
    let keep = MasqueradeMatch::to(net("8.0.0.0/8"));
    rules.insert(keep, MasqueradeAction::Keep);
    let exception = MasqueradeMatch {
        protocol: Some(Protocol::TCP),
        ..MasqueradeMatch::to(net("8.8.0.0/16"))
    };
    rules.insert(exception, MasqueradeAction::Masquerade);
    let plan = plan(&snapshot, "worker1").plan;
    for (source, destination, protocol, want, why) in [
        (
            "10.10.1.2",
            "8.8.8.8",
            None,
            Decision::Snat(ip("192.168.1.100")),
            "the policy comes first",
        ),
        (
            "10.10.1.5",
            "8.8.8.8",
            None,
            Decision::Keep,
            "the non-masquerade list",
        ),
        (
            "10.10.1.5",
            "8.8.8.8",
            Some(Protocol::TCP),
            Decision::Masquerade,
            "an exception in the list",
        ),
        (
            "10.10.1.5",
            "9.9.9.9",
            None,
            Decision::Masquerade,
            "everything else",
        ),
    ] {
        let got = plan.decide(ip(source), ip(destination), protocol);
        assert_eq!(got, want, "{why}");
    }
}

#[test]
fn policies_that_do_not_fit_are_told_and_their_pods_do_not_leak_e43() {
    let mut snapshot = seed();
    let many = (0..MAX_DESTINATIONS as u32 / 2).map(|n| {
        let address = core::net::Ipv4Addr::from(0x2000_0000 + n * 2);
        IpNet::from(IpAddr::V4(address))
    });
    let mut large = snapshot.policies[&"egress".parse().unwrap()].clone();
    large.destinations = many.collect();
    // Three policy sets with half of what fits each.
    for (n, user) in ["alice", "paul", "other"].into_iter().enumerate() {
        large.sources = vec![rule(user, "frontend")];
        snapshot
            .policies
            .insert(format!("large{n}").parse().unwrap(), large.clone());
    }
    let planned = plan(&snapshot, "worker1");
    assert!(planned.plan.destinations.len() <= MAX_DESTINATIONS);
    let tell = |address: &str| planned.plan.decide(ip(address), ip("32.0.0.2"), None);
    let decisions = ["10.10.1.2", "10.10.1.3", "10.10.1.5"].map(tell);
    let snat = Decision::Snat(ip("192.168.1.100"));
    assert_eq!(decisions, [snat, Decision::Drop, Decision::Drop]);
    let (unselected, unrelated) = ("10.10.1.4", ip("9.9.9.9"));
    let plan = &planned.plan;
    assert_eq!(
        plan.decide(ip(unselected), unrelated, None),
        Decision::Masquerade
    );
    assert_eq!(planned.findings[0].reason, Reason::PlanTooLarge);
    let refused = planned.refused.iter().map(|name| name.as_str());
    // What selects paul's pods beside the large one has no room there either.
    assert_eq!(refused.collect::<Vec<_>>(), ["egress", "large1", "large2"]);
    let set = plan.pods[&ip("10.10.1.2")];
    assert!(planned.policies[&set].contains(&"large0".parse().unwrap()));
    assert!(!planned.policies.contains_key(&PolicySetId::CLOSED));
}

proptest! {
    #[test]
    fn the_tables_decide_as_the_policies_say(snapshot in arbitrary::snapshot()) {
        let assignment = assign(&snapshot).assignment;
        for node in snapshot.nodes.keys() {
            let planned = plan_node(&snapshot, &assignment, node).plan;
            prop_assert_eq!(verify_node_plan(&snapshot, &assignment, node, &planned), vec![]);
        }
    }
}
