//! What a node tells of itself on a real API server: whoever removes or alters it, it comes back at once.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::{Cluster, until};

/// Long for a busy machine, and less than a look once a minute would need.
const AT_ONCE: Duration = Duration::from_secs(40);

fn described(cluster: &Cluster, kind: &str) -> Option<Value> {
    let object = cluster.find(&[kind, "worker1", "--namespace=kube-system"])?;
    let subnets = object["spec"]["subnets"] == json!(["192.168.1.0/24"]);
    let is_whole = subnets && object["status"]["health"] == "Up";
    is_whole.then_some(object)
}

fn with_report(cluster: &Cluster) -> Option<Value> {
    let object = described(cluster, "ngn")?;
    let revision = &object["status"]["report"]["revision"];
    (revision.is_string() && *revision != "forged").then_some(object)
}

#[test]
fn a_gateway_node_that_somebody_removes_or_alters_comes_back_at_once_e2() {
    let cluster = Cluster::start();
    let _controller = cluster.controller("first", None);
    let _agents = ["worker1", "worker2"].map(|node| cluster.agent(node, None));
    // Copies of the older kind are there where that is in use.
    cluster.apply(&json!({
        "apiVersion": "networking.gke.io/v1alpha1", "kind": "AnthosNetworkGateway",
        "metadata": {"name": "older", "namespace": "kube-system"}, "spec": {"floatingIPs": ["192.168.1.100"]},
    }));
    let told = until("the first description", || with_report(&cluster));
    until("its copy", || described(&cluster, "angn"));

    let start = Instant::now();
    for kind in ["ngn", "angn"] {
        let delete = ["delete", kind, "worker1", "--namespace=kube-system"];
        cluster.server.ok(&delete);
    }
    let again = until("the description again", || with_report(&cluster));
    assert_ne!(again["metadata"]["uid"], told["metadata"]["uid"]);
    until("its copy again", || described(&cluster, "angn"));
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());

    let start = Instant::now();
    let patch = json!({"spec": {"subnets": ["10.0.0.0/8"]}});
    let patch = format!("--patch={patch}");
    let ngn = ["ngn", "worker1", "--namespace=kube-system"];
    let merge = ["--type=merge", &patch];
    cluster
        .server
        .ok(&[&["patch"], &ngn[..], &merge[..]].concat());
    let mut report = told["status"]["report"].clone();
    report["revision"] = json!("forged");
    cluster.patch_status(&ngn, &json!({ "report": report }));
    until("what it was", || with_report(&cluster));
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
}
