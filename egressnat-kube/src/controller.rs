//! The controller's loop: which node holds which floating IP, told in status and events.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use egressnat_core::gateway::SYSTEM_NAMESPACE;
use egressnat_core::model::{GatewayKey, NodeName, Snapshot};
use egressnat_core::{Assigned, Assignment, ClusterPlan, effective_gateways, plan_cluster};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::event::{Fact, Recorder, Severity};
use crate::index::Index;
use crate::kind::Kind;
use crate::lease::{lease_node, read_lease};
use crate::liveness::Liveness;
use crate::object::{Object, ObjectKey};
use crate::resource::{MIRROR_OF, gateway_key, object_key};
use crate::store::{ObjectStore, StoreError, WatchEvent};

/// What the controller watches: never pods.
const KINDS: [Kind; 8] = [
    Kind::Node,
    Kind::Cluster,
    Kind::NetworkGatewayGroup,
    Kind::AnthosNetworkGateway,
    Kind::NetworkGatewayNode,
    Kind::AnthosNetworkGatewayNode,
    Kind::EgressNatPolicy,
    Kind::Lease,
];

/// How long to wait after a write that failed.
const RETRY: Duration = Duration::from_millis(200);

/// How long to wait for the rest of a burst of events.
const SETTLE: Duration = Duration::from_millis(5);

/// What the controller needs to know besides the objects.
#[derive(Debug, Clone, Default)]
pub struct ControllerConfig {
    /// Ranges inside the cluster that no object tells, such as the service range.
    pub cluster_ranges: Vec<IpNet>,
}

/// Runs the controller until the store goes away.
///
/// # Guarantees
///
/// It writes only what differs, and each fact once. A floating IP changes its node only when its node is down, gone or
/// unfit (E31, E32). After a restart it goes on from the assignment in the status.
///
/// # Errors
///
/// The watch cannot be started. Writes that fail are told and repeated.
pub async fn run_controller<S: ObjectStore>(
    store: S,
    config: ControllerConfig,
) -> Result<(), StoreError> {
    let mut watch = store.watch(&KINDS)?;
    let mut controller = Controller {
        store,
        index: Index::new(config.cluster_ranges),
        liveness: Liveness::default(),
        recorder: Recorder::default(),
        assignment: None,
    };
    let mut retry = None;
    loop {
        let expiry = controller.liveness.next_expiry(Instant::now());
        let wake = expiry.into_iter().chain(retry).min();
        let event = match wake {
            Some(wake) => tokio::time::timeout_at(wake.into(), watch.next()).await,
            None => Ok(watch.next().await),
        };
        if let Ok(event) = event {
            let Some(event) = event else { return Ok(()) };
            controller.take(event);
            tokio::time::sleep(SETTLE).await;
            while let Some(event) = watch.try_next() {
                controller.take(event);
            }
        }
        retry = match controller.reconcile().await {
            Ok(()) => None,
            // Somebody wrote in between; what they wrote is on its way to us.
            Err(StoreError::Conflict(_) | StoreError::NotFound(_)) => Some(Instant::now() + RETRY),
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "a write failed and will be repeated"
                );
                Some(Instant::now() + RETRY)
            }
        };
    }
}

struct Controller<S> {
    store: S,
    index: Index,
    liveness: Liveness,
    recorder: Recorder,
    /// In force; none before the first run, which starts from the status.
    assignment: Option<Assignment>,
}

impl<S: ObjectStore> Controller<S> {
    fn take(&mut self, event: WatchEvent) {
        let now = Instant::now();
        match &event {
            WatchEvent::Restarted(objects) => {
                objects
                    .iter()
                    .filter(|o| o.kind() == Kind::Lease)
                    .for_each(|lease| self.saw(lease, now));
            }
            WatchEvent::Applied(object) if object.kind() == Kind::Lease => self.saw(object, now),
            WatchEvent::Deleted(key) => {
                if let Some(node) = lease_node(key) {
                    self.liveness.gone(&node);
                }
            }
            WatchEvent::Applied(_) => {}
            WatchEvent::Failed(error) => tracing::error!(%error, "a manifest cannot be used"),
        }
        for error in self.index.take(event) {
            tracing::error!(%error, "an object does not make sense and has no effect");
        }
    }

    fn saw(&mut self, lease: &Object, now: Instant) {
        if let Some((node, renewal, duration)) = read_lease(lease) {
            self.liveness.seen(&node, &renewal, duration, now);
        }
    }

    async fn reconcile(&mut self) -> Result<(), StoreError> {
        let now = Instant::now();
        let health = |node: &NodeName| self.liveness.health(node, now);
        let mut snapshot = self.index.snapshot(Assignment::default(), health);
        let before = match &self.assignment {
            Some(assignment) => assignment.clone(),
            None => self.index.assignment(&effective_gateways(&snapshot)),
        };
        snapshot.previous = before.clone();
        let ClusterPlan {
            assigned, findings, ..
        } = plan_cluster(&snapshot);
        self.assignment = Some(assigned.assignment.clone());

        self.write_copies(&assigned).await?;
        self.write_gateway_status(&snapshot, &assigned).await?;
        self.write_nodes(&snapshot, &assigned).await?;
        for fact in moves(&before, &assigned) {
            self.recorder.happened(&self.store, &fact).await?;
        }
        let facts = findings.iter().map(Fact::from).collect();
        self.recorder.holding(&self.store, facts).await
    }

