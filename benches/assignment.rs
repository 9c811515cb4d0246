//! 1,000 egress IPs on 1,000 nodes, at most 10 each, and the same on 100 nodes, which they fill.
//!
//! Budgets: all from nothing, with nothing changed, 0.1 ms, and after the loss of a node 0.8 ms (neither is met yet: names, groups and
//! nodes are copied). As one event of the engine, which is how a controller runs: the loss of a node, and a heartbeat that changes
//! nothing, 0.01 ms. For comparison: Antrea's BenchmarkSchedule, on the same input, took
//! 2.05 ms with nothing changed, and about 40 ms more after a change of the nodes (Go 1.26.8, one core of the machine that the
//! budgets are for).

#![expect(missing_docs, reason = "criterion's macro makes a public function")]

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use egressnat_benches::scheduling;
use egressnat_core::model::{Event, Health};
use egressnat_core::{ClusterEngine, assign};
use std::hint::black_box;

fn assignment(criterion: &mut Criterion) {
    for (what, nodes) in [("1000 nodes", 1000), ("100 nodes, full", 100)] {
        let mut group = criterion.benchmark_group(format!("assign 1000 addresses to {what}"));
        let fresh = scheduling(nodes, 1000, 10);
        group.bench_function("fresh", |bencher| {
            bencher.iter(|| assign(black_box(&fresh)))
        });

        let mut unchanged = fresh;
        unchanged.previous = assign(&unchanged).assignment;
        group.bench_function("unchanged", |bencher| {
            bencher.iter(|| assign(black_box(&unchanged)))
        });

        let mut loss = unchanged.clone();
        let (lost, node) = loss.nodes.pop_first().expect("there are nodes");
        group.bench_function("node lost", |bencher| {
            bencher.iter(|| assign(black_box(&loss)))
        });

        let mut down = node.clone();
        down.health = Health::Down;
        let event = |node: &_| Event::Node(lost.clone(), Some(Clone::clone(node)));
        group.bench_function("event: node lost and back", |bencher| {
            let mut engine = ClusterEngine::new(&unchanged);
            bencher.iter(|| {
                let moves = engine.apply(event(&down));
                engine.apply(event(&node));
                moves
            });
        });
        group.bench_function("event: nothing changed", |bencher| {
            let mut engine = ClusterEngine::new(&unchanged);
            bencher.iter(|| engine.apply(event(&node)));
        });
        group.bench_function("start", |bencher| {
            bencher.iter_batched(
                || (),
                |()| ClusterEngine::new(black_box(&unchanged)),
                BatchSize::LargeInput,
            );
        });
    }
}

criterion_group!(benches, assignment);
criterion_main!(benches);
