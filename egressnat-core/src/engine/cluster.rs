use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::resolution::Resolution;
use crate::assignment::{Assigned, Assignment, Move, Places, assigned_from};
use crate::cluster::{ClusterPlan, plan_of};
use crate::gateway::EffectiveGateways;
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
        engine.go_on_from(&snapshot.previous);
        engine
    }

    /// Forgets who holds what, and decides anew with this as the previous assignment: somebody else may have decided meanwhile.
    pub fn go_on_from(&mut self, previous: &Assignment) {
        let mut places = Places::default();
        for (name, node) in &self.resolution.objects.nodes {
            places.set_node(name, node);
        }
        for address in self.resolution.gateways.owners.keys() {
            places.add(*address, previous.nodes.get(address));
        }
        places.settle();
        places.note_changes();
        self.places = places;
    }

    /// What there is now: neither pods nor namespaces.
    pub fn objects(&self) -> &Snapshot {
        &self.resolution.objects
    }

    /// The gateways that are effective now.
    pub fn gateways(&self) -> &EffectiveGateways {
        &self.resolution.gateways
    }

    /// Takes one event. Returns the floating IPs that changed their node.
    pub fn apply(&mut self, event: Event) -> Vec<Move> {
        self.apply_all([event])
    }

    /// Takes events one after another, and decides once, about what all of them come to. Returns the floating IPs that changed their
    /// node.
    pub fn apply_all(&mut self, events: impl IntoIterator<Item = Event>) -> Vec<Move> {
        let mut nodes = BTreeSet::new();
        let mut addresses = BTreeSet::new();
        for event in events {
            let node = match &event {
                Event::Node(name, _) => Some(name.clone()),
                _ => None,
            };
            let resolved = self.resolution.apply(event);
            nodes.extend(node.filter(|_| resolved.is_news));
            addresses.extend(resolved.lost.into_iter().chain(resolved.gained));
        }
        // What a node was in between is nothing that anybody has seen: it keeps what it may keep as it is now.
        for name in nodes {
            match self.resolution.objects.nodes.get(&name) {
                Some(node) => self.places.set_node(&name, node),
                None => self.places.remove_node(&name),
            }
        }
        for address in addresses {
            if self.resolution.gateways.owners.contains_key(&address) {
                self.places.add(address, None);
            } else {
                self.places.remove(address);
            }
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
