use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::address::{AddressText, distinct};
use crate::grant::FloatingIpGrant;

use super::rule::{not_empty, validations};

/// Floating IPs that the nodes of one cluster hold for its egress policies.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "networking.gke.io",
    version = "v1",
    kind = "NetworkGatewayGroup",
    plural = "networkgatewaygroups",
    namespaced,
    shortname = "ngg",
    category = "egressnat",
    status = "NetworkGatewayStatus",
    derive = "PartialEq",
    doc = "A gateway group: floating IPs that nodes hold for egress policies.",
    printcolumn(
        name = "Floating-IPs",
        type_ = "string",
        json_path = ".spec.floatingIPs"
    ),
    printcolumn(
        name = "Assigned",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Assigned")].status"#
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Programmed")].status"#,
        priority = 1
    ),
    printcolumn(
        name = "Holders",
        type_ = "string",
        json_path = ".status.floatingIPs",
        priority = 1
    ),
    printcolumn(
        name = "Nodes",
        type_ = "string",
        json_path = ".status.nodes",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
pub struct NetworkGatewayGroupSpec {
    /// The floating IPs. An egress policy that refers to the group uses the first.
    #[serde(rename = "floatingIPs")]
    #[schemars(
        with = "Vec<AddressText>",
        length(max = 256),
        extend("x-kubernetes-validations" = floating_ip_rules())
    )]
    pub floating_ips: Vec<IpAddr>,
}

/// The same in the older kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "networking.gke.io",
    version = "v1alpha1",
    kind = "AnthosNetworkGateway",
    plural = "anthosnetworkgateways",
    namespaced,
    shortname = "ang",
    category = "egressnat",
    status = "NetworkGatewayStatus",
    derive = "PartialEq",
    doc = "A gateway group: floating IPs that nodes hold for egress policies.",
    printcolumn(
        name = "Floating-IPs",
        type_ = "string",
        json_path = ".spec.floatingIPs"
    ),
    printcolumn(
        name = "Assigned",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Assigned")].status"#
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Programmed")].status"#,
        priority = 1
    ),
    printcolumn(
        name = "Holders",
        type_ = "string",
        json_path = ".status.floatingIPs",
        priority = 1
    ),
    printcolumn(
        name = "Nodes",
        type_ = "string",
        json_path = ".status.nodes",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
pub struct AnthosNetworkGatewaySpec {
    /// The floating IPs, any of which an egress policy may name.
    #[serde(rename = "floatingIPs")]
    #[schemars(
        with = "Vec<AddressText>",
        length(max = 256),
        extend("x-kubernetes-validations" = floating_ip_rules())
    )]
    pub floating_ips: Vec<IpAddr>,
}

/// What the controller writes to a gateway group of either kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkGatewayStatus {
    /// The health of each gateway node: Up or Down.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    pub nodes: BTreeMap<String, String>,
    /// The node that holds each floating IP.
    #[serde(
        default,
        rename = "floatingIPs",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    pub floating_ips: BTreeMap<String, String>,
    /// Who may use each floating IP, and since when: what stands behind `floatingIPs`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub grants: BTreeMap<String, FloatingIpGrant>,
    /// What is true of the group now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

fn floating_ip_rules() -> Value {
    validations([not_empty(), distinct()])
}
