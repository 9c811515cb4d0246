use std::collections::BTreeSet;

use egressnat_core::model::{Health, Labels, Node, Pod, PodPhase, Role};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{parse_at, parse_range};
use crate::object::{InvalidObject, Object};

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    labels: Labels,
}

#[derive(Deserialize)]
struct NodeDocument {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: NodeSpec,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeSpec {
    #[serde(default)]
    unschedulable: bool,
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(default, rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

#[derive(Default, Deserialize)]
struct NodeStatus {
    #[serde(default)]
    addresses: Vec<NodeAddress>,
}

#[derive(Deserialize)]
struct NodeAddress {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

/// `"true"` on a node that is to give its floating IPs away, whether it is cordoned or not (E35).
const DRAIN: &str = "egressnat.io/drain";

/// The most floating IPs that may be placed on a node.
const CAPACITY: &str = "egressnat.io/capacity";

const CONTROL_PLANE_LABELS: [&str; 2] = [
    "node-role.kubernetes.io/control-plane",
    "node-role.kubernetes.io/master",
];

/// The planner's view of a node: up, and without subnets, for its own object tells neither.
pub(crate) fn node_of(object: &Object) -> Result<Node, InvalidObject> {
    let document: NodeDocument = object.parse()?;
    let is_control_plane = CONTROL_PLANE_LABELS
        .iter()
        .any(|label| document.metadata.labels.contains_key(*label));
    let mut node = Node::new(Health::Up);
    if is_control_plane {
        node.role = Role::ControlPlane;
    }
    node.draining = document.spec.unschedulable;
    let field = |annotation: &str| format!("metadata.annotations[{annotation}]");
    if let Some(text) = object.annotation(DRAIN) {
        let drain: bool = parse_at(
            object,
            &field(DRAIN),
            text,
            "drain: write \"true\" or \"false\"",
        )?;
        node.draining |= drain;
    }
    if let Some(text) = object.annotation(CAPACITY) {
        let want = "capacity: write a number of floating IPs";
        node.capacity = Some(parse_at(object, &field(CAPACITY), text, want)?);
    }
    for (index, address) in document.status.addresses.iter().enumerate() {
        if address.kind == "InternalIP" {
            let field = format!("status.addresses[{index}].address");
            node.addresses
                .insert(parse_at(object, &field, &address.address, "IP address")?);
        }
    }
    if let Some(text) = &document.spec.pod_cidr {
        node.pod_ranges
            .insert(parse_range(object, "spec.podCIDR", text)?);
    }
    for (index, text) in document.spec.pod_cidrs.iter().enumerate() {
        node.pod_ranges.insert(parse_range(
            object,
            &format!("spec.podCIDRs[{index}]"),
            text,
        )?);
    }
    Ok(node)
}

#[derive(Deserialize)]
struct NamespaceDocument {
    #[serde(default)]
    metadata: Metadata,
}

/// The labels of a namespace.
pub(crate) fn namespace_of(object: &Object) -> Result<Labels, InvalidObject> {
    let document: NamespaceDocument = object.parse()?;
    Ok(document.metadata.labels)
}

#[derive(Deserialize)]
struct PodDocument {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
    #[serde(default)]
    host_network: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(default, rename = "podIPs")]
    pod_ips: Vec<PodIp>,
}

#[derive(Deserialize)]
struct PodIp {
    ip: String,
}

/// The planner's view of a pod; none before it is on a node.
pub(crate) fn pod_of(object: &Object) -> Result<Option<Pod>, InvalidObject> {
    let document: PodDocument = object.parse()?;
    let Some(node) = &document.spec.node_name else {
        return Ok(None);
    };
    let mut pod = Pod::new(parse_at(object, "spec.nodeName", node, "node name")?);
    pod.labels = document.metadata.labels;
    pod.host_network = document.spec.host_network;
    if matches!(
        document.status.phase.as_deref(),
        Some("Succeeded" | "Failed")
    ) {
        pod.phase = PodPhase::Finished;
    }
    if let Some(text) = &document.status.pod_ip {
        pod.ips
            .insert(parse_at(object, "status.podIP", text, "IP address")?);
    }
    for (index, ip) in document.status.pod_ips.iter().enumerate() {
        pod.ips.insert(parse_at(
            object,
            &format!("status.podIPs[{index}].ip"),
            &ip.ip,
            "IP address",
        )?);
    }
    Ok(Some(pod))
}

#[derive(Deserialize)]
struct GatewayNodeDocument {
    #[serde(default)]
    spec: GatewayNodeSpec,
}

/// `spec` of `NetworkGatewayNode` and `AnthosNetworkGatewayNode`: what the node's agent found on it (E2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GatewayNodeSpec {
    /// The uplink's subnets.
    #[serde(default)]
    pub(crate) subnets: BTreeSet<IpNet>,
}

/// What a node's agent found on it.
pub(crate) fn gateway_node_spec(object: &Object) -> Result<GatewayNodeSpec, InvalidObject> {
    let document: GatewayNodeDocument = object.parse()?;
    Ok(document.spec)
}
