use super::*;
use crate::directory::DirectoryStore;
use crate::object::{Object, ObjectKey};
use crate::store::{Asked, Layer};
use egressnat_core::Decision;
use egressnat_core::ownership::{Generation, LeaseRecord};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Remembers the last plan, and the deadlines.
#[derive(Clone, Default)]
struct Recording {
    plan: Arc<Mutex<Option<NodePlan>>>,
    deadlines: Arc<Mutex<BTreeMap<IpAddr, Instant>>>,
    /// Who answers on the segment.
    others: Arc<Mutex<BTreeSet<IpAddr>>>,
}

impl Recording {
    /// The floating IPs that the node uses: with a plan, and before their deadline.
    fn used(&self) -> BTreeSet<IpAddr> {
        let plan = self.plan.lock().unwrap();
        let deadlines = self.deadlines.lock().unwrap();
        let is_held = |address: &&IpAddr| deadlines.get(*address) > Some(&Instant::now());
        let planned = plan.iter().flat_map(|plan| &plan.floating_ips);
        planned.filter(is_held).copied().collect()
    }
}

impl Uplink for Recording {
    fn hold_until(&self, addresses: &[IpAddr], deadline: Instant) -> Result<(), Failure> {
        let deadlines = addresses.iter().map(|address| (*address, deadline));
        self.deadlines.lock().unwrap().extend(deadlines);
        Ok(())
    }

    async fn answers(&self, address: IpAddr, patience: Duration) -> bool {
        let answers = self.others.lock().unwrap().contains(&address);
        if !answers {
            tokio::time::sleep(patience).await;
        }
        answers
    }
}

impl NodeDataplane for Recording {
    type Uplink = Self;

    fn uplink(&self) -> Self {
        self.clone()
    }

    fn found(&self) -> BTreeMap<IpAddr, Instant> {
        self.deadlines.lock().unwrap().clone()
    }

    async fn apply(&mut self, plan: &NodePlan) -> Report {
        *self.plan.lock().unwrap() = Some(plan.clone());
        Report {
            floating_ips: self.used().into(),
            ..Report::default()
        }
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
    let dataplane = Recording::default();
    let config = AgentConfig {
        node: "worker1".parse().unwrap(),
        lease_duration: Duration::from_secs(3),
        cluster_ranges: vec![],
        pulse: Pulse::default(),
        outage: StoreOutage::Hold,
    };
    let agent = tokio::spawn(run_agent(store.clone(), dataplane.clone(), config));
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
        let plan = dataplane.plan.lock().unwrap();
        plan.as_ref()
            .map(|plan| plan.decide(address.parse().unwrap(), "8.8.8.8".parse().unwrap(), None))
    };
    until("the policy", || decides("10.10.1.2") == Some(snat)).await;
    assert_eq!(
        decides("10.10.2.2"),
        Some(Decision::Keep),
        "a pod of another node"
    );
    let peers = dataplane.plan.lock().unwrap().clone().unwrap().peers;
    assert_eq!(peers, ["192.168.1.2".parse().unwrap()].into());
    agent.abort();
}

const FLOATING: &str = "192.168.1.100";

fn floating() -> IpAddr {
    FLOATING.parse().unwrap()
}

/// A store that can be out of reach: nothing that is asked of it is answered then.
#[derive(Clone)]
struct OutOfReach {
    store: DirectoryStore,
    is_out: Arc<AtomicBool>,
}

impl Layer for OutOfReach {
    type Inner = DirectoryStore;

    fn inner(&self) -> &DirectoryStore {
        &self.store
    }

    async fn around<T: Send>(
        &self,
        _: Asked<'_>,
        answer: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        if self.is_out.load(Ordering::SeqCst) {
            std::future::pending().await
        }
        answer.await
    }
}

/// Two nodes and a gateway, and the agent of the first.
struct Holding {
    _directory: tempfile::TempDir,
    store: DirectoryStore,
    is_out: Arc<AtomicBool>,
    dataplane: Recording,
    agent: tokio::task::JoinHandle<Result<(), StoreError>>,
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.agent.abort();
    }
}

fn gateway_key() -> ObjectKey {
    ObjectKey::namespaced(Kind::NetworkGatewayGroup, "kube-system", "default")
}

