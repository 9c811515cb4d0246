//! The agent's loop: its node's plan, applied whenever anything changes.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use egressnat_core::model::NodeName;
use egressnat_core::{Failure, NodePlan, Planned, Report};
use ipnet::IpNet;

use crate::kind::Kind;
use crate::pulse::Pulse;
use crate::store::{ObjectStore, StoreError, Watch, WatchEvent, WatchRequest};

mod description;
mod lookout;
mod ownership;
mod renewal;
mod report;
mod segment;
mod view;

use description::Description;
use ownership::Ownership;
use renewal::Renewal;
use report::Reporter;
use segment::{Neighbors, Segment};
use view::View;

/// What the agent watches; of pods only its own node's.
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

/// What the agent needs to know besides the objects.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The node it runs on.
    pub node: NodeName,
    /// How long the node counts as up after a renewal; whole seconds.
    pub lease_duration: Duration,
    /// Ranges inside the cluster that no object tells, such as the service range.
    pub cluster_ranges: Vec<IpNet>,
    /// Where the loop tells how it is.
    pub pulse: Pulse,
    /// What becomes of the node's floating IPs while the store does not answer.
    pub outage: StoreOutage,
}

/// What becomes of a node's floating IPs when its lease runs out because the store does not answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StoreOutage {
    /// The node keeps them as long as most of the gateway nodes on its segment answer it.
    ///
    /// Two nodes could then use one address only if the store is out of reach for one side of a segment that falls apart, and the
    /// other side, with fewer gateway nodes, still has it: each for its own side, until the segment is whole again.
    #[default]
    Hold,
    /// It lets them fall silent.
    Release,
}

/// The packet path of the node, as the agent's loop sees it: a CNI brings its own.
pub trait NodeDataplane {
    /// What is needed of it while a plan is being applied.
    type Uplink: Uplink;
    /// The uplink.
    fn uplink(&self) -> Self::Uplink;
    /// The floating IPs that an earlier run left in the kernel, each with its deadline. None for a packet path that keeps none.
    fn found(&self) -> BTreeMap<IpAddr, Instant> {
        BTreeMap::new()
    }
    /// Makes the kernel equal the plan, and tells what happened.
    fn apply(&mut self, plan: &NodePlan) -> impl Future<Output = Report>;
    /// Waits until the plan wants to be applied again. Cancel safe.
    fn changed(&mut self) -> impl Future<Output = ()>;
    /// The subnets of the node's uplink: floating IPs must lie in one of them (E30).
    fn subnets(&self) -> BTreeSet<IpNet>;
}

/// The interface that floating IPs go on. Clones are of one thing.
pub trait Uplink: Clone + Send + Sync + 'static {
    /// Lets the node use floating IPs until `deadline` and no longer, whatever becomes of this process (E33). One that has passed ends
    /// the use at once. It is called before a plan has the addresses, too, and for all that the node holds whenever its lease is renewed.
    ///
    /// # Errors
    ///
    /// What keeps the kernel from it. The old deadlines stand, of all addresses or of some.
    fn hold_until(&self, addresses: &[IpAddr], deadline: Instant) -> Result<(), Failure>;
    /// Whether another host on the segment answers for `address`, asked as RFC 5227 and IPv6's duplicate address detection do. Takes
    /// `patience` if nobody does.
    fn answers(&self, address: IpAddr, patience: Duration) -> impl Future<Output = bool> + Send;
}

/// An uplink that knows no deadlines: for a packet path whose nodes hold no floating IPs, and for tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoUplink;

impl Uplink for NoUplink {
    fn hold_until(&self, _: &[IpAddr], _: Instant) -> Result<(), Failure> {
        Ok(())
    }

    async fn answers(&self, _: IpAddr, _: Duration) -> bool {
        false
    }
}

