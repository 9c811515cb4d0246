//! What happens to clusters: a slow etcd, wrong clocks, definitions that change or go, everything at once, leaders that die while they write.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use egressnat_core::Decision;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::cluster::{Cluster, group, namespace, policy, until};
use crate::outage::{for_longer_than_every_lease, scene};

fn snat() -> Decision {
    Decision::Snat("192.168.1.100".parse().unwrap())
}

#[test]
fn nothing_moves_while_etcd_stands_still_e45() {
    scene().survives(|scene| {
        // The API server answers as long as it need not ask; watches stay open and tell nothing.
        let etcd = scene.cluster.server.etcd().unwrap();
        kill(etcd, Signal::SIGSTOP).unwrap();
        for_longer_than_every_lease();
        kill(etcd, Signal::SIGCONT).unwrap();
    });
}

#[test]
fn nothing_moves_when_a_definition_is_upgraded_in_place() {
    scene().survives(|scene| {
        for kind in ["egressnatpolicies", "networkgatewaygroups"] {
            let crd = format!("{kind}.networking.gke.io");
            let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/later";
            let patch = json!([{"op": "add", "path": path, "value": {"type": "string"}}]);
            let patch = format!("--patch={patch}");
            let server = &scene.cluster.server;
            server.ok(&["patch", "crd", &crd, "--type=json", &patch]);
            // Served once the API server explains it.
            until("the new field to be served", || {
                let told = server.kubectl(&["explain", &format!("{crd}.spec.later")]);
                told.is_success.then_some(())
            });
        }
    });
}

/// Renews a lease by a clock that is off by `hours`, until it is told to stop.
fn renew(cluster: &Cluster, name: &str, holder: &str, hours: i64, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let clock = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours);
        cluster.apply(&json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "namespace": "kube-system"},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 4, "renewTime": format!("{clock:.6}")},
        }));
        thread::sleep(Duration::from_millis(300));
    }
}

fn await_health(cluster: &Cluster, node: &str, want: &str) {
    until(&format!("{node} to be {want}"), || {
        let node = cluster.find(&["ngn", node, "--namespace=kube-system"])?;
        (node["status"]["health"] == want).then_some(())
    });
}

#[test]
fn nodes_whose_clocks_are_off_by_an_hour_are_up_while_they_renew_and_down_when_they_do_not_e45() {
    let cluster = Cluster::start();
    let _controller = cluster.controller("first", None);
    let clocks = [("worker1", -1), ("worker2", 1)];
    for (node, _) in clocks {
        cluster.apply(&json!({
            "apiVersion": "networking.gke.io/v1", "kind": "NetworkGatewayNode",
            "metadata": {"name": node, "namespace": "kube-system"}, "spec": {"subnets": ["192.168.1.0/24"]},
        }));
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for (node, hours) in clocks {
            let (cluster, stop) = (&cluster, &stop);
            scope.spawn(move || {
                renew(
                    cluster,
                    &format!("egressnat-node-{node}"),
                    node,
                    hours,
                    stop,
                );
            });
        }
        for (node, _) in clocks {
            await_health(&cluster, node, "Up");
        }
        let end = Instant::now() + Duration::from_secs(8);
        while Instant::now() < end {
            for (node, _) in clocks {
                await_health(&cluster, node, "Up");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    for (node, _) in clocks {
        await_health(&cluster, node, "Down");
    }
}

#[test]
fn a_leader_whose_clock_is_an_hour_ahead_is_followed_by_the_next_all_the_same_e45() {
    let cluster = Cluster::start();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let other = scope.spawn(|| renew(&cluster, "egressnat-controller", "other", 1, &stop));
        until("the other to lead", || cluster.leader());
        let _controller = cluster.controller("first", None);
        let end = Instant::now() + Duration::from_secs(8);
        while Instant::now() < end {
            assert_eq!(cluster.leader().unwrap().0, "other", "it renews its lease");
        }
        stop.store(true, Ordering::Relaxed);
        other.join().unwrap();
        until("the lead to be taken over", || {
            (cluster.leader()?.0 == "first").then_some(())
        });
    });
}

#[test]
fn a_thousand_policies_at_once_are_all_in_force_and_all_gone_again() {
    const COUNT: usize = 1_000;
    let cluster = Cluster::start();
    let agent = cluster.agent("worker1", None);
    let controller = cluster.controller("first", None);
    cluster.apply(&namespace("alice", &json!({"user": "alice"})));
    cluster.run_pod("frontend-1", "worker1", "10.10.1.2");
    cluster.apply(&group("default", &["192.168.1.100"]));
    let mut manifest = String::new();
    for n in 0..COUNT {
        let range = format!("20.{}.{}.0/24", n / 250, n % 250);
        let policy = policy(&format!("egress-{n}"), "default", &range);
        writeln!(manifest, "---\n{policy}").unwrap();
    }
    cluster
        .server
        .ok_with(&["create", "--filename", "-"], &manifest);
    for n in [0, COUNT / 2, COUNT - 1] {
        let destination = format!("20.{}.{}.1", n / 250, n % 250);
        agent.until_decides("10.10.1.2", &destination, snat());
    }
    let destinations = || agent.plan().map(|plan| plan.destinations.len());
    until("all of them", || (destinations()? == COUNT).then_some(()));
    // A burst is taken together: far fewer plans than events.
    assert!(agent.plans().len() < COUNT, "{}", agent.plans().len());
    cluster
        .server
        .ok(&["delete", "enp", "--all", "--wait=false"]);
    until("all of them to go", || (destinations()? == 0).then_some(()));
    assert!(agent.running.is_running() && controller.is_running());
}

#[test]
fn objects_deleted_and_made_in_the_wrong_order_end_where_the_right_order_ends() {
    let scene = scene();
    let (cluster, agent) = (&scene.cluster, &scene.agents[0]);
    let system = "--namespace=kube-system";
    cluster.server.ok(&["delete", "ngn", "worker2", system]);
    cluster.server.ok(&["delete", "ngg", "default", system]);
    cluster.server.ok(&["delete", "node", "worker2"]);
    until("the decision to go", || {
        (agent.decides("10.10.1.2", "8.8.8.8") != Some(snat())).then_some(())
    });
    cluster.server.ok(&["delete", "enp", "egress"]);

    cluster.apply(&policy("egress", "default", "8.8.8.0/24"));
    cluster.apply(&group("default", &["192.168.1.100"]));
    let addresses = json!([{"type": "InternalIP", "address": "192.168.1.2"}]);
    cluster.create(&json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "worker2"}, "status": {"addresses": addresses},
    }));
    agent.until_decides("10.10.1.2", "8.8.8.8", snat());
    until("the address to be assigned", || {
        let status = cluster.find(&["ngg", "default", system])?["status"].take();
        status["floatingIPs"].get("192.168.1.100").map(drop)
    });
}

