use super::*;
use crate::directory::DirectoryStore;
use crate::object::ObjectKey;
use crate::store::Layer;
use egressnat_core::gateway::SYSTEM_NAMESPACE;
use egressnat_core::ownership::{Generation, Release};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

struct Cluster {
    _directory: tempfile::TempDir,
    store: DirectoryStore,
    controller: tokio::task::JoinHandle<Result<(), StoreError>>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.controller.abort();
    }
}

fn document(value: Value) -> Object {
    Object::from_value(value).unwrap()
}

/// Whether a status says this, among other things.
fn has(status: &Value, want: &Value) -> bool {
    let mut fields = want.as_object().unwrap().iter();
    fields.all(|(field, value)| status.get(field) == Some(value))
}

fn gateway(namespace: &str, addresses: &[&str]) -> Object {
    let key = ObjectKey::namespaced(Kind::NetworkGatewayGroup, namespace, "default");
    Object::new(&key, json!({ "spec": { "floatingIPs": addresses } }))
}

impl Cluster {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = DirectoryStore::open(directory.path()).unwrap();
        let controller = tokio::spawn(run_controller(store.clone(), ControllerConfig::default()));
        Self {
            _directory: directory,
            store,
            controller,
        }
    }

    fn add_node(&self, name: &str) {
        let node = ObjectKey::cluster(Kind::Node, name);
        self.store.apply(Object::new(&node, json!({}))).unwrap();
        let gateway_node = ObjectKey::namespaced(Kind::NetworkGatewayNode, SYSTEM_NAMESPACE, name);
        let spec = json!({ "spec": { "subnets": ["192.168.1.0/24"] } });
        self.store.apply(Object::new(&gateway_node, spec)).unwrap();
    }

    fn renew(&self, name: &str, seconds: u64) {
        let node = name.parse().unwrap();
        let known = self.store.get(&crate::lease::lease_key(&node)).unwrap();
        let mut record = known.as_ref().map(read_lease).unwrap_or_default();
        record.is_taken = false;
        record.duration = Duration::from_secs(seconds);
        let lease = crate::lease::lease_object(&node, &record, known.as_ref());
        self.store.apply(lease).unwrap();
    }

    async fn until<T>(&self, what: &str, mut probe: impl FnMut(&DirectoryStore) -> Option<T>) -> T {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(found) = probe(&self.store) {
                return found;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "timed out waiting for {what}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn until_status(&self, want: Value) {
        let key = gateway(SYSTEM_NAMESPACE, &[]).key().clone();
        let what = want.to_string();
        self.until(&what, |store| {
            let object = store.get(&key).unwrap()?;
            has(object.at("/status"), &want).then_some(())
        })
        .await;
    }

    async fn until_grant(&self, want: Value) {
        let what = want.to_string();
        self.until(&what, |store| (grant(store) == want).then_some(()))
            .await;
    }

    async fn until_event(&self, reason: &str, about: &str) -> Object {
        self.until(reason, |store| {
            let events = store.list(Kind::Event).unwrap();
            let is_it = |event: &Object| {
                event.at("/reason") == reason && event.at("/involvedObject/name") == about
            };
            events.into_iter().find(is_it)
        })
        .await
    }
}

#[tokio::test]
async fn a_dead_node_loses_its_addresses_and_takes_none_back_e31_e32() {
    let cluster = Cluster::start();
    for name in ["worker1", "worker2"] {
        cluster.add_node(name);
        cluster.renew(name, if name == "worker1" { 1 } else { 600 });
    }
    cluster
        .store
        .apply(gateway(
            SYSTEM_NAMESPACE,
            &["192.168.1.100", "192.168.1.101"],
        ))
        .unwrap();
    let down = json!({
        "nodes": {"worker1": "Down", "worker2": "Up"},
        "floatingIPs": {"192.168.1.100": "worker2", "192.168.1.101": "worker2"},
    });
    // worker1 never renews.
    cluster.until_status(down).await;
    cluster.renew("worker1", 600);
    let back = json!({
        "nodes": {"worker1": "Up", "worker2": "Up"},
        "floatingIPs": {"192.168.1.100": "worker2", "192.168.1.101": "worker2"},
    });
    cluster.until_status(back).await;
    cluster.until_event("Moved", "default").await;
}

