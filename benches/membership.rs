//! Everything selected for the first time: 25,000 namespaces, 100,000 pods, 75,000 policies, and two smaller shapes.
//!
//! Budgets: small namespaces 170 ms (not met yet: most of it is allocation), a policy for each pod 60 ms, one namespace 100 ms (mostly the answer to the question which nodes
//! each of 10,000 equal policies spans). For comparison: Antrea by direct calls, on the same input, took 3.38 s, 12.5 s, 213 ms
//! (Go 1.26.8, one core of the machine that the budgets are for).

#![expect(missing_docs, reason = "criterion's macro makes a public function")]

use criterion::{Criterion, criterion_group, criterion_main};
use egressnat_benches::Initial;

fn membership(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("initial membership");
    group.sample_size(10);
    for (what, initial) in [
        ("small namespaces", Initial::small_namespaces(25_000)),
        ("one namespace", Initial::one_namespace(10_000)),
        ("a policy for each pod", Initial::policy_per_pod(10_000)),
    ] {
        group.bench_function(what, |bencher| {
            bencher.iter_with_large_drop(|| initial.run())
        });
    }
    group.finish();
}

criterion_group!(benches, membership);
criterion_main!(benches);
