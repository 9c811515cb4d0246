use super::*;
use crate::model::PolicyName;
use crate::plan::Decision;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// Applies the changes that lead to `desired` one by one, and insists on the order that the packet path needs.
fn replay(plan: &mut NodePlan, changes: &[Change], desired: &NodePlan) {
    let mut snat: BTreeSet<IpAddr> = plan.floating_ips.clone();
    for change in changes {
        match *change {
            Change::AddPeer(ip) => assert!(plan.peers.insert(ip)),
            Change::RemovePeer(ip) => assert!(plan.peers.remove(&ip)),
            Change::AddInternalRange(range) => assert!(plan.internal_ranges.insert(range)),
            Change::RemoveInternalRange(range) => assert!(plan.internal_ranges.remove(&range)),
            Change::AddPodRange(range) => assert!(plan.pod_ranges.insert(range)),
            Change::RemovePodRange(range) => assert!(plan.pod_ranges.remove(&range)),
            Change::AddGuardRange(range) => assert!(plan.guard_ranges.insert(range)),
            Change::RemoveGuardRange(range) => assert!(plan.guard_ranges.remove(&range)),
            Change::SetMasquerade(rule, action) => {
                assert_ne!(plan.masquerade.rules.insert(rule, action), Some(action));
            }
            Change::RemoveMasquerade(rule) => {
                assert!(plan.masquerade.rules.remove(&rule).is_some())
            }
            Change::AddSnat(ip) => assert!(snat.insert(ip)),
            Change::AddAddress(ip) => {
                assert!(snat.contains(&ip), "SNAT is live before the address");
                assert!(plan.floating_ips.insert(ip));
            }
            Change::RemoveAddress(ip) => assert!(plan.floating_ips.remove(&ip)),
            Change::RemoveSnat(ip) => {
                assert!(
                    !plan.floating_ips.contains(&ip),
                    "the address goes before SNAT"
                );
                assert!(snat.remove(&ip));
            }
            Change::SetDestination(set, prefix, decision) => {
                let key = (set, prefix);
                let decider = desired.deciders.get(&key).cloned();
                let before = match &decider {
                    Some(decider) => plan.deciders.insert(key, decider.clone()),
                    None => plan.deciders.remove(&key),
                };
                let before = (plan.destinations.insert(key, decision), before);
                assert_ne!(before, (Some(decision), decider));
            }
            Change::RemoveDestination(set, prefix) => {
                assert!(plan.destinations.remove(&(set, prefix)).is_some());
                plan.deciders.remove(&(set, prefix));
            }
            Change::SetPod(ip, set) => assert_ne!(plan.pods.insert(ip, set), Some(set)),
            Change::RemovePod(ip) => assert!(plan.pods.remove(&ip).is_some()),
        }
    }
    assert_eq!(snat, plan.floating_ips);
}

fn address() -> impl Strategy<Value = IpAddr> {
    (0..6u8).prop_map(|host| IpAddr::from([192, 168, 1, host]))
}

fn range() -> impl Strategy<Value = IpNet> {
    (0..6u8).prop_map(|third| IpNet::new(IpAddr::from([10, 0, third, 0]), 24).unwrap())
}

/// Few networks and many lengths, so that most lie in one another.
fn nested_range() -> impl Strategy<Value = IpNet> {
    (0..4u8, 6..=24u8).prop_map(|(third, length)| {
        let range = IpNet::new(IpAddr::from([8, 8, third, 0]), length).unwrap();
        range.trunc()
    })
}

fn steering() -> impl Strategy<Value = Steering> {
    prop_oneof![
        Just(Steering::Forward),
        Just(Steering::Keep),
        Just(Steering::Drop),
        address().prop_map(Steering::Snat)
    ]
}

fn decider() -> impl Strategy<Value = PolicyName> {
    prop_oneof!["a", "b"].prop_map(|name| name.parse().unwrap())
}