#[tokio::test]
async fn a_gateway_of_a_cluster_namespace_gets_a_copy_that_follows_it_e7() {
    let cluster = Cluster::start();
    cluster
        .store
        .apply(gateway("cluster-cluster1", &["192.168.1.100"]))
        .unwrap();
    cluster.until_event("ClusterSwitchOff", "default").await;
    let switch = document(json!({
        "apiVersion": "baremetal.cluster.gke.io/v1", "kind": "Cluster",
        "metadata": {"name": "cluster1", "namespace": "cluster-cluster1"},
        "spec": {"clusterNetwork": {"advancedNetworking": true}},
    }));
    cluster.store.apply(switch).unwrap();
    let copy = gateway(SYSTEM_NAMESPACE, &[]).key().clone();
    let has = |addresses: Value| {
        let copy = copy.clone();
        move |store: &DirectoryStore| {
            let object = store.get(&copy).unwrap()?;
            (object.at("/spec/floatingIPs") == &addresses).then_some(())
        }
    };
    cluster
        .until("the copy", has(json!(["192.168.1.100"])))
        .await;
    cluster
        .store
        .apply(gateway("cluster-cluster1", &["192.168.1.101"]))
        .unwrap();
    cluster
        .until("the edit", has(json!(["192.168.1.101"])))
        .await;
    cluster
        .store
        .delete(gateway("cluster-cluster1", &[]).key())
        .unwrap();
    cluster
        .until("the copy to go", |store| {
            store.get(&copy).unwrap().is_none().then_some(())
        })
        .await;
}

#[tokio::test]
async fn an_unknown_egress_ip_is_told_once_e21() {
    let cluster = Cluster::start();
    let policy = document(json!({
        "apiVersion": "networking.gke.io/v1alpha1", "kind": "EgressNATPolicy", "metadata": {"name": "egress"},
        "spec": {
            "egress": [{"namespaceSelector": {}, "podSelector": {}}],
            "destinationCIDRs": ["8.8.8.0/24"],
            "egressSourceIP": "192.168.1.66",
        },
    }));
    cluster.store.apply(policy).unwrap();
    let event = cluster.until_event("UnknownEgressIP", "egress").await;
    assert_eq!(event.at("/count"), &json!(1));
    assert!(
        event
            .at("/message")
            .as_str()
            .unwrap()
            .contains("192.168.1.66")
    );
    // More runs of the loop, up to one whose effect can be seen, tell nothing again.
    cluster.add_node("worker1");
    cluster.renew("worker1", 600);
    cluster
        .store
        .apply(gateway(SYSTEM_NAMESPACE, &["192.168.1.100"]))
        .unwrap();
    cluster.until_event("Assigned", "default").await;
    assert_eq!(
        cluster
            .store
            .get(event.key())
            .unwrap()
            .unwrap()
            .at("/count"),
        &json!(1)
    );
}

/// A store whose watches can be made to tell nothing more, as one on a connection that is stuck.
#[derive(Clone)]
struct Stuck {
    store: DirectoryStore,
    is_stuck: Arc<AtomicBool>,
}

impl Layer for Stuck {
    type Inner = DirectoryStore;

    fn inner(&self) -> &DirectoryStore {
        &self.store
    }

    fn start_watch(&self, request: &WatchRequest) -> Result<Watch, StoreError> {
        let mut inner = self.store.watch(request)?;
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        let is_stuck = Arc::clone(&self.is_stuck);
        tokio::spawn(async move {
            while let Some(event) = inner.next().await {
                if !is_stuck.load(Ordering::SeqCst) && sender.send(event).is_err() {
                    return;
                }
            }
        });
        Ok(Watch::new(receiver, ()))
    }
}

/// A controller that is not run by its loop, and a watch for it.
fn by_hand<S: ObjectStore>(store: S) -> (Controller<S>, Watch) {
    let watch = store.watch(&WatchRequest::of(&KINDS)).unwrap();
    let leadership = Leadership::Sole;
    (Controller::new(Led { store, leadership }, vec![]), watch)
}

#[tokio::test]
async fn renewals_alone_are_nothing_to_do() {
    let cluster = Cluster::start();
    cluster.add_node("worker1");
    cluster.renew("worker1", 600);
    let (mut controller, mut watch) = by_hand(cluster.store.clone());
    let mut turns = Vec::new();
    // The objects, then a renewal, then the lease of another node, which is news.
    for node in [None, Some("worker1"), Some("worker2")] {
        if let Some(node) = node {
            cluster.renew(node, 600);
        }
        loop {
            let event = watch.next().await.unwrap();
            let is_awaited = match &event {
                WatchEvent::Synced => true,
                WatchEvent::Applied(object) => node.is_some() && object.kind() == Kind::Lease,
                _ => false,
            };
            controller.take(event);
            if is_awaited {
                break;
            }
            controller.turn().await.ok();
        }
        turns.push(controller.turn().await.unwrap());
    }
    assert_eq!(turns, [Turn::Done, Turn::Idle, Turn::Done]);
}

