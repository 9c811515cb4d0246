use serde_json::{Value, json};

use super::{api_server, assert_refused, both, remove};

fn object(version: &str, kind: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": "refused", "namespace": "default"},
        "spec": spec,
    })
}

fn group() -> Value {
    let spec = json!({"floatingIPs": ["192.168.1.100", "fd00::100"]});
    object("networking.gke.io/v1", "NetworkGatewayGroup", &spec)
}

fn anthos() -> Value {
    let spec = json!({"floatingIPs": ["192.168.1.100", "192.168.1.101"]});
    object("networking.gke.io/v1alpha1", "AnthosNetworkGateway", &spec)
}

fn node() -> Value {
    let spec = json!({"subnets": ["192.168.1.0/24"]});
    object("networking.gke.io/v1", "NetworkGatewayNode", &spec)
}

fn anthos_node() -> Value {
    let spec = json!({"subnets": ["192.168.1.0/24"]});
    object(
        "networking.gke.io/v1alpha1",
        "AnthosNetworkGatewayNode",
        &spec,
    )
}

fn cluster() -> Value {
    let spec = json!({"clusterNetwork": {"advancedNetworking": true}});
    object("baremetal.cluster.gke.io/v1", "Cluster", &spec)
}

#[test]
#[rustfmt::skip]
fn groups_are_refused_with_field_and_fix_e1_e23() {
    assert_refused(&[
        both(group, |g| remove(g, "spec"), "spec", "Required value"),
        both(group, |g| remove(&mut g["spec"], "floatingIPs"), "spec.floatingIPs", "Required value"),
        api_server(group, |g| g["spec"]["floatingIPs"] = json!([]), "spec.floatingIPs", "at least one entry is required"),
        both(group, |g| g["spec"]["floatingIPs"] = json!("192.168.1.100"), "spec.floatingIPs", "must be of type array"),
        both(group, |g| g["spec"]["floatingIPs"][0] = json!(3232235876_u32), "spec.floatingIPs[0]", "must be of type string"),
        both(group, |g| g["spec"]["floatingIPs"][1] = json!("192.168.1.300"), "spec.floatingIPs[1]", "no IP address: write one such as 192.168.1.100"),
        both(group, |g| g["spec"]["floatingIPs"][0] = json!("192.168.001.100"), "spec.floatingIPs[0]", "no IP address"),
        both(group, |g| g["spec"]["floatingIPs"][0] = json!("192.168.1.0/24"), "spec.floatingIPs[0]", "no IP address"),
        both(group, |g| g["spec"]["floatingIPs"][0] = json!("fe80::1%eth0"), "spec.floatingIPs[0]", "no IP address"),
        api_server(group, |g| g["spec"]["floatingIPs"][0] = json!("::ffff:192.168.1.100"), "spec.floatingIPs[0]", "no IP address"),
        api_server(group, |g| g["spec"]["floatingIPs"][0] = json!("127.0.0.1"), "spec.floatingIPs[0]", "no address to send from: write one of the subnet of the nodes"),
        api_server(group, |g| g["spec"]["floatingIPs"][0] = json!("224.0.0.1"), "spec.floatingIPs[0]", "no address to send from"),
        api_server(group, |g| g["spec"]["floatingIPs"][0] = json!("169.254.1.1"), "spec.floatingIPs[0]", "no address to send from"),
        api_server(group, |g| g["spec"]["floatingIPs"][0] = json!("255.255.255.255"), "spec.floatingIPs[0]", "no address to send from"),
        api_server(group, |g| g["spec"]["floatingIPs"][0] = json!("fd00::100"), "spec.floatingIPs", "stands in it twice: remove one of the two"),
        api_server(group, |g| g["spec"]["floatingIPs"][0] = json!("FD00:0::0100"), "spec.floatingIPs", "stands in it twice"),
        api_server(group, |g| g["spec"]["floatingIPs"] = vec![json!("192.168.1.100"); 257].into(), "spec.floatingIPs", "must have at most 256 items"),
        api_server(group, |g| g["spec"]["floatingIps"] = json!([]), "spec.floatingIps", "unknown field"),
        both(group, |g| g["apiVersion"] = json!("networking.gke.io/v1alpha1"), "resource mapping not found for name", r#"no matches for kind "NetworkGatewayGroup""#),
        both(anthos, |g| g["spec"]["floatingIPs"][1] = json!("192.168.1"), "spec.floatingIPs[1]", "no IP address: write one such as 192.168.1.100"),
        api_server(anthos, |g| g["spec"]["floatingIPs"][1] = json!("192.168.1.100"), "spec.floatingIPs", "stands in it twice: remove one of the two"),
        both(anthos, |g| g["apiVersion"] = json!("networking.gke.io/v1"), "resource mapping not found for name", r#"no matches for kind "AnthosNetworkGateway""#),
    ]);
}

#[test]
#[rustfmt::skip]
fn gateway_nodes_and_clusters_are_refused_with_field_and_fix_e2_e7() {
    assert_refused(&[
        both(node, |n| n["spec"]["subnets"][0] = json!("192.168.1.0"), "spec.subnets[0]", "no CIDR: write address/length"),
        api_server(node, |n| n["spec"]["subnets"][0] = json!("192.168.1.1/24"), "spec.subnets[0]", "host bits set: write the first address of the range"),
        api_server(node, |n| n["spec"]["subnet"] = json!("192.168.1.0/24"), "spec.subnet", "unknown field"),
        both(anthos_node, |n| n["spec"]["subnets"] = json!("192.168.1.0/24"), "spec.subnets", "must be of type array"),
        both(cluster, |c| c["spec"]["clusterNetwork"]["advancedNetworking"] = json!("yes"), "spec.clusterNetwork.advancedNetworking", "must be of type boolean"),
        both(cluster, |c| c["spec"]["clusterNetwork"] = json!("advanced"), "spec.clusterNetwork", "must be of type object"),
    ]);
}
