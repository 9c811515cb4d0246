//! What is in `deploy/`: a real API server takes all of it, and its parts fit together.

use std::collections::BTreeSet;
use std::fs;

use serde::Deserialize;
use serde_json::Value;

use crate::server::{Server, shared};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");

fn kustomized() -> (String, Vec<Value>) {
    let text = shared().ok(&["kustomize", DEPLOY]);
    let documents = serde_yaml_ng::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).unwrap())
        .collect();
    (text, documents)
}

/// As somebody applies it, but for the effect.
fn would_take(server: &Server, arguments: &[&str], input: &str) {
    let dry = ["apply", "--dry-run=server", "--validate=strict"];
    let told = server.kubectl_with(&[&dry[..], arguments].concat(), input);
    assert!(told.is_success, "{arguments:?}: {}", told.stderr);
    assert!(!told.stderr.contains("Warning"), "{}", told.stderr);
}

#[test]
fn the_api_server_takes_every_manifest_and_all_of_them_at_once() {
    let entries = fs::read_dir(DEPLOY).unwrap();
    let manifests: Vec<String> = entries
        .map(|entry| entry.unwrap().path().to_str().unwrap().to_owned())
        .filter(|path| path.ends_with(".yaml") && !path.ends_with("/kustomization.yaml"))
        .collect();
    assert!(manifests.len() >= 4, "{manifests:?}");
    for manifest in &manifests {
        would_take(shared(), &["--filename", manifest], "");
    }
    let (text, _) = kustomized();
    would_take(shared(), &["--filename", "-"], &text);
}

#[test]
fn the_kustomization_holds_every_definition() {
    let (_, documents) = kustomized();
    let kustomized = documents
        .iter()
        .filter(|document| document["kind"] == "CustomResourceDefinition");
    let files = fs::read_dir(format!("{DEPLOY}/crds")).unwrap();
    assert_eq!(kustomized.count(), files.count());
}

#[test]
fn the_kustomization_holds_every_manifest_but_the_cleanup() {
    let kustomization = fs::read_to_string(format!("{DEPLOY}/kustomization.yaml")).unwrap();
    for entry in fs::read_dir(DEPLOY).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let is_manifest = name.ends_with(".yaml") && name != "kustomization.yaml";
        let is_listed = kustomization.contains(&format!("\n- {name}\n"));
        assert_eq!(is_listed, is_manifest && name != "cleanup.yaml", "{name}");
    }
}

#[test]
fn workloads_run_as_the_accounts_that_have_the_rights() {
    let (_, documents) = kustomized();
    let name = |document: &Value| document["metadata"]["name"].as_str().unwrap().to_owned();
    let accounts: BTreeSet<String> = documents
        .iter()
        .filter(|document| document["kind"] == "ServiceAccount")
        .map(name)
        .collect();
    let used: BTreeSet<String> = documents
        .iter()
        .filter_map(|document| document["spec"]["template"]["spec"]["serviceAccountName"].as_str())
        .map(str::to_owned)
        .collect();
    assert_eq!(used, accounts);
}
