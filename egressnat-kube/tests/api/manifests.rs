//! What applies, and that nothing of it is lost.

use std::path::{Path, PathBuf};

use egressnat_kube::{Object, validate};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::server::{Server, shared};

/// Both versions of a policy's resource, as kubectl wants them named.
const POLICIES: [&str; 2] = [
    "egressnatpolicies.v1.networking.gke.io",
    "egressnatpolicies.v1alpha1.networking.gke.io",
];

fn examples(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(version)
}

fn documents(text: &str) -> Vec<Value> {
    serde_yaml_ng::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).unwrap())
        .collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The names by which kubectl reads an object: in each version that its kind has.
fn resources(object: &Value) -> Vec<String> {
    if object["kind"] == "EgressNATPolicy" {
        return POLICIES.map(str::to_owned).into();
    }
    let (group, version) = text(&object["apiVersion"]).split_once('/').unwrap();
    vec![format!("{}.{version}.{group}", text(&object["kind"]))]
}

/// Reads the object in each version; its spec and annotations have to be those of the manifest. What the API server takes, those
/// who have none take too.
fn assert_kept(server: &Server, object: &Value) {
    validate(&Object::from_value(object.clone()).unwrap()).unwrap();
    let name = text(&object["metadata"]["name"]);
    let namespace = object["metadata"]["namespace"]
        .as_str()
        .unwrap_or("default");
    for resource in resources(object) {
        let read = server.read(&[&resource, name, "--namespace", namespace]);
        assert_eq!(read["spec"], object["spec"], "{resource} {name}");
        let annotations = object["metadata"]["annotations"].as_object();
        for (key, value) in annotations.into_iter().flatten() {
            assert_eq!(&read["metadata"]["annotations"][key], value);
        }
    }
}

fn apply(server: &Server, object: &Value) {
    let told = server.apply(&object.to_string());
    assert!(told.is_success, "{object}: {}", told.stderr);
    assert_eq!(told.stderr, "", "a warning");
}

fn policy(version: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": format!("networking.gke.io/{version}"),
        "kind": "EgressNATPolicy",
        "metadata": {"name": name},
        "spec": spec,
    })
}

fn v1_spec() -> Value {
    json!({
        "sources": [{
            "namespaceSelector": {"matchLabels": {"user": "alice"}},
            "podSelector": {"matchExpressions": [
                {"key": "role", "operator": "In", "values": ["frontend", "backend"]},
                {"key": "example.com/batch", "operator": "DoesNotExist"},
            ]},
        }],
        "action": "SNAT",
        "destinations": [{"cidr": "8.8.8.0/24"}, {"cidr": "2001:4860::/32"}],
        "gatewayRef": {"name": "default", "namespace": "kube-system"},
    })
}

fn v1alpha1_spec() -> Value {
    json!({
        "egress": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"role": "frontend"}}}],
        "destinationCIDRs": ["8.8.8.0/24", "0.0.0.0/0"],
        "egressSourceIP": "192.168.1.100",
    })
}

#[test]
fn published_manifests_apply_unchanged_and_keep_every_field_in_both_versions_e6() {
    let server = shared();
    server.ok(&["create", "namespace", "cluster-cluster1"]);
    for version in ["v1", "v1alpha1"] {
        let directory = examples(version);
        let mut files: Vec<PathBuf> = std::fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        assert_eq!(files.len(), 3, "{files:?}");
        for file in &files {
            let name = file.to_str().unwrap();
            server.ok(&["apply", "--validate=strict", "--filename", name]);
            for object in documents(&std::fs::read_to_string(file).unwrap()) {
                assert_kept(server, &object);
            }
        }
        server.ok(&["delete", "--filename", directory.to_str().unwrap()]);
    }
}

#[test]
fn what_kubectl_printed_applies_again_with_its_status_e6() {
    let server = shared();
    for manifests in [
        include_str!("manifests/v1.yaml"),
        include_str!("manifests/v1alpha1.yaml"),
    ] {
        let told = server.apply(manifests);
        assert!(told.is_success, "{}", told.stderr);
        for object in documents(manifests) {
            assert_kept(server, &object);
        }
    }
}

#[test]
fn either_form_is_kept_whichever_version_writes_and_reads_it_e6() {
    let server = shared();
    for version in ["v1", "v1alpha1"] {
        for (form, spec) in [("form-v1", v1_spec()), ("form-v1alpha1", v1alpha1_spec())] {
            let object = policy(version, &format!("{form}-{version}"), &spec);
            apply(server, &object);
            assert_kept(server, &object);
        }
    }
}

#[test]
fn one_field_changed_in_the_other_version_leaves_all_others_e6() {
    let server = shared();
    let mut object = policy("v1", "changed-in-other", &v1_spec());
    apply(server, &object);
    let patch = r#"--patch={"spec": {"gatewayRef": {"name": "other"}}}"#;
    server.ok(&[
        "patch",
        POLICIES[1],
        "changed-in-other",
        "--type=merge",
        patch,
    ]);
    object["spec"]["gatewayRef"]["name"] = json!("other");
    assert_kept(server, &object);
}