prop_compose! {
    fn arbitrary_plan()(
        pods in prop::collection::btree_map(address(), (1..4u32).prop_map(PolicySetId), 0..5),
        destinations in prop::collection::btree_map(((1..4u32).prop_map(PolicySetId), range()), (steering(), decider()), 0..8),
        floating_ips in prop::collection::btree_set(address(), 0..4),
        peers in prop::collection::btree_set(address(), 0..4),
        pod_ranges in prop::collection::btree_set(range(), 0..4),
        internal_ranges in prop::collection::btree_set(range(), 0..4),
        guard_ranges in prop::collection::btree_set(range(), 0..4),
        masquerade in crate::arbitrary::masquerade(),
    ) -> NodePlan {
        let decided = destinations.iter().filter(|(_, (steering, _))| *steering != Steering::Forward);
        let deciders = decided.map(|(key, (_, decider))| (*key, decider.clone())).collect();
        let destinations = destinations.into_iter().map(|(key, (steering, _))| (key, steering)).collect();
        NodePlan { pods, destinations, deciders, floating_ips, peers, pod_ranges, internal_ranges, guard_ranges, masquerade }
    }
}

proptest! {
    #[test]
    fn the_changes_lead_from_one_plan_to_the_other(observed in arbitrary_plan(), desired in arbitrary_plan()) {
        let changes = diff(&observed, &desired);
        let mut plan = observed;
        replay(&mut plan, &changes, &desired);
        prop_assert_eq!(plan, desired);
    }

    #[test]
    fn equal_plans_have_no_changes(plan in arbitrary_plan()) {
        prop_assert_eq!(diff(&plan, &plan), vec![]);
    }

    #[test]
    fn between_two_plans_what_is_steered_no_more_goes_nowhere_and_all_else_as_desired_e43_e44(
        before in prop::collection::btree_map((1..3u32, nested_range()), steering(), 0..8),
        after in prop::collection::btree_map((1..3u32, nested_range()), steering(), 0..8),
        sets in prop::collection::vec((0..3u32, 0..3u32), 1..4),
        probes in prop::collection::vec(nested_range(), 1..8),
    ) {
        let plan = |table: BTreeMap<(u32, IpNet), Steering>, sets: Vec<u32>| NodePlan {
            pods: sets.into_iter().enumerate()
                .map(|(host, set)| (IpAddr::from([10, 10, 1, host as u8]), PolicySetId(set))).collect(),
            destinations: table.into_iter().map(|((set, prefix), steering)| ((PolicySetId(set), prefix), steering)).collect(),
            pod_ranges: ["10.10.1.0/24".parse().unwrap()].into(),
            ..NodePlan::default()
        };
        let (old, new): (Vec<u32>, Vec<u32>) = sets.into_iter().unzip();
        let (observed, desired) = (plan(before, old), plan(after, new));
        let pods: BTreeSet<IpAddr> = desired.pods.keys().copied().collect();
        let between = between(&pods, &observed, &desired);
        let mut is_needed = false;
        for (pod, probe) in pods.iter().flat_map(|pod| probes.iter().map(|probe| (*pod, probe.addr()))) {
            let decide = |plan: &NodePlan| plan.decide(pod, probe, None);
            let was_decided = matches!(decide(&observed), Decision::Snat(_) | Decision::Drop);
            let is_stopped = was_decided && decide(&desired) == Decision::Masquerade;
            is_needed |= is_stopped;
            let named = |between: &Between| between.stopped.contains(&pod);
            prop_assert!(!is_stopped || between.as_ref().is_some_and(named));
            let now = decide(between.as_ref().map_or(&desired, |between| &between.plan));
            // A pod that comes to a set waits with those that are in it.
            let waits_with_others = now == Decision::Drop && decide(&desired) == Decision::Masquerade;
            match is_stopped {
                true => prop_assert_eq!(now, Decision::Drop),
                false => prop_assert!(now == decide(&desired) || waits_with_others),
            }
        }
        prop_assert!(between.is_some() || !is_needed);
    }

    #[test]
    fn nested_destinations_are_decided_as_before_or_as_after_at_every_change_e43(
        before in prop::collection::btree_map(nested_range(), steering(), 0..6),
        after in prop::collection::btree_map(nested_range(), steering(), 0..6),
        edges in prop::collection::vec(nested_range(), 1..6),
    ) {
        let (pod, set) = (IpAddr::from([10, 10, 1, 2]), PolicySetId(1));
        let plan = |table: BTreeMap<IpNet, Steering>| NodePlan {
            pods: [(pod, set)].into(),
            destinations: table.into_iter().map(|(prefix, steering)| ((set, prefix), steering)).collect(),
            ..NodePlan::default()
        };
        let (before, after) = (plan(before), plan(after));
        let mut now = before.clone();
        for change in diff(&before, &after) {
            replay(&mut now, &[change], &after);
            for destination in edges.iter().flat_map(|range| [range.network(), range.broadcast()]) {
                let (old, new) = (before.decide(pod, destination, None), after.decide(pod, destination, None));
                let decision = now.decide(pod, destination, None);
                prop_assert!(decision == old || decision == new, "{change}: {destination} is {decision}, not {old} or {new}");
            }
        }
    }

    #[test]
    fn nested_masquerade_rules_are_decided_as_before_or_as_after_at_every_change(
        before in prop::collection::btree_map(nested_range(), any::<bool>(), 0..6),
        after in prop::collection::btree_map(nested_range(), any::<bool>(), 0..6),
        edges in prop::collection::vec(nested_range(), 1..6),
    ) {
        let pod = IpAddr::from([10, 10, 1, 2]);
        let plan = |rules: BTreeMap<IpNet, bool>| {
            let mut plan = NodePlan { pods: [(pod, PolicySetId::EMPTY)].into(), ..NodePlan::default() };
            plan.masquerade.rules = rules
                .into_iter()
                .map(|(range, keep)| {
                    let action = if keep { MasqueradeAction::Keep } else { MasqueradeAction::Masquerade };
                    (MasqueradeMatch::to(range), action)
                })
                .collect();
            plan
        };
        let (before, after) = (plan(before), plan(after));
        let mut now = before.clone();
        for change in diff(&before, &after) {
            replay(&mut now, &[change], &after);
            for destination in edges.iter().flat_map(|range| [range.network(), range.broadcast()]) {
                let (old, new) = (before.decide(pod, destination, None), after.decide(pod, destination, None));
                let decision = now.decide(pod, destination, None);
                prop_assert!(decision == old || decision == new, "{change}: {destination} is {decision}, not {old} or {new}");
            }
        }
    }

    #[test]
    fn destinations_are_there_before_pods_use_them(observed in arbitrary_plan(), desired in arbitrary_plan()) {
        let changes = diff(&observed, &desired);
        let position = |wanted: fn(&Change) -> bool| changes.iter().position(wanted);
        let last = |wanted: fn(&Change) -> bool| changes.iter().rposition(wanted);
        if let (Some(last_set), Some(first_pod)) = (
            last(|c| matches!(c, Change::SetDestination(..))),
            position(|c| matches!(c, Change::SetPod(..))),
        ) {
            prop_assert!(last_set < first_pod);
        }
        if let (Some(last_pod), Some(first_gone)) = (
            last(|c| matches!(c, Change::RemovePod(_) | Change::SetPod(..))),
            position(|c| matches!(c, Change::RemoveDestination(..))),
        ) {
            prop_assert!(last_pod < first_gone);
        }
    }
}

