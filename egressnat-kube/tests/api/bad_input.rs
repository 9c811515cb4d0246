//! Objects that pass the schema and still make no sense: told where they are, with the fix, and without effect elsewhere.

use serde_json::{Value, json};

use crate::cluster::{Agent, Cluster, Running, group, namespace, policy};

const GROUP: [&str; 3] = ["ngg", "default", "--namespace=kube-system"];

struct Scene {
    cluster: Cluster,
    _agents: [Agent; 2],
    _controller: Running,
}

/// Two nodes, one of them with a pod range, a pod, a group, and a policy that is programmed.
fn scene() -> Scene {
    let cluster = Cluster::start();
    cluster.create(&json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "worker3"}, "spec": {"podCIDR": "10.10.3.0/24"},
    }));
    let agents = ["worker1", "worker2"].map(|node| cluster.agent(node, None));
    let controller = cluster.controller("first", None);
    cluster.apply(&namespace("alice", &json!({"user": "alice"})));
    cluster.run_pod("frontend-1", "worker1", "10.10.1.2");
    cluster.apply(&group("default", &["192.168.1.100"]));
    cluster.apply(&policy("good", "default", "8.8.8.0/24"));
    cluster.until_programmed(&["enp", "good"]);
    Scene {
        cluster,
        _agents: agents,
        _controller: controller,
    }
}

/// What is told of a bad object: a condition and an event, each of which gives the fix.
struct Case {
    name: &'static str,
    object: Value,
    condition: (&'static str, &'static str, &'static str),
    /// What both messages contain.
    fix: &'static str,
}

fn group_cases() -> Vec<Case> {
    let case = |name, addresses: &[&str], condition, fix| Case {
        name,
        object: group(name, addresses),
        condition,
        fix,
    };
    vec![
        case(
            "node-address",
            &["192.168.1.2"],
            ("Accepted", "False", "FloatingIPIsNodeAddress"),
            "use an address that no host has",
        ),
        case(
            "second-group",
            &["192.168.1.100", "192.168.1.120"],
            ("PartiallyInvalid", "True", "DuplicateFloatingIP"),
            "remove it from one of the two",
        ),
        case(
            "elsewhere",
            &["172.16.0.1"],
            ("Assigned", "False", "Unassigned"),
            "use an address of the nodes' network",
        ),
    ]
}

fn policy_cases() -> Vec<Case> {
    let case = |name, object: Value, condition, fix| Case {
        name,
        object,
        condition,
        fix,
    };
    let mut nobody = policy("nobody", "default", "9.9.9.0/24");
    nobody["spec"]["sources"][0]["podSelector"] = json!({"matchLabels": {"role": "fronted"}});
    let mut enforcement = policy("enforcement", "default", "9.9.9.0/24");
    enforcement["metadata"]["annotations"] = json!({"egressnat.io/enforcement": "Strickt"});
    vec![
        case(
            "missing-group",
            policy("missing-group", "missing", "9.9.9.0/24"),
            ("ResolvedRefs", "False", "InvalidGatewayRef"),
            "correct gatewayRef.name",
        ),
        case(
            "pod-network",
            policy("pod-network", "default", "10.10.3.0/25"),
            ("PartiallyInvalid", "True", "InternalDestination"),
            "remove them",
        ),
        case(
            "nobody",
            nobody,
            ("Programmed", "True", "NoPodsSelected"),
            "compare namespaceSelector and podSelector with the labels",
        ),
        case(
            "enforcement",
            enforcement,
            ("Accepted", "False", "Invalid"),
            "write Strict or BestEffort",
        ),
        case(
            "refused-address",
            policy("refused-address", "node-address", "9.9.9.0/24"),
            ("ResolvedRefs", "False", "InvalidGatewayRef"),
            "see the events of that gateway",
        ),
    ]
}

#[test]
fn what_makes_no_sense_is_told_with_the_fix_and_harms_nothing_else_e12_e22_e23_e34() {
    let scene = scene();
    let cluster = &scene.cluster;
    cluster.at_rest();
    let good = cluster.find(&["enp", "good"]).unwrap();
    let groups = group_cases();
    let policies = policy_cases();
    for case in groups.iter().chain(&policies) {
        cluster.apply(&case.object);
    }
    for (case, kind) in groups
        .iter()
        .map(|case| (case, "ngg"))
        .chain(policies.iter().map(|case| (case, "enp")))
    {
        let object = [kind, case.name, "--namespace=kube-system"];
        let (condition, status, reason) = case.condition;
        let told = cluster.until_condition(&object, condition, (status, reason));
        let event = cluster.until_event(reason, case.name);
        for message in [&told["message"], &event["message"]] {
            let message = message.as_str().unwrap();
            assert!(message.contains(case.fix), "{}: {message}", case.name);
        }
    }
    cluster.at_rest();
    assert_eq!(cluster.find(&["enp", "good"]).unwrap(), good);
    cluster.until_programmed(&GROUP);
    // What is put right is right.
    cluster.apply(&policy("missing-group", "default", "9.9.9.0/24"));
    cluster.until_programmed(&["enp", "missing-group"]);
    let annotate = [
        "annotate",
        "enp",
        "enforcement",
        "egressnat.io/enforcement=Strict",
        "--overwrite",
    ];
    cluster.server.ok(&annotate);
    cluster.until_programmed(&["enp", "enforcement"]);
}