#[tokio::test]
async fn a_watch_that_is_stuck_takes_nobody_for_dead() {
    let cluster = Cluster::start();
    cluster.controller.abort();
    cluster.add_node("worker1");
    cluster.renew("worker1", 1);
    cluster
        .store
        .apply(gateway(SYSTEM_NAMESPACE, &["192.168.1.100"]))
        .unwrap();
    let is_stuck = Arc::new(AtomicBool::new(false));
    let stuck = Stuck {
        store: cluster.store.clone(),
        is_stuck: Arc::clone(&is_stuck),
    };
    let controller = tokio::spawn(run_controller(stuck, ControllerConfig::default()));
    let up = json!({"nodes": {"worker1": "Up"}, "floatingIPs": {"192.168.1.100": "worker1"}});
    cluster.until_status(up.clone()).await;
    is_stuck.store(true, Ordering::SeqCst);
    let end = tokio::time::Instant::now() + Duration::from_secs(4);
    let key = gateway(SYSTEM_NAMESPACE, &[]).key().clone();
    while tokio::time::Instant::now() < end {
        cluster.renew("worker1", 1);
        let status = cluster.store.get(&key).unwrap().unwrap();
        assert!(has(status.at("/status"), &up), "{status:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // It renews no more: then it is dead, stuck or not.
    let down = json!({"nodes": {"worker1": "Down"}, "floatingIPs": {}});
    cluster.until_status(down).await;
    controller.abort();
}

/// A node with a lease of so many seconds, and a gateway whose floating IP it has.
async fn granted_to_worker1(seconds: u64) -> Cluster {
    let cluster = Cluster::start();
    cluster.add_node("worker1");
    cluster.renew("worker1", seconds);
    cluster
        .store
        .apply(gateway(SYSTEM_NAMESPACE, &["192.168.1.100"]))
        .unwrap();
    let first = json!({"generation": 1, "node": "worker1"});
    cluster.until_grant(first).await;
    cluster
}

fn grant(store: &DirectoryStore) -> Value {
    let key = gateway(SYSTEM_NAMESPACE, &[]).key().clone();
    let status = store.get(&key).unwrap().unwrap();
    status.at("/status/grants/192.168.1.100").clone()
}

#[tokio::test]
async fn a_silent_nodes_lease_is_taken_before_its_address_is_given_away_e33() {
    let cluster = granted_to_worker1(1).await;
    cluster.add_node("worker2");
    cluster.renew("worker2", 600);
    let second = json!({"generation": 2, "node": "worker2"});
    cluster.until_grant(second).await;
    let lease = lease_key(&"worker1".parse().unwrap());
    let taken = read_lease(&cluster.store.get(&lease).unwrap().unwrap());
    assert!(taken.is_taken);
    assert_eq!(taken.term.0, 1, "a renewal of the old term is void");
    // It comes back in the new term, and takes nothing back (E32).
    cluster.renew("worker1", 600);
    let up = json!({
        "nodes": {"worker1": "Up", "worker2": "Up"},
        "floatingIPs": {"192.168.1.100": "worker2"},
    });
    cluster.until_status(up).await;
}

#[tokio::test]
async fn a_drained_node_gives_back_before_another_is_given_e33_e35() {
    let cluster = granted_to_worker1(600).await;
    cluster.add_node("worker2");
    cluster.renew("worker2", 600);
    let node = ObjectKey::cluster(Kind::Node, "worker1");
    let mut cordoned = cluster.store.get(&node).unwrap().unwrap();
    cordoned.value_mut()["spec"]["unschedulable"] = json!(true);
    cluster.store.apply(cordoned).unwrap();
    let withdrawn = json!({"generation": 1, "node": "worker1", "withdrawn": true});
    cluster.until_grant(withdrawn).await;

    let name = "worker1".parse().unwrap();
    let lease = cluster.store.get(&lease_key(&name)).unwrap();
    let mut record = read_lease(lease.as_ref().unwrap());
    let address = "192.168.1.100".parse().unwrap();
    let release = Release {
        generation: Generation(1),
        was_used: true,
    };
    record.released = [(address, release)].into();
    let lease = crate::lease::lease_object(&name, &record, lease.as_ref());
    cluster.store.apply(lease).unwrap();
    let second = json!({"generation": 2, "node": "worker2", "handedOver": true});
    cluster.until_grant(second).await;
}

#[tokio::test]
async fn a_status_that_others_change_is_put_right_e33() {
    let cluster = Cluster::start();
    for name in ["worker1", "worker2"] {
        cluster.add_node(name);
        cluster.renew(name, 600);
    }
    cluster
        .store
        .apply(gateway(SYSTEM_NAMESPACE, &["192.168.1.100"]))
        .unwrap();
    let is_granted = |store: &DirectoryStore| grant(store).is_object().then(|| grant(store));
    let first = cluster.until("a grant", is_granted).await;
    let key = gateway(SYSTEM_NAMESPACE, &[]).key().clone();
    for forged in [
        json!({}),
        json!({"floatingIPs": {"192.168.1.100": "worker9"}}),
        json!({"grants": {"192.168.1.100": {"generation": 0, "node": "worker2"}}}),
    ] {
        let mut gateway = cluster.store.get(&key).unwrap().unwrap();
        gateway.value_mut()["status"] = forged;
        cluster.store.update_status(gateway).await.unwrap();
        let is_right = |store: &DirectoryStore| (grant(store) == first).then_some(());
        cluster.until("the same grant again", is_right).await;
    }
}
