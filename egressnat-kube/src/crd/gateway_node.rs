use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::address::RangeText;
use crate::status::NodeReport;

/// What the agent of a node found on it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "networking.gke.io",
    version = "v1",
    kind = "NetworkGatewayNode",
    plural = "networkgatewaynodes",
    namespaced,
    shortname = "ngn",
    category = "egressnat",
    status = "NetworkGatewayNodeStatus",
    derive = "PartialEq",
    doc = "A gateway node: its health and the floating IPs that it holds.",
    printcolumn(name = "Health", type_ = "string", json_path = ".status.health"),
    printcolumn(
        name = "Floating-IPs",
        type_ = "string",
        json_path = ".status.floatingIPs"
    ),
    printcolumn(
        name = "Subnets",
        type_ = "string",
        json_path = ".spec.subnets",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
pub struct NetworkGatewayNodeSpec {
    /// The subnets of the node's uplink.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(with = "Vec<RangeText>", length(max = 64))]
    pub subnets: BTreeSet<IpNet>,
}

/// The same in the older kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "networking.gke.io",
    version = "v1alpha1",
    kind = "AnthosNetworkGatewayNode",
    plural = "anthosnetworkgatewaynodes",
    namespaced,
    shortname = "angn",
    category = "egressnat",
    status = "NetworkGatewayNodeStatus",
    derive = "PartialEq",
    doc = "A gateway node: its health and the floating IPs that it holds.",
    printcolumn(name = "Health", type_ = "string", json_path = ".status.health"),
    printcolumn(
        name = "Floating-IPs",
        type_ = "string",
        json_path = ".status.floatingIPs"
    ),
    printcolumn(
        name = "Subnets",
        type_ = "string",
        json_path = ".spec.subnets",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
pub struct AnthosNetworkGatewayNodeSpec {
    /// The subnets of the node's uplink.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(with = "Vec<RangeText>", length(max = 64))]
    pub subnets: BTreeSet<IpNet>,
}

/// What is told of a gateway node of either kind: its report by its agent, the rest by the controller.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkGatewayNodeStatus {
    /// Up or Down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub health: Option<String>,
    /// The floating IPs that it holds.
    #[serde(
        default,
        rename = "floatingIPs",
        skip_serializing_if = "BTreeSet::is_empty"
    )]
    #[schemars(with = "Vec<String>", extend("x-kubernetes-list-type" = "atomic"))]
    pub floating_ips: BTreeSet<IpAddr>,
    /// What the node's kernel has, told by its agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "NodeReport")]
    pub report: Option<NodeReport>,
}