impl Holding {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = DirectoryStore::open(directory.path()).unwrap();
        for (name, address) in [("worker1", "192.168.1.1"), ("worker2", "192.168.1.2")] {
            let status = json!({"addresses": [{"type": "InternalIP", "address": address}]});
            let node = ObjectKey::cluster(Kind::Node, name);
            store.apply(Object::new(&node, json!({}))).unwrap();
            let mut node = store.get(&node).unwrap().unwrap();
            node.value_mut()["status"] = status;
            store.update_status(node).await.unwrap();
        }
        let spec = json!({"spec": {"floatingIPs": [FLOATING]}});
        store.apply(Object::new(&gateway_key(), spec)).unwrap();
        let dataplane = Recording::default();
        let is_out = Arc::default();
        let agent = Self::run(&store, &is_out, &dataplane);
        let holding = Self {
            _directory: directory,
            store,
            is_out,
            dataplane,
            agent,
        };
        // Made after it has seen a grant, it would be of a newer term than the grant.
        until("a lease", || holding.lease().is_some()).await;
        holding
    }

    fn run(
        store: &DirectoryStore,
        is_out: &Arc<AtomicBool>,
        dataplane: &Recording,
    ) -> tokio::task::JoinHandle<Result<(), StoreError>> {
        let config = AgentConfig {
            node: "worker1".parse().unwrap(),
            lease_duration: Duration::from_secs(1),
            cluster_ranges: vec![],
            pulse: Pulse::default(),
            outage: StoreOutage::Hold,
        };
        let store = OutOfReach {
            store: store.clone(),
            is_out: Arc::clone(is_out),
        };
        tokio::spawn(run_agent(store, dataplane.clone(), config))
    }

    async fn grant(&self, grant: Value) {
        let node = grant["node"].clone();
        let status = json!({
            "nodes": {"worker1": "Up", "worker2": "Up"},
            "floatingIPs": {FLOATING: node}, "grants": {FLOATING: grant},
        });
        let mut gateway = self.store.get(&gateway_key()).unwrap().unwrap();
        gateway.value_mut()["status"] = status;
        self.store.update_status(gateway).await.unwrap();
    }

    fn lease(&self) -> Option<LeaseRecord> {
        let key = crate::lease::lease_key(&"worker1".parse().unwrap());
        let lease = self.store.get(&key).unwrap();
        lease.as_ref().map(crate::lease::read_lease)
    }

    async fn until_used(&self, is_used: bool) {
        let what = format!("use: {is_used}");
        until(&what, || {
            self.dataplane.used().contains(&floating()) == is_used
        })
        .await;
    }
}

#[tokio::test]
async fn a_floating_ip_is_used_with_a_grant_in_the_term_of_the_lease_and_given_back_e33() {
    let holding = Holding::start().await;
    // Of a term that is not its own.
    holding
        .grant(json!({"generation": 1, "node": "worker1", "term": 4}))
        .await;
    let planned = || {
        let plan = holding.dataplane.plan.lock().unwrap();
        plan.as_ref().is_some_and(|plan| !plan.peers.is_empty())
    };
    until("a plan", planned).await;
    holding
        .grant(json!({"generation": 2, "node": "worker1"}))
        .await;
    holding.until_used(true).await;
    let until_released = |generation| {
        let released = move |lease: LeaseRecord| {
            lease
                .released
                .get(&floating())
                .map(|release| release.generation)
        };
        let holding = &holding;
        async move {
            let is_told = || holding.lease().and_then(released) == Some(Generation(generation));
            until("what was given back", is_told).await;
            assert!(!holding.dataplane.used().contains(&floating()));
        }
    };
    holding
        .grant(json!({"generation": 2, "node": "worker1", "withdrawn": true}))
        .await;
    until_released(2).await;
    holding
        .grant(json!({"generation": 3, "node": "worker1"}))
        .await;
    holding.until_used(true).await;
    // The gateway itself goes.
    holding.store.remove(&gateway_key()).await.unwrap();
    until_released(3).await;
}

#[tokio::test]
async fn an_address_that_somebody_answers_for_is_not_used_e33() {
    let holding = Holding::start().await;
    holding.dataplane.others.lock().unwrap().insert(floating());
    holding
        .grant(json!({"generation": 1, "node": "worker1"}))
        .await;
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        assert!(!holding.dataplane.used().contains(&floating()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    holding.dataplane.others.lock().unwrap().clear();
    holding.until_used(true).await;
}

#[tokio::test]
async fn while_the_store_does_not_answer_the_segment_decides_e33() {
    let holding = Holding::start().await;
    let neighbor: IpAddr = "192.168.1.2".parse().unwrap();
    holding.dataplane.others.lock().unwrap().insert(neighbor);
    holding
        .grant(json!({"generation": 1, "node": "worker1"}))
        .await;
    holding.until_used(true).await;
    holding.is_out.store(true, Ordering::SeqCst);
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        assert!(holding.dataplane.used().contains(&floating()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    holding.dataplane.others.lock().unwrap().clear();
    holding.until_used(false).await;
    holding.is_out.store(false, Ordering::SeqCst);
    // Its lease was not taken meanwhile.
    holding.until_used(true).await;
}

#[tokio::test]
async fn a_new_run_goes_on_with_what_the_kernel_has_e45() {
    let mut holding = Holding::start().await;
    holding
        .grant(json!({"generation": 1, "node": "worker1"}))
        .await;
    holding.until_used(true).await;
    holding.agent.abort();
    // It would be silent for a while if it were asked for.
    holding.dataplane.others.lock().unwrap().insert(floating());
    holding.agent = Holding::run(&holding.store, &holding.is_out, &holding.dataplane);
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        assert!(holding.dataplane.used().contains(&floating()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