    /// Gateways of cluster namespaces are effective as copies in `kube-system` (E7).
    async fn write_copies(&mut self, assigned: &Assigned) -> Result<(), StoreError> {
        let gateways = &assigned.gateways.gateways;
        let orphans: Vec<ObjectKey> = [Kind::NetworkGatewayGroup, Kind::AnthosNetworkGateway]
            .into_iter()
            .flat_map(|kind| self.index.objects(kind))
            .filter(|object| object.annotation(MIRROR_OF).is_some())
            .filter(|object| {
                let key = gateway_key(object);
                key.is_none_or(|key| {
                    gateways
                        .get(&key)
                        .is_none_or(|gateway| gateway.mirror_of.is_none())
                })
            })
            .map(|object| object.key().clone())
            .collect();
        for key in orphans {
            self.store.remove(&key).await?;
            self.index.delete(&key);
        }
        for (key, gateway) in gateways {
            let Some(namespace) = &gateway.mirror_of else {
                continue;
            };
            let spec = json!({ "floatingIPs": gateway.floating_ips });
            let annotations = json!({ MIRROR_OF: namespace.as_str() });
            self.ensure(&object_key(key), spec, Some(annotations))
                .await?;
        }
        Ok(())
    }

    /// Makes an object's spec and annotations what they should be.
    async fn ensure(
        &mut self,
        key: &ObjectKey,
        spec: Value,
        annotations: Option<Value>,
    ) -> Result<(), StoreError> {
        let written = match self.index.object(key) {
            None => {
                let mut object = Object::new(key, json!({ "spec": spec }));
                if let Some(annotations) = annotations {
                    object.value_mut()["metadata"]["annotations"] = annotations;
                }
                self.store.create(object).await?
            }
            Some(known) => {
                let mut object = known.clone();
                object.value_mut()["spec"] = spec;
                if let Some(annotations) = annotations {
                    object.value_mut()["metadata"]["annotations"] = annotations;
                }
                if object == *known {
                    return Ok(());
                }
                self.store.update(object).await?
            }
        };
        self.remember(written);
        Ok(())
    }

    /// Makes an object's status what it should be. An object that is not there (yet) is left.
    async fn ensure_status(&mut self, key: &ObjectKey, status: Value) -> Result<(), StoreError> {
        let Some(known) = self
            .index
            .object(key)
            .filter(|known| known.at("/status") != &status)
        else {
            return Ok(());
        };
        let mut object = known.clone();
        object.value_mut()["status"] = status;
        let written = self.store.update_status(object).await?;
        self.remember(written);
        Ok(())
    }

    /// What we wrote ourselves counts at once, not only when the watch tells it.
    fn remember(&mut self, object: Object) {
        if let Err(error) = self.index.apply(object) {
            tracing::error!(%error, "an object of our own does not make sense");
        }
    }

    /// The seeds' own shape: `nodes: {node: Up|Down}`, `floatingIPs: {ip: node}`.
    async fn write_gateway_status(
        &mut self,
        snapshot: &Snapshot,
        assigned: &Assigned,
    ) -> Result<(), StoreError> {
        let nodes: BTreeMap<String, String> = self
            .index
            .gateway_nodes()
            .iter()
            .filter_map(|name| {
                Some((
                    name.to_string(),
                    snapshot.nodes.get(name)?.health.to_string(),
                ))
            })
            .collect();
        for key in assigned.gateways.gateways.keys() {
            let holders: BTreeMap<String, &str> = assigned
                .assignment
                .nodes
                .iter()
                .filter(|(address, _)| assigned.gateways.owners.get(*address) == Some(key))
                .map(|(address, node)| (address.to_string(), node.as_str()))
                .collect();
            let status = json!({ "nodes": nodes, "floatingIPs": holders });
            self.ensure_status(&object_key(key), status).await?;
        }
        Ok(())
    }

    /// One object per node with its health and its floating IPs (E2), of the older kind too where that is in use.
    async fn write_nodes(
        &mut self,
        snapshot: &Snapshot,
        assigned: &Assigned,
    ) -> Result<(), StoreError> {
        let is_anthos =
            |key: &GatewayKey| key.kind == egressnat_core::model::GatewayKind::AnthosNetworkGateway;
        let has_anthos = assigned.gateways.gateways.keys().any(is_anthos);
        for name in self.index.gateway_nodes() {
            let Some(node) = snapshot.nodes.get(&name) else {
                continue;
            };
            let held: BTreeSet<String> = assigned
                .assignment
                .held_by(&name)
                .map(|address| address.to_string())
                .collect();
            let status = json!({ "health": node.health.to_string(), "floatingIPs": held });
            let key =
                ObjectKey::namespaced(Kind::NetworkGatewayNode, SYSTEM_NAMESPACE, name.as_str());
            let anthos = ObjectKey {
                kind: Kind::AnthosNetworkGatewayNode,
                ..key.clone()
            };
            if has_anthos {
                let spec = self
                    .index
                    .object(&key)
                    .map(|object| object.at("/spec").clone())
                    .unwrap_or_default();
                self.ensure(&anthos, spec, None).await?;
                self.ensure_status(&anthos, status.clone()).await?;
            }
            self.ensure_status(&key, status).await?;
        }
        Ok(())
    }
}

/// Everything that is wrong with gateways and policies now.
/// What changed hands.
fn moves(before: &Assignment, assigned: &Assigned) -> Vec<Fact> {
    let mut facts = Vec::new();
    for (address, node) in &assigned.assignment.nodes {
        let Some(owner) = assigned.gateways.owners.get(address) else {
            continue;
        };
        let (reason, message) = match before.nodes.get(address) {
            Some(old) if old == node => continue,
            Some(old) => (
                "Moved",
                format!("floating IP {address} moved from node {old} to node {node}"),
            ),
            None => (
                "Assigned",
                format!("floating IP {address} is assigned to node {node}"),
            ),
        };
        facts.push(Fact {
            about: object_key(owner),
            severity: Severity::Normal,
            reason,
            message,
        });
    }
    facts
}

#[cfg(test)]
mod tests;
