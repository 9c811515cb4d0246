//! One scenario from beginning to end.

use std::collections::BTreeSet;

use egressnat_core::model::{Health, Snapshot};
use egressnat_core::{diff, plan_cluster, plan_node, verify_assignment, verify_node_plan};

use crate::cluster::{Cluster, Outcome};
use crate::golden;
use crate::picture::Picture;
use crate::scenario::{Scenario, directories, test_name};

/// Runs the scenario of a test.
///
/// # Panics
///
/// A plan is wrong, or another than expected.
pub(crate) fn run(test: &str) {
    let all = directories();
    let directory = all.iter().find(|directory| test_name(directory) == test);
    let directory = directory.unwrap_or_else(|| panic!("no directory of cases/ is for {test}"));
    let scenario = Scenario::read(directory);
    let mut cluster = Cluster::default();
    let mut picture = Picture::default();
    for (number, step) in scenario.steps.iter().enumerate() {
        let words: Vec<&str> = step.words.iter().map(String::as_str).collect();
        let heading = format!("{number:02} {}", words.join(", "));
        let taken = cluster.take(step);
        let snapshot = cluster.snapshot();
        assert_eq!(
            snapshot,
            cluster.snapshot_in_reverse(),
            "{heading}: it matters in which order objects come"
        );
        let outcome = Outcome::of(&snapshot);
        verify(&heading, &snapshot, &outcome);
        for must in &taken.musts {
            let plan = &outcome.nodes[&must.node].plan;
            let decision = plan.decide(must.source, must.destination, None);
            assert_eq!(decision.to_string(), must.decision, "{heading}: {must:?}");
        }
        picture.step(&heading, &taken.refused, &snapshot, &outcome);
        cluster.put_in_force(&outcome.cluster.assigned.assignment);
        plan_again(&heading, &cluster, &outcome);
        for question in &taken.questions {
            picture.answer(&snapshot, &outcome, question);
        }
    }
    golden::compare(&scenario.directory.join("expected.txt"), &picture.text);
}

/// The checker finds nothing, and nobody needs more than they are given.
fn verify(heading: &str, snapshot: &Snapshot, outcome: &Outcome) {
    let assignment = &outcome.cluster.assigned.assignment;
    let violations = verify_assignment(snapshot, assignment);
    assert_eq!(violations, [], "{heading}");

    let held = outcome
        .nodes
        .values()
        .flat_map(|planned| &planned.plan.floating_ips);
    let held: Vec<_> = held.collect();
    let once: BTreeSet<_> = held.iter().collect();
    assert_eq!(
        once.len(),
        held.len(),
        "{heading}: an address has two owners (E33)"
    );

    let mut without_pods = snapshot.clone();
    without_pods.pods.clear();
    assert_eq!(
        plan_cluster(&without_pods),
        outcome.cluster,
        "{heading}: the controller has no pods"
    );
    for (name, planned) in &outcome.nodes {
        let violations = verify_node_plan(snapshot, assignment, name, &planned.plan);
        assert_eq!(violations, [], "{heading}: node {name}");

        // An agent has the pods of its own node, no leases, no subnets, and the assignment from the status.
        let mut of_agent = snapshot.clone();
        of_agent.pods.retain(|_, pod| &pod.node == name);
        of_agent.previous = Default::default();
        for node in of_agent.nodes.values_mut() {
            node.health = Health::Up;
            node.subnets.clear();
        }
        assert_eq!(
            &plan_node(&of_agent, assignment, name),
            planned,
            "{heading}: the agent of {name} plans something else"
        );
    }
}

/// E45: planning from the outcome changes nothing.
fn plan_again(heading: &str, cluster: &Cluster, outcome: &Outcome) {
    let again = Outcome::of(&cluster.snapshot());
    assert_eq!(
        again.cluster, outcome.cluster,
        "{heading}: planned again, the cluster is another"
    );
    for (name, planned) in &outcome.nodes {
        let changes = diff(&planned.plan, &again.nodes[name].plan);
        assert_eq!(changes, [], "{heading}: planned again, node {name} changes");
    }
    assert_eq!(again.nodes, outcome.nodes, "{heading}: planned again");
}
