//! The controller's loop: which node holds which floating IP, told in status and events.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::{Duration, Instant};

use egressnat_core::model::NodeName;
use egressnat_core::ownership::{Granter, LeaseRecord, RATE_ERROR, Time};
use ipnet::IpNet;

use crate::clock::{instant, now};
use crate::election::{self, Election, Leadership, Led};
use crate::event::{Fact, Recorder};
use crate::index::Index;
use crate::kind::Kind;
use crate::lease::{lease_key, lease_node, mark_of, read_lease};
use crate::object::Object;
use crate::pulse::{BEAT, Observed, Pulse};
use crate::store::{ObjectStore, StoreError, Watch, WatchEvent, WatchRequest};

mod decision;
mod grants;
mod status;
mod write;

use decision::Decision;
use grants::{holders, moves};
use status::Telling;

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

/// How long to wait after a write that failed, at first.
const RETRY: Duration = Duration::from_millis(200);

/// How long to wait at most when writes fail again and again.
const RETRY_AT_MOST: Duration = Duration::from_secs(10);

/// How long to wait for the rest of a burst of events.
const SETTLE: Duration = Duration::from_millis(5);

/// An answer that took longer comes out of an outage, in which nodes could not renew their leases either.
const SLOW: Duration = Duration::from_millis(500);

/// What the controller needs to know besides the objects.
#[derive(Debug, Clone, Default)]
pub struct ControllerConfig {
    /// Ranges inside the cluster that no object tells, such as the service range.
    pub cluster_ranges: Vec<IpNet>,
    /// How controllers agree which of them writes; none if there is no other.
    pub election: Option<Election>,
    /// Where the loop tells how it is.
    pub pulse: Pulse,
}

/// Runs the controller until the store goes away.
///
/// # Guarantees
///
/// It writes only what differs, and each fact once. A floating IP changes its node only when its node is down, gone or
/// unfit (E31, E32), and is given to another only when the first one has given it back, or cannot hold it any more (E33). Before a
/// node is taken for dead, its lease is read once more. After a restart it goes on from the status. With an election only the
/// leader writes, and one that is deposed stops at once. While the store cannot be reached nobody is taken for dead.
///
/// # Errors
///
/// The watch cannot be started. Writes that fail are told once and repeated.
pub async fn run_controller<S: ObjectStore>(
    store: S,
    config: ControllerConfig,
) -> Result<(), StoreError> {
    run_controller_until(store, config, std::future::pending()).await
}

/// Runs the controller until `stop` is there or the store goes away, and then gives the lead up, so that another need not wait.
///
/// # Errors
///
/// The watch cannot be started.
pub async fn run_controller_until<S: ObjectStore>(
    store: S,
    config: ControllerConfig,
    stop: impl Future<Output = ()>,
) -> Result<(), StoreError> {
    let mut watch = store.watch(&WatchRequest::of(&KINDS))?;
    let (leadership, elector) = match config.election {
        None => (Leadership::Sole, None),
        Some(election) => {
            let (leadership, elector) = election::start(store.clone(), election);
            (leadership, Some(elector))
        }
    };
    let pulse = config.pulse;
    let store = Observed {
        store,
        pulse: pulse.clone(),
    };
    let store = Led { store, leadership };
    let mut controller = Controller::new(store, config.cluster_ranges);
    controller.pulse = pulse;
    // Dropped where it is, in the middle of a write perhaps, before the lead is given up.
    let stopped = async {
        tokio::select! {
            () = stop => {}
            () = controller.run(&mut watch) => {}
        }
    };
    stopped.await;
    if let Some(elector) = elector {
        elector.resign().await;
    }
    Ok(())
}

/// Waits until then; for ever without a time.
async fn until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake.into()).await,
        None => std::future::pending().await,
    }
}

/// When to try again what failed.
#[derive(Default)]
struct Retry {
    at: Option<Instant>,
    wait: Duration,
    /// Told already.
    told: Option<String>,
}

