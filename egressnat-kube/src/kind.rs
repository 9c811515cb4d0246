use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A kind that egressnat does not know.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown kind {value:?}: use one of {known}", known = known())]
pub struct UnknownKind {
    value: String,
}

fn known() -> String {
    Kind::ALL.map(|kind| kind.as_str()).join(", ")
}

/// The kinds of objects that egressnat reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// v1
    Node,
    /// v1
    Namespace,
    /// v1
    Pod,
    /// baremetal.cluster.gke.io/v1
    Cluster,
    /// networking.gke.io/v1
    NetworkGatewayGroup,
    /// networking.gke.io/v1alpha1
    AnthosNetworkGateway,
    /// networking.gke.io/v1
    NetworkGatewayNode,
    /// networking.gke.io/v1alpha1
    AnthosNetworkGatewayNode,
    /// networking.gke.io/v1 and v1alpha1
    EgressNatPolicy,
    /// coordination.k8s.io/v1
    Lease,
    /// v1
    Event,
}

impl Kind {
    /// Every kind, in the order in which objects depend on each other.
    pub const ALL: [Kind; 11] = [
        Kind::Node,
        Kind::Namespace,
        Kind::Pod,
        Kind::Cluster,
        Kind::NetworkGatewayGroup,
        Kind::AnthosNetworkGateway,
        Kind::NetworkGatewayNode,
        Kind::AnthosNetworkGatewayNode,
        Kind::EgressNatPolicy,
        Kind::Lease,
        Kind::Event,
    ];

    /// As manifests spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Node => "Node",
            Kind::Namespace => "Namespace",
            Kind::Pod => "Pod",
            Kind::Cluster => "Cluster",
            Kind::NetworkGatewayGroup => "NetworkGatewayGroup",
            Kind::AnthosNetworkGateway => "AnthosNetworkGateway",
            Kind::NetworkGatewayNode => "NetworkGatewayNode",
            Kind::AnthosNetworkGatewayNode => "AnthosNetworkGatewayNode",
            Kind::EgressNatPolicy => "EgressNATPolicy",
            Kind::Lease => "Lease",
            Kind::Event => "Event",
        }
    }

    /// The plural of its resource, in lower case.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Node => "nodes",
            Kind::Namespace => "namespaces",
            Kind::Pod => "pods",
            Kind::Cluster => "clusters",
            Kind::NetworkGatewayGroup => "networkgatewaygroups",
            Kind::AnthosNetworkGateway => "anthosnetworkgateways",
            Kind::NetworkGatewayNode => "networkgatewaynodes",
            Kind::AnthosNetworkGatewayNode => "anthosnetworkgatewaynodes",
            Kind::EgressNatPolicy => "egressnatpolicies",
            Kind::Lease => "leases",
            Kind::Event => "events",
        }
    }

    fn short_name(self) -> Option<&'static str> {
        match self {
            Kind::Node => Some("no"),
            Kind::Namespace => Some("ns"),
            Kind::Pod => Some("po"),
            Kind::NetworkGatewayGroup => Some("ngg"),
            Kind::AnthosNetworkGateway => Some("ang"),
            Kind::NetworkGatewayNode => Some("ngn"),
            Kind::AnthosNetworkGatewayNode => Some("angn"),
            Kind::EgressNatPolicy => Some("enp"),
            Kind::Event => Some("ev"),
            Kind::Cluster | Kind::Lease => None,
        }
    }

    /// The versions it may be written in, the stored one first.
    pub fn api_versions(self) -> &'static [&'static str] {
        match self {
            Kind::Node | Kind::Namespace | Kind::Pod | Kind::Event => &["v1"],
            Kind::Cluster => &["baremetal.cluster.gke.io/v1"],
            Kind::NetworkGatewayGroup | Kind::NetworkGatewayNode => &["networking.gke.io/v1"],
            Kind::AnthosNetworkGateway | Kind::AnthosNetworkGatewayNode => {
                &["networking.gke.io/v1alpha1"]
            }
            Kind::EgressNatPolicy => &["networking.gke.io/v1", "networking.gke.io/v1alpha1"],
            Kind::Lease => &["coordination.k8s.io/v1"],
        }
    }

    /// Whether its objects live in a namespace.
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Kind::Node | Kind::Namespace | Kind::EgressNatPolicy)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = UnknownKind;

    /// Takes what kubectl takes: kind, plural or short name, in any case, with or without the group.
    fn from_str(value: &str) -> Result<Self, UnknownKind> {
        let lower = value.to_ascii_lowercase();
        let name = lower.split('.').next().unwrap_or_default();
        Kind::ALL
            .into_iter()
            .find(|kind| {
                name == kind.as_str().to_ascii_lowercase()
                    || name == kind.plural()
                    || Some(name) == kind.short_name()
            })
            .ok_or_else(|| UnknownKind {
                value: value.to_owned(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_found_by_every_name_that_kubectl_takes() {
        for kind in Kind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
            assert_eq!(kind.plural().parse(), Ok(kind));
        }
        assert_eq!(
            "networkgatewaygroups.networking.gke.io".parse(),
            Ok(Kind::NetworkGatewayGroup)
        );
        assert_eq!("po".parse(), Ok(Kind::Pod));
        let error = "Deployment".parse::<Kind>().unwrap_err();
        assert!(error.to_string().contains("EgressNATPolicy"), "{error}");
    }
}
