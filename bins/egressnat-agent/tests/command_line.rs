//! Where the objects are has to be said, and what cannot be used is told with what to do instead.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::process::Command;

/// What the program says when it is started like this, outside of a cluster. It has to fail.
fn said(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_egressnat-agent"))
        .args(arguments)
        .env_remove("KUBERNETES_SERVICE_HOST")
        .env_remove("KUBERNETES_SERVICE_PORT")
        .output()
        .unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn without_a_store_it_says_which_options_there_are() {
    let said = said(&["--node", "worker1"]);
    assert!(
        said.contains("--kubeconfig") && said.contains("--manifests"),
        "{said}"
    );
}

#[test]
fn a_directory_and_a_cluster_at_once_are_refused() {
    let said = said(&["--node", "worker1", "--manifests", "a", "--kubeconfig", "b"]);
    assert!(said.contains("cannot be used with"), "{said}");
}

#[test]
fn counters_where_no_agent_has_run_are_none_and_that_is_said() {
    let said = said(&["counters", "--bpffs", "/nonexistent"]);
    assert!(said.contains("no agent has run on this node"), "{said}");
}

#[test]
fn a_kubeconfig_that_cannot_be_used_is_named() {
    for path in ["/nonexistent/config", "/dev/null"] {
        let said = said(&["--node", "worker1", "--kubeconfig", path]);
        assert!(
            said.contains(path) && said.contains("--kubeconfig"),
            "{said}"
        );
    }
}

/// The arguments in a manifest are those that this program takes: what is wrong is the kubeconfig only.
#[test]
fn the_manifest_starts_the_program_with_arguments_that_it_takes() {
    let manifest = include_str!("../../../deploy/agent.yaml");
    let lines = manifest.lines().map(str::trim);
    let arguments: Vec<String> = lines
        .filter_map(|line| line.strip_prefix("- --"))
        .map(|argument| format!("--{argument}").replace("$(NODE_NAME)", "worker1"))
        // Others may have the port.
        .map(|argument| argument.replace(":9477", ":0"))
        .collect();
    assert!(!arguments.is_empty());
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.extend(["--kubeconfig", "/nonexistent/config"]);
    let said = said(&arguments);
    assert!(said.contains("is no kubeconfig"), "{said}");
    assert!(said.contains("probes are answered"), "{said}");
}
