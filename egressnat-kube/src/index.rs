//! From objects to the planner's events: synchronous, without I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_core::model::{Event, Node, NodeName, Policy, PolicyName};
use egressnat_core::ownership::GrantRecord;
use egressnat_core::{Assignment, EffectiveGateways, PolicyMeaning, ResolvedPolicy};
use ipnet::IpNet;

use crate::grant::{read_grants, read_holders};
use crate::kind::Kind;
use crate::object::{InvalidObject, Object, ObjectKey};
use crate::resource::{GatewayNodeSpec, event_of, gateway_node_spec, gone, object_key};
use crate::status::NodeReport;
use crate::store::WatchEvent;

/// The objects of one watch, and what they come to for the planner.
///
/// An object that does not make sense is left out, alone, and told.
#[derive(Debug, Default)]
pub struct Index {
    objects: BTreeMap<ObjectKey, Kept>,
    /// Without subnets.
    nodes: BTreeMap<NodeName, Node>,
    gateway_nodes: BTreeMap<NodeName, GatewayNodeSpec>,
    reports: BTreeMap<NodeName, NodeReport>,
    /// Objects that make no sense, with the reason.
    invalid: BTreeMap<ObjectKey, (Object, InvalidObject)>,
    /// What the planner was not told yet.
    events: Vec<Event>,
}

/// What is kept of an object that makes sense.
#[derive(Debug)]
struct Kept {
    object: Object,
    /// Of the whole of it.
    fingerprint: u64,
}

impl Kept {
    /// Memory goes with what is used: what the planner was told it keeps itself.
    fn new(mut object: Object) -> Self {
        let fingerprint = object.fingerprint();
        object.forget(match object.kind() {
            Kind::EgressNatPolicy => &["/spec", "/metadata/annotations", "/metadata/labels"],
            Kind::NetworkGatewayNode => &["/status/report"],
            Kind::Node | Kind::Namespace | Kind::Pod | Kind::Cluster => &[
                "/spec",
                "/status",
                "/metadata/annotations",
                "/metadata/labels",
            ],
            // Written back as a whole.
            _ => &[],
        });
        Self {
            object,
            fingerprint,
        }
    }
}

impl Index {
    /// An empty index. `cluster_ranges` are ranges inside the cluster that no object tells, such as the service range.
    pub fn new(cluster_ranges: impl IntoIterator<Item = IpNet>) -> Self {
        let ranges = cluster_ranges.into_iter().collect();
        Self {
            events: vec![Event::ClusterRanges(ranges)],
            ..Self::default()
        }
    }

    /// Takes one event of a watch. Returns the object in it if that does not make sense.
    pub fn take(&mut self, event: WatchEvent) -> Option<InvalidObject> {
        match event {
            WatchEvent::Applied(object) => self.apply(object).err(),
            WatchEvent::Deleted(key) => {
                self.delete(&key);
                None
            }
            WatchEvent::Synced
            | WatchEvent::Failed(_)
            | WatchEvent::Interrupted
            | WatchEvent::Resumed => None,
        }
    }

    /// Adds or replaces one object.
    ///
    /// # Errors
    ///
    /// The object does not make sense: it counts as not there.
    pub fn apply(&mut self, object: Object) -> Result<(), InvalidObject> {
        match self.convert(&object) {
            Ok(()) => {
                self.invalid.remove(object.key());
                self.objects.insert(object.key().clone(), Kept::new(object));
                Ok(())
            }
            Err(error) => {
                self.delete(object.key());
                let invalid = (object, error.clone());
                self.invalid.insert(invalid.0.key().clone(), invalid);
                Err(error)
            }
        }
    }

    /// Takes what an object says, or nothing of it.
    fn convert(&mut self, object: &Object) -> Result<(), InvalidObject> {
        match event_of(object)? {
            Some(Event::Node(name, Some(node))) => {
                self.nodes.insert(name.clone(), node);
                self.tell_node(name);
            }
            event => self.events.extend(event),
        }
        if object.kind() == Kind::NetworkGatewayNode {
            let name: NodeName = object.parse_name()?;
            let spec = gateway_node_spec(object)?;
            self.gateway_nodes.insert(name.clone(), spec);
            match NodeReport::read(object.at("/status/report")) {
                Some(report) => self.reports.insert(name.clone(), report),
                None => self.reports.remove(&name),
            };
            self.tell_node(name);
        }
        Ok(())
    }

    /// A node is put together from two objects: without an agent it has no subnet, and so gets no floating IP.
    fn tell_node(&mut self, name: NodeName) {
        let node = self.nodes.get(&name).map(|node| {
            let mut node = node.clone();
            let spec = self.gateway_nodes.get(&name);
            node.subnets = spec.map(|spec| spec.subnets.clone()).unwrap_or_default();
            node
        });
        self.events.push(Event::Node(name, node));
    }