impl Retry {
    fn failed(&mut self, error: &StoreError) {
        self.wait = (self.wait * 2).clamp(RETRY, RETRY_AT_MOST);
        match error {
            // Somebody wrote in between; what they wrote is on its way to us.
            StoreError::Conflict(_)
            | StoreError::NotFound(_)
            | StoreError::Exists(_)
            | StoreError::NotLeading(_) => self.wait = RETRY,
            // Told where it was.
            StoreError::Refused { .. } => {}
            error if self.told.as_ref() != Some(&error.to_string()) => {
                self.told = Some(error.to_string());
                let error = error as &dyn std::error::Error;
                tracing::error!(error, "a write failed and will be repeated");
            }
            _ => {}
        }
        self.at = Some(Instant::now() + self.wait);
    }
}

/// What a turn did.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// There was nothing to be done, or it was not for this controller to do it.
    Idle,
    /// Everything is as it should be.
    Done,
}

struct Controller<S> {
    store: Led<S>,
    index: Index,
    /// Who is alive, and who may be given what.
    granter: Granter,
    recorder: Recorder,
    /// Where the floating IPs belong; the first run starts from who holds them.
    decision: Decision,
    /// Refused writes that were told.
    refused: BTreeSet<String>,
    /// One that was refused in this run.
    refused_now: Option<StoreError>,
    /// What agents tell of their kernels.
    telling: Telling,
    /// The nodes that were alive in the last run.
    alive: BTreeSet<NodeName>,
    /// Whether anything has changed since that could matter.
    is_due: bool,
    /// Whether the watch has told everything once.
    is_synced: bool,
    /// Whether the store cannot be seen now.
    is_interrupted: bool,
    /// When the store was last heard of.
    last_contact: Time,
    pulse: Pulse,
}

impl<S: ObjectStore> Controller<S> {
    fn new(store: Led<S>, cluster_ranges: Vec<IpNet>) -> Self {
        Self {
            store,
            index: Index::new(cluster_ranges),
            granter: Granter::new(RATE_ERROR),
            recorder: Recorder::default(),
            decision: Decision::default(),
            refused: BTreeSet::new(),
            refused_now: None,
            telling: Telling::default(),
            alive: BTreeSet::new(),
            is_due: false,
            is_synced: false,
            is_interrupted: false,
            last_contact: now(),
            pulse: Pulse::default(),
        }
    }

    /// Runs until the store goes away.
    async fn run(&mut self, watch: &mut Watch) {
        let mut leadership = self.store.leadership.clone();
        let mut retry = Retry::default();
        loop {
            let expiry = self.next_expiry();
            // With nothing to do it turns all the same, by which it is seen to be alive.
            let beat = Some(Instant::now() + BEAT);
            let due = self.telling.due();
            let wake = expiry
                .into_iter()
                .chain(retry.at)
                .chain(beat)
                .chain(due)
                .min();
            tokio::select! {
                event = watch.next() => {
                    let Some(event) = event else { return };
                    self.take(event);
                    tokio::time::sleep(SETTLE).await;
                    while let Some(event) = watch.try_next() {
                        self.take(event);
                    }
                }
                () = leadership.changed() => {}
                () = until(wake) => {}
            }
            let now = Instant::now();
            let is_past = |at: &Instant| *at <= now;
            self.is_due |= retry.at.take_if(|at| is_past(at)).is_some();
            self.is_due |= expiry.is_some_and(|at| is_past(&at));
            self.is_due |= self.telling.take_due(now);
            let turn = self.turn().await;
            self.pulse.turned();
            self.pulse.leads(self.granter.leads(crate::clock::now()));
            match turn {
                Ok(Turn::Idle) => {}
                Ok(Turn::Done) => retry = Retry::default(),
                Err(error) => retry.failed(&error),
            }
        }
    }

    /// When something is to be done although nothing is told.
    fn next_expiry(&self) -> Option<Instant> {
        let now = now();
        let is_active = self.granter.leads(now) && !self.is_interrupted;
        let expiry = is_active.then(|| self.granter.next_expiry(now)).flatten();
        expiry.map(instant)
    }

