//! After every step of a cluster's life the assignment has no violation, and planning again changes nothing.
#![no_main]

use egressnat_core::{Snapshot, assign, verify_assignment};
use egressnat_fuzz::{Step, event};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|steps: Vec<Step>| {
    let mut snapshot = Snapshot::default();
    for step in steps {
        snapshot.apply(event(step));
        let assigned = assign(&snapshot).assignment;
        assert_eq!(verify_assignment(&snapshot, &assigned), []);
        snapshot.previous = assigned;
        assert_eq!(assign(&snapshot).assignment, snapshot.previous);
    }
});
