//! An API server that goes away and comes back.

use std::thread;
use std::time::{Duration, Instant};

use egressnat_core::Decision;
use serde_json::json;

use crate::cluster::{Agent, Cluster, Running, group, namespace, policy, until};
use crate::wire::{State, Wire};

const GROUP: [&str; 3] = ["ngg", "default", "--namespace=kube-system"];

fn snat() -> Decision {
    Decision::Snat("192.168.1.100".parse().unwrap())
}

pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    pub(crate) wire: Wire,
    pub(crate) agents: [Agent; 2],
    controller: Running,
}

/// Two agents and a controller behind one wire, a policy in force, and everything at rest.
pub(crate) fn scene() -> Scene {
    let cluster = Cluster::start();
    let wire = cluster.wire();
    let agents = ["worker1", "worker2"].map(|node| cluster.agent(node, Some(&wire)));
    let controller = cluster.controller("first", Some(&wire));
    cluster.apply(&namespace("alice", &json!({"user": "alice"})));
    cluster.run_pod("frontend-1", "worker1", "10.10.1.2");
    for node in ["worker1", "worker2"] {
        let up = json!({"health": "Up", "floatingIPs": []});
        cluster.until_status(&["ngn", node, "--namespace=kube-system"], &up);
    }
    cluster.apply(&group("default", &["192.168.1.100", "192.168.1.101"]));
    cluster.apply(&policy("egress", "default", "8.8.8.0/24"));
    agents[0].until_decides("10.10.1.2", "8.8.8.8", snat());
    until("an assignment", || {
        let held = agents.iter().filter_map(Agent::plan);
        (held.map(|plan| plan.floating_ips.len()).sum::<usize>() == 2).then_some(())
    });
    cluster.until_programmed(&["enp", "egress"]);
    cluster.at_rest();
    Scene {
        cluster,
        wire,
        agents,
        controller,
    }
}

impl Scene {
    /// Does something to the API server; afterwards nothing may have moved, no plan may have been other than before, and what
    /// comes next has to work.
    pub(crate) fn survives(&self, outage: impl FnOnce(&Self)) {
        let cluster = &self.cluster;
        let before = cluster.versions();
        let plans = self.agents.each_ref().map(Agent::plans);
        outage(self);
        // What is made during the outage has to be told, too.
        let (_, version) = cluster.leader().unwrap();
        until("the leader to be back", || {
            let (_, now) = cluster.leader()?;
            (now != version).then_some(())
        });
        cluster.await_renewals(8);
        assert_eq!(
            cluster.versions(),
            before,
            "something was written that was right"
        );
        let after = self.agents.each_ref().map(Agent::plans);
        assert_eq!(after, plans, "a plan was applied that was none");
        cluster.apply(&policy("later", "default", "9.9.9.0/24"));
        self.agents[0].until_decides("10.10.1.2", "9.9.9.9", snat());
        cluster.server.ok(&["delete", "enp", "later"]);
        until("the policy to go", || {
            (self.agents[0].decides("10.10.1.2", "9.9.9.9") != Some(snat())).then_some(())
        });
        cluster.apply(&group(
            "default",
            &["192.168.1.100", "192.168.1.101", "192.168.1.102"],
        ));
        until("the new address to be assigned", || {
            let status = cluster.find(&GROUP)?["status"].take();
            status["floatingIPs"].get("192.168.1.102").map(drop)
        });
    }
}

impl Scene {
    /// Probes succeed as before, and say why somebody should look.
    fn tell_that_nothing_is_seen(&self) {
        let agents = self.agents.iter().map(|agent| &agent.running);
        for running in agents.chain([&self.controller]) {
            let (liveness, readiness) = (running.pulse.liveness(), running.pulse.readiness());
            assert!(liveness.is_well && readiness.is_well, "{readiness}");
            let text = readiness.to_string();
            assert!(text.contains("objects: cannot be seen for "), "{text}");
        }
    }
}

/// Longer than all leases: everybody who counts on them would be dead.
pub(crate) fn for_longer_than_every_lease() {
    let end = Instant::now() + Duration::from_secs(9);
    while Instant::now() < end {
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn nothing_moves_while_no_connection_can_be_made_e45() {
    scene().survives(|scene| {
        scene.wire.set(State::Broken);
        for_longer_than_every_lease();
        scene.tell_that_nothing_is_seen();
        scene.wire.set(State::Open);
    });
}

#[test]
fn nothing_moves_while_nothing_arrives_e45() {
    scene().survives(|scene| {
        scene.wire.set(State::Silent);
        for_longer_than_every_lease();
        scene.wire.set(State::Open);
    });
}

#[test]
fn nothing_moves_when_the_api_server_is_killed_and_starts_again_e45() {
    scene().survives(|scene| scene.cluster.server.restart());
}

#[test]
fn what_happens_during_an_outage_is_told_after_it_e45() {
    let scene = scene();
    scene.wire.set(State::Broken);
    scene.cluster.server.ok(&["delete", "enp", "egress"]);
    scene.cluster.run_pod("frontend-2", "worker1", "10.10.1.3");
    scene
        .cluster
        .apply(&policy("other", "default", "9.9.9.0/24"));
    scene.wire.set(State::Open);
    let agent = &scene.agents[0];
    agent.until_decides("10.10.1.3", "9.9.9.9", snat());
    until("the deleted policy to go", || {
        (agent.decides("10.10.1.2", "8.8.8.8") != Some(snat())).then_some(())
    });
}