    fn take(&mut self, event: WatchEvent) {
        let now = now();
        match &event {
            WatchEvent::Synced => {
                self.is_synced = true;
                self.pulse.synced();
                self.is_due = true;
            }
            // Whether the node is alive the turn finds out.
            WatchEvent::Applied(object) if object.kind() == Kind::Lease => self.saw(object, now),
            // What we wrote ourselves, or older than what we wrote since: news only to the watch.
            WatchEvent::Applied(object) if self.index.knows(object) || self.is_outdated(object) => {
                return;
            }
            WatchEvent::Deleted(key) => {
                self.is_due = true;
                if let Some(node) = lease_node(key) {
                    self.telling.gone(&node);
                    self.granter.lost_lease(&node);
                }
            }
            WatchEvent::Applied(object) if self.is_report_alone(object) => {
                self.telling.heard(Instant::now());
            }
            WatchEvent::Applied(_) => self.is_due = true,
            WatchEvent::Failed(error) => tracing::error!(%error, "a manifest cannot be used"),
            WatchEvent::Interrupted => {
                self.is_interrupted = true;
                self.pulse.lost_sight();
                tracing::warn!("the store cannot be seen: nothing is decided until it can");
                return;
            }
            WatchEvent::Resumed => {
                self.is_interrupted = false;
                self.pulse.regained_sight();
                self.granter.resume(self.last_contact, now);
                tracing::info!("the store is seen again");
            }
        }
        if !self.is_interrupted {
            self.last_contact = now;
        }
        if let Some(error) = self.index.take(event) {
            tracing::error!(%error, "an object does not make sense and has no effect");
        }
    }

    /// Whether all that is new about a node is what its agent tells of its kernel: that can wait a moment for the others'.
    fn is_report_alone(&self, object: &Object) -> bool {
        let same = |part: &str, known: &Object| known.at(part) == object.at(part);
        object.kind() == Kind::NetworkGatewayNode
            && self.index.object(object.key()).is_some_and(|known| {
                let parts = ["/spec", "/status/health", "/status/floatingIPs"];
                parts.iter().all(|part| same(part, known))
            })
    }

    fn is_outdated(&self, object: &Object) -> bool {
        let version = |object: &Object| object.resource_version()?.parse::<u64>().ok();
        let known = self.index.object(object.key()).and_then(version);
        known
            .zip(version(object))
            .is_some_and(|(known, told)| told < known)
    }

    /// Does what is to be done, if there is anything and it is for this controller to do it.
    async fn turn(&mut self) -> Result<Turn, StoreError> {
        let Some(remaining) = self.store.leadership.remaining() else {
            self.granter.follow();
            // Nothing is decided by them, and they are not to pile up.
            self.decision.follow(self.index.take_events());
            return Ok(Turn::Idle);
        };
        if !self.is_synced {
            return Ok(Turn::Idle);
        }
        let now = now();
        let led = self.granter.leads(now);
        self.granter.lead(now, now.after(remaining));
        if !led {
            self.begin(now);
        }
        if self.is_interrupted {
            return Ok(Turn::Idle);
        }
        let alive = self.alive();
        if !self.is_due && alive == self.alive {
            return Ok(Turn::Idle);
        }
        self.is_due = false;
        let result = self.run_once(&alive).await;
        match &result {
            Ok(()) => self.last_contact = crate::clock::now(),
            // The rest was written.
            Err(StoreError::Refused { .. }) => {}
            Err(error) => {
                // What was decided may not have been written: decide again from what the store says.
                self.decision.doubt();
                if let StoreError::Unreachable { .. } = error {
                    self.granter.resume(self.last_contact, crate::clock::now());
                }
            }
        }
        result.map(|()| Turn::Done)
    }

    async fn run_once(&mut self, alive: &BTreeSet<NodeName>) -> Result<(), StoreError> {
        let silent: Vec<NodeName> = self.alive.difference(alive).cloned().collect();
        for node in silent {
            // The watch may be late, or stuck, while the node is well: what it wrote last is in the store.
            let asked = Instant::now();
            if let Some(lease) = self.store.read(&lease_key(&node)).await? {
                self.saw(&lease, now());
                self.remember(lease);
            }
            if asked.elapsed() > SLOW {
                self.granter.resume(self.last_contact, now());
            }
        }
        self.alive = self.alive();
        self.reconcile().await
    }

