//! The shape of the house: which crate may use which, and how little the core pulls in.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const LIBRARIES: [&str; 3] = ["egressnat-core", "egressnat-kube", "egressnat-dataplane"];

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON")
}

/// For each package of the workspace, which others it uses outside of tests.
fn uses() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let members: BTreeSet<&str> = metadata["workspace_members"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let of_ours = packages
        .iter()
        .filter(|package| members.contains(package["id"].as_str().unwrap()));
    of_ours
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap();
            let normal = dependencies
                .iter()
                .filter(|dependency| dependency["kind"].is_null());
            let names = normal.filter_map(|dependency| dependency["name"].as_str());
            let ours = names
                .filter(|name| name.starts_with("egressnat-"))
                .map(str::to_owned)
                .collect();
            (package["name"].as_str().unwrap().to_owned(), ours)
        })
        .collect()
}

#[test]
fn data_flows_one_way_through_the_crates() {
    let uses = uses();
    let core: BTreeSet<String> = ["egressnat-core".to_owned()].into();
    assert_eq!(
        uses["egressnat-core"],
        BTreeSet::new(),
        "core uses none of ours"
    );
    assert_eq!(uses["egressnat-kube"], core, "kube uses core only");
    assert_eq!(
        uses["egressnat-dataplane"], core,
        "dataplane uses core only"
    );
    for (package, dependencies) in &uses {
        for dependency in dependencies {
            assert!(
                LIBRARIES.contains(&dependency.as_str()),
                "{package} uses {dependency}, which is no library"
            );
        }
    }
}

/// The crates that `cargo add` pulls in, itself included, and the features they are built with.
fn tree(features: &[&str]) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--package",
            "egressnat-core",
            "--edges",
            "normal",
            "--prefix",
            "none",
        ])
        .args([
            "--offline",
            "--locked",
            "--no-dedupe",
            "--format",
            "{p} {f}",
        ])
        .args(features)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: BTreeSet<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    lines.into_iter().collect()
}

#[test]
fn adding_the_core_pulls_in_at_most_three_crates() {
    let crates = tree(&[]);
    assert!(crates.len() <= 3, "{crates:?}");
}

#[test]
fn the_core_is_built_without_std() {
    for line in tree(&[]) {
        let features = line.rsplit(' ').next().unwrap_or_default();
        assert!(
            !features.split(',').any(|feature| feature == "std"),
            "{line}"
        );
    }
    let source =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs")).unwrap();
    assert!(source.contains("no_std") && source.contains("#![forbid(unsafe_code)]"));
}

#[test]
fn the_readme_names_the_two_commands_that_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let makefile = std::fs::read_to_string(root.join("Makefile")).unwrap();
    for command in ["demo", "test"] {
        assert!(readme.contains(&format!("make {command}")));
        assert!(makefile.contains(&format!("\n{command}:")));
    }
}