    /// Removes one object.
    pub fn delete(&mut self, key: &ObjectKey) {
        self.invalid.remove(key);
        if self.objects.remove(key).is_none() {
            return;
        }
        match gone(key) {
            Some(Event::Node(name, _)) => {
                self.nodes.remove(&name);
                self.tell_node(name);
            }
            event => self.events.extend(event),
        }
        if key.kind == Kind::NetworkGatewayNode
            && let Ok(name) = key.name.parse::<NodeName>()
        {
            self.gateway_nodes.remove(&name);
            self.reports.remove(&name);
            self.tell_node(name);
        }
    }

    /// What has changed for the planner since the last time. Of a node nobody knows here whether it is up: in these events it is.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Whether an object that makes sense has been told already just as it is.
    pub(crate) fn knows(&self, object: &Object) -> bool {
        let known = self.objects.get(object.key());
        known.is_some_and(|known| known.fingerprint == object.fingerprint())
    }

    /// What is kept of an object that makes sense: not what the planner keeps.
    pub fn object(&self, key: &ObjectKey) -> Option<&Object> {
        self.objects.get(key).map(|kept| &kept.object)
    }

    /// An object, whether it makes sense or not.
    pub(crate) fn known(&self, key: &ObjectKey) -> Option<&Object> {
        let invalid = || self.invalid.get(key).map(|(object, _)| object);
        self.object(key).or_else(invalid)
    }

    /// The objects of a kind that make no sense, and why.
    pub(crate) fn invalid(&self, kind: Kind) -> impl Iterator<Item = (&Object, &InvalidObject)> {
        let of_kind = self.invalid.values();
        of_kind
            .filter(move |(object, _)| object.kind() == kind)
            .map(|(object, error)| (object, error))
    }

    /// What the agent of a node has told of its kernel.
    pub(crate) fn report(&self, node: &NodeName) -> Option<&NodeReport> {
        self.reports.get(node)
    }

