use alloc::collections::{BTreeMap, BTreeSet};
use ipnet::IpNet;

use super::{
    Cluster, ClusterKey, Gateway, GatewayKey, Labels, MasqueradeRules, NamespaceName, Node,
    NodeName, Pod, PodKey, Policy, PolicyName, Snapshot,
};

impl IntoIterator for Snapshot {
    type Item = Event;
    type IntoIter = alloc::boxed::Box<dyn Iterator<Item = Event>>;

    /// The events that lead here from nothing: pods last. The previous assignment is not among them.
    fn into_iter(self) -> Self::IntoIter {
        let pods = self.pods.into_iter();
        let policies = self.policies.into_iter();
        let events = [
            Event::ClusterRanges(self.cluster_ranges),
            Event::Masquerade(self.masquerade),
        ];
        let events = events
            .into_iter()
            .chain(self.nodes.into_iter().map(|(k, v)| Event::Node(k, Some(v))))
            .chain(
                self.namespaces
                    .into_iter()
                    .map(|(k, v)| Event::Namespace(k, Some(v))),
            )
            .chain(
                self.clusters
                    .into_iter()
                    .map(|(k, v)| Event::Cluster(k, Some(v))),
            )
            .chain(
                self.gateways
                    .into_iter()
                    .map(|(k, v)| Event::Gateway(k, Some(v))),
            )
            .chain(policies.map(|(k, v)| Event::Policy(k, Some(v))))
            .chain(pods.map(|(k, v)| Event::Pod(k, Some(v))));
        alloc::boxed::Box::new(events)
    }
}

impl FromIterator<Event> for Snapshot {
    /// What there is after these events, one after another, without a previous assignment.
    fn from_iter<T: IntoIterator<Item = Event>>(events: T) -> Self {
        let mut snapshot = Self::default();
        for event in events {
            snapshot.apply(event);
        }
        snapshot
    }
}

/// One object as it is from now on; `None` for one that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A node.
    Node(NodeName, Option<Node>),
    /// A namespace.
    Namespace(NamespaceName, Option<Labels>),
    /// A pod.
    Pod(PodKey, Option<Pod>),
    /// A gateway group.
    Gateway(GatewayKey, Option<Gateway>),
    /// An egress policy.
    Policy(PolicyName, Option<Policy>),
    /// A `Cluster` object.
    Cluster(ClusterKey, Option<Cluster>),
    /// The ranges inside the cluster that no object tells.
    ClusterRanges(BTreeSet<IpNet>),
    /// What happens to packets of pods that no policy decides.
    Masquerade(MasqueradeRules),
}

impl Snapshot {
    /// Whether things are as an event says already.
    pub fn is_as(&self, event: &Event) -> bool {
        match event {
            Event::Node(key, node) => self.nodes.get(key) == node.as_ref(),
            Event::Namespace(key, labels) => self.namespaces.get(key) == labels.as_ref(),
            Event::Pod(key, pod) => self.pods.get(key) == pod.as_ref(),
            Event::Gateway(key, gateway) => self.gateways.get(key) == gateway.as_ref(),
            Event::Policy(key, policy) => self.policies.get(key) == policy.as_ref(),
            Event::Cluster(key, cluster) => self.clusters.get(key) == cluster.as_ref(),
            Event::ClusterRanges(ranges) => self.cluster_ranges == *ranges,
            Event::Masquerade(rules) => self.masquerade == *rules,
        }
    }

    /// Takes one event. Says whether anything is different now.
    pub fn apply(&mut self, event: Event) -> bool {
        match event {
            Event::Node(key, node) => put(&mut self.nodes, key, node),
            Event::Namespace(key, labels) => put(&mut self.namespaces, key, labels),
            Event::Pod(key, pod) => put(&mut self.pods, key, pod),
            Event::Gateway(key, gateway) => put(&mut self.gateways, key, gateway),
            Event::Policy(key, policy) => put(&mut self.policies, key, policy),
            Event::Cluster(key, cluster) => put(&mut self.clusters, key, cluster),
            Event::ClusterRanges(ranges) => replace(&mut self.cluster_ranges, ranges),
            Event::Masquerade(rules) => replace(&mut self.masquerade, rules),
        }
    }
}

fn put<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> bool {
    match value {
        None => map.remove(&key).is_some(),
        Some(value) if map.get(&key) == Some(&value) => false,
        Some(value) => {
            map.insert(key, value);
            true
        }
    }
}

fn replace<T: PartialEq>(place: &mut T, value: T) -> bool {
    let is_different = *place != value;
    *place = value;
    is_different
}
