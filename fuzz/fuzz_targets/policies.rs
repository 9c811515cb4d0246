//! Every node's plan, from any cluster, has no violation, and every explanation says what the plan says.
#![no_main]

use egressnat_core::{Snapshot, assign, explain, plan_node, verify_node_plan};
use egressnat_fuzz::{Step, event};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|steps: Vec<Step>| {
    let mut snapshot = Snapshot::default();
    for step in steps {
        snapshot.apply(event(step));
    }
    let assignment = assign(&snapshot).assignment;
    for node in snapshot.nodes.keys() {
        let plan = plan_node(&snapshot, &assignment, node).plan;
        assert_eq!(verify_node_plan(&snapshot, &assignment, node, &plan), []);
    }
    let destination = "8.1.0.0".parse().expect("an address");
    for pod in snapshot.pods.keys() {
        // That it agrees with the plan is asserted by the property tests; here, that nothing panics.
        let _ = explain(&snapshot, &assignment, pod, destination, None).to_string();
    }
});
