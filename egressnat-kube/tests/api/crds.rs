//! The definitions themselves: established, applied again, and what kubectl shows of objects.

use serde_json::{Value, json};

use crate::cluster::until;
use crate::server::{Server, crds, shared};

#[test]
fn every_crd_becomes_established_e1_to_e7() {
    let list = shared().read(&["customresourcedefinitions"]);
    let mut names: Vec<&str> = Vec::new();
    for crd in list["items"].as_array().unwrap() {
        let conditions = crd["status"]["conditions"].as_array().unwrap();
        let is_true = |kind: &str| {
            conditions
                .iter()
                .any(|condition| condition["type"] == kind && condition["status"] == "True")
        };
        assert!(
            is_true("Established") && is_true("NamesAccepted"),
            "{conditions:?}"
        );
        assert!(!is_true("NonStructuralSchema"), "{conditions:?}");
        names.push(crd["metadata"]["name"].as_str().unwrap());
    }
    let expected = [
        "anthosnetworkgatewaynodes.networking.gke.io",
        "anthosnetworkgateways.networking.gke.io",
        "clusters.baremetal.cluster.gke.io",
        "egressnatpolicies.networking.gke.io",
        "networkgatewaygroups.networking.gke.io",
        "networkgatewaynodes.networking.gke.io",
    ];
    assert_eq!(names, expected);
}

#[test]
fn crds_are_applied_again_in_place_and_objects_stay_e6() {
    let server = shared();
    let uids = |server: &Server| -> Vec<Value> {
        let list = server.read(&["customresourcedefinitions"]);
        let items = list["items"].as_array().unwrap();
        items
            .iter()
            .map(|crd| crd["metadata"]["uid"].clone())
            .collect()
    };
    let before = uids(server);
    let group = group("applied-again", "applied-again", &["192.168.1.50"]);
    server.ok(&["create", "namespace", "applied-again"]);
    assert!(server.apply(&group.to_string()).is_success);
    let told = server.ok(&["apply", "--validate=strict", "--filename", crds()]);
    assert_eq!(told.matches(" unchanged\n").count(), 6, "{told}");
    server.ok(&[
        "apply",
        "--server-side",
        "--force-conflicts",
        "--filename",
        crds(),
    ]);
    assert_eq!(uids(server), before);
    let read = server.read(&["ngg", "applied-again", "--namespace=applied-again"]);
    assert_eq!(read["spec"], group["spec"]);
}

fn group(namespace: &str, name: &str, addresses: &[&str]) -> Value {
    json!({
        "apiVersion": "networking.gke.io/v1",
        "kind": "NetworkGatewayGroup",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"floatingIPs": addresses},
    })
}

/// Creates an object, gives it a status as a controller does, and reads the status back.
fn with_status(server: &Server, object: &Value, status: &Value) -> Value {
    let told = server.apply(&object.to_string());
    assert!(told.is_success, "{}", told.stderr);
    let plural = object["kind"].as_str().unwrap().to_lowercase();
    let name = object["metadata"]["name"].as_str().unwrap();
    let namespace = object["metadata"]["namespace"].as_str();
    let namespace = format!("--namespace={}", namespace.unwrap_or("default"));
    let patch = format!("--patch={}", json!({ "status": status }));
    let arguments = ["--subresource=status", "--type=merge", &patch];
    server.ok(&[&["patch", &plural, name, &namespace], &arguments[..]].concat());
    server.read(&[&plural, name, &namespace])["status"].clone()
}

fn conditions(kind: &str) -> Value {
    json!([{
        "type": kind, "status": "True", "reason": kind, "message": "every agent has it",
        "observedGeneration": 1, "lastTransitionTime": "2026-01-31T12:00:00Z",
    }])
}

/// The columns and the only line of `kubectl get`, without the age.
fn table(server: &Server, arguments: &[&str]) -> (Vec<String>, Vec<String>) {
    let text = server.ok(&[&["get"], arguments].concat());
    let columns = |line: &str| -> Vec<String> {
        let mut cells: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        cells.pop();
        cells
    };
    let mut lines = text.lines().map(columns);
    (lines.next().unwrap(), lines.next().unwrap())
}

