use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::address::{AddressText, RangeText};
use super::rule::{not_empty, required, rule, validations};
use super::selector::LabelSelector;

/// Which pods leave the cluster to which destinations with which egress IP.
///
/// One type for both versions, as one schema serves them: either `sources`, `action`, `destinations` and `gatewayRef` (E3), or
/// `egress`, `destinationCIDRs` and `egressSourceIP`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "networking.gke.io",
    version = "v1",
    kind = "EgressNATPolicy",
    root = "EgressNatPolicy",
    plural = "egressnatpolicies",
    shortname = "enp",
    category = "egressnat",
    status = "EgressNatPolicyStatus",
    derive = "PartialEq",
    doc = "An egress policy: which pods leave the cluster to which destinations with which egress IP.",
    printcolumn(
        name = "Egress-IP",
        type_ = "string",
        json_path = ".status.egressIPs[0]"
    ),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.nodes[0]"),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Programmed")].status"#
    ),
    printcolumn(
        name = "Pods",
        type_ = "integer",
        json_path = ".status.selectedPods",
        priority = 1
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Programmed")].reason"#,
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = policy_rules()))]
pub struct EgressNatPolicySpec {
    /// The pods whose traffic is meant: those that match any of the rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<EgressRule>", length(max = 64))]
    pub sources: Option<Vec<EgressRule>>,
    /// SNAT: traffic to the destinations leaves with the egress IP. NoSNAT: it keeps the pod's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "PolicyAction")]
    pub action: Option<PolicyAction>,
    /// The destinations that are meant: those in any of the ranges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        with = "Vec<Destination>",
        length(max = 1000),
        extend("x-kubernetes-validations" = validations([not_empty()]))
    )]
    pub destinations: Option<Vec<Destination>>,
    /// The NetworkGatewayGroup whose first floating IP is the egress IP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "GatewayRef")]
    pub gateway_ref: Option<GatewayRef>,
    /// Form of v1alpha1: the pods whose traffic is meant, those that match any of the rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        with = "Vec<EgressRule>",
        length(max = 64),
        extend("x-kubernetes-validations" = validations([not_empty()]))
    )]
    pub egress: Option<Vec<EgressRule>>,
    /// Form of v1alpha1: the destinations that are meant, those in any of the ranges.
    #[serde(
        default,
        rename = "destinationCIDRs",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(
        with = "Vec<RangeText>",
        length(max = 1000),
        extend("x-kubernetes-validations" = validations([not_empty()]))
    )]
    pub destination_cidrs: Option<Vec<IpNet>>,
    /// Form of v1alpha1: the egress IP, one of the floating IPs of a gateway group.
    #[serde(
        default,
        rename = "egressSourceIP",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "AddressText")]
    pub egress_source_ip: Option<IpAddr>,
}

/// What happens to traffic that a policy selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum PolicyAction {
    /// It leaves with the egress IP.
    #[serde(rename = "SNAT")]
    Snat,
    /// It keeps the pod's address.
    #[serde(rename = "NoSNAT")]
    NoSnat,
}

/// Selects pods by their own labels and those of their namespace; both selectors must match.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = egress_rule_rules()))]
pub struct EgressRule {
    /// The namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "LabelSelector")]
    pub namespace_selector: Option<LabelSelector>,
    /// The pods in them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "LabelSelector")]
    pub pod_selector: Option<LabelSelector>,
}

/// Where traffic goes to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Destination {
    /// A range of addresses.
    #[schemars(with = "RangeText")]
    pub cidr: IpNet,
}

/// Names a NetworkGatewayGroup.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct GatewayRef {
    /// Its name.
    #[schemars(length(max = 253), extend("x-kubernetes-validations" = name_rules()))]
    pub name: String,
    /// Its namespace.
    #[schemars(length(max = 63), extend("x-kubernetes-validations" = namespace_rules()))]
    pub namespace: String,
}

/// What the controller writes to a policy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressNatPolicyStatus {
    /// The egress IPs of the traffic that the policy selects, one of each address family at most.
    #[serde(default, rename = "egressIPs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>", extend("x-kubernetes-list-type" = "atomic"))]
    pub egress_ips: Vec<IpAddr>,
    /// The nodes that hold them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub nodes: Vec<String>,
    /// How many pods the policy selects, on nodes that are up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64", extend("minimum" = 0))]
    pub selected_pods: Option<i64>,
    /// What is true of the policy now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// The fields of one form, complete, and none of the other.
fn policy_rules() -> Value {
    const V1: &str =
        "(has(self.sources) || has(self.action) || has(self.destinations) || has(self.gatewayRef))";
    const V1ALPHA1: &str =
        "(has(self.egress) || has(self.destinationCIDRs) || has(self.egressSourceIP))";
    let v1 =
        |field: &str, fix: &str| required(&format!("{V1ALPHA1} || has(self.{field})"), field, fix);
    let snat = |field: &str, fix: &str| {
        let expression = format!("!has(self.action) || self.action != 'SNAT' || has(self.{field})");
        required(&expression, field, fix)
    };
    let v1alpha1 = |field: &str, fix: &str| {
        let expression = format!("{V1} || !{V1ALPHA1} || has(self.{field})");
        required(&expression, field, fix)
    };
    validations([
        rule(
            &format!("!{V1} || !{V1ALPHA1}"),
            "mixes two forms: write either sources, action, destinations and gatewayRef, or egress, destinationCIDRs and egressSourceIP",
        ),
        v1("action", "write SNAT or NoSNAT"),
        v1("destinations", "add at least one, such as {cidr: 8.8.8.0/24}"),
        snat("sources", "SNAT needs at least one; {namespaceSelector: {}, podSelector: {}} selects all pods"),
        rule(
            "!has(self.action) || self.action != 'SNAT' || !has(self.sources) || size(self.sources) > 0",
            "empty: at least one entry is required",
        )
        .field_path(".sources"),
        snat("gatewayRef", "SNAT needs name and namespace of a NetworkGatewayGroup"),
        v1alpha1("egress", "add at least one; {namespaceSelector: {}, podSelector: {}} selects all pods"),
        v1alpha1("destinationCIDRs", "add at least one, such as 8.8.8.0/24"),
        v1alpha1("egressSourceIP", "write one of the floatingIPs of a gateway group"),
    ])
}

fn egress_rule_rules() -> Value {
    validations(["namespaceSelector", "podSelector"].map(|field| {
        required(
            &format!("has(self.{field})"),
            field,
            "write {} to select all",
        )
    }))
}

fn name_rules() -> Value {
    validations([rule(
        "!format.dns1123Subdomain().validate(self).hasValue()",
        "no object name: write the name of a NetworkGatewayGroup",
    )])
}

fn namespace_rules() -> Value {
    validations([rule(
        "!format.dns1123Label().validate(self).hasValue()",
        "no namespace name: write the namespace of a NetworkGatewayGroup",
    )])
}
