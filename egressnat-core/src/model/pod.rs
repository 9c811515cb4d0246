use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use core::fmt;
use core::net::IpAddr;

use super::{Name, NamespaceName, NodeName};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Namespace and name of a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PodKey {
    /// Its namespace.
    pub namespace: NamespaceName,
    /// Its name.
    pub name: Name,
}

impl PodKey {
    /// The key of pod `name` in `namespace`.
    pub fn new(namespace: NamespaceName, name: Name) -> Self {
        Self { namespace, name }
    }
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Whether a pod may still send packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum PodPhase {
    /// Pending or running: it has, or will have, its addresses.
    #[default]
    Active,
    /// Succeeded or failed: its addresses may belong to another pod by now.
    Finished,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Pod {
    /// The node it runs on.
    pub node: NodeName,
    /// Its addresses: none before its network is up, one per family in a dual-stack cluster.
    pub ips: BTreeSet<IpAddr>,
    /// Its labels.
    pub labels: Labels,
    /// Whether it shares the node's network namespace. Such a pod is never selected (E15).
    pub host_network: bool,
    /// Active or finished.
    pub phase: PodPhase,
}

impl Pod {
    /// An active pod on `node` without addresses and labels.
    pub fn new(node: NodeName) -> Self {
        Self {
            node,
            ips: BTreeSet::new(),
            labels: Labels::new(),
            host_network: false,
            phase: PodPhase::Active,
        }
    }
}
