//! The controller on a real API server, with no more rights than its role gives.

use serde_json::{Value, json};

use crate::cluster::{Agent, Cluster, examples, group, policy, until};

const COPY: [&str; 3] = ["ngg", "default", "--namespace=kube-system"];

/// A cluster with both agents alive, as a controller sees it.
fn cluster() -> (Cluster, [Agent; 2]) {
    let cluster = Cluster::start();
    let agents = ["worker1", "worker2"].map(|node| cluster.agent(node, None));
    for node in ["worker1", "worker2"] {
        let object = ["ngn", node, "--namespace=kube-system"];
        until(node, || cluster.find(&object));
    }
    (cluster, agents)
}

/// The holders that a status tells, by address.
fn holders(status: &Value) -> Vec<(String, String)> {
    let holders = status["floatingIPs"].as_object().into_iter().flatten();
    holders
        .map(|(address, node)| (address.clone(), node.as_str().unwrap().to_owned()))
        .collect()
}

#[test]
fn published_manifests_get_the_status_that_is_printed_with_them_e1_e2_e7() {
    let (cluster, _agents) = cluster();
    let _controller = cluster.controller("first", None);
    let up = json!({"health": "Up", "floatingIPs": []});
    for node in ["worker1", "worker2"] {
        cluster.until_status(&["ngn", node, "--namespace=kube-system"], &up);
    }
    for (version, gateways, nodes) in [("v1", "ngg", "ngn"), ("v1alpha1", "ang", "angn")] {
        cluster.apply_examples(version);
        let copy = [gateways, "default", "--namespace=kube-system"];
        let status = until("an assignment of all addresses", || {
            let status = cluster.find(&copy)?["status"].take();
            let count = cluster.find(&copy)?["spec"]["floatingIPs"]
                .as_array()?
                .len();
            (holders(&status).len() == count).then_some(status)
        });
        assert_eq!(
            status["nodes"],
            json!({"worker1": "Up", "worker2": "Up"}),
            "{version}"
        );
        for node in ["worker1", "worker2"] {
            let held: Vec<String> = holders(&status)
                .into_iter()
                .filter(|(_, holder)| holder == node)
                .map(|(address, _)| address)
                .collect();
            assert!(!held.is_empty(), "the addresses are spread: {status}");
            let want = json!({"health": "Up", "floatingIPs": held});
            cluster.until_status(&[nodes, node, "--namespace=kube-system"], &want);
        }
        // The copy goes with the original.
        cluster
            .server
            .ok(&["delete", "--filename", &examples(version)]);
        until("the copy to go", || {
            cluster.find(&copy).is_none().then_some(())
        });
    }
}

#[test]
fn a_copy_follows_the_switch_of_its_cluster_e7() {
    let (cluster, _agents) = cluster();
    let _controller = cluster.controller("first", None);
    cluster.apply_examples("v1");
    let original = cluster
        .find(&["ngg", "default", "--namespace=cluster-cluster1"])
        .unwrap();
    let copy = until("the copy", || cluster.find(&COPY));
    assert_eq!(copy["spec"], original["spec"]);
    assert_eq!(
        copy["metadata"]["annotations"]["egressnat.io/mirror-of"],
        "cluster-cluster1"
    );
    let switch = |value: bool| {
        let patch = json!({"spec": {"clusterNetwork": {"advancedNetworking": value}}});
        let patch = format!("--patch={patch}");
        let object = [
            "clusters.baremetal.cluster.gke.io",
            "cluster1",
            "--namespace=cluster-cluster1",
        ];
        cluster
            .server
            .ok(&[&["patch", "--type=merge", &patch], &object[..]].concat());
    };
    switch(false);
    until("the copy to go", || {
        cluster.find(&COPY).is_none().then_some(())
    });
    cluster.until_event("ClusterSwitchOff", "default");
    switch(true);
    until("the copy to come back", || cluster.find(&COPY));
}

#[test]
fn a_forged_status_is_corrected_and_nothing_is_written_at_rest_e1() {
    let (cluster, _agents) = cluster();
    let _controller = cluster.controller("first", None);
    cluster.apply_examples("v1");
    cluster.until_programmed(&COPY);
    cluster.at_rest();
    let status = cluster.find(&COPY).unwrap()["status"].take();
    assert_eq!(holders(&status).len(), 3);
    let forged = json!({"nodes": {"worker1": "Down", "nobody": "Up"}, "floatingIPs": {"192.168.1.100": "nobody", "10.0.0.1": "worker1"}});
    cluster.patch_status(&COPY, &forged);
    let want = json!({"nodes": status["nodes"], "floatingIPs": status["floatingIPs"]});
    cluster.until_status(&COPY, &want);
    cluster.until_programmed(&COPY);
    cluster.patch_status(
        &["ngn", "worker1", "--namespace=kube-system"],
        &json!({"health": "Down"}),
    );
    until("health", || {
        let node = cluster.find(&["ngn", "worker1", "--namespace=kube-system"])?;
        (node["status"]["health"] == "Up").then_some(())
    });
    cluster.until_event("StatusOverwritten", "worker1");
    let overwritten = cluster.until_event("StatusOverwritten", "default");
    let message = overwritten["message"].as_str().unwrap();
    assert!(message.contains(".status.floatingIPs"), "{message}");
    let before = cluster.at_rest();
    assert!(before.len() > 6, "{before:?}");
    cluster.await_renewals(5);
    assert_eq!(cluster.versions(), before);
}

