//! The lab with a real API server: the same packets, and kubectl.

use std::process::{Command, Output, Stdio};

use egressnat_lab::{ObjectPlace, demo};

use super::*;

/// Long enough for the start of an API server on two busy cores.
const START: Duration = Duration::from_secs(120);

impl TestLab {
    fn with_api_server() -> Self {
        let lab = Self::new();
        lab.up_with_api_server();
        lab
    }

    fn up_with_api_server(&self) {
        let options = UpOptions {
            objects: ObjectPlace::ApiServer,
            ..UpOptions::default()
        };
        assert_eq!(self.up(&options).unwrap(), [""; 0]);
    }

    /// Kills the one who holds the server's standard input: everything of it ends with it.
    fn kill_api_server(&self) {
        let server = self.directory().join("control-plane/server");
        let is_holder = |entry: &std::fs::DirEntry| {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.contains(self.name()) && line.contains("serve-api")
        };
        let mut processes = std::fs::read_dir("/proc").unwrap().flatten();
        let holder = processes.find(is_holder).expect("a server runs");
        let pid = holder.file_name().into_string().unwrap().parse().unwrap();
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).unwrap();
        let is_gone = || (!server.exists()).then_some(());
        until("the server to be gone", START, is_gone).unwrap();
    }

    /// What the agent of a node answers to a probe: code and text; nothing if it does not answer.
    fn probe(&self, node: &str, path: &str) -> Option<(String, String)> {
        let url = format!("http://127.0.0.1:9477/{path}");
        let curl = ["curl", "-s", "-m", "2", "-w", "%{http_code}", &url];
        let node = Target::Node(node.to_owned());
        let output = self.output(&node, &curl).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (text, code) = text.split_at(text.len() - 3);
        output
            .status
            .success()
            .then(|| (code.to_owned(), text.to_owned()))
    }

    /// kubectl as somebody uses it who did what `up` printed.
    fn kubectl(&self, arguments: &[&str]) -> Output {
        let programs = egressnat_apiserver::Programs::find_or_build().unwrap();
        let kubeconfig = self.cli(&["kubeconfig"]);
        let kubeconfig = String::from_utf8(kubeconfig.stdout).unwrap();
        let mut command = programs.kubectl(kubeconfig.trim().as_ref(), self.directory());
        command.args(arguments).output().unwrap()
    }

    fn kubectl_does(&self, arguments: &[&str]) -> String {
        let output = self.kubectl(arguments);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {arguments:?}: {told}");
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn the_tour_holds_with_a_real_api_server() {
    let lab = TestLab::new();
    let mut text = Vec::new();
    let outcome = demo::run(&lab, ObjectPlace::ApiServer, &mut text);
    let text = String::from_utf8(text).unwrap();
    outcome.unwrap_or_else(|error| panic!("{error:#}\n{text}"));
    assert!(text.contains("All facts are as they must be."), "{text}");
    assert_eq!(lab.remains(), [""; 0]);
}

#[test]
fn what_kubectl_applies_is_what_packets_show() {
    let lab = TestLab::with_api_server();
    let examples = examples("v1");
    let examples = examples.to_str().unwrap();
    lab.kubectl_does(&["apply", "-f", examples]);
    lab.until_seen_as(&pod("frontend-1"), FLOATING);
    let curl = lab.cli(&[
        "exec",
        "alice/frontend-1",
        "--",
        "curl",
        "-s",
        "http://8.8.8.8/",
    ]);
    let seen = String::from_utf8(curl.stdout).unwrap();
    assert!(seen.starts_with("client 192.168.1.100 port "), "{seen}");

    // What the lab's own commands show and do is the same cluster.
    let table = lab.cli(&["get", "enp"]);
    assert!(String::from_utf8(table.stdout).unwrap().contains("egress"));
    let again = lab.apply(examples.as_ref()).unwrap();
    assert_eq!(again.errors, [""; 0]);

    lab.kubectl_does(&["delete", "-f", examples]);
    let node: Ipv4Addr = "192.168.1.2".parse().unwrap();
    lab.until_seen_as(&pod("frontend-1"), node);
}

#[test]
fn a_pod_that_kubectl_deletes_or_makes_is_gone_or_there_at_the_next_up() {
    let lab = TestLab::with_api_server();
    lab.kubectl_does(&["delete", "pod", "frontend-1", "-n", "alice", "--wait=false"]);
    let image = "--image=none";
    lab.kubectl_does(&[
        "run",
        "made",
        "-n",
        "alice",
        image,
        "--labels=role=frontend",
    ]);
    lab.up_with_api_server();
    assert!(lab.namespace(&pod("frontend-1")).is_err());
    let found = lab.kubectl(&["get", "pod", "frontend-1", "-n", "alice"]);
    assert!(!found.status.success(), "it is still there");
    lab.kubectl_does(&["apply", "-f", examples("v1").to_str().unwrap()]);
    lab.until_seen_as(&pod("made"), FLOATING);
    // A namespace goes with its pods.
    lab.kubectl_does(&["delete", "namespace", "alice", "--wait=false"]);
    lab.up_with_api_server();
    assert!(lab.namespace(&pod("made")).is_err());
    let found = lab.kubectl(&["get", "namespace", "alice"]);
    assert!(!found.status.success(), "it is still there");
}

#[test]
fn an_agent_has_the_token_of_a_pod_on_its_node_and_no_more_rights_than_its_role() {
    let lab = TestLab::with_api_server();
    let path = "control-plane/egressnat-agent-worker1.kubeconfig";
    let kubeconfig = std::fs::read_to_string(lab.directory().join(path)).unwrap();
    let kubeconfig: Value = serde_yaml_ng::from_str(&kubeconfig).unwrap();
    let token = kubeconfig["users"][0]["user"]["token"].as_str().unwrap();
    let token = format!("--token={token}");
    let who = lab.kubectl_does(&["auth", "whoami", &token, "--output=json"]);
    let who: Value = serde_json::from_str(&who).unwrap();
    let user = &who["status"]["userInfo"];
    assert_eq!(
        user["username"],
        "system:serviceaccount:kube-system:egressnat-agent"
    );
    let node = &user["extra"]["authentication.kubernetes.io/node-name"];
    assert_eq!(node, &serde_json::json!(["worker1"]));
    let may = lab.kubectl(&["auth", "can-i", "get", "secrets", &token]);
    assert!(!may.status.success());
}

#[test]
fn a_new_api_server_takes_the_place_of_one_that_was_killed() {
    let lab = TestLab::with_api_server();
    lab.kill_api_server();
    lab.up_with_api_server();
    lab.kubectl_does(&["apply", "-f", examples("v1").to_str().unwrap()]);
    lab.until_seen_as(&pod("frontend-1"), FLOATING);
}

#[test]
fn probes_say_what_is_so_when_the_api_server_dies_and_when_the_agent_freezes_e45() {
    let lab = TestLab::with_api_server();
    lab.kubectl_does(&["apply", "-f", examples("v1").to_str().unwrap()]);
    lab.until_seen_as(&pod("frontend-1"), FLOATING);
    let ready = |text: &str| {
        let (code, told) = lab.probe("worker2", "readyz")?;
        (code == "200" && told.contains(text)).then_some(())
    };
    until("readiness", PATIENCE, || ready("objects: seen")).unwrap();
    lab.kill_api_server();
    let unseen = "objects: cannot be seen for ";
    until("the outage to be told", PATIENCE, || ready(unseen)).unwrap();
    let seen = lab.seen(&pod("frontend-1"), Protocol::Tcp).unwrap();
    assert_eq!(seen, FLOATING, "the data path is as it was");
    assert_eq!(lab.probe("worker2", "healthz").unwrap().0, "200");
    lab.freeze("worker2").unwrap();
    assert_eq!(lab.probe("worker2", "healthz"), None);
}

#[test]
fn down_cleans_up_after_a_lab_with_an_api_server_that_was_killed_in_the_middle() {
    // While the server starts, once it is there, once the first nodes are.
    for sign in ["control-plane/server", "kubeconfig", "complete/node"] {
        let lab = TestLab::new();
        let mut up = Command::new(env!("CARGO_BIN_EXE_egressnat-lab"))
            .args(["up", "--api", "--name", lab.name()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let that_far = || {
            let is_node = sign.ends_with("node");
            let there = if is_node {
                let nodes = std::fs::read_dir(lab.directory().join("complete"));
                nodes.is_ok_and(|nodes| {
                    let mut names = nodes.flatten().map(|entry| entry.file_name());
                    names.any(|name| name.to_string_lossy().contains("-node-"))
                })
            } else {
                lab.directory().join(sign).exists()
            };
            (there || !matches!(up.try_wait(), Ok(None))).then_some(())
        };
        until("the lab to be half up", START, that_far).unwrap();
        up.kill().unwrap();
        up.wait().unwrap();
        assert!(!lab.remains().is_empty());
        lab.down().unwrap();
        assert_eq!(lab.remains(), [""; 0]);
    }
}
