//! Every node's plan, from any cluster, has no violation.
#![no_main]

use egressnat_core::{Snapshot, assign, plan_node, verify_node_plan};
use egressnat_fuzz::{Step, take};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|steps: Vec<Step>| {
    let mut snapshot = Snapshot::default();
    for step in steps {
        take(&mut snapshot, step);
    }
    let assignment = assign(&snapshot).assignment;
    for node in snapshot.nodes.keys() {
        let plan = plan_node(&snapshot, &assignment, node).plan;
        assert_eq!(verify_node_plan(&snapshot, &assignment, node, &plan), []);
    }
});
