//! An agent's loop on the objects of a large cluster, as the API server tells them.

use std::collections::BTreeSet;
use std::future::pending;
use std::net::Ipv4Addr;
use std::time::Duration;

use egressnat_core::{NodePlan, Report};
use egressnat_kube::{
    AgentConfig, FieldManager, NoUplink, NodeDataplane, Object, ObjectKey, ObjectStore, Pulse,
    StatusApplied, StoreError, StoreOutage, Watch, WatchEvent, WatchRequest, run_agent,
};
use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::watch;
use tokio::task::JoinSet;

const NODE: &str = "node-0";

/// A node's place in a cluster.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) nodes: usize,
    /// On the agent's node.
    pub(crate) pods: usize,
    pub(crate) policies: usize,
}

/// A store that tells objects one after another, made when they are told, and takes for written what is written.
#[derive(Clone)]
struct Telling(Size);

impl ObjectStore for Telling {
    fn watch(&self, _: &WatchRequest) -> Result<Watch, StoreError> {
        let (sender, events) = unbounded_channel();
        let size = self.0;
        let mut task = JoinSet::new();
        task.spawn(async move {
            for object in objects(size) {
                let object = Object::from_value(object)?;
                let _ = sender.send(WatchEvent::Applied(object));
                // As slowly as they are taken.
                tokio::task::yield_now().await;
            }
            let _ = sender.send(WatchEvent::Synced);
            pending::<Result<(), StoreError>>().await
        });
        Ok(Watch::new(events, task))
    }

    async fn read(&self, _: &ObjectKey) -> Result<Option<Object>, StoreError> {
        Ok(None)
    }

    async fn create(&self, object: Object) -> Result<Object, StoreError> {
        Ok(object)
    }

    async fn update(&self, object: Object) -> Result<Object, StoreError> {
        Ok(object)
    }

    async fn update_status(&self, object: Object) -> Result<Object, StoreError> {
        Ok(object)
    }

    async fn apply_status(
        &self,
        object: Object,
        _: FieldManager,
    ) -> Result<StatusApplied, StoreError> {
        Ok(StatusApplied {
            object,
            taken_back: None,
        })
    }

    async fn remove(&self, _: &ObjectKey) -> Result<bool, StoreError> {
        Ok(false)
    }
}

/// Pods last and first, as kinds come in any order.
fn objects(size: Size) -> impl Iterator<Item = Value> + Send {
    let half = size.pods / 2;
    (0..half)
        .map(pod)
        .chain([namespace(), group()])
        .chain((0..size.nodes).map(node))
        .chain((0..size.policies).map(policy))
        .chain((half..size.pods).map(pod))
}

fn address(network: [u8; 2], n: usize) -> String {
    let network = u32::from(Ipv4Addr::new(network[0], network[1], 0, 0));
    let host = u32::try_from(n).unwrap_or_default();
    Ipv4Addr::from(network + 256 + host).to_string()
}

fn node(n: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("node-{n}")},
        "status": {"addresses": [{"type": "InternalIP", "address": address([192, 168], n)}]},
    })
}

fn namespace() -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tenant", "labels": {"tenant": "a"}}})
}

fn pod(n: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("pod-{n}"), "namespace": "tenant",
            "labels": {"role": "frontend", "app": format!("app-{}", n % 20)},
        },
        "spec": {"nodeName": NODE},
        "status": {"phase": "Running", "podIPs": [{"ip": address([10, 10], n)}]},
    })
}

fn group() -> Value {
    json!({
        "apiVersion": "networking.gke.io/v1", "kind": "NetworkGatewayGroup",
        "metadata": {"name": "default", "namespace": "kube-system"},
        "spec": {"floatingIPs": ["192.168.0.1"]},
    })
}

/// For all frontends, so that each is in the plan: the worst case of a node.
fn policy(n: usize) -> Value {
    let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": kind, "message": "", "observedGeneration": 1});
    json!({
        "apiVersion": "networking.gke.io/v1", "kind": "EgressNATPolicy",
        "metadata": {
            "name": format!("policy-{n}"), "uid": format!("8c5c0a3e-0000-4000-8000-{n:012}"), "generation": 1,
            "resourceVersion": n.to_string(), "creationTimestamp": "2026-01-31T12:00:00Z",
        },
        "spec": {
            "sources": [{
                "namespaceSelector": {"matchExpressions": [{"key": "tenant", "operator": "Exists"}]},
                "podSelector": {"matchLabels": {"role": "frontend"}},
            }],
            "action": "SNAT",
            "destinations": [{"cidr": format!("20.{}.{}.0/24", n / 250, n % 250)}],
            "gatewayRef": {"name": "default", "namespace": "kube-system"},
        },
        "status": {"conditions": [condition("Accepted"), condition("ResolvedRefs"), condition("Programmed")]},
    })
}

/// A packet path that does nothing but tell when the whole plan is there.
struct Nothing {
    size: Size,
    planned: watch::Sender<bool>,
}

impl NodeDataplane for Nothing {
    type Uplink = NoUplink;

    fn uplink(&self) -> NoUplink {
        NoUplink
    }

    async fn apply(&mut self, plan: &NodePlan) -> Report {
        let is_whole =
            plan.pods.len() == self.size.pods && plan.destinations.len() == self.size.policies;
        self.planned.send_replace(is_whole);
        Report::default()
    }

    async fn changed(&mut self) {
        pending().await
    }

    fn subnets(&self) -> BTreeSet<IpNet> {
        BTreeSet::new()
    }
}

/// A loop that has planned and reported, with the runtime that it goes on in.
///
/// # Panics
///
/// It ends, or does not come to the whole plan.
pub(crate) fn started(size: Size) -> Runtime {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (planned, mut is_planned) = watch::channel(false);
        let config = AgentConfig {
            node: NODE.parse().expect("a node name"),
            lease_duration: Duration::from_secs(3),
            cluster_ranges: vec![],
            pulse: Pulse::default(),
            outage: StoreOutage::Hold,
        };
        tokio::spawn(run_agent(Telling(size), Nothing { size, planned }, config));
        let whole = is_planned.wait_for(|is_whole| *is_whole);
        let in_time = tokio::time::timeout(Duration::from_secs(120), whole);
        in_time.await.expect("a plan in time").expect("a loop");
        // The report is written by a task beside it, which gets its turn now.
        tokio::time::sleep(Duration::from_millis(100)).await;
    });
    runtime
}
