use super::*;
use crate::directory::DirectoryStore;
use crate::object::{Object, ObjectKey};
use egressnat_core::Decision;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

/// Remembers the last plan.
struct Recording {
    plan: Arc<Mutex<Option<NodePlan>>>,
}

impl NodeDataplane for Recording {
    async fn apply(&mut self, plan: &NodePlan) -> Report {
        *self.plan.lock().unwrap() = Some(plan.clone());
        Report::default()
    }

    async fn changed(&mut self) {
        std::future::pending().await
    }

    fn subnets(&self) -> BTreeSet<IpNet> {
        ["192.168.1.1/24".parse().unwrap()].into()
    }
}

fn apply(store: &DirectoryStore, value: Value) {
    store.apply(Object::from_value(value).unwrap()).unwrap();
}

fn pod(name: &str, node: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "alice"},
        "spec": {"nodeName": node}, "status": {"podIP": address},
    })
}

async fn until(what: &str, mut probe: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !probe() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "timed out waiting for {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn the_agent_plans_for_its_own_pods_and_renews_its_lease() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path()).unwrap();
    for (name, address) in [("worker1", "192.168.1.1"), ("worker2", "192.168.1.2")] {
        let status = json!({"addresses": [{"type": "InternalIP", "address": address}]});
        apply(
            &store,
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}),
        );
        let node = store
            .get(&ObjectKey::cluster(Kind::Node, name))
            .unwrap()
            .unwrap();
        let mut node = node;
        node.value_mut()["status"] = status;
        store.update_status(node).await.unwrap();
    }
    apply(
        &store,
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "alice"}}),
    );
    for (name, node, address) in [("a", "worker1", "10.10.1.2"), ("b", "worker2", "10.10.2.2")] {
        apply(&store, pod(name, node, address));
        let mut object = store
            .get(&ObjectKey::namespaced(Kind::Pod, "alice", name))
            .unwrap()
            .unwrap();
        object.value_mut()["status"] = json!({"podIP": address});
        store.update_status(object).await.unwrap();
    }
    let plan = Arc::new(Mutex::new(None));
    let config = AgentConfig {
        node: "worker1".parse().unwrap(),
        lease_duration: Duration::from_secs(3),
        cluster_ranges: vec![],
        pulse: Pulse::default(),
    };
    let agent = tokio::spawn(run_agent(
        store.clone(),
        Recording {
            plan: Arc::clone(&plan),
        },
        config,
    ));
    let lease = ObjectKey::namespaced(Kind::Lease, "kube-system", "egressnat-node-worker1");
    until("a lease", || store.get(&lease).unwrap().is_some()).await;

    apply(
        &store,
        json!({
            "apiVersion": "networking.gke.io/v1", "kind": "NetworkGatewayGroup",
            "metadata": {"name": "default", "namespace": "kube-system"},
            "spec": {"floatingIPs": ["192.168.1.100"]},
        }),
    );
    apply(
        &store,
        json!({
            "apiVersion": "networking.gke.io/v1", "kind": "EgressNATPolicy", "metadata": {"name": "egress"},
            "spec": {
                "sources": [{"namespaceSelector": {}, "podSelector": {}}], "action": "SNAT",
                "destinations": [{"cidr": "8.8.8.0/24"}],
                "gatewayRef": {"name": "default", "namespace": "kube-system"},
            },
        }),
    );
    let snat = Decision::Snat("192.168.1.100".parse().unwrap());
    let decides = |address: &str| {
        let plan = plan.lock().unwrap();
        plan.as_ref()
            .map(|plan| plan.decide(address.parse().unwrap(), "8.8.8.8".parse().unwrap(), None))
    };
    until("the policy", || decides("10.10.1.2") == Some(snat)).await;
    assert_eq!(
        decides("10.10.2.2"),
        Some(Decision::Keep),
        "a pod of another node"
    );
    let peers = plan.lock().unwrap().clone().unwrap().peers;
    assert_eq!(peers, ["192.168.1.2".parse().unwrap()].into());
    agent.abort();
}