    fn alive(&self) -> BTreeSet<NodeName> {
        self.granter.alive(now()).cloned().collect()
    }

    /// Another may have led meanwhile, or nobody could: what holds is in the store, which nodes are down included. Who is not told
    /// as down counts as seen just now, for the leases that ran out meanwhile may have done so because nobody could write.
    fn begin(&mut self, now: Time) {
        self.is_due = true;
        self.decision.doubt();
        self.refused.clear();
        self.recorder = Recorder::default();
        // What was watched may be older than what is in the store. No harm is done by that: every write names the version that it
        // goes over, and until when a lease is good is counted from now.
        for lease in self.index.objects(Kind::Lease) {
            if let Some(node) = lease_node(lease.key()) {
                self.granter.saw_lease(&node, read_lease(lease), now);
            }
        }
        for object in self.index.objects(Kind::NetworkGatewayNode) {
            if let Ok(node) = object.parse_name()
                && object.at("/status/health") == "Down"
            {
                self.granter.presume_dead(&node);
            }
        }
    }

    /// A lease was told, or read.
    fn saw(&mut self, lease: &Object, now: Time) {
        let Some(node) = lease_node(lease.key()) else {
            return;
        };
        let record = read_lease(lease);
        // Most renewals say nothing but that the node is alive.
        let known = self.index.object(lease.key()).map(read_lease);
        let says = |record: &LeaseRecord| (record.term, record.is_taken, record.released.clone());
        self.is_due |= known.as_ref().map(says) != Some(says(&record));
        self.telling.saw(&node, mark_of(lease), Instant::now());
        if self.granter.leads(now) {
            self.granter.saw_lease(&node, record, now);
        }
    }

    async fn reconcile(&mut self) -> Result<(), StoreError> {
        let began = Instant::now();
        let index = &mut self.index;
        let events = index.take_events();
        let told = |gateways: &_| index.assignment(gateways);
        let mut plan = self.decision.make(events, &self.alive, told);
        let belongs = plan.assigned.assignment.clone();
        let mut happened = self.write_copies(&plan.assigned).await?;
        self.read_grants(&plan.assigned.gateways);
        let before = holders(self.granter.grants(), &plan.assigned.gateways);
        let wanted = loop {
            let (records, takes) = self.grants_for(&belongs);
            // Status tells who holds an address, not who should.
            plan.assigned.assignment = holders(&records, &plan.assigned.gateways);
            let objects = self.decision.objects();
            self.telling.learn(&self.index, objects, &plan);
            let mut wanted = self.telling.wanted(&self.index, objects, &plan, &records);
            // The agents wait for it, so it comes first.
            let gateways = std::mem::take(&mut wanted.gateways);
            happened.extend(self.write_status(gateways).await?);
            self.read_grants(&plan.assigned.gateways);
            if !self.take_leases(takes).await? {
                break wanted;
            }
            // What was taken may be free at once.
        };
        let after = holders(self.granter.grants(), &plan.assigned.gateways);
        happened.extend(moves(&before, &after, &plan.assigned));
        self.decision.stand();
        self.write_anthos_nodes(&plan.assigned).await?;
        happened.extend(self.write_status(wanted.nodes).await?);
        happened.extend(self.write_status(wanted.policies).await?);
        self.telling.finished(began);
        let index = &self.index;
        let identified = |mut fact: Fact| {
            let object = index.known(&fact.about);
            fact.uid = object.and_then(Object::uid).map(str::to_owned);
            fact
        };
        for fact in happened.into_iter().map(identified) {
            self.recorder.happened(&self.store, &fact).await?;
        }
        let findings = plan.findings.iter().map(Fact::from);
        let facts = findings.chain(wanted.facts).map(identified).collect();
        self.recorder.holding(&self.store, facts).await?;
        self.refused_now.take().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests;
