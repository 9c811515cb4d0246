//! The shape of the house: which crate may use which, and how little the core pulls in.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const LIBRARIES: [&str; 3] = ["egressnat-core", "egressnat-kube", "egressnat-dataplane"];

/// Starts a real API server. Uses none of ours, and nothing that ships uses it.
const API_SERVER: &str = "egressnat-apiserver";

/// What is for trying and measuring, and may start one.
const WORKBENCHES: [&str; 2] = ["egressnat-lab", "egressnat-benches"];

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
            let shipped = dependencies
                .iter()
                .filter(|dependency| dependency["kind"] != "dev");
            let names = shipped.filter_map(|dependency| dependency["name"].as_str());
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
    assert_eq!(uses[API_SERVER], BTreeSet::new());
    for (package, dependencies) in &uses {
        for dependency in dependencies {
            if dependency == API_SERVER && WORKBENCHES.contains(&package.as_str()) {
                continue;
            }
            assert!(
                LIBRARIES.contains(&dependency.as_str()),
                "{package} uses {dependency}, which is no library"
            );
        }
    }
}

/// The crates that `cargo add` pulls in, itself included, and the features they are built with.
fn tree(features: &[&str]) -> Vec<String> {
    tree_of("egressnat-core", features)
}

fn tree_of(package: &str, features: &[&str]) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--package",
            package,
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

/// The derive macro brings a parser of Rust with it, so that this feature cannot keep to three; it must not grow unseen either.
#[test]
fn the_feature_serde_adds_serde_and_its_macro_only() {
    let with_serde = tree(&["--features", "serde"]);
    let names: BTreeSet<&str> = with_serde
        .iter()
        .filter_map(|line| line.split(' ').next())
        .collect();
    let expected = BTreeSet::from([
        "egressnat-core",
        "hashbrown",
        "ipnet",
        "proc-macro2",
        "quote",
        "serde",
        "serde_core",
        "serde_derive",
        "syn",
        "unicode-ident",
    ]);
    assert_eq!(names, expected);
}

#[test]
fn the_loops_pull_in_no_types_and_no_client_of_kube() {
    for line in tree_of("egressnat-kube", &[]) {
        let name = line.split(' ').next().unwrap_or_default();
        assert!(
            !name.starts_with("kube") && name != "k8s-openapi" && name != "schemars",
            "{line}"
        );
    }
}

#[test]
fn the_core_is_built_without_std() {
    for features in [&[][..], &["--features", "serde"]] {
        for line in tree(features) {
            let enabled = line.rsplit(' ').next().unwrap_or_default();
            assert!(
                !enabled.split(',').any(|feature| feature == "std"),
                "{line}"
            );
        }
    }
    let source =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs")).unwrap();
    assert!(source.contains("no_std") && source.contains("#![forbid(unsafe_code)]"));
}

/// The root of the repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

#[test]
fn the_readme_promises_exactly_two_commands_and_the_makefile_has_them() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    let section = readme.split("\n## Two commands\n").nth(1).unwrap();
    let block = section.split("```").nth(1).unwrap();
    let commands: Vec<&str> = block
        .lines()
        .filter_map(|line| line.split('#').next())
        .map(str::trim)
        .filter(|command| !command.is_empty())
        .collect();
    assert_eq!(commands, ["make demo", "make test"]);
    for target in ["demo", "test"] {
        assert!(makefile.contains(&format!("\n{target}:")), "{target}");
    }
}

/// The files that Markdown links at the root, in `deploy/` and in `docs/` lead to, with the file that has the link.
fn links() -> Vec<(PathBuf, String)> {
    let directories = [".", "deploy", "docs", "docs/design"];
    let files = directories
        .iter()
        .flat_map(|directory| std::fs::read_dir(root().join(directory)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    files
        .flat_map(|file| {
            let text = std::fs::read_to_string(&file).unwrap();
            let targets: Vec<(PathBuf, String)> = text
                .split("](")
                .skip(1)
                .filter_map(|rest| rest.split([')', '#']).next())
                .filter(|target| !target.is_empty() && !target.contains("://"))
                .map(|target| (file.clone(), target.to_owned()))
                .collect();
            targets
        })
        .collect()
}

#[test]
fn every_link_in_the_documents_leads_to_a_file_of_the_repository() {
    let root = root().canonicalize().unwrap();
    let links = links();
    assert!(!links.is_empty(), "the documents have no links");
    for (file, target) in links {
        let found = file.parent().unwrap().join(&target).canonicalize();
        assert!(
            found.is_ok_and(|path| path.starts_with(&root)),
            "{} links to {target}, which is not in the repository",
            file.display()
        );
    }
}
