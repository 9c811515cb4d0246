//! Assignment of 1,000 floating IPs to 1,000 nodes.
//!
//! Budget: input that has not changed in 0.1 ms (not met yet: names and keys are cloned), the loss of a node in 0.8 ms. For comparison: Antrea's BenchmarkSchedule
//! with the same numbers took 2.05 ms for unchanged input and about 40 ms after a node loss (Go 1.26.8, one core).

#![expect(missing_docs, reason = "criterion's macro makes a public function")]

use criterion::{Criterion, criterion_group, criterion_main};
use egressnat_benches::cluster;
use egressnat_core::assign;
use std::hint::black_box;

fn assignment(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("assign 1000 addresses to 1000 nodes");
    let fresh = cluster(1000, 1000);
    group.bench_function("fresh", |bencher| {
        bencher.iter(|| assign(black_box(&fresh)))
    });

    let mut unchanged = fresh;
    unchanged.previous = assign(&unchanged).assignment;
    group.bench_function("unchanged", |bencher| {
        bencher.iter(|| assign(black_box(&unchanged)))
    });

    let mut loss = unchanged;
    loss.nodes.pop_first();
    group.bench_function("node lost", |bencher| {
        bencher.iter(|| assign(black_box(&loss)))
    });
}

criterion_group!(benches, assignment);
criterion_main!(benches);
