//! The plan of one node with 250 pods in a cluster of 1,000 policies.
//!
//! Budget: 10 ms, a twentieth of the 200 ms in which a policy change has to reach the kernel.

#![expect(missing_docs, reason = "criterion's macro makes a public function")]

use criterion::{Criterion, criterion_group, criterion_main};
use egressnat_benches::{local_node, node_with_pods};
use egressnat_core::{assign, plan_node};
use std::hint::black_box;

fn plan(criterion: &mut Criterion) {
    let snapshot = node_with_pods(250, 1000);
    let assignment = assign(&snapshot).assignment;
    let node = local_node();
    criterion.bench_function("plan a node of 250 pods and 1000 policies", |bencher| {
        bencher.iter(|| plan_node(black_box(&snapshot), black_box(&assignment), &node))
    });
}

criterion_group!(benches, plan);
criterion_main!(benches);
