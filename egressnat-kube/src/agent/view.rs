//! What an agent knows of its cluster: the planner's engine, and what the loop wants to know besides.
//!
//! No object is kept as it is written. What it says to this node is, so that an event is news if and only if that is different.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_core::model::{Event, GatewayKey, Node, NodeName, PolicyName};
use egressnat_core::ownership::GrantRecord;
use egressnat_core::{Assignment, NodeEngine, Planned, PolicyMeaning};
use ipnet::IpNet;

use crate::grant::{read_grants, read_holders};
use crate::kind::Kind;
use crate::object::{InvalidObject, Object, ObjectKey};
use crate::resource::{event_of, gateway_key, gone};

/// The objects of a watch, as far as they concern one node.
///
/// # Guarantees
///
/// After [`View::settle`] the plan is that of planning from nothing with the objects that there are, in whatever order they came.
#[derive(Debug)]
pub(super) struct View {
    engine: NodeEngine,
    /// What has been told since the last time.
    events: Vec<Event>,
    policies: BTreeMap<PolicyName, PolicyVersion>,
    gateways: BTreeMap<GatewayKey, GatewayStatus>,
    assignment: Assignment,
    news: News,
}

/// What is not as it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct News {
    /// Something that the node's plan, or what is told of it, may depend on.
    pub(super) plan: bool,
    /// Something about who may hold which floating IP, or which nodes there are to hold them.
    pub(super) ownership: bool,
}

/// Which text of which policy it is.
#[derive(Debug, PartialEq, Eq)]
struct PolicyVersion {
    uid: Box<str>,
    generation: i64,
}

/// What the controller tells of a gateway.
#[derive(Debug, Default, PartialEq, Eq)]
struct GatewayStatus {
    holders: BTreeMap<IpAddr, NodeName>,
    grants: BTreeMap<IpAddr, GrantRecord>,
    up: BTreeSet<NodeName>,
}

impl GatewayStatus {
    fn read(object: &Object) -> Self {
        let nodes = object.at("/status/nodes").as_object();
        let up = nodes.into_iter().flatten();
        let up = up.filter(|(_, health)| *health == "Up");
        Self {
            holders: read_holders(object),
            grants: read_grants(object),
            up: up.filter_map(|(name, _)| name.parse().ok()).collect(),
        }
    }
}

impl View {
    /// Nothing yet. `cluster_ranges` are ranges inside the cluster that no object tells; `seed` is a number that nobody else knows.
    pub(super) fn new(
        node: NodeName,
        cluster_ranges: impl IntoIterator<Item = IpNet>,
        seed: u64,
    ) -> Self {
        let ranges = cluster_ranges.into_iter().collect();
        Self {
            engine: NodeEngine::new(node, seed),
            events: vec![Event::ClusterRanges(ranges)],
            policies: BTreeMap::new(),
            gateways: BTreeMap::new(),
            assignment: Assignment::default(),
            news: News::default(),
        }
    }

    /// An object is there, or has changed.
    ///
    /// # Errors
    ///
    /// It does not make sense: it counts as not there.
    pub(super) fn apply(&mut self, object: &Object) -> Result<(), InvalidObject> {
        match event_of(object) {
            Ok(event) => {
                self.read_beside(object);
                self.events.extend(event);
                Ok(())
            }
            Err(error) => {
                self.delete(object.key());
                Err(error)
            }
        }
    }

    /// What an object says beside what the planner wants to know.
    fn read_beside(&mut self, object: &Object) {
        if let Some(key) = gateway_key(object.key()) {
            let status = GatewayStatus::read(object);
            if self.gateways.get(&key) != Some(&status) {
                self.gateways.insert(key, status);
                self.news.ownership = true;
            }
        } else if object.kind() == Kind::EgressNatPolicy
            && let Ok(name) = object.parse_name::<PolicyName>()
        {
            let version = PolicyVersion {
                uid: object.uid().unwrap_or_default().into(),
                generation: object.generation(),
            };
            if self.policies.get(&name) != Some(&version) {
                self.policies.insert(name, version);
                self.news.plan = true;
            }
        }
    }

