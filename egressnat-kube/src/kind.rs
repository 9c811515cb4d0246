//! The kinds of objects that egressnat reads and writes.

use std::fmt;
use std::str::FromStr;

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `Node`, v1.
    Node,
    /// `Namespace`, v1.
    Namespace,
    /// `Pod`, v1.
    Pod,
    /// `NetworkGatewayGroup`, networking.gke.io/v1 (E1).
    NetworkGatewayGroup,
    /// `AnthosNetworkGateway`, networking.gke.io/v1alpha1 (E1).
    AnthosNetworkGateway,
    /// `NetworkGatewayNode`, networking.gke.io/v1 (E2).
    NetworkGatewayNode,
    /// `AnthosNetworkGatewayNode`, networking.gke.io/v1alpha1 (E2).
    AnthosNetworkGatewayNode,
    /// `EgressNATPolicy`, networking.gke.io/v1 and v1alpha1 (E3–E5).
    EgressNatPolicy,
    /// `Cluster`, baremetal.cluster.gke.io/v1 (E7).
    Cluster,
    /// `Lease`, coordination.k8s.io/v1.
    Lease,
    /// `Event`, v1.
    Event,
}

/// Everything that names a kind, in one row.
struct Names {
    kind: &'static str,
    singular: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    group: &'static str,
    versions: &'static [&'static str],
    scope: Scope,
}

#[derive(PartialEq)]
enum Scope {
    Cluster,
    Namespace,
}

const NETWORKING: &str = "networking.gke.io";

impl Kind {
    /// Every kind there is.
    pub const ALL: [Kind; 11] = [
        Kind::Node,
        Kind::Namespace,
        Kind::Pod,
        Kind::NetworkGatewayGroup,
        Kind::AnthosNetworkGateway,
        Kind::NetworkGatewayNode,
        Kind::AnthosNetworkGatewayNode,
        Kind::EgressNatPolicy,
        Kind::Cluster,
        Kind::Lease,
        Kind::Event,
    ];

    fn names(self) -> Names {
        match self {
            Kind::Node => Names {
                kind: "Node",
                singular: "node",
                plural: "nodes",
                short: &["no"],
                group: "",
                versions: &["v1"],
                scope: Scope::Cluster,
            },
            Kind::Namespace => Names {
                kind: "Namespace",
                singular: "namespace",
                plural: "namespaces",
                short: &["ns"],
                group: "",
                versions: &["v1"],
                scope: Scope::Cluster,
            },
            Kind::Pod => Names {
                kind: "Pod",
                singular: "pod",
                plural: "pods",
                short: &["po"],
                group: "",
                versions: &["v1"],
                scope: Scope::Namespace,
            },
            Kind::NetworkGatewayGroup => Names {
                kind: "NetworkGatewayGroup",
                singular: "networkgatewaygroup",
                plural: "networkgatewaygroups",
                short: &["ngg"],
                group: NETWORKING,
                versions: &["v1"],
                scope: Scope::Namespace,
            },
            Kind::AnthosNetworkGateway => Names {
                kind: "AnthosNetworkGateway",
                singular: "anthosnetworkgateway",
                plural: "anthosnetworkgateways",
                short: &["ang"],
                group: NETWORKING,
                versions: &["v1alpha1"],
                scope: Scope::Namespace,
            },
            Kind::NetworkGatewayNode => Names {
                kind: "NetworkGatewayNode",
                singular: "networkgatewaynode",
                plural: "networkgatewaynodes",
                short: &["ngn"],
                group: NETWORKING,
                versions: &["v1"],
                scope: Scope::Namespace,
            },
            Kind::AnthosNetworkGatewayNode => Names {
                kind: "AnthosNetworkGatewayNode",
                singular: "anthosnetworkgatewaynode",
                plural: "anthosnetworkgatewaynodes",
                short: &["angn"],
                group: NETWORKING,
                versions: &["v1alpha1"],
                scope: Scope::Namespace,
            },
            Kind::EgressNatPolicy => Names {
                kind: "EgressNATPolicy",
                singular: "egressnatpolicy",
                plural: "egressnatpolicies",
                short: &["enp"],
                group: NETWORKING,
                versions: &["v1", "v1alpha1"],
                scope: Scope::Cluster,
            },
            Kind::Cluster => Names {
                kind: "Cluster",
                singular: "cluster",
                plural: "clusters",
                short: &[],
                group: "baremetal.cluster.gke.io",
                versions: &["v1"],
                scope: Scope::Namespace,
            },
            Kind::Lease => Names {
                kind: "Lease",
                singular: "lease",
                plural: "leases",
                short: &[],
                group: "coordination.k8s.io",
                versions: &["v1"],
                scope: Scope::Namespace,
            },
            Kind::Event => Names {
                kind: "Event",
                singular: "event",
                plural: "events",
                short: &["ev"],
                group: "",
                versions: &["v1"],
                scope: Scope::Namespace,
            },
        }
    }