#[test]
fn what_is_wrong_is_told_once_by_an_event_that_describe_shows_e21_e22_e23() {
    let (cluster, _agents) = cluster();
    let controller = cluster.controller("first", None);
    cluster.apply(&group("default", &["192.168.1.100"]));
    until("an assignment", || {
        (holders(&cluster.find(&COPY)?["status"]).len() == 1).then_some(())
    });
    // Creation times have seconds: the later of the two is later by name, too.
    cluster.apply(&group("second", &["192.168.1.100", "192.168.1.101"]));
    cluster.apply(&policy("no-group", "missing", "8.8.8.0/24"));
    cluster.apply(&json!({
        "apiVersion": "networking.gke.io/v1alpha1", "kind": "EgressNATPolicy", "metadata": {"name": "unknown"},
        "spec": {
            "egress": [{"namespaceSelector": {}, "podSelector": {}}],
            "destinationCIDRs": ["8.8.8.0/24"],
            "egressSourceIP": "192.168.1.66",
        },
    }));
    let wrong = [
        ("UnknownEgressIP", "unknown", "192.168.1.66"),
        ("InvalidGatewayRef", "no-group", "missing"),
        ("DuplicateFloatingIP", "second", "192.168.1.100"),
    ];
    for (reason, about, text) in wrong {
        let event = cluster.until_event(reason, about);
        assert_eq!(event["count"], 1);
        assert_eq!(event["type"], "Warning");
        assert!(event["message"].as_str().unwrap().contains(text), "{event}");
    }
    let described = cluster.server.ok(&["describe", "enp", "unknown"]);
    assert!(described.contains("UnknownEgressIP"), "{described}");
    // A controller that comes after finds them told.
    let before = cluster.at_rest();
    drop(controller);
    let _next = cluster.controller("next", None);
    until("the next leader", || {
        let (leader, _) = cluster.leader()?;
        (leader == "next").then_some(())
    });
    cluster.await_renewals(3);
    assert_eq!(cluster.versions(), before);
}

#[test]
fn a_node_that_kubectl_cordons_gives_its_addresses_away_and_takes_none_back_e32_e35() {
    let (cluster, agents) = cluster();
    let _controller = cluster.controller("first", None);
    cluster.apply(&group("default", &["192.168.1.100"]));
    let holder = || {
        let status = cluster.find(&COPY)?["status"].take();
        Some(holders(&status).first()?.1.clone())
    };
    let old = until("a holder", holder);
    // In the plans of the agents, and so in their kernels.
    let uses = |node: &str| {
        let agent = &agents[usize::from(node == "worker2")];
        let plan = agent.plan();
        plan.is_some_and(|plan| !plan.floating_ips.is_empty())
    };
    until("the holder to use it", || uses(&old).then_some(()));
    cluster.server.ok(&["cordon", &old]);
    let new = until("another holder", || holder().filter(|now| *now != old));
    until("it to use the address", || uses(&new).then_some(()));
    assert!(!uses(&old), "two owners");
    cluster.server.ok(&["uncordon", &old]);
    cluster.await_renewals(6);
    assert_eq!((holder(), uses(&new)), (Some(new), true), "E32");
    assert!(!uses(&old));
}

#[test]
fn an_address_that_no_node_can_have_is_told_until_one_can_e34() {
    let (cluster, agents) = cluster();
    let _controller = cluster.controller("first", None);
    cluster.apply(&group("default", &["192.168.1.100", "10.9.9.9"]));
    until("what can be assigned", || {
        (holders(&cluster.find(&COPY)?["status"]).len() == 1).then_some(())
    });
    let condition = cluster.until_condition(&COPY, "Assigned", ("False", "Unassigned"));
    assert!(condition["message"].as_str().unwrap().contains("10.9.9.9"));
    cluster.until_event("Unassigned", "default");
    cluster.apply(&group("default", &["192.168.1.100"]));
    cluster.until_condition(&COPY, "Assigned", ("True", "Assigned"));
    // Nobody is up.
    drop(agents);
    let condition = cluster.until_condition(&COPY, "Assigned", ("False", "Unassigned"));
    let message = condition["message"].as_str().unwrap();
    assert!(message.contains("192.168.1.100"), "{message}");
}

#[test]
fn a_node_without_addresses_does_no_harm_and_holds_nothing_without_an_agent_e2() {
    let (cluster, _agents) = cluster();
    let _controller = cluster.controller("first", None);
    cluster.create(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "bare"}}));
    cluster.apply(&group("default", &["192.168.1.100"]));
    let status = until("an assignment", || {
        let status = cluster.find(&COPY)?["status"].take();
        (holders(&status).len() == 1).then_some(status)
    });
    assert_eq!(status["nodes"], json!({"worker1": "Up", "worker2": "Up"}));
}

#[test]
fn without_crds_both_loops_wait_and_begin_when_they_are_installed() {
    let cluster = Cluster::without_crds();
    let agent = cluster.agent("worker1", None);
    let controller = cluster.controller("first", None);
    cluster.await_renewals(2);
    assert!(agent.running.is_running() && controller.is_running());
    assert_eq!(
        agent.plans(),
        vec![],
        "no plan is made of a part of the objects"
    );
    cluster.server.install_crds();
    cluster.apply(&group("default", &["192.168.1.100"]));
    let want = json!({"nodes": {"worker1": "Up"}, "floatingIPs": {"192.168.1.100": "worker1"}});
    cluster.until_status(&COPY, &want);
    until("a plan", || agent.plan());
}
