//! The agent's loop: its node's plan, applied whenever anything changes.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use egressnat_core::gateway::SYSTEM_NAMESPACE;
use egressnat_core::model::{Health, NodeName};
use egressnat_core::{Assignment, Failure, NodePlan, Report, effective_gateways, plan_node};
use ipnet::IpNet;
use serde_json::json;

use crate::index::Index;
use crate::kind::Kind;
use crate::lease;
use crate::object::{Object, ObjectKey};
use crate::resource::GatewayNodeSpec;
use crate::store::{ObjectStore, StoreError, Watch, WatchEvent};

const KINDS: [Kind; 7] = [
    Kind::Node,
    Kind::Namespace,
    Kind::Pod,
    Kind::Cluster,
    Kind::NetworkGatewayGroup,
    Kind::AnthosNetworkGateway,
    Kind::EgressNatPolicy,
];

/// How long to wait for the rest of a burst of events.
const SETTLE: Duration = Duration::from_millis(5);

/// How often the kernel is looked at although nothing was told: not everything that others can remove is told.
const AUDIT: Duration = Duration::from_secs(10);

/// A lease is renewed this many times in its duration, so that one lost renewal does no harm.
const RENEWALS: u32 = 3;

/// What the agent needs to know besides the objects.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The node it runs on.
    pub node: NodeName,
    /// How long the node counts as up after a renewal; whole seconds.
    pub lease_duration: Duration,
    /// Ranges inside the cluster that no object tells, such as the service range.
    pub cluster_ranges: Vec<IpNet>,
}

/// The packet path of the node, as the agent's loop sees it: a CNI brings its own.
pub trait NodeDataplane {
    /// Makes the kernel equal the plan, and tells what happened.
    fn apply(&mut self, plan: &NodePlan) -> impl Future<Output = Report>;
    /// Waits until the plan wants to be applied again. Cancel safe.
    fn changed(&mut self) -> impl Future<Output = ()>;
    /// The subnets of the node's uplink: floating IPs must lie in one of them (E30).
    fn subnets(&self) -> BTreeSet<IpNet>;
}

/// Runs the agent until the store goes away.
///
/// # Guarantees
///
/// It plans from its own node's pods only. What it cannot do is told once, and tried again at the next change and at each
/// audit. When it ends it leaves the kernel as it is (E45).
///
/// # Errors
///
/// The watch cannot be started, or the node cannot be announced to the controller.
pub async fn run_agent<S, D>(
    store: S,
    mut dataplane: D,
    config: AgentConfig,
) -> Result<(), StoreError>
where
    S: ObjectStore,
    D: NodeDataplane,
{
    let mut watch = store.watch(&KINDS)?;
    describe(&store, &config.node, dataplane.subnets()).await?;
    let renewals = tokio::spawn(renew(store, config.node.clone(), config.lease_duration));
    let _stop = AbortOnDrop(renewals);
    let mut agent = Agent {
        node: config.node,
        index: Index::new(config.cluster_ranges),
        failures: Vec::new(),
        is_synced: false,
    };
    let mut audit = tokio::time::interval(AUDIT);
    audit.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = watch.next() => match event {
                Some(event) => agent.take_all(event, &mut watch).await,
                None => return Ok(()),
            },
            () = dataplane.changed() => {}
            _ = audit.tick() => {}
        }
        agent.apply(&mut dataplane).await;
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Agent {
    node: NodeName,
    index: Index,
    /// Told already.
    failures: Vec<Failure>,
    /// Whether the watch has told everything once. A plan made before would take away what is right.
    is_synced: bool,
}

impl Agent {
    async fn take_all(&mut self, event: WatchEvent, watch: &mut Watch) {
        self.take(event);
        tokio::time::sleep(SETTLE).await;
        while let Some(event) = watch.try_next() {
            self.take(event);
        }
    }

    fn take(&mut self, event: WatchEvent) {
        self.is_synced |= matches!(event, WatchEvent::Restarted(_));
        for error in self.index.take(self.own(event)) {
            // The controller tells it in an event; here it explains what this node does not do.
            tracing::warn!(%error, "an object does not make sense and has no effect");
        }
    }

    /// Pods of other nodes are not kept: memory goes with the node, not with the cluster.
    fn own(&self, event: WatchEvent) -> WatchEvent {
        let is_own = |object: &Object| {
            object.kind() != Kind::Pod
                || object.at("/spec/nodeName").as_str() == Some(self.node.as_str())
        };
        match event {
            WatchEvent::Restarted(objects) => {
                WatchEvent::Restarted(objects.into_iter().filter(is_own).collect())
            }
            WatchEvent::Applied(object) if !is_own(&object) => {
                WatchEvent::Deleted(object.key().clone())
            }
            event => event,
        }
    }

    async fn apply(&mut self, dataplane: &mut impl NodeDataplane) {
        if !self.is_synced {
            return;
        }
        // Health decides who holds an address, which the controller has done.
        let snapshot = self.index.snapshot(Assignment::default(), |_| Health::Up);
        let assignment = self.index.assignment(&effective_gateways(&snapshot));
        let planned = plan_node(&snapshot, &assignment, &self.node);
        let report = dataplane.apply(&planned.plan).await;
        if report.changes > 0 {
            tracing::info!(
                changes = report.changes,
                pods = planned.plan.pods.len(),
                floating_ips = ?report.floating_ips,
                "plan applied"
            );
        }
        for failure in report
            .failures
            .iter()
            .filter(|failure| !self.failures.contains(failure))
        {
            tracing::warn!(
                object = failure.object,
                message = failure.message,
                "not as planned"
            );
        }
        self.failures = report.failures;
    }
}

/// Tells the controller that the node takes part, and what subnets it has (E2).
async fn describe<S: ObjectStore>(
    store: &S,
    node: &NodeName,
    subnets: BTreeSet<IpNet>,
) -> Result<(), StoreError> {
    let key = ObjectKey::namespaced(Kind::NetworkGatewayNode, SYSTEM_NAMESPACE, node.as_str());
    let subnets = subnets.iter().map(IpNet::trunc).collect();
    let spec = json!(GatewayNodeSpec { subnets });
    match store.read(&key).await? {
        None => store
            .create(Object::new(&key, json!({ "spec": spec })))
            .await
            .map(drop),
        Some(known) if known.at("/spec") == &spec => Ok(()),
        Some(mut known) => {
            known.value_mut()["spec"] = spec;
            store.update(known).await.map(drop)
        }
    }
}

/// Renews the node's lease for ever. A task of its own: a slow plan does not make the node look dead.
async fn renew<S: ObjectStore>(store: S, node: NodeName, duration: Duration) {
    let mut renewals = tokio::time::interval(duration / RENEWALS);
    renewals.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut is_failing = false;
    loop {
        renewals.tick().await;
        let lease = lease::renewed(&node, duration);
        let renewed = match store.read(lease.key()).await {
            Ok(None) => store.create(lease).await,
            Ok(Some(_)) => store.update(lease).await,
            Err(error) => Err(error),
        };
        match renewed {
            Ok(_) => is_failing = false,
            Err(error) if !is_failing => {
                is_failing = true;
                let error = &error as &dyn std::error::Error;
                tracing::error!(
                    error,
                    "the lease cannot be renewed: the node will count as down"
                );
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
