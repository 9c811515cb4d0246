//! The status of policies and groups on a real API server: it says what the kernels have.

use serde_json::{Value, json};

use crate::cluster::{Agent, Cluster, Running, group, namespace, policy, until};

const EGRESS: [&str; 2] = ["enp", "egress"];
const GROUP: [&str; 3] = ["ngg", "default", "--namespace=kube-system"];

struct Scene {
    cluster: Cluster,
    agents: [Agent; 2],
    _controller: Running,
}

/// Two nodes, a frontend of Alice on worker1, a group, and the policy "egress" that all kernels have.
fn scene() -> Scene {
    let cluster = Cluster::start();
    let agents = ["worker1", "worker2"].map(|node| cluster.agent(node, None));
    let controller = cluster.controller("first", None);
    cluster.apply(&namespace("alice", &json!({"user": "alice"})));
    cluster.run_pod("frontend-1", "worker1", "10.10.1.2");
    for node in ["worker1", "worker2"] {
        let object = ["ngn", node, "--namespace=kube-system"];
        cluster.until_status(&object, &json!({"health": "Up"}));
    }
    cluster.apply(&group("default", &["192.168.1.100"]));
    cluster.apply(&policy("egress", "default", "8.8.8.0/24"));
    cluster.until_programmed(&EGRESS);
    Scene {
        cluster,
        agents,
        _controller: controller,
    }
}

impl Scene {
    /// The agent of the node that holds the floating IP, and the other.
    fn holder(&self) -> (&Agent, &Agent) {
        let [first, second] = &self.agents;
        let holds = |agent: &Agent| {
            let plan = agent.plan();
            plan.is_some_and(|plan| !plan.floating_ips.is_empty())
        };
        if holds(first) {
            (first, second)
        } else {
            (second, first)
        }
    }

    fn status(&self) -> Value {
        self.cluster.find(&EGRESS).unwrap()["status"].take()
    }

    /// What `kubectl get` prints: the columns of one line, without the age.
    fn columns(&self, arguments: &[&str]) -> Vec<String> {
        let get = ["get", "--no-headers"];
        let line = self.cluster.server.ok(&[&get[..], arguments].concat());
        let mut columns: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        columns.pop();
        columns
    }
}

