use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

use super::{Name, NamespaceName, Timestamp};

/// The two kinds that declare floating IPs. They mean the same (E1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum GatewayKind {
    /// `NetworkGatewayGroup`, networking.gke.io/v1.
    NetworkGatewayGroup,
    /// `AnthosNetworkGateway`, networking.gke.io/v1alpha1.
    AnthosNetworkGateway,
}

impl GatewayKind {
    /// The kind as manifests spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            GatewayKind::NetworkGatewayGroup => "NetworkGatewayGroup",
            GatewayKind::AnthosNetworkGateway => "AnthosNetworkGateway",
        }
    }
}

/// Kind, namespace and name of a gateway group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GatewayKey {
    /// Which of the two kinds.
    pub kind: GatewayKind,
    /// Its namespace.
    pub namespace: NamespaceName,
    /// Its name.
    pub name: Name,
}

impl GatewayKey {
    /// The key of a `NetworkGatewayGroup`.
    pub fn group(namespace: NamespaceName, name: Name) -> Self {
        Self {
            kind: GatewayKind::NetworkGatewayGroup,
            namespace,
            name,
        }
    }

    /// The key of an `AnthosNetworkGateway`.
    pub fn anthos(namespace: NamespaceName, name: Name) -> Self {
        Self {
            kind: GatewayKind::AnthosNetworkGateway,
            namespace,
            name,
        }
    }
}

impl fmt::Display for GatewayKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind.as_str(), self.namespace, self.name)
    }
}

/// A gateway group: floating IPs that move between nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Gateway {
    /// When it was created: of two groups with one address, the older keeps it (E23).
    pub created: Timestamp,
    /// Its floating IPs in the order of the manifest; a v1 policy uses the first (E20).
    pub floating_ips: Vec<IpAddr>,
    /// Set on the copy that the controller keeps in `kube-system`: the namespace of the original (E7).
    pub mirror_of: Option<NamespaceName>,
}

impl Gateway {
    /// A group with these floating IPs.
    pub fn new(floating_ips: impl IntoIterator<Item = IpAddr>) -> Self {
        Self {
            created: Timestamp::default(),
            floating_ips: floating_ips.into_iter().collect(),
            mirror_of: None,
        }
    }
}

/// Namespace and name of a `Cluster` object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ClusterKey {
    /// Its namespace, `cluster-<name>`.
    pub namespace: NamespaceName,
    /// Its name.
    pub name: Name,
}

/// A `Cluster` object, reduced to its two switches (E7). Either turns the feature on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Cluster {
    /// Annotation `baremetal.cluster.gke.io/enable-anthos-network-gateway: "true"`.
    pub anthos_network_gateway: bool,
    /// `spec.clusterNetwork.advancedNetworking: true`.
    pub advanced_networking: bool,
}

impl Cluster {
    /// Whether gateway groups of this cluster's namespace are effective.
    pub fn is_enabled(&self) -> bool {
        self.anthos_network_gateway || self.advanced_networking
    }
}