#[test]
fn a_policy_moves_from_one_form_to_the_other_by_apply_e6() {
    let server = shared();
    for (version, spec) in [
        ("v1alpha1", v1alpha1_spec()),
        ("v1", v1_spec()),
        ("v1alpha1", v1alpha1_spec()),
    ] {
        let object = policy(version, "moves", &spec);
        apply(server, &object);
        assert_kept(server, &object);
    }
}

#[test]
fn no_snat_needs_destinations_only_e5() {
    let server = shared();
    for (name, sources) in [("default", None), ("gke-empty", Some(json!([])))] {
        let mut spec = json!({"action": "NoSNAT", "destinations": [{"cidr": "10.0.0.0/8"}, {"cidr": "240.0.0.0/4"}]});
        if let Some(sources) = sources {
            spec["sources"] = sources;
        }
        let object = policy("v1", name, &spec);
        apply(server, &object);
        assert_kept(server, &object);
    }
}

#[test]
fn annotations_of_a_policy_are_kept_e6() {
    let server = shared();
    for enforcement in ["Strict", "BestEffort"] {
        let mut object = policy("v1", "enforced", &v1_spec());
        object["metadata"]["annotations"] =
            json!({"networking.egressnat.io/enforcement": enforcement});
        apply(server, &object);
        assert_kept(server, &object);
    }
}

#[test]
fn a_policy_of_a_thousand_ranges_and_64_rules_applies() {
    let server = shared();
    let ranges: Vec<String> = (0..1000).map(|n| format!("2001:db8:{n:x}::/48")).collect();
    let labels: Value = (0..16)
        .map(|n| (format!("key{n}"), json!("value")))
        .collect();
    let values: Vec<String> = (0..64).map(|n| format!("namespace-{n}")).collect();
    let namespaces = json!({"matchExpressions": [
        {"key": "kubernetes.io/metadata.name", "operator": "In", "values": values},
    ]});
    let rules =
        vec![json!({"namespaceSelector": namespaces, "podSelector": {"matchLabels": labels}}); 64];
    let spec = json!({"egress": rules, "destinationCIDRs": ranges, "egressSourceIP": "fd00::100"});
    let object = policy("v1alpha1", "large", &spec);
    // As kubectl apply would keep it a second time in an annotation, which is too small for it.
    let told = server.kubectl_with(
        &["create", "--validate=strict", "--filename", "-"],
        &object.to_string(),
    );
    assert!(told.is_success, "{}", told.stderr);
    assert_kept(server, &object);
}

#[test]
fn groups_take_ipv6_and_256_addresses_e1() {
    let server = shared();
    server.ok(&["create", "namespace", "large"]);
    let addresses: Vec<String> = (1..=255).map(|n| format!("192.168.1.{n}")).collect();
    let addresses: Vec<&str> = addresses
        .iter()
        .map(String::as_str)
        .chain(["fd00::1"])
        .collect();
    for (kind, version) in [
        ("NetworkGatewayGroup", "v1"),
        ("AnthosNetworkGateway", "v1alpha1"),
    ] {
        let object = json!({
            "apiVersion": format!("networking.gke.io/{version}"),
            "kind": kind,
            "metadata": {
                "name": "default", "namespace": "large",
                "annotations": {"egressnat.io/mirror-of": "cluster-cluster1"},
            },
            "spec": {"floatingIPs": addresses},
        });
        apply(server, &object);
        assert_kept(server, &object);
    }
}

#[test]
fn a_cluster_keeps_every_field_that_is_not_ours_e7() {
    let server = shared();
    server.ok(&["create", "namespace", "cluster-fields"]);
    let mut object = json!({
        "apiVersion": "baremetal.cluster.gke.io/v1",
        "kind": "Cluster",
        "metadata": {"name": "fields", "namespace": "cluster-fields"},
        "spec": {
            "type": "hybrid",
            "anthosBareMetalVersion": "1.16.8",
            "controlPlane": {"nodePoolSpec": {"nodes": [{"address": "192.168.1.1"}]}},
            "clusterNetwork": {
                "advancedNetworking": true,
                "pods": {"cidrBlocks": ["10.10.0.0/16"]},
                "services": {"cidrBlocks": ["10.96.0.0/20"]},
            },
        },
        "nodes": [1, 2],
    });
    apply(server, &object);
    assert_kept(server, &object);
    let read = server.read(&[
        "clusters.baremetal.cluster.gke.io",
        "fields",
        "--namespace=cluster-fields",
    ]);
    assert_eq!(read["nodes"], json!([1, 2]));
    object["spec"]["clusterNetwork"]["advancedNetworking"] = json!(false);
    apply(server, &object);
    assert_kept(server, &object);
}

#[test]
fn gateway_nodes_need_no_spec_e2() {
    let server = shared();
    for (kind, version) in [
        ("NetworkGatewayNode", "v1"),
        ("AnthosNetworkGatewayNode", "v1alpha1"),
    ] {
        let object = json!({
            "apiVersion": format!("networking.gke.io/{version}"),
            "kind": kind,
            "metadata": {"name": "bare", "namespace": "default"},
        });
        apply(server, &object);
        assert_kept(server, &object);
    }
}