    /// An object is gone.
    pub(super) fn delete(&mut self, key: &ObjectKey) {
        let event = gone(key);
        match &event {
            Some(Event::Gateway(key, _)) => {
                self.news.ownership |= self.gateways.remove(key).is_some();
            }
            Some(Event::Policy(name, _)) => {
                self.policies.remove(name);
            }
            _ => {}
        }
        self.events.extend(event);
    }

    /// Brings everything up to date with what was told since the last time. Says what is news.
    pub(super) fn settle(&mut self) -> News {
        let mut events = std::mem::take(&mut self.events);
        // What selects a pod is then worked out once, and not anew with each policy that comes after it.
        events.sort_by_key(|event| matches!(event, Event::Pod(..)));
        let mut news = std::mem::take(&mut self.news);
        let is_of_gateways = |event: &Event| {
            matches!(
                event,
                Event::Gateway(..) | Event::Cluster(..) | Event::Node(..)
            )
        };
        news.ownership |= events
            .iter()
            .any(|event| is_of_gateways(event) && !self.engine.objects().is_as(event));
        news.plan |= self.engine.apply_all(events);
        if news.ownership {
            let assignment = self.told_assignment();
            let held = |assignment: &Assignment| assignment.nodes.keys().copied().collect();
            let before: BTreeSet<IpAddr> = held(&self.assignment);
            // Which node holds an address is no matter of others, only whether one does.
            news.plan |= before != held(&assignment);
            self.engine.set_holders(&assignment);
            self.assignment = assignment;
        }
        news
    }

    /// The node's plan, with what is to be told about it; with the floating IPs that are assigned to the node.
    pub(super) fn planned(&self) -> Planned {
        self.engine.planned()
    }

    /// What the policies that make sense come to, in the order of their names.
    pub(super) fn meanings(&self) -> BTreeMap<&PolicyName, PolicyMeaning<'_>> {
        let objects = &self.engine.objects().policies;
        let resolved = self.engine.resolved();
        let is_held = |address: &IpAddr| self.assignment.nodes.contains_key(address);
        let policies = self.policies.iter().filter_map(|(name, version)| {
            let object = (&*version.uid, version.generation);
            let resolved = resolved.get(name).copied();
            let meaning = PolicyMeaning::new(object, objects.get(name)?, resolved, is_held);
            Some((name, meaning))
        });
        policies.collect()
    }

    fn told_assignment(&self) -> Assignment {
        let nodes = self.of_owners(|status| &status.holders);
        Assignment {
            nodes: nodes.collect(),
        }
    }

    /// The grant of each floating IP, as its gateway tells.
    pub(super) fn grants(&self) -> BTreeMap<IpAddr, GrantRecord> {
        self.of_owners(|status| &status.grants).collect()
    }

    /// What the effective gateways tell of their addresses. An address counts only for the gateway that owns it.
    fn of_owners<T: Clone>(
        &self,
        told: impl Fn(&GatewayStatus) -> &BTreeMap<IpAddr, T>,
    ) -> impl Iterator<Item = (IpAddr, T)> {
        let owners = self.engine.gateways().owners.iter();
        owners.filter_map(move |(address, owner)| {
            let told = told(self.gateways.get(owner)?).get(address)?;
            Some((*address, told.clone()))
        })
    }

    /// The nodes that are up, as the effective gateways tell.
    pub(super) fn nodes_up(&self) -> impl Iterator<Item = (&NodeName, &Node)> {
        let gateways = self.engine.gateways().gateways.keys();
        let told = gateways.filter_map(|key| self.gateways.get(key));
        let up: BTreeSet<&NodeName> = told.flat_map(|status| &status.up).collect();
        let nodes = &self.engine.objects().nodes;
        up.into_iter().filter_map(|name| nodes.get_key_value(name))
    }

    /// All nodes.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (&NodeName, &Node)> {
        self.engine.objects().nodes.iter()
    }
}

#[cfg(test)]
mod tests;
