//! What planning starts from: nodes, namespaces, pods, gateways, policies.
//!
//! Everything is keyed by a newtype and kept in ordered maps, so that iteration order is part of the
//! value and not of the machine.

mod cluster;
mod event;
mod masquerade;
mod name;
mod node;
mod pod;
mod policy;

pub use cluster::{Cluster, ClusterKey, Gateway, GatewayKey, GatewayKind};
pub use event::Event;
pub use masquerade::{MasqueradeAction, MasqueradeMatch, MasqueradeRules, Protocol};
pub(crate) use name::is_subdomain;
pub use name::{InvalidName, Name, NamespaceName, NodeName, PolicyName};
pub use node::{Health, Node, Role};
pub use pod::{Labels, Pod, PodKey, PodPhase};
pub use policy::{Action, EgressSource, Enforcement, Policy, Source};

use alloc::collections::{BTreeMap, BTreeSet};
use ipnet::IpNet;

use crate::assignment::Assignment;

/// A creation time: seconds since the Unix epoch, as the API server recorded it.
///
/// Used only to order objects by age; never compared with a clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Timestamp(pub i64);

/// Everything one run of the planner looks at.
///
/// The controller fills all of it but the pods; an agent fills in the pods of its own node only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The nodes of the cluster, dead ones included.
    pub nodes: BTreeMap<NodeName, Node>,
    /// Namespaces with their labels.
    pub namespaces: BTreeMap<NamespaceName, Labels>,
    /// Pods with the addresses and labels they have now.
    pub pods: BTreeMap<PodKey, Pod>,
    /// Gateway groups of both kinds, in every namespace.
    pub gateways: BTreeMap<GatewayKey, Gateway>,
    /// Egress policies of both versions, in one form.
    pub policies: BTreeMap<PolicyName, Policy>,
    /// `Cluster` objects: the switch that makes gateways of their namespace effective.
    pub clusters: BTreeMap<ClusterKey, Cluster>,
    /// Ranges inside the cluster that no object tells, above all the service ranges.
    ///
    /// The pod ranges and addresses of the nodes are added by the planner.
    pub cluster_ranges: BTreeSet<IpNet>,
    /// What happens to packets of pods that no policy decides.
    pub masquerade: MasqueradeRules,
    /// The assignment that is in force: read for minimal movement only.
    pub previous: Assignment,
}

impl Snapshot {
    /// Every range whose destinations are never egress traffic: pod, service and node addresses.
    pub fn internal_ranges(&self) -> BTreeSet<IpNet> {
        let mut ranges: BTreeSet<IpNet> = self.cluster_ranges.iter().map(IpNet::trunc).collect();
        for node in self.nodes.values() {
            ranges.extend(node.internal_ranges());
        }
        ranges
    }
}
