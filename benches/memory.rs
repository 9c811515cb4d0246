//! What engines keep, in bytes, measured at the allocator.
//!
//! Budgets: 25,000 namespaces, 100,000 pods, 75,000 policies 80 MB (Antrea, on the same input, 944 MB allocated and 1.5 GB at its
//! peak); a pod with labels like others 150 bytes, one with labels of its own 700 bytes, the same at 10,000 and at 100,000. An agent's
//! engine of 250 pods and 1,000 policies 3 MB; its whole loop with these, in a cluster of 1,000 nodes, 5 MB of the 20 MB that the process may have.

#[path = "memory/agent.rs"]
mod agent;

use egressnat_benches::{Initial, local_node, name, node_with_pods, pod};
use egressnat_core::model::{Labels, NamespaceName, Pod, PodKey};
use egressnat_core::{Membership, NodeEngine};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes that `make` left allocated.
fn kept<T>(make: impl FnOnce() -> T) -> (T, usize) {
    let region = Region::new(ALLOCATOR);
    let made = make();
    let stats = region.change();
    (
        made,
        stats
            .bytes_allocated
            .saturating_sub(stats.bytes_deallocated),
    )
}

#[expect(clippy::print_stdout, reason = "this is what it is for")]
fn main() {
    let initial = Initial::small_namespaces(25_000);
    let ((membership, _), bytes) = kept(|| initial.run());
    println!(
        "small namespaces, 100000 pods and 75000 policies: {} kB",
        bytes / 1000
    );
    drop(membership);

    for count in [10_000, 100_000] {
        let namespace: NamespaceName = name("namespace", 0);
        for (what, kinds) in [("like others", 100), ("of their own", usize::MAX)] {
            let mut membership = Membership::new(1);
            membership.set_namespace(&namespace, Some(&Labels::new()));
            let pods = (0..count).map(|n| {
                let app = egressnat_benches::labels([
                    ("app", format!("app-{}", n % kinds)),
                    ("tier", "web".to_owned()),
                ]);
                (PodKey::new(namespace.clone(), name("pod", n)), pod(n, app))
            });
            let pods: Vec<(PodKey, Pod)> = pods.collect();
            let (_, bytes) = kept(|| {
                for (key, pod) in &pods {
                    membership.set_pod(key, Some(pod));
                }
            });
            println!(
                "{count} pods with labels {what}: {} bytes each",
                bytes / count
            );
        }
    }

    let snapshot = node_with_pods(250, 1000);
    let (engine, bytes) = kept(|| {
        let mut engine = NodeEngine::new(local_node(), 1);
        for event in snapshot.clone() {
            engine.apply(event);
        }
        engine
    });
    println!(
        "engine of a node, 250 pods and 1000 policies: {} kB",
        bytes / 1000
    );
    drop(engine);

    for policies in [1_000, 10_000] {
        let size = agent::Size {
            nodes: 1_000,
            pods: 250,
            policies,
        };
        let (runtime, bytes) = kept(|| agent::started(size));
        println!(
            "loop of an agent, 1000 nodes, 250 pods and {policies} policies that select all of them: {} kB",
            bytes / 1000
        );
        drop(runtime);
    }
}
