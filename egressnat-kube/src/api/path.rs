//! Where the objects of a kind are in the API.

use egressnat_core::gateway::SYSTEM_NAMESPACE;
use kube::core::request::Request;

use crate::kind::Kind;
use crate::object::ObjectKey;

fn prefix(kind: Kind) -> String {
    let version = kind.api_versions()[0];
    let root = if version.contains('/') { "apis" } else { "api" };
    format!("/{root}/{version}")
}

/// A kind whose objects are ours in one namespace only: others there are no concern of ours, and we may not see them.
fn only_namespace(kind: Kind) -> Option<&'static str> {
    let is_ours = matches!(
        kind,
        Kind::Lease | Kind::NetworkGatewayNode | Kind::AnthosNetworkGatewayNode
    );
    is_ours.then_some(SYSTEM_NAMESPACE)
}

fn at(kind: Kind, namespace: Option<&str>) -> Request {
    let (prefix, plural) = (prefix(kind), kind.plural());
    Request::new(match namespace {
        Some(namespace) => format!("{prefix}/namespaces/{namespace}/{plural}"),
        None => format!("{prefix}/{plural}"),
    })
}

/// All objects of a kind that concern us.
pub(super) fn of_kind(kind: Kind) -> Request {
    at(kind, only_namespace(kind))
}

/// The objects beside one.
pub(super) fn of_key(key: &ObjectKey) -> Request {
    at(key.kind, key.namespace.as_deref())
}

/// The name of its definition, if it is one of the kinds that have to be installed.
pub(super) fn definition(kind: Kind) -> Option<String> {
    let (group, _) = kind.api_versions()[0].split_once('/')?;
    (kind != Kind::Lease).then(|| format!("{}.{group}", kind.plural()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_place_in_the_api() {
        struct Case {
            request: Request,
            want: &'static str,
        }
        let node = ObjectKey::cluster(Kind::Node, "worker1");
        let event = ObjectKey::namespaced(Kind::Event, "default", "x");
        let cases = [
            Case {
                request: of_kind(Kind::Pod),
                want: "/api/v1/pods",
            },
            Case {
                request: of_kind(Kind::EgressNatPolicy),
                want: "/apis/networking.gke.io/v1/egressnatpolicies",
            },
            Case {
                request: of_kind(Kind::Lease),
                want: "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases",
            },
            Case {
                request: of_key(&node),
                want: "/api/v1/nodes",
            },
            Case {
                request: of_key(&event),
                want: "/api/v1/namespaces/default/events",
            },
        ];
        for case in cases {
            assert_eq!(case.request.url_path, case.want);
        }
        let name = definition(Kind::Cluster);
        assert_eq!(name.as_deref(), Some("clusters.baremetal.cluster.gke.io"));
        assert_eq!(definition(Kind::Lease), None);
    }
}
