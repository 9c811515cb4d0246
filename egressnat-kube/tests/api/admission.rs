//! Admission: an agent writes for its own node only, by the node that its token is bound to.

use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::server::Told;

/// kubectl as the agent of a node; of no node, if there is none.
fn as_agent(cluster: &Cluster, node: Option<&str>, arguments: &[&str], input: &str) -> Told {
    as_account(cluster, "egressnat-agent", node, arguments, input)
}

fn as_account(
    cluster: &Cluster,
    account: &str,
    node: Option<&str>,
    arguments: &[&str],
    input: &str,
) -> Told {
    let kubeconfig = cluster.kubeconfig(account, node, None);
    let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
    let arguments = [&[kubeconfig.as_str()], arguments].concat();
    cluster.server.kubectl_with(&arguments, input)
}

fn lease(name: &str, holder: &str) -> String {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name, "namespace": "kube-system"}, "spec": {"holderIdentity": holder},
    })
    .to_string()
}

fn gateway_node(name: &str, subnet: &str) -> String {
    json!({
        "apiVersion": "networking.gke.io/v1", "kind": "NetworkGatewayNode",
        "metadata": {"name": name, "namespace": "kube-system"}, "spec": {"subnets": [subnet]},
    })
    .to_string()
}

#[test]
fn an_agent_makes_no_other_node_look_alive_and_says_nothing_for_it_e33() {
    let cluster = Cluster::start();
    let create = ["create", "--filename", "-"];
    let replace = ["replace", "--filename", "-"];
    let tell = [
        "apply",
        "--server-side",
        "--subresource=status",
        "--filename",
        "-",
    ];
    let report = |node: &str| {
        let mut object: Value = serde_json::from_str(&gateway_node(node, "")).unwrap();
        object["spec"] = Value::Null;
        object["status"] = json!({"report": {"revision": "1"}});
        object.to_string()
    };
    for node in ["worker1", "worker2"] {
        let name = format!("egressnat-node-{node}");
        for object in [lease(&name, node), gateway_node(node, "192.168.1.0/24")] {
            let told = as_agent(&cluster, Some(node), &create, &object);
            assert!(told.is_success, "{}", told.stderr);
        }
        let told = as_agent(&cluster, Some(node), &tell, &report(node));
        assert!(told.is_success, "{}", told.stderr);
    }
    let others: [(&[&str], String); 6] = [
        (&replace, lease("egressnat-node-worker2", "worker1")),
        (&create, lease("egressnat-node-worker3", "worker1")),
        (&replace, lease("egressnat-controller", "worker1")),
        (&replace, gateway_node("worker2", "10.0.0.0/8")),
        (&create, gateway_node("worker3", "10.0.0.0/8")),
        (&tell, report("worker2")),
    ];
    cluster.create(&serde_json::from_str(&lease("egressnat-controller", "first")).unwrap());
    for (arguments, object) in &others {
        let told = as_agent(&cluster, Some("worker1"), arguments, object);
        assert!(!told.is_success, "{arguments:?} {object}");
        let text = "the agent of node worker1 may write";
        assert!(told.stderr.contains(text), "{}", told.stderr);
    }
    // A token that is bound to no node is good for none.
    let own = gateway_node("worker1", "10.0.0.0/8");
    let told = as_agent(&cluster, None, &replace, &own);
    assert!(!told.is_success);
    assert!(
        told.stderr.contains("--bound-object-kind Node"),
        "{}",
        told.stderr
    );
    // Nobody else is concerned.
    let told = cluster.server.kubectl_with(&replace, &own);
    assert!(told.is_success, "{}", told.stderr);
}

#[test]
fn the_controller_touches_no_lock_of_another_program_e33() {
    let cluster = Cluster::start();
    let as_controller = |arguments: &[&str], object: &str| {
        as_account(&cluster, "egressnat-controller", None, arguments, object)
    };
    let (create, replace) = (
        ["create", "--filename", "-"],
        ["replace", "--filename", "-"],
    );
    cluster.create(&serde_json::from_str(&lease("kube-scheduler", "another")).unwrap());
    let told = as_controller(&replace, &lease("kube-scheduler", "egressnat"));
    assert!(!told.is_success);
    let text = "the controller may write egressnat-controller";
    assert!(told.stderr.contains(text), "{}", told.stderr);
    let told = as_controller(&create, &lease("egressnat-node-worker1", ""));
    assert!(told.is_success, "{}", told.stderr);
    let told = as_controller(&replace, &lease("egressnat-node-worker1", ""));
    assert!(told.is_success, "{}", told.stderr);
}
