use std::net::IpAddr;

use egressnat_core::model::{Cluster, Gateway, GatewayKey, GatewayKind};
use serde::Deserialize;

use super::{created, parse_at};
use crate::kind::Kind;
use crate::object::{InvalidObject, Object, ObjectKey};

/// Annotation of the copies that the controller keeps in `kube-system`: the namespace of the original (E7).
pub(crate) const MIRROR_OF: &str = "egressnat.io/mirror-of";

const ENABLE_ANNOTATION: &str = "baremetal.cluster.gke.io/enable-anthos-network-gateway";

/// `NetworkGatewayGroup` v1 and `AnthosNetworkGateway` v1alpha1 (E1).
#[derive(Deserialize)]
struct GatewayDocument {
    spec: GatewaySpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GatewaySpec {
    #[serde(rename = "floatingIPs")]
    floating_ips: Vec<String>,
}

/// The planner's key of a gateway; none for other kinds.
pub(crate) fn gateway_key(key: &ObjectKey) -> Option<GatewayKey> {
    let kind = match key.kind {
        Kind::NetworkGatewayGroup => GatewayKind::NetworkGatewayGroup,
        Kind::AnthosNetworkGateway => GatewayKind::AnthosNetworkGateway,
        _ => return None,
    };
    Some(GatewayKey {
        kind,
        namespace: key.namespace.as_ref()?.parse().ok()?,
        name: key.name.parse().ok()?,
    })
}

/// The object key of a gateway.
pub(crate) fn object_key(key: &GatewayKey) -> ObjectKey {
    let kind = match key.kind {
        GatewayKind::NetworkGatewayGroup => Kind::NetworkGatewayGroup,
        GatewayKind::AnthosNetworkGateway => Kind::AnthosNetworkGateway,
    };
    ObjectKey::namespaced(kind, key.namespace.as_str(), key.name.as_str())
}

/// The planner's view of a gateway object.
pub(crate) fn gateway_of(object: &Object) -> Result<Gateway, InvalidObject> {
    let document: GatewayDocument = object.parse()?;
    let mut floating_ips: Vec<IpAddr> = Vec::new();
    for (index, text) in document.spec.floating_ips.iter().enumerate() {
        let field = format!("spec.floatingIPs[{index}]");
        floating_ips.push(parse_at(
            object,
            &field,
            text,
            "IP address: write one such as 192.168.1.100",
        )?);
    }
    let mirror_of = match object.annotation(MIRROR_OF) {
        Some(text) => Some(parse_at(object, "metadata.annotations", text, "namespace")?),
        None => None,
    };
    Ok(Gateway {
        created: created(object)?,
        floating_ips,
        mirror_of,
    })
}

#[derive(Deserialize)]
struct ClusterDocument {
    #[serde(default)]
    spec: ClusterSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClusterSpec {
    #[serde(default)]
    cluster_network: ClusterNetwork,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClusterNetwork {
    #[serde(default)]
    advanced_networking: bool,
}

/// The two switches of a `Cluster` object (E7).
pub(crate) fn cluster_of(object: &Object) -> Result<Cluster, InvalidObject> {
    let document: ClusterDocument = object.parse()?;
    Ok(Cluster {
        anthos_network_gateway: object.annotation(ENABLE_ANNOTATION) == Some("true"),
        advanced_networking: document.spec.cluster_network.advanced_networking,
    })
}
