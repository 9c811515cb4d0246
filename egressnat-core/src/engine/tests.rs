use super::*;
use crate::arbitrary;
use crate::assignment::assign;
use crate::cluster::plan_cluster;
use crate::diff::{Change, diff};
use crate::model::{Event, NodeName, Snapshot};
use crate::plan::{NodePlan, plan_node};
use proptest::prelude::*;
use std::vec::Vec;

/// Every node that a test can have, and one that is never there.
fn nodes() -> Vec<NodeName> {
    (0..8u8).map(|n| format!("n{n}").parse().unwrap()).collect()
}

/// An engine of each of these nodes, which knows nothing.
fn engines(seed: u64) -> Vec<(NodeName, NodeEngine)> {
    nodes()
        .into_iter()
        .map(|node| (node.clone(), NodeEngine::new(node, seed)))
        .collect()
}

/// Takes events one by one and compares with planning from nothing after each.
fn follow(events: Vec<Event>, seed: u64) -> Result<(), TestCaseError> {
    let mut snapshot = Snapshot::default();
    let mut cluster = ClusterEngine::new(&snapshot);
    let mut engines = engines(seed);
    for event in events {
        snapshot.apply(event.clone());
        let moves = cluster.apply(event.clone());
        let want = plan_cluster(&snapshot);
        prop_assert_eq!(cluster.plan(), want.clone());
        let assignment = want.assigned.assignment;
        prop_assert_eq!(&cluster.assignment(), &assignment);

        for (node, engine) in &mut engines {
            let before = engine.plan().clone();
            let mut changes = engine.apply(event.clone());
            for moved in &moves {
                changes.extend(engine.set_holder(moved.address, moved.to.clone()));
            }
            let want = plan_node(&snapshot, &assignment, node);
            prop_assert_eq!(engine.planned(), want.clone(), "{}", node);
            if moves.is_empty() {
                prop_assert_eq!(changes, diff(&before, engine.plan()));
            }
        }
        snapshot.previous = assignment;
    }
    Ok(())
}

/// With destinations as engines keep them, without host bits.
fn truncated(mut snapshot: Snapshot) -> Snapshot {
    for policy in snapshot.policies.values_mut() {
        let destinations = core::mem::take(&mut policy.destinations);
        policy.destinations = destinations.iter().map(ipnet::IpNet::trunc).collect();
    }
    snapshot
}

proptest! {
    #[test]
    fn after_every_event_the_engines_say_what_planning_from_nothing_says(
        events in prop::collection::vec(arbitrary::event(), 0..80),
        seed in any::<u64>(),
    ) {
        follow(events, seed)?;
    }

    #[test]
    fn events_that_are_taken_together_come_to_what_they_come_to_one_by_one(
        batches in prop::collection::vec(prop::collection::vec(arbitrary::event(), 0..20), 0..10),
        seed in any::<u64>(),
    ) {
        let mut snapshot = Snapshot::default();
        let mut cluster = ClusterEngine::new(&snapshot);
        let mut engines = engines(seed);
        for batch in batches {
            for event in batch.clone() {
                snapshot.apply(event);
            }
            cluster.apply_all(batch.clone());
            let want = plan_cluster(&snapshot);
            prop_assert_eq!(cluster.plan(), want.clone());
            let assignment = want.assigned.assignment;
            for (node, engine) in &mut engines {
                let before = engine.planned();
                let mut is_news = engine.apply_all(batch.clone());
                is_news |= engine.set_holders(&assignment);
                let want = plan_node(&snapshot, &assignment, node);
                prop_assert_eq!(engine.planned(), want.clone(), "{}", node);
                prop_assert!(is_news || before == want, "a change that is no news: {}", node);
                prop_assert!(!engine.set_holders(&assignment));
            }
            snapshot.previous = assignment;
        }
        for (_, engine) in &mut engines {
            let told_again = truncated(snapshot.clone());
            prop_assert!(!engine.apply_all(told_again), "what is known is no news");
        }
    }

    #[test]
    fn an_engine_that_starts_in_the_middle_goes_on_from_the_assignment_it_finds(
        mut snapshot in arbitrary::snapshot(),
        events in prop::collection::vec(arbitrary::event(), 0..10),
    ) {
        let mut engine = ClusterEngine::new(&snapshot);
        prop_assert_eq!(engine.plan(), plan_cluster(&snapshot));
        for event in events {
            snapshot.previous = assign(&snapshot).assignment;
            snapshot.apply(event.clone());
            engine.apply(event);
            prop_assert_eq!(engine.plan(), plan_cluster(&snapshot));
        }
    }

    #[test]
    fn an_engine_goes_on_from_what_somebody_else_decided(
        mut snapshot in arbitrary::snapshot(),
        theirs in arbitrary::snapshot(),
        events in prop::collection::vec(arbitrary::event(), 0..10),
    ) {
        let mut engine = ClusterEngine::new(&snapshot);
        for event in events {
            snapshot.apply(event.clone());
            engine.apply(event);
        }
        snapshot.previous = theirs.previous;
        engine.go_on_from(&snapshot.previous);
        prop_assert_eq!(engine.plan(), plan_cluster(&snapshot));
    }

    #[test]
    fn when_everything_is_gone_nothing_is_left(events in prop::collection::vec(arbitrary::event(), 0..60)) {
        let node: NodeName = "n1".parse().unwrap();
        let mut engine = NodeEngine::new(node, 7);
        let mut snapshot = Snapshot::default();
        for event in &events {
            snapshot.apply(event.clone());
            engine.apply(event.clone());
        }
        let mut gone: Vec<Event> = Vec::new();
        gone.extend(snapshot.pods.into_keys().map(|key| Event::Pod(key, None)));
        gone.extend(snapshot.policies.into_keys().map(|key| Event::Policy(key, None)));
        gone.extend(snapshot.gateways.into_keys().map(|key| Event::Gateway(key, None)));
        gone.extend(snapshot.nodes.into_keys().map(|key| Event::Node(key, None)));
        gone.extend(snapshot.namespaces.into_keys().map(|key| Event::Namespace(key, None)));
        gone.push(Event::ClusterRanges(Default::default()));
        gone.push(Event::Masquerade(Default::default()));
        for event in gone {
            engine.apply(event);
        }
        prop_assert_eq!(engine.plan(), &NodePlan::default());
        prop_assert_eq!(engine.kept(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn thousands_of_events_later_nothing_has_gone_astray(
        events in prop::collection::vec(arbitrary::event(), 2000..3000),
    ) {
        follow(events, 0)?;
    }
}

#[test]
fn one_event_is_a_few_changes_however_much_there_is() {
    let node: NodeName = "n1".parse().unwrap();
    let mut engine = NodeEngine::new(node.clone(), 1);
    for event in crate::arbitrary::large(&node, 200) {
        engine.apply(event);
    }
    assert_eq!(engine.plan().pods.len(), 200);
    let (key, pod) = crate::arbitrary::large_pod(&node, 500);
    let changes = engine.apply(Event::Pod(key.clone(), Some(pod)));
    assert_eq!(changes.len(), 2, "{changes:?}");
    assert!(matches!(changes[0], Change::SetDestination(..)));
    assert!(matches!(changes[1], Change::SetPod(..)));
    let changes = engine.apply(Event::Pod(key, None));
    assert_eq!(changes.len(), 2, "{changes:?}");
}
