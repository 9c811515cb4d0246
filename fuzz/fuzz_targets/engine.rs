//! After every event both engines say what planning from nothing says, and the plans have no violation.
#![no_main]

use egressnat_core::{
    ClusterEngine, NodeEngine, Snapshot, plan_cluster, plan_node, verify_node_plan,
};
use egressnat_fuzz::{Step, event, nodes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|steps: Vec<Step>| {
    let mut snapshot = Snapshot::default();
    let mut cluster = ClusterEngine::new(&snapshot);
    let mut engines: Vec<_> = nodes()
        .take(3)
        .map(|node| (node.clone(), NodeEngine::new(node, 1)))
        .collect();
    for step in steps {
        let event = event(step);
        snapshot.apply(event.clone());
        let moves = cluster.apply(event.clone());
        let want = plan_cluster(&snapshot);
        assert_eq!(cluster.plan(), want);
        let assignment = want.assigned.assignment;
        for (node, engine) in &mut engines {
            engine.apply(event.clone());
            for moved in &moves {
                engine.set_holder(moved.address, moved.to.clone());
            }
            let planned = plan_node(&snapshot, &assignment, node);
            assert_eq!(engine.planned(), planned);
            assert_eq!(verify_node_plan(&snapshot, &assignment, node, &planned.plan), []);
        }
        snapshot.previous = assignment;
    }
});