#[test]
fn the_status_of_a_group_is_kept_and_shown_e1() {
    let server = shared();
    server.ok(&["create", "namespace", "group-status"]);
    for (kind, version, short) in [
        ("NetworkGatewayGroup", "v1", "ngg"),
        ("AnthosNetworkGateway", "v1alpha1", "ang"),
    ] {
        let mut object = group(
            "group-status",
            "default",
            &["192.168.1.100", "192.168.1.101"],
        );
        object["kind"] = json!(kind);
        object["apiVersion"] = json!(format!("networking.gke.io/{version}"));
        let status = json!({
            "nodes": {"worker1": "Up", "worker2": "Down"},
            "floatingIPs": {"192.168.1.100": "worker1", "192.168.1.101": "worker1"},
            "conditions": conditions("Assigned"),
        });
        assert_eq!(with_status(server, &object, &status), status);
        let (columns, cells) = table(server, &[short, "--namespace=group-status"]);
        assert_eq!(columns, ["NAME", "FLOATING-IPS", "ASSIGNED"]);
        assert_eq!(
            cells,
            ["default", r#"["192.168.1.100","192.168.1.101"]"#, "True",]
        );
    }
}

#[test]
fn the_status_of_a_gateway_node_is_kept_and_shown_e2() {
    let server = shared();
    for (kind, version, short) in [
        ("NetworkGatewayNode", "v1", "ngn"),
        ("AnthosNetworkGatewayNode", "v1alpha1", "angn"),
    ] {
        let object = json!({
            "apiVersion": format!("networking.gke.io/{version}"),
            "kind": kind,
            "metadata": {"name": "worker1", "namespace": "kube-system"},
            "spec": {"subnets": ["192.168.1.0/24", "fd00:1::/64"]},
        });
        let report = json!({
            "revision": "00000000000000aa", "floatingIPs": ["192.168.1.100"],
            "policies": [{"name": "egress", "uid": "1", "generation": 2, "digest": "00000000000000bb", "pods": 3, "programmed": false,
                "problems": [{"reason": "NodeFailed", "message": "table ip egressnat: no"}]}],
        });
        let status = json!({"health": "Up", "floatingIPs": ["192.168.1.100"], "report": report});
        assert_eq!(with_status(server, &object, &status), status);
        let (columns, cells) = table(server, &[short, "--namespace=kube-system"]);
        assert_eq!(columns, ["NAME", "HEALTH", "FLOATING-IPS"]);
        assert_eq!(cells, ["worker1", "Up", r#"["192.168.1.100"]"#]);
    }
}

#[test]
fn the_status_of_a_policy_is_kept_and_shown_in_both_versions_e6() {
    let server = shared();
    let policy = json!({
        "apiVersion": "networking.gke.io/v1",
        "kind": "EgressNATPolicy",
        "metadata": {"name": "policy-status", "annotations": {"networking.egressnat.io/enforcement": "BestEffort"}},
        "spec": {"action": "NoSNAT", "destinations": [{"cidr": "10.0.0.0/8"}]},
    });
    let status = json!({
        "egressIPs": ["192.168.1.100"], "nodes": ["worker1"], "selectedPods": 2, "conditions": conditions("Programmed"),
    });
    assert_eq!(with_status(server, &policy, &status), status);
    for resource in [
        "egressnatpolicies",
        "enp",
        "egressnatpolicies.v1alpha1.networking.gke.io",
    ] {
        let (columns, cells) = table(server, &[resource, "policy-status"]);
        assert_eq!(columns, ["NAME", "EGRESS-IP", "NODE", "PROGRAMMED"]);
        assert_eq!(cells, ["policy-status", "192.168.1.100", "worker1", "True"]);
    }
    let (columns, cells) = table(server, &["enp", "policy-status", "--output=wide"]);
    assert_eq!(columns[4..], ["PODS", "REASON"]);
    assert_eq!(cells[4..], ["2", "Programmed"]);
}

#[test]
fn kubectl_explains_the_fields_and_shows_all_kinds_by_one_category() {
    let server = shared();
    // The documentation is put together some time after the definitions are served.
    let text = until("the documentation", || {
        let told = server.kubectl(&["explain", "egressnatpolicies.spec.gatewayRef"]);
        told.is_success.then_some(told.stdout)
    });
    assert!(
        text.contains("first floating IP is the egress IP"),
        "{text}"
    );
    let text = server.ok(&["api-resources", "--categories=egressnat", "--output=name"]);
    assert_eq!(text.lines().count(), 6, "{text}");
}
