//! One event in a cluster of 10,000 and of 100,000 pods, and on a node of 250 pods and 1,000 policies.
//!
//! Budgets: a pod that comes and goes 3 µs, a policy edited 3 µs, a namespace relabeled 5 µs, the same at either size. On the node, with
//! the plan's changes told, a pod that comes and goes 60 µs.

#![expect(missing_docs, reason = "criterion's macro makes a public function")]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use egressnat_benches::{Initial, labels, local_node, name, node_with_pods, pod};
use egressnat_core::model::{Event, Labels, PodKey};
use egressnat_core::{NodeEngine, Snapshot};

fn cluster(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("one event in a cluster");
    for pods in [10_000, 100_000] {
        let initial = Initial::small_namespaces(pods / 4);
        let (mut membership, _) = initial.run();
        let (namespace, own) = initial.namespaces[17].clone();
        let key = PodKey::new(namespace.clone(), name("pod", 9));
        let new = pod(9, labels([("app-1", "scale-1".to_owned())]));
        group.bench_function(BenchmarkId::new("pod comes and goes", pods), |bencher| {
            bencher.iter(|| {
                let added = membership.set_pod(&key, Some(&new));
                membership.set_pod(&key, None);
                added
            });
        });
        let (policy_name, policy) = initial.policies[17].clone();
        group.bench_function(BenchmarkId::new("policy edited", pods), |bencher| {
            bencher.iter(|| membership.set_policy(&policy_name, &policy));
        });
        group.bench_function(
            BenchmarkId::new("namespace relabeled twice", pods),
            |bencher| {
                bencher.iter(|| {
                    membership.set_namespace(&namespace, Some(&Labels::new()));
                    membership.set_namespace(&namespace, Some(&own));
                });
            },
        );
    }
    group.finish();
}

/// An engine that has seen everything.
fn engine(snapshot: Snapshot) -> NodeEngine {
    let mut engine = NodeEngine::new(local_node(), 1);
    for event in snapshot {
        engine.apply(event);
    }
    engine
}

fn node(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("one event on a node of 250 pods and 1000 policies");
    let snapshot = node_with_pods(250, 1000);
    let (key, gone) = snapshot.pods.iter().nth(100).expect("250 pods");
    let (key, gone) = (key.clone(), gone.clone());
    let (policy_name, policy) = snapshot.policies.iter().nth(100).expect("1000 policies");
    let (policy_name, policy) = (policy_name.clone(), policy.clone());
    let mut engine = engine(snapshot);
    group.bench_function("pod goes and comes", |bencher| {
        bencher.iter(|| {
            let removed = engine.apply(Event::Pod(key.clone(), None));
            let added = engine.apply(Event::Pod(key.clone(), Some(gone.clone())));
            (removed, added)
        });
    });
    group.bench_function("policy goes and comes", |bencher| {
        bencher.iter(|| {
            let removed = engine.apply(Event::Policy(policy_name.clone(), None));
            let added = engine.apply(Event::Policy(policy_name.clone(), Some(policy.clone())));
            (removed, added)
        });
    });
    group.finish();
}

criterion_group!(benches, cluster, node);
criterion_main!(benches);