/// Runs the agent until the store goes away.
///
/// # Guarantees
///
/// It plans from its own node's pods only, and only when something is told that the plan depends on. What it cannot do is told once, and tried again at the next change and at each
/// audit. When it ends it leaves the kernel as it is (E45).
///
/// # Errors
///
/// The watch cannot be started. A store that cannot be reached later is waited for: the plan stays as it is.
pub async fn run_agent<S, D>(
    store: S,
    mut dataplane: D,
    config: AgentConfig,
) -> Result<(), StoreError>
where
    S: ObjectStore,
    D: NodeDataplane,
{
    let request = WatchRequest::of(&KINDS).of_node(config.node.clone());
    let mut watch = store.watch(&request)?;
    let subnets = dataplane.subnets();
    let (description, described) = Description::new(store.clone(), &config.node, &subnets)?;
    let _description = AbortOnDrop(tokio::spawn(description.keep()));
    let (reporter, writer, planned) = report::channel(store.clone(), &config.node, described);
    let _reports = AbortOnDrop(tokio::spawn(writer.write()));
    let neighbors = Neighbors::new(subnets);
    let ownership = Ownership::new(
        config.node.clone(),
        config.lease_duration,
        dataplane.uplink(),
        neighbors.clone(),
        dataplane.found(),
    );
    let renewal = Renewal::new(store, ownership.clone(), &config, planned);
    let _renewals = AbortOnDrop(tokio::spawn(renewal.keep()));
    let segment = Segment::new(ownership.clone(), &config, neighbors.clone());
    let _segment = AbortOnDrop(tokio::spawn(segment.watch()));
    let mut agent = Agent {
        ownership,
        neighbors,
        view: View::new(config.node.clone(), config.cluster_ranges, seed()),
        node: config.node,
        planned: Planned::default(),
        failures: Vec::new(),
        is_synced: false,
        pulse: config.pulse,
        reporter,
    };
    let mut audit = tokio::time::interval(AUDIT);
    audit.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let is_due = tokio::select! {
            event = watch.next() => match event {
                Some(event) => agent.take_all(event, &mut watch).await,
                None => return Ok(()),
            },
            () = dataplane.changed() => true,
            () = agent.ownership.changed() => true,
            _ = audit.tick() => true,
        };
        if is_due && agent.is_synced {
            agent.apply(&mut dataplane).await;
        }
        agent.pulse.turned();
    }
}

/// A number that nobody who writes objects knows.
fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Ends a task with what it is a part of.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Agent<U> {
    ownership: Ownership<U>,
    neighbors: Neighbors,
    node: NodeName,
    view: View,
    /// As the view said when something in it last changed.
    planned: Planned,
    /// Told already.
    failures: Vec<Failure>,
    /// Whether the watch has told everything once. A plan made before would take away what is right.
    is_synced: bool,
    pulse: Pulse,
    reporter: Reporter,
}

impl<U: Uplink> Agent<U> {
    /// Takes an event and those that follow it at once. Says whether a plan is to be applied for it.
    async fn take_all(&mut self, event: WatchEvent, watch: &mut Watch) -> bool {
        let was_synced = self.is_synced;
        self.take(event);
        // Nothing is planned before all has been told, so that what is told need not wait in memory.
        if self.is_synced {
            tokio::time::sleep(SETTLE).await;
        }
        while let Some(event) = watch.try_next() {
            self.take(event);
        }
        if !self.is_synced {
            return false;
        }
        let news = self.view.settle();
        if news.plan || !was_synced {
            self.planned = self.view.planned();
        }
        if news.ownership {
            self.see_ownership();
        }
        news.plan || !was_synced
    }

    fn take(&mut self, event: WatchEvent) {
        let applied = match event {
            WatchEvent::Applied(object) => self.view.apply(&object),
            WatchEvent::Deleted(key) => {
                self.view.delete(&key);
                Ok(())
            }
            WatchEvent::Synced => {
                self.is_synced = true;
                self.pulse.synced();
                Ok(())
            }
            WatchEvent::Interrupted => {
                self.pulse.lost_sight();
                tracing::warn!("the store cannot be seen: the plan stays as it is");
                Ok(())
            }
            WatchEvent::Resumed => {
                self.pulse.regained_sight();
                tracing::info!("the store is seen again");
                Ok(())
            }
            WatchEvent::Failed(_) => Ok(()),
        };
        if let Err(error) = applied {
            // The controller tells it in an event; here it explains what this node does not do.
            tracing::warn!(%error, "an object does not make sense and has no effect");
        }
    }

    /// Takes over what the gateways tell of who holds what.
    fn see_ownership(&self) {
        // In this order: who takes an address asks them.
        self.neighbors.tell(&self.view, &self.node);
        self.ownership.saw(self.view.grants());
    }

    async fn apply(&mut self, dataplane: &mut impl NodeDataplane) {
        self.see_ownership();
        let planned = &mut self.planned;
        // Granted and held are two things: only the second may be used (E33).
        planned.plan.floating_ips = self.ownership.held();
        let report = dataplane.apply(&planned.plan).await;
        self.ownership
            .applied(&planned.plan.floating_ips, &report.floating_ips);
        self.pulse.applied(&report);
        if report.changes > 0 {
            tracing::info!(
                changes = report.changes,
                pods = planned.plan.pods.len(),
                floating_ips = ?report.floating_ips,
                "plan applied"
            );
        }
        self.reporter.tell(planned, &report, &self.view.meanings());
        for restored in &report.restored {
            tracing::warn!(
                resource = %restored.resource,
                object = restored.object,
                "somebody else removed or altered it: restored"
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

#[cfg(test)]
mod tests;
