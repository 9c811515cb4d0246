//! The agent on a real API server, with no more rights than its role gives.

use std::net::IpAddr;

use egressnat_core::Decision;
use serde_json::json;

use crate::cluster::{Agent, Cluster, group, namespace, policy, until};

/// Decided for an address outside.
fn snat(address: &str) -> Decision {
    Decision::Snat(address.parse::<IpAddr>().unwrap())
}

/// A cluster with an agent, and a frontend of Alice on its node that a policy selects.
fn cluster() -> (Cluster, Agent) {
    let cluster = Cluster::start();
    let agent = cluster.agent("worker1", None);
    cluster.apply(&namespace("alice", &json!({"user": "alice"})));
    cluster.run_pod("frontend-1", "worker1", "10.10.1.2");
    cluster.run_pod("frontend-2", "worker2", "10.10.2.2");
    cluster.apply(&group("default", &["192.168.1.100"]));
    cluster.apply(&group("other", &["192.168.1.101"]));
    cluster.apply(&policy("egress", "default", "8.8.8.0/24"));
    agent.until_decides("10.10.1.2", "8.8.8.8", snat("192.168.1.100"));
    (cluster, agent)
}

#[test]
fn the_plan_follows_policies_groups_and_namespaces_e10_e11_e20() {
    let (cluster, agent) = cluster();
    let plan = agent.plan().unwrap();
    assert!(
        !format!("{plan:?}").contains("10.10.2.2"),
        "a pod of another node"
    );
    assert_eq!(plan.peers, ["192.168.1.2".parse().unwrap()].into());
    cluster.apply(&policy("egress", "other", "8.8.8.0/24"));
    agent.until_decides("10.10.1.2", "8.8.8.8", snat("192.168.1.101"));
    cluster.apply(&policy("egress", "other", "9.9.9.0/24"));
    agent.until_decides("10.10.1.2", "9.9.9.9", snat("192.168.1.101"));
    assert_ne!(
        agent.decides("10.10.1.2", "8.8.8.8"),
        Some(snat("192.168.1.101"))
    );
    cluster.server.ok(&["label", "namespace", "alice", "user-"]);
    until("the namespace to be selected no more", || {
        (agent.decides("10.10.1.2", "9.9.9.9") != Some(snat("192.168.1.101"))).then_some(())
    });
    cluster
        .server
        .ok(&["label", "namespace", "alice", "user=alice"]);
    agent.until_decides("10.10.1.2", "9.9.9.9", snat("192.168.1.101"));
    cluster.server.ok(&["delete", "enp", "egress"]);
    until("the policy to go", || {
        (agent.decides("10.10.1.2", "9.9.9.9") != Some(snat("192.168.1.101"))).then_some(())
    });
}

#[test]
fn a_pod_that_comes_back_with_another_address_is_selected_by_that_e10() {
    let (cluster, agent) = cluster();
    let delete = [
        "delete",
        "pod",
        "frontend-1",
        "--namespace=alice",
        "--force",
        "--grace-period=0",
    ];
    cluster.server.ok(&delete);
    until("the pod to go", || {
        (agent.decides("10.10.1.2", "8.8.8.8") != Some(snat("192.168.1.100"))).then_some(())
    });
    cluster.run_pod("frontend-1", "worker1", "10.10.1.9");
    agent.until_decides("10.10.1.9", "8.8.8.8", snat("192.168.1.100"));
    assert_ne!(
        agent.decides("10.10.1.2", "8.8.8.8"),
        Some(snat("192.168.1.100"))
    );
}

#[test]
fn what_kubelets_write_without_meaning_for_us_makes_no_plan() {
    let (cluster, agent) = cluster();
    let before = agent.plans().len();
    let condition = json!([{"type": "Ready", "status": "True", "reason": "Beat"}]);
    cluster.patch_status(&["node", "worker2"], &json!({"conditions": condition}));
    cluster.server.ok(&[
        "annotate",
        "pod",
        "frontend-1",
        "--namespace=alice",
        "example.com/a=b",
    ]);
    // The next thing that does mean something is the next plan.
    cluster.run_pod("frontend-3", "worker1", "10.10.1.3");
    agent.until_decides("10.10.1.3", "8.8.8.8", snat("192.168.1.100"));
    assert_eq!(agent.plans().len(), before + 1);
}

#[test]
fn a_node_without_addresses_is_no_peer_and_no_obstacle_e47() {
    let (cluster, agent) = cluster();
    cluster.create(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "bare"}}));
    cluster.apply(&policy("egress", "other", "8.8.8.0/24"));
    agent.until_decides("10.10.1.2", "8.8.8.8", snat("192.168.1.101"));
    assert_eq!(agent.plan().unwrap().peers.len(), 1);
}