    /// The kind as manifests spell it: `EgressNATPolicy`.
    pub fn as_str(self) -> &'static str {
        self.names().kind
    }

    /// The plural as paths and `kubectl` spell it: `egressnatpolicies`.
    pub fn plural(self) -> &'static str {
        self.names().plural
    }

    /// The API group, empty for the core group.
    pub fn group(self) -> &'static str {
        self.names().group
    }

    /// The `apiVersion`s that objects of this kind may have, the preferred one first.
    pub fn api_versions(self) -> Vec<String> {
        let names = self.names();
        names
            .versions
            .iter()
            .map(|version| match names.group {
                "" => (*version).to_owned(),
                group => format!("{group}/{version}"),
            })
            .collect()
    }

    /// The preferred `apiVersion`.
    pub fn api_version(self) -> String {
        let names = self.names();
        match names.group {
            "" => names.versions[0].to_owned(),
            group => format!("{group}/{}", names.versions[0]),
        }
    }

    /// Whether objects of this kind live in a namespace.
    pub fn is_namespaced(self) -> bool {
        self.names().scope == Scope::Namespace
    }

    /// The kind that manifests spell exactly so.
    pub(crate) fn from_manifest(kind: &str) -> Option<Kind> {
        Kind::ALL
            .into_iter()
            .find(|known| known.names().kind == kind)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A word that names no kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is no known kind: use one of {}", known_plurals())]
pub struct UnknownKind {
    value: String,
}

fn known_plurals() -> String {
    Kind::ALL.map(Kind::plural).join(", ")
}

impl FromStr for Kind {
    type Err = UnknownKind;

    /// Takes what `kubectl` takes: kind, singular, plural or short name, with or without `.group`, in any case.
    fn from_str(value: &str) -> Result<Self, UnknownKind> {
        let lower = value.to_ascii_lowercase();
        let (word, group) = match lower.split_once('.') {
            Some((word, group)) => (word, Some(group)),
            None => (lower.as_str(), None),
        };
        Kind::ALL
            .into_iter()
            .find(|kind| {
                let names = kind.names();
                // `plural.version.group` is accepted too, as kubectl does.
                let is_group = group.is_none_or(|group| {
                    group == names.group
                        || group.split_once('.').is_some_and(|(version, rest)| {
                            names.versions.contains(&version) && rest == names.group
                        })
                });
                let is_word = names.singular == word
                    || names.plural == word
                    || names.short.contains(&word);
                is_group && is_word
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
    fn a_kind_is_found_by_every_spelling_that_kubectl_takes() {
        for (text, want) in [
            ("EgressNATPolicy", Kind::EgressNatPolicy),
            ("egressnatpolicies", Kind::EgressNatPolicy),
            (
                "egressnatpolicies.networking.gke.io",
                Kind::EgressNatPolicy,
            ),
            (
                "networkgatewaygroups.networking.gke.io",
                Kind::NetworkGatewayGroup,
            ),
            (
                "anthosnetworkgateway.v1alpha1.networking.gke.io",
                Kind::AnthosNetworkGateway,
            ),
            ("po", Kind::Pod),
            ("NS", Kind::Namespace),
            ("lease.coordination.k8s.io", Kind::Lease),
            ("no", Kind::Node),
        ] {
            assert_eq!(text.parse(), Ok(want), "{text}");
        }
        assert!("egressnatpolicies.example.com".parse::<Kind>().is_err());
        let error = "deployment".parse::<Kind>().unwrap_err().to_string();
        assert!(
            error.contains("\"deployment\"") && error.contains("egressnatpolicies"),
            "{error}"
        );
    }

    #[test]
    fn every_kind_is_found_by_its_own_names() {
        for kind in Kind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
            assert_eq!(kind.plural().parse(), Ok(kind));
            assert_eq!(Kind::from_manifest(kind.as_str()), Some(kind));
            assert_eq!(kind.api_versions()[0], kind.api_version());
        }
    }
}
