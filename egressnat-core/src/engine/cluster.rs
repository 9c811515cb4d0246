use alloc::vec::Vec;

use super::resolution::Resolution;
use crate::assignment::{Assigned, Assignment, Move, Places, assigned_from};
use crate::cluster::{ClusterPlan, plan_of};
use crate::model::{Event, Snapshot};
use crate::policy::{ResolvedPolicies, resolve_policies};

/// What the whole cluster comes to, kept up to date: the controller's engine.
///
/// It has no use for pods and namespaces, and keeps none.
#[derive(Debug, Default)]
pub struct ClusterEngine {
    resolution: Resolution,
    places: Places,
}

impl ClusterEngine {
    /// The engine for what is there at the start. [`Snapshot::previous`] is the assignment to go on from.
    pub fn new(snapshot: &Snapshot) -> Self {
        let mut engine = Self::default();
        engine.resolution.objects.cluster_ranges = snapshot.cluster_ranges.clone();
        engine.resolution.objects.masquerade = snapshot.masquerade.clone();
        engine.resolution.objects.nodes = snapshot.nodes.clone();
        engine.resolution.objects.clusters = snapshot.clusters.clone();
        for (name, node) in &snapshot.nodes {
            engine.places.set_node(name, node);
        }
        for (name, policy) in &snapshot.policies {
            let event = Event::Policy(name.clone(), Some(policy.clone()));
            engine.resolution.apply(event);
        }
        let mut gateways = snapshot.gateways.clone();
        let last = gateways.pop_last();
        engine.resolution.objects.gateways = gateways;
        if let Some((key, gateway)) = last {
            engine.resolution.apply(Event::Gateway(key, Some(gateway)));
        }
        for address in engine.resolution.gateways.owners.keys() {
            let previous = snapshot.previous.nodes.get(address);
            engine.places.add(*address, previous);
        }
        engine.places.settle();
        engine.places.note_changes();
        engine
    }

    /// Takes one event. Returns the floating IPs that changed their node.
    pub fn apply(&mut self, event: Event) -> Vec<Move> {
        if self.resolution.objects.is_as(&event) {
            return Vec::new();
        }
        if let Event::Node(name, node) = &event {
            match node {
                Some(node) => self.places.set_node(name, node),
                None => self.places.remove_node(name),
            }
        }
        let resolved = self.resolution.apply(event);
        for address in resolved.lost {
            self.places.remove(address);
        }
        for address in resolved.gained {
            self.places.add(address, None);
        }
        self.places.settle();
        self.places.take_changed()
    }

    /// Who holds what.
    pub fn assignment(&self) -> Assignment {
        self.places.assignment()
    }

    /// The whole plan, with everything that is to be told. Costs a pass over gateways, policies and nodes.
    pub fn plan(&self) -> ClusterPlan {
        let assigned: Assigned = assigned_from(&self.places, self.resolution.gateways.clone());
        let Resolution {
            objects, policies, ..
        } = &self.resolution;
        let resolved = ResolvedPolicies {
            policies: policies.clone(),
            findings: resolve_policies(objects, &assigned.gateways).findings,
        };
        plan_of(objects, assigned, resolved)
    }
}