#[test]
fn a_destination_is_told_anew_when_another_policy_decides_the_same() {
    let key = (PolicySetId(1), "8.8.8.0/24".parse().unwrap());
    let plan = |decider: &str| NodePlan {
        destinations: [(key, Steering::Keep)].into(),
        deciders: [(key, decider.parse().unwrap())].into(),
        ..NodePlan::default()
    };
    assert_eq!(
        diff(&plan("a"), &plan("b")),
        [Change::SetDestination(key.0, key.1, Steering::Keep)]
    );
}

#[test]
fn a_move_is_told_in_the_order_in_which_it_is_made() {
    let old: NodePlan = NodePlan {
        floating_ips: ["192.168.1.100".parse().unwrap()].into(),
        ..NodePlan::default()
    };
    let new = NodePlan {
        floating_ips: ["192.168.1.101".parse().unwrap()].into(),
        ..NodePlan::default()
    };
    let text: Vec<String> = diff(&old, &new).iter().map(Change::to_string).collect();
    assert_eq!(
        text,
        [
            "+ snat to 192.168.1.101",
            "+ address 192.168.1.101",
            "- address 192.168.1.100",
            "- snat to 192.168.1.100",
        ]
    );
}

#[test]
fn what_was_steered_and_is_not_decided_any_more_goes_nowhere_in_between() {
    const SET: PolicySetId = PolicySetId(1);
    let snat = Steering::Snat("192.168.1.100".parse().unwrap());
    let pod: IpAddr = "10.10.1.2".parse().unwrap();
    let other: IpAddr = "10.10.1.3".parse().unwrap();
    let pods = BTreeSet::from([pod, other]);
    let range = |text: &str| text.parse::<IpNet>().unwrap();
    let plan = |steering| NodePlan {
        pods: BTreeMap::from([(pod, SET)]),
        destinations: BTreeMap::from([((SET, range("8.8.8.0/24")), steering)]),
        pod_ranges: BTreeSet::from([range("10.10.1.0/24")]),
        internal_ranges: BTreeSet::from([range("10.0.0.0/8")]),
        ..NodePlan::default()
    };
    let observed = plan(snat);
    let decide = |plan: &NodePlan, pod, destination: &str| {
        plan.decide(pod, destination.parse().unwrap(), None)
    };

    // The policy is gone, or has nobody to steer to; what is inside the cluster is not its own.
    let mut unselected = observed.clone();
    unselected.pods = BTreeMap::from([(pod, PolicySetId::EMPTY), (other, PolicySetId::EMPTY)]);
    unselected.destinations.clear();
    let mut best_effort = observed.clone();
    let key = (SET, range("8.8.8.0/24"));
    best_effort.destinations.insert(key, Steering::Forward);
    for desired in [&unselected, &best_effort] {
        let between = between(&pods, &observed, desired).unwrap();
        assert_eq!(between.stopped, BTreeSet::from([pod]));
        let stopped = between.plan;
        assert_eq!(decide(&stopped, pod, "8.8.8.8"), Decision::Drop);
        assert_eq!(decide(&stopped, pod, "9.9.9.9"), Decision::Masquerade);
        assert_eq!(decide(&stopped, pod, "10.1.2.3"), Decision::Keep);
        assert_eq!(decide(&stopped, other, "8.8.8.8"), Decision::Masquerade);
    }

    // A narrower range is spared.
    let mut spared = observed.clone();
    let key = (SET, range("8.8.8.128/25"));
    spared.destinations.insert(key, Steering::Forward);
    let stopped = between(&pods, &observed, &spared).unwrap().plan;
    assert_eq!(decide(&stopped, pod, "8.8.8.129"), Decision::Drop);
    assert_ne!(decide(&stopped, pod, "8.8.8.8"), Decision::Drop);

    // Steered as before, or by a wider range, or kept: nothing is in between.
    let mut wider = observed.clone();
    let steering = wider.destinations.remove(&(SET, range("8.8.8.0/24")));
    let set = PolicySetId(2);
    wider.pods.insert(pod, set);
    wider
        .destinations
        .insert((set, range("8.0.0.0/8")), steering.unwrap());
    let kept = plan(Steering::Keep);
    let blocked = plan(Steering::Drop);
    for desired in [&observed, &wider, &kept, &blocked] {
        assert_eq!(between(&pods, &observed, desired), None);
    }

    // Whoever did this died before the end.
    let stopped = between(&pods, &observed, &unselected).unwrap().plan;
    assert!(between(&pods, &stopped, &unselected).is_some());
    assert_eq!(between(&pods, &unselected, &observed), None);
}
