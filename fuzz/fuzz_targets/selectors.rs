//! Whatever the order of pods, namespaces and policies: who is selected is who the selectors match.
#![no_main]

use egressnat_core::model::{Event, PodPhase};
use egressnat_core::{Membership, Snapshot};
use egressnat_fuzz::{Step, event};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|steps: Vec<Step>| {
    let mut membership = Membership::new(1);
    let mut snapshot = Snapshot::default();
    for step in steps {
        let event = event(step);
        snapshot.apply(event.clone());
        match event {
            Event::Pod(key, pod) => drop(membership.set_pod(&key, pod.as_ref())),
            Event::Namespace(name, labels) => membership.set_namespace(&name, labels.as_ref()),
            Event::Policy(name, Some(policy)) => membership.set_policy(&name, &policy),
            Event::Policy(name, None) => membership.remove_policy(&name),
            _ => {}
        }
    }
    for (key, pod) in &snapshot.pods {
        let set = membership.set_of(key);
        assert_eq!(set.is_some(), pod.phase == PodPhase::Active, "{key}");
        let Some(set) = set else { continue };
        let selected = membership.policies_of(set);
        let namespace = snapshot.namespaces.get(&key.namespace);
        for (name, policy) in &snapshot.policies {
            let matches = policy.sources.iter().any(|source| {
                namespace.is_some_and(|labels| source.namespaces.matches(labels))
                    && source.pods.matches(&pod.labels)
            });
            let want = matches || policy.is_for_all_pods();
            assert_eq!(selected.contains(name), want, "{key} and {name}");
            let listed = membership.pods_of(name).any(|(pod, _)| pod == *key);
            assert_eq!(listed, want, "{key} in the list of {name}");
        }
    }
});