#[test]
fn a_policy_says_who_has_it_and_kubectl_shows_it() {
    let scene = scene();
    let status = scene.status();
    assert_eq!(status["egressIPs"], json!(["192.168.1.100"]));
    assert_eq!(status["selectedPods"], 1);
    let holder = status["nodes"][0].as_str().unwrap();
    let told = status["conditions"].as_array().unwrap().iter();
    let told: Vec<(&Value, &Value)> = told.map(|one| (&one["type"], &one["status"])).collect();
    for kind in ["Accepted", "ResolvedRefs", "Programmed"] {
        assert!(told.contains(&(&json!(kind), &json!("True"))), "{status}");
    }
    for resource in [
        "egressnatpolicies",
        "egressnatpolicies.v1alpha1.networking.gke.io",
    ] {
        let columns = scene.columns(&[resource, "egress"]);
        assert_eq!(columns, ["egress", "192.168.1.100", holder, "True"]);
    }
    scene.cluster.until_programmed(&GROUP);
    let columns = scene.columns(&GROUP);
    assert_eq!(columns, ["default", r#"["192.168.1.100"]"#, "True"]);
    let managers = scene.cluster.server.ok(&[
        "get",
        "ngn",
        "worker1",
        "--namespace=kube-system",
        "--output=json",
        "--show-managed-fields",
    ]);
    let managers: Value = serde_json::from_str(&managers).unwrap();
    let of_status = managers["metadata"]["managedFields"].as_array().unwrap();
    let mut of_status: Vec<&str> = of_status
        .iter()
        .filter(|one| one["subresource"] == "status" && one["operation"] == "Apply")
        .filter_map(|one| one["manager"].as_str())
        .collect();
    of_status.sort_unstable();
    assert_eq!(of_status, ["egressnat-agent", "egressnat-controller"]);
}

#[test]
fn what_a_source_node_cannot_do_is_told_until_it_can_e43() {
    let scene = scene();
    let [source, _] = &scene.agents;
    source.fail(&[("table ip egressnat", "Operation not permitted")]);
    let failed = ("False", "NodeFailed");
    let condition = scene.cluster.until_condition(&EGRESS, "Programmed", failed);
    let message = condition["message"].as_str().unwrap();
    assert!(
        message.contains("node worker1: table ip egressnat"),
        "{message}"
    );
    let event = scene.cluster.until_event("NodeFailed", "egress");
    assert_eq!(
        (&event["type"], &event["count"]),
        (&json!("Warning"), &json!(1))
    );
    let described = scene.cluster.server.ok(&["describe", "enp", "egress"]);
    assert!(described.contains("NodeFailed"), "{described}");
    source.fail(&[]);
    scene.cluster.until_programmed(&EGRESS);
}

#[test]
fn a_gateway_without_the_address_in_its_kernel_keeps_policy_and_group_pending() {
    let scene = scene();
    let (holder, _) = scene.holder();
    holder.fail(&[("address 192.168.1.100", "in use by 02:00:00:00:00:01")]);
    let pending = ("False", "Pending");
    for object in [&EGRESS[..], &GROUP[..]] {
        scene.cluster.until_condition(object, "Programmed", pending);
    }
    assert_eq!(scene.columns(&EGRESS)[3], "False");
    holder.fail(&[]);
    for object in [&EGRESS[..], &GROUP[..]] {
        scene.cluster.until_programmed(object);
    }
}

#[test]
fn an_edit_is_programmed_when_the_nodes_have_planned_with_it_and_touches_no_other_policy() {
    let scene = scene();
    let cluster = &scene.cluster;
    cluster.apply(&policy("other", "default", "9.9.9.0/24"));
    cluster.until_programmed(&["enp", "other"]);
    cluster.at_rest();
    let other = cluster.find(&["enp", "other"]).unwrap();
    let version = |node: &str| {
        let object = cluster.find(&["ngn", node, "--namespace=kube-system"]);
        object.unwrap()["metadata"]["resourceVersion"].take()
    };
    let before = ["worker1", "worker2"].map(version);
    cluster.apply(&policy("egress", "default", "8.8.4.0/24"));
    // With observedGeneration: what was true of the last generation does not count.
    cluster.until_programmed(&EGRESS);
    cluster.at_rest();
    let after = ["worker1", "worker2"].map(version);
    assert_ne!(before[0], after[0], "the node with a selected pod reports");
    assert_eq!(before[1], after[1], "the node without writes nothing");
    assert_eq!(cluster.find(&["enp", "other"]).unwrap(), other);
}

#[test]
fn a_node_whose_agent_died_does_not_count_for_ever_e31() {
    let Scene {
        cluster,
        agents: [first, second],
        _controller,
    } = scene();
    assert_eq!(cluster.find(&EGRESS).unwrap()["status"]["selectedPods"], 1);
    drop(first);
    let want = json!({"selectedPods": 0, "nodes": ["worker2"]});
    cluster.until_status(&EGRESS, &want);
    let condition = ("True", "NoPodsSelected");
    cluster.until_condition(&EGRESS, "Programmed", condition);
    drop(second);
    cluster.until_condition(&EGRESS, "Programmed", ("False", "UnknownEgressIP"));
    assert_eq!(
        cluster.find(&EGRESS).unwrap()["status"]["nodes"],
        Value::Null
    );
}

#[test]
fn the_loser_of_an_overlap_names_the_winner_and_host_network_pods_are_told_once_e15_e16() {
    let scene = scene();
    let cluster = &scene.cluster;
    cluster.apply(&group("second", &["192.168.1.101"]));
    cluster.apply(&policy("later", "second", "8.8.8.0/24"));
    cluster.create(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "host", "namespace": "alice", "labels": {"role": "frontend"}},
        "spec": {"nodeName": "worker2", "hostNetwork": true, "containers": [{"name": "main", "image": "none"}]},
    }));
    let later = ["enp", "later"];
    let overlapped = cluster.until_condition(&later, "Overlapped", ("True", "Overlap"));
    let message = overlapped["message"].as_str().unwrap();
    assert!(
        message.contains("EgressNATPolicy egress wins 8.8.8.0/24"),
        "{message}"
    );
    for object in [&later, &EGRESS] {
        let excluded = ("True", "HostNetworkPod");
        let excluded = cluster.until_condition(object, "PodsExcluded", excluded);
        assert!(excluded["message"].as_str().unwrap().contains("alice/host"));
    }
    assert_eq!(cluster.until_event("Overlap", "later")["count"], 1);
    assert_eq!(cluster.until_event("HostNetworkPod", "egress")["count"], 1);
    // Another pod changes the message and is no new fact; the end of the overlap ends the condition.
    cluster.run_pod("frontend-2", "worker2", "10.10.2.2");
    cluster.until_status(&EGRESS, &json!({"selectedPods": 2}));
    cluster.apply(&policy("later", "second", "9.9.9.0/24"));
    until("the condition to go", || {
        let status = cluster.find(&later)?["status"].take();
        (!status.to_string().contains("Overlapped")).then_some(())
    });
    assert_eq!(cluster.until_event("HostNetworkPod", "egress")["count"], 1);
}

#[test]
fn a_forged_status_of_a_policy_is_taken_back_and_told() {
    let scene = scene();
    let cluster = &scene.cluster;
    cluster.at_rest();
    let status = scene.status();
    let mut forged = status.clone();
    forged["egressIPs"] = json!(["1.2.3.4"]);
    forged["nodes"] = json!(["nobody"]);
    forged["conditions"][0]["status"] = json!("False");
    forged["conditions"][0]["message"] = json!("forged");
    cluster.patch_status(&EGRESS, &forged);
    cluster.until_event("StatusOverwritten", "egress");
    let told = |status: &Value| {
        let mut status = status.clone();
        for condition in status["conditions"].as_array_mut().unwrap() {
            condition["lastTransitionTime"] = Value::Null;
        }
        status
    };
    until("the status to be as before", || {
        (told(&scene.status()) == told(&status)).then_some(())
    });
    // Conditions of others are theirs.
    let mut conditions = scene.status()["conditions"].take();
    let theirs = json!({
        "type": "example.com/Audited", "status": "True", "reason": "Audited", "message": "by hand",
        "lastTransitionTime": "2026-01-31T12:00:00Z",
    });
    conditions.as_array_mut().unwrap().push(theirs);
    cluster.patch_status(&EGRESS, &json!({ "conditions": conditions }));
    cluster.at_rest();
    assert!(scene.status().to_string().contains("example.com/Audited"));
}