    /// What the policies that make sense come to, in the order of their names.
    pub(crate) fn meanings<'a>(
        &'a self,
        policies: &'a BTreeMap<PolicyName, Policy>,
        resolved: &BTreeMap<PolicyName, ResolvedPolicy>,
        is_held: impl Fn(&IpAddr) -> bool,
    ) -> BTreeMap<&'a PolicyName, PolicyMeaning<'a>> {
        let meaning = |(name, policy): (&'a PolicyName, &Policy)| {
            let object = self.object(&ObjectKey::cluster(Kind::EgressNatPolicy, name.as_str()))?;
            let resolved = resolved.get(name).copied();
            let object = (object.uid().unwrap_or_default(), object.generation());
            let meaning = PolicyMeaning::new(object, policy, resolved, &is_held);
            Some((name, meaning))
        };
        policies.iter().filter_map(meaning).collect()
    }

    /// What is kept of the objects of a kind, in order.
    pub fn objects(&self, kind: Kind) -> impl Iterator<Item = &Object> {
        // The first key of the kind: no name is empty.
        let of_kind = self.objects.range(ObjectKey::cluster(kind, "")..);
        let of_kind = of_kind.take_while(move |(key, _)| key.kind == kind);
        of_kind.map(|(_, kept)| &kept.object)
    }

    /// The nodes that an agent has described.
    pub fn gateway_nodes(&self) -> BTreeSet<NodeName> {
        self.nodes
            .keys()
            .filter(|name| self.gateway_nodes.contains_key(*name))
            .cloned()
            .collect()
    }

    /// The grant of each address that the status of the effective gateways tells. An address counts only for the gateway that owns it.
    pub(crate) fn grants(&self, gateways: &EffectiveGateways) -> BTreeMap<IpAddr, GrantRecord> {
        let mut grants = BTreeMap::new();
        for key in gateways.gateways.keys() {
            let told = self.object(&object_key(key)).map(read_grants);
            let is_owned = |address: &IpAddr| gateways.owners.get(address) == Some(key);
            grants.extend(told.into_iter().flatten().filter(|(a, _)| is_owned(a)));
        }
        grants
    }

    /// The assignment that the status of the effective gateways tells. An address counts only for the gateway that owns it.
    pub fn assignment(&self, gateways: &EffectiveGateways) -> Assignment {
        let mut assignment = Assignment::default();
        for key in gateways.gateways.keys() {
            let told = self.object(&object_key(key)).map(read_holders);
            let is_owned = |address: &IpAddr| gateways.owners.get(address) == Some(key);
            let told = told.into_iter().flatten().filter(|(a, _)| is_owned(a));
            assignment.nodes.extend(told);
        }
        assignment
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use egressnat_core::effective_gateways;
    use egressnat_core::model::Snapshot;
    use serde_json::{Value, json};

    fn object(value: Value) -> Object {
        Object::from_value(value).unwrap()
    }

    /// What the events come to.
    fn snapshot(index: &mut Index) -> Snapshot {
        index.take_events().into_iter().collect()
    }

    fn node() -> Object {
        object(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "worker1", "labels": {"node-role.kubernetes.io/master": ""}},
            "spec": {"podCIDR": "10.10.1.0/24"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.1.1"}, {"type": "Hostname", "address": "w"}]},
        }))
    }

    fn gateway(addresses: &[&str], status: Value) -> Object {
        object(json!({
            "apiVersion": "networking.gke.io/v1", "kind": "NetworkGatewayGroup",
            "metadata": {"name": "default", "namespace": "kube-system"},
            "spec": {"floatingIPs": addresses}, "status": status,
        }))
    }

    #[test]
    fn a_node_is_put_together_from_its_objects() {
        let mut index = Index::default();
        index.apply(node()).unwrap();
        index
            .apply(object(json!({
                "apiVersion": "networking.gke.io/v1", "kind": "NetworkGatewayNode",
                "metadata": {"name": "worker1", "namespace": "kube-system"},
                "spec": {"subnets": ["192.168.1.0/24"]},
            })))
            .unwrap();
        let snapshot = snapshot(&mut index);
        let node = &snapshot.nodes[&"worker1".parse().unwrap()];
        assert_eq!(node.role, egressnat_core::model::Role::ControlPlane);
        assert_eq!(node.addresses, ["192.168.1.1".parse().unwrap()].into());
        assert!(node.is_on_link("192.168.1.100".parse().unwrap()));
    }

    #[test]
    fn a_node_is_drained_by_a_cordon_or_by_annotation_e35() {
        let changed = |change: fn(&mut Value)| {
            let mut object = node();
            change(object.value_mut());
            let mut index = Index::default();
            index.apply(object)?;
            Ok(snapshot(&mut index).nodes[&"worker1".parse().unwrap()].clone())
        };
        let is_draining = |change| changed(change).map(|node: Node| node.draining);
        assert_eq!(is_draining(|_| {}), Ok::<_, InvalidObject>(false));
        assert_eq!(
            is_draining(|o| o["spec"]["unschedulable"] = json!(true)),
            Ok(true)
        );
        let drain =
            |o: &mut Value| o["metadata"]["annotations"] = json!({"egressnat.io/drain": "true"});
        assert_eq!(is_draining(drain), Ok(true));
        let capacity =
            |o: &mut Value| o["metadata"]["annotations"] = json!({"egressnat.io/capacity": "3"});
        assert_eq!(changed(capacity).map(|node| node.capacity), Ok(Some(3)));
        let many =
            |o: &mut Value| o["metadata"]["annotations"] = json!({"egressnat.io/capacity": "many"});
        let error = changed(many).unwrap_err();
        assert!(
            error.to_string().contains("number of floating IPs"),
            "{error}"
        );
    }

    #[test]
    fn what_comes_and_goes_leaves_nothing() {
        let mut index = Index::default();
        index.apply(node()).unwrap();
        index.apply(gateway(&["192.168.1.100"], json!({}))).unwrap();
        index.delete(node().key());
        index.delete(gateway(&[], json!({})).key());
        assert_eq!(snapshot(&mut index), Snapshot::default());
    }

    #[test]
    fn an_object_that_stops_making_sense_counts_as_not_there() {
        let mut index = Index::default();
        index.apply(gateway(&["192.168.1.100"], json!({}))).unwrap();
        let error = index.apply(gateway(&["x"], json!({}))).unwrap_err();
        assert_eq!(error.field, "spec.floatingIPs[0]");
        assert!(snapshot(&mut index).gateways.is_empty());
    }

    #[test]
    fn the_assignment_is_read_from_the_status_the_seed_prints_e1() {
        let mut index = Index::default();
        let status = json!({
            "nodes": {"worker1": "Up", "worker2": "Up // Or Down"},
            "floatingIPs": {"192.168.1.100": "worker1", "192.168.1.99": "worker2"},
        });
        index.apply(gateway(&["192.168.1.100"], status)).unwrap();
        let gateways = effective_gateways(&snapshot(&mut index));
        let assignment = index.assignment(&gateways);
        assert_eq!(
            assignment.nodes.len(),
            1,
            "an address that the gateway does not own is not its to assign"
        );
        assert_eq!(
            assignment.nodes[&"192.168.1.100".parse().unwrap()].as_str(),
            "worker1"
        );
    }
}
