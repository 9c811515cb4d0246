use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A cluster: of its many fields, the one that switches egress NAT on. All others are kept as they are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "baremetal.cluster.gke.io",
    version = "v1",
    kind = "Cluster",
    plural = "clusters",
    namespaced,
    category = "egressnat",
    status = "ClusterStatus",
    derive = "PartialEq",
    doc = "A cluster. The annotation baremetal.cluster.gke.io/enable-anthos-network-gateway: \"true\" or \
           spec.clusterNetwork.advancedNetworking: true switches egress NAT on.",
    printcolumn(
        name = "Advanced-Networking",
        type_ = "boolean",
        json_path = ".spec.clusterNetwork.advancedNetworking"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterSpec {
    /// The network of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ClusterNetwork")]
    pub cluster_network: Option<ClusterNetwork>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// The network of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterNetwork {
    /// Whether NetworkGatewayGroups in the cluster's namespace take effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub advanced_networking: Option<bool>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// The status of a cluster, which is not ours.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(transparent, extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct ClusterStatus(pub BTreeMap<String, Value>);
