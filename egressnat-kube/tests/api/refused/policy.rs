use serde_json::{Value, json};

use super::{api_server, assert_refused, both, remove};

fn policy(version: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": format!("networking.gke.io/{version}"),
        "kind": "EgressNATPolicy",
        "metadata": {"name": "refused"},
        "spec": spec,
    })
}

fn v1() -> Value {
    let spec = json!({
        "sources": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"role": "frontend"}}}],
        "action": "SNAT",
        "destinations": [{"cidr": "8.8.8.0/24"}, {"cidr": "2001:db8::/32"}],
        "gatewayRef": {"name": "default", "namespace": "kube-system"},
    });
    policy("v1", &spec)
}

fn no_snat() -> Value {
    policy(
        "v1",
        &json!({"action": "NoSNAT", "destinations": [{"cidr": "10.0.0.0/8"}]}),
    )
}

fn v1alpha1() -> Value {
    let spec = json!({
        "egress": [{"namespaceSelector": {}, "podSelector": {}}],
        "destinationCIDRs": ["8.8.8.0/24"],
        "egressSourceIP": "192.168.1.100",
    });
    policy("v1alpha1", &spec)
}

#[test]
#[rustfmt::skip]
fn policies_in_the_form_of_v1_are_refused_with_field_and_fix_e3_e5_e22() {
    assert_refused(&[
        both(v1, |p| p["spec"]["action"] = json!("Snat"), "spec.action", r#"supported values: "SNAT", "NoSNAT""#),
        both(v1, |p| remove(&mut p["spec"], "action"), "spec.action", "write SNAT or NoSNAT"),
        both(v1, |p| p["spec"]["action"] = json!(null), "spec.action", "write SNAT or NoSNAT"),
        both(v1, |p| remove(p, "spec"), "spec", "Required value"),
        both(v1, |p| p["spec"] = json!({}), "spec.action", "write SNAT or NoSNAT"),
        both(v1, |p| p["spec"] = json!({}), "spec.destinations", "add at least one"),
        both(v1, |p| remove(&mut p["spec"], "sources"), "spec.sources", "{namespaceSelector: {}, podSelector: {}} selects all pods"),
        both(v1, |p| p["spec"]["sources"] = json!([]), "spec.sources", "at least one entry is required"),
        both(v1, |p| p["spec"]["sources"] = json!("all"), "spec.sources", "must be of type array"),
        both(v1, |p| remove(&mut p["spec"], "destinations"), "spec.destinations", "such as {cidr: 8.8.8.0/24}"),
        both(v1, |p| p["spec"]["destinations"] = json!([]), "spec.destinations", "at least one entry is required"),
        both(v1, |p| p["spec"]["destinations"][1] = json!({}), "spec.destinations[1].cidr", "Required value"),
        both(v1, |p| p["spec"]["destinations"][0] = json!("8.8.8.0/24"), "spec.destinations[0]", "must be of type object"),
        both(v1, |p| p["spec"]["destinations"][0]["cidr"] = json!("8.8.8.8/24"), "spec.destinations[0].cidr", "host bits set: write the first address of the range"),
        both(v1, |p| p["spec"]["destinations"][1]["cidr"] = json!("2001:db8::1/32"), "spec.destinations[1].cidr", "host bits set"),
        both(v1, |p| p["spec"]["destinations"][0]["cidr"] = json!("8.8.8.8"), "spec.destinations[0].cidr", "no CIDR: write address/length, such as 8.8.8.0/24"),
        both(v1, |p| p["spec"]["destinations"][0]["cidr"] = json!("8.8.8.0/33"), "spec.destinations[0].cidr", "no CIDR"),
        both(v1, |p| p["spec"]["destinations"][0]["cidr"] = json!(""), "spec.destinations[0].cidr", "no CIDR"),
        both(v1, |p| p["spec"]["destinations"][0]["cidr"] = json!(8), "spec.destinations[0].cidr", "must be of type string"),
        api_server(v1, |p| p["spec"]["destinations"] = vec![json!({"cidr": "8.8.8.0/24"}); 1001].into(), "spec.destinations", "must have at most 1000 items"),
        both(v1, |p| remove(&mut p["spec"], "gatewayRef"), "spec.gatewayRef", "name and namespace of a NetworkGatewayGroup"),
        both(v1, |p| remove(&mut p["spec"]["gatewayRef"], "name"), "spec.gatewayRef.name", "Required value"),
        both(v1, |p| remove(&mut p["spec"]["gatewayRef"], "namespace"), "spec.gatewayRef.namespace", "Required value"),
        both(v1, |p| p["spec"]["gatewayRef"]["name"] = json!("My_Group"), "spec.gatewayRef.name", "write the name of a NetworkGatewayGroup"),
        both(v1, |p| p["spec"]["gatewayRef"]["name"] = json!(""), "spec.gatewayRef.name", "write the name of a NetworkGatewayGroup"),
        both(v1, |p| p["spec"]["gatewayRef"]["namespace"] = json!("kube_system"), "spec.gatewayRef.namespace", "write the namespace of a NetworkGatewayGroup"),
        api_server(v1, |p| p["spec"]["gatewayRef"]["namespace"] = json!("kube.system"), "spec.gatewayRef.namespace", "write the namespace of a NetworkGatewayGroup"),
        api_server(v1, |p| p["spec"]["gatewayRef"]["kind"] = json!("Gateway"), "spec.gatewayRef.kind", "unknown field"),
        api_server(v1, |p| p["spec"]["destination"] = json!("8.8.8.0/24"), "spec.destination", "unknown field"),
        both(no_snat, |p| remove(&mut p["spec"], "destinations"), "spec.destinations", "add at least one"),
        both(no_snat, |p| p["spec"]["action"] = json!("SNAT"), "spec.gatewayRef", "SNAT needs name and namespace"),
        both(v1, |p| p["apiVersion"] = json!("networking.gke.io/v2"), "resource mapping not found for name", r#"no matches for kind "EgressNATPolicy" in version "networking.gke.io/v2""#),
    ]);
}

#[test]
#[rustfmt::skip]
fn policies_in_the_form_of_v1alpha1_are_refused_with_field_and_fix_e4() {
    assert_refused(&[
        both(v1alpha1, |p| remove(&mut p["spec"], "egress"), "spec.egress", "{namespaceSelector: {}, podSelector: {}} selects all pods"),
        both(v1alpha1, |p| p["spec"]["egress"] = json!([]), "spec.egress", "at least one entry is required"),
        both(v1alpha1, |p| remove(&mut p["spec"], "destinationCIDRs"), "spec.destinationCIDRs", "such as 8.8.8.0/24"),
        both(v1alpha1, |p| p["spec"]["destinationCIDRs"] = json!([]), "spec.destinationCIDRs", "at least one entry is required"),
        both(v1alpha1, |p| p["spec"]["destinationCIDRs"][0] = json!("8.8.8.1/24"), "spec.destinationCIDRs[0]", "host bits set: write the first address of the range"),
        both(v1alpha1, |p| p["spec"]["destinationCIDRs"][0] = json!("google.com"), "spec.destinationCIDRs[0]", "no CIDR: write address/length"),
        both(v1alpha1, |p| p["spec"]["destinationCIDRs"] = json!("8.8.8.0/24"), "spec.destinationCIDRs", "must be of type array"),
        both(v1alpha1, |p| remove(&mut p["spec"], "egressSourceIP"), "spec.egressSourceIP", "write one of the floatingIPs of a gateway group"),
        both(v1alpha1, |p| p["spec"]["egressSourceIP"] = json!("192.168.1.256"), "spec.egressSourceIP", "no IP address: write one such as 192.168.1.100"),
        both(v1alpha1, |p| p["spec"]["egressSourceIP"] = json!("192.168.1.100/32"), "spec.egressSourceIP", "no IP address"),
        both(v1alpha1, |p| p["spec"]["egressSourceIP"] = json!(""), "spec.egressSourceIP", "no IP address"),
        api_server(v1alpha1, |p| p["spec"]["egressSourceIP"] = json!("0.0.0.0"), "spec.egressSourceIP", "no address to send from"),
        api_server(v1alpha1, |p| p["spec"]["egressSourceIp"] = json!("192.168.1.100"), "spec.egressSourceIp", "unknown field"),
        api_server(v1alpha1, |p| p["spec"]["action"] = json!("SNAT"), "spec", "write either sources, action, destinations and gatewayRef, or egress"),
        api_server(v1alpha1, |p| p["spec"]["gatewayRef"] = v1()["spec"]["gatewayRef"].clone(), "spec", "mixes two forms"),
    ]);
}