#[test]
fn leaders_that_die_while_they_write_leave_nothing_half_done_for_long_e45() {
    const COUNT: usize = 60;
    let cluster = Cluster::start();
    let _agents = ["worker1", "worker2"].map(|node| cluster.agent(node, None));
    let mut leader = cluster.controller("leader-0", None);
    for node in ["worker1", "worker2"] {
        await_health(&cluster, node, "Up");
    }
    let system = "--namespace=kube-system";
    let groups = |cluster: &Cluster| -> Vec<Value> {
        let list = cluster.find(&["ngg", system]).unwrap();
        list["items"].as_array().unwrap().clone()
    };
    let held = |group: &Value| group["status"]["floatingIPs"].as_object().cloned();
    for round in 0..3 {
        let mut manifest = String::new();
        for n in 0..COUNT {
            let address = format!("192.168.1.{}", 10 + round * COUNT + n);
            let group = group(&format!("group-{round}-{n}"), &[&address]);
            writeln!(manifest, "---\n{group}").unwrap();
        }
        let before = groups(&cluster).iter().filter_map(held).count();
        thread::scope(|scope| {
            scope.spawn(|| {
                cluster
                    .server
                    .ok_with(&["create", "--filename", "-"], &manifest)
            });
            until("a first write", || {
                (groups(&cluster).iter().filter_map(held).count() > before).then_some(())
            });
            // In the middle: the others are not created yet, or not written.
            let next = cluster.controller(&format!("leader-{}", round + 1), None);
            leader = next;
        });
    }
    let mut holders: BTreeMap<String, String> = BTreeMap::new();
    until("everything to be assigned", || {
        holders.clear();
        for (address, node) in groups(&cluster).iter().filter_map(held).flatten() {
            holders.insert(address, node.as_str()?.to_owned());
        }
        (holders.len() == 3 * COUNT).then_some(())
    });
    // Both places where it is told say the same.
    until("both kinds of status to agree", || {
        ["worker1", "worker2"]
            .iter()
            .all(|node| {
                let told = cluster.find(&["ngn", node, system]);
                let told = told.map(|object| object["status"]["floatingIPs"].clone());
                let told = told.as_ref().and_then(Value::as_array).map(Vec::len);
                told == Some(holders.values().filter(|holder| holder == node).count())
            })
            .then_some(())
    });
    assert!(leader.is_running());
}
