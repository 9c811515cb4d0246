//! Watches whose history is gone, in the API server and in etcd (410): the loops list anew, and take the difference.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use egressnat_core::Decision;
use serde_json::json;

use crate::cluster::{Cluster, policy, until};
use crate::outage::{Scene, scene};
use crate::wire::State;

const POLICIES: &str = "/apis/networking.gke.io/v1/egressnatpolicies";

fn snat() -> Decision {
    Decision::Snat("192.168.1.100".parse().unwrap())
}

/// The version of the newest object of all.
fn version(cluster: &Cluster) -> u64 {
    let list = cluster.server.ok(&["get", "--raw", POLICIES]);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    version.parse().unwrap()
}

/// Makes etcd forget what was before a version.
fn compact(cluster: &Cluster, version: u64) {
    let etcd = cluster.server.etcd().unwrap();
    let line = fs::read_to_string(format!("/proc/{etcd}/cmdline")).unwrap();
    let mut arguments = line.split('\0');
    arguments.find(|one| *one == "--listen-client-urls");
    let address = arguments.next().unwrap().strip_prefix("http://").unwrap();
    let body = json!({ "revision": version.to_string(), "physical": true }).to_string();
    let mut etcd = TcpStream::connect(address).unwrap();
    write!(
        etcd,
        "POST /v3/kv/compaction HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    etcd.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
}

impl Scene {
    /// Cuts the loops off, and lets the API server know nothing any more of what they saw last. `meanwhile` happens in between.
    fn forget(&self, meanwhile: impl FnOnce(&Cluster)) {
        let cluster = &self.cluster;
        self.wire.set(State::Broken);
        let seen = version(cluster);
        meanwhile(cluster);
        for n in 0..20 {
            let name = format!("later-{n}");
            cluster.server.ok(&["create", "configmap", &name]);
        }
        compact(cluster, version(cluster));
        // Or it would answer from what it remembers.
        cluster.server.restart();
        // As the loops will ask.
        let watch = format!("{POLICIES}?watch=true&timeoutSeconds=5&resourceVersion={seen}");
        let told = cluster.server.kubectl(&["get", "--raw", &watch]);
        let told = format!("{}{}", told.stdout, told.stderr);
        assert!(told.contains("too old resource version"), "{told}");
        self.wire.set(State::Open);
    }
}

#[test]
fn nothing_moves_and_nothing_is_rewritten_when_the_history_is_gone_e45() {
    scene().survives(|scene| scene.forget(|_| {}));
}

#[test]
fn what_happened_in_a_history_that_is_gone_is_taken_all_the_same_e45() {
    let scene = scene();
    scene.forget(|cluster| {
        cluster.server.ok(&["delete", "enp", "egress"]);
        cluster.run_pod("frontend-2", "worker1", "10.10.1.3");
        cluster.apply(&policy("other", "default", "9.9.9.0/24"));
    });
    let agent = &scene.agents[0];
    agent.until_decides("10.10.1.3", "9.9.9.9", snat());
    until("the deleted policy to go", || {
        (agent.decides("10.10.1.2", "8.8.8.8") != Some(snat())).then_some(())
    });
    scene.cluster.until_programmed(&["enp", "other"]);
}
