//! Making a plan real: observe, compare, change what differs.

mod applicable;
mod change;
mod claims;
mod doubt;
mod ensure;
mod entries;
mod floating;
mod followed;
mod host;
mod indices;
mod kept;
mod observe;
mod reboot;
mod restoration;
mod tables;
mod uplink;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_core::{Change, Failure, NodePlan, Report, Resource, between, diff, diff_with};
use ipnet::IpNet;
use thiserror::Error;

use crate::announce::{AnnounceError, Announcer};
use crate::capabilities::{self, CapabilitiesError};
use crate::config::Config;
use crate::conntrack::ConntrackError;
use crate::deadlines::Deadlines;
use crate::egress::EgressTable;
use crate::family::Family;
use crate::guard_file::{GuardFile, GuardFileError, GuardedRanges};
use crate::handover::Handover;
use crate::leftovers::Leftovers;
use crate::lock::{Lock, LockError};
use crate::maps::Maps;
use crate::network::{Network, NetworkError, Uplink};
use crate::nft::{Answer, Events, Forgotten, NftError, Ruleset, SharedOwner};
use crate::policy_table::PolicyTable;
use crate::ports::Ports;
use crate::probe::Prober;
use crate::programs::{CountedAt, Hook, Programs, ProgramsError, check_bpffs};
use crate::redecide::{affected_pods, expect_ends, forget_stale, selected_pods};
use crate::segment::Segment;
use applicable::applicable;
use doubt::Doubts;
use entries::EntryAudit;
use followed::Followed;
use host::HostFindings;
use kept::Kept;
use observe::Located;
use reboot::restore_guard;
use restoration::{Comparison, Restoration};

/// The packet path could not be put in place at all.
#[derive(Debug, Error)]
pub enum OpenError {
    /// What the process may do.
    #[error("could not start")]
    Capabilities(#[from] CapabilitiesError),
    /// Another agent.
    #[error("could not have the node's packet path alone")]
    Lock(#[from] LockError),
    /// Links, addresses, routes, rules.
    #[error("could not prepare the network")]
    Network(#[from] NetworkError),
    /// eBPF.
    #[error("could not prepare the eBPF programs")]
    Programs(#[from] ProgramsError),
    /// nftables.
    #[error("could not prepare nftables")]
    Nft(#[from] NftError),
    /// Announcements.
    #[error("could not prepare announcements")]
    Announce(#[from] AnnounceError),
    /// The file that the guard is kept in.
    #[error("could not prepare the guard after a reboot")]
    GuardFile(#[from] GuardFileError),
}

/// The packet path of one node, in the network namespace it was opened in.
///
/// # Guarantees
///
/// * [`apply`](Self::apply) makes the kernel equal the plan with the smallest change and makes no choices. Applied twice,
///   the second time writes nothing.
/// * It costs what changes. The kernel is read once, and again only where others wrote, where a write failed, and every ten
///   seconds; in between, what was written and acknowledged is what is there.
/// * Dropping it leaves everything in the kernel: traffic goes on, and the next [`open`](Self::open) takes it over.
/// * It touches nothing that is not its own; [`cleanup`](crate::cleanup) removes all that is.
///
/// # Minimum kernel version
///
/// 5.18; from 6.4 on what leaves is counted where it leaves, from 6.6 on programs are attached by TCX.
pub struct Dataplane {
    config: Config,
    nft: SharedOwner,
    network: Network,
    ports: Ports,
    uplink: Uplink,
    programs: Programs,
    maps: Maps,
    egress: EgressTable,
    policies: PolicyTable,
    announcer: Announcer,
    handover: Handover,
    leftovers: Leftovers,
    prober: Prober,
    segment: Segment,
    steered: BTreeSet<u32>,
    /// Those with a table: IPv4, and IPv6 since a plan first asked for it.
    families: BTreeSet<Family>,
    /// Those of which a plan ever steered something.
    steers: BTreeSet<Family>,
    /// Index of the tunnel device.
    tunnel: u32,
    /// What others do to our tables.
    table_events: Option<Events>,
    /// What the kernel has, as far as it is not in doubt.
    kept: Kept,
    doubts: Doubts,
    entry_audit: EntryAudit,
    located: Option<Located>,
    /// Whether every running connection is as the kept plan decides. An agent may have been killed between a decision and this.
    is_settled: bool,
    host: HostFindings,
    followed: Followed,
    /// By which what others did is told from what the plan changed.
    restoration: Restoration,
    guard_file: Option<GuardFile>,
    /// For as long as this lives, nobody else changes the packet path.
    _lock: Lock,
    /// Objects written while opening, for the next report.
    opened: usize,
}

impl Dataplane {
    /// Puts programs, table, tunnel device, rule and route in place, or takes them over from an earlier run.
    ///
    /// # Errors
    ///
    /// Whatever keeps the node from carrying egress traffic at all: missing capabilities, no bpffs, no uplink, another agent.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        capabilities::check()?;
        let network = Network::open(&config)?;
        let mut uplink = network.uplink(&config).await?;
        check_bpffs(&config.bpffs)?;
        let lock = Lock::take(&config.pin_root()).await?;
        let (mut programs, mut maps, made) = Programs::open(&config)?;
        let nft = SharedOwner::open(config.table_ownership).await?;
        let ruleset = Ruleset::new(Family::Ipv4, &config);
        let mut opened = made + usize::from(ruleset.ensure(&mut nft.lock())?);
        let mut families = BTreeSet::from([Family::Ipv4]);
        let guard_file = config.guard_file.as_deref().map(GuardFile::open);
        let guard_file = guard_file.transpose()?;
        if let Some(ranges) = guard_file.as_ref().and_then(GuardFile::ranges) {
            opened += restore_guard(&mut nft.lock(), &config, ranges)?;
        }
        let (tunnel, changes) = network.ensure_tunnel(&config, &uplink, false).await?;
        opened += changes.len();
        opened += usize::from(network.follow_mtu(&config, &mut uplink, &families).await?);
        if Ruleset::is_present(Family::Ipv6)? {
            families.insert(Family::Ipv6);
        }
        for hook in [Hook::Encap, Hook::Decap] {
            opened += usize::from(programs.attach(hook, &config.tunnel_device, tunnel)?);
        }
        // The interfaces of an earlier run get the program of this one, before anything else changes.
        let interfaces = network.interfaces().await?;
        let mut steered = BTreeSet::new();
        for ifindex in programs.steered()? {
            match interfaces.get(&ifindex) {
                Some(name) => {
                    opened += usize::from(programs.attach(Hook::Steer, name, ifindex)?);
                    steered.insert(ifindex);
                }
                None => programs.detach_steer(ifindex)?,
            }
        }
        programs.leave_departures()?;
        let table_events = nft.lock().events()?;
        let egress = EgressTable::read(&mut maps, config.mark)?;
        let policies = PolicyTable::read(&maps.policies)?;
        let announcer = announcer(&uplink, &nft, &config)?;
        let handover = Handover::of(network.handover_settings(&uplink.name, uplink.index)).await;
        let prober = Prober::open(uplink.index, uplink.mac)?;
        let segment = Segment::new(prober.ears(), network.neighbors(uplink.index));
        Ok(Self {
            config,
            nft,
            network,
            ports: Ports::open()?,
            uplink,
            programs,
            maps,
            egress,
            policies,
            announcer,
            handover,
            leftovers: Leftovers::default(),
            prober,
            segment,
            steered,
            families,
            steers: BTreeSet::new(),
            tunnel,
            table_events,
            kept: Kept::default(),
            doubts: Doubts::ALL,
            entry_audit: EntryAudit::default(),
            located: None,
            is_settled: false,
            host: HostFindings::default(),
            followed: Followed::default(),
            restoration: Restoration::default(),
            guard_file,
            _lock: lock,
            opened,
        })
    }

    /// The interface that floating IPs go on, with its own addresses and their subnets.
    pub fn uplink(&self) -> &Uplink {
        &self.uplink
    }

    /// Where packets are counted that leave with an egress IP of this node or with their pod's address.
    pub(crate) fn counted_at(&self) -> CountedAt {
        self.programs.counted_at()
    }

    pub(crate) fn maps(&self) -> &Maps {
        &self.maps
    }

    pub(crate) fn egress(&self) -> &EgressTable {
        &self.egress
    }

    /// Those with a table.
    pub(crate) fn families(&self) -> &BTreeSet<Family> {
        &self.families
    }

    /// The deadlines of floating IPs, to be moved also while a plan is being applied.
    pub fn deadlines(&self) -> Deadlines {
        Deadlines::new(self.nft.clone(), self.config.clone())
    }

    /// The other hosts on the uplink's segment, to be asked also while a plan is being applied.
    pub fn segment(&self) -> Segment {
        self.segment.clone()
    }

    /// Waits until the plan wants to be applied again: links, addresses, routes or rules of the namespace changed, or somebody
    /// touched what is ours. What the kernel tells nobody, such as a program that is taken off an interface or an entry of a
    /// map, is looked for twice a second.
    ///
    /// Cancel safe.
    pub async fn changed(&mut self) {
        loop {
            let tables = async {
                match &mut self.table_events {
                    Some(events) => events.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                events = self.network.told() => if self.take(events) {
                    return;
                },
                () = self.ports.changed() => {
                    self.doubts.links = true;
                    return;
                }
                () = self.prober.changed() => return,
                () = tables => {
                    self.doubts.tables = true;
                    return;
                }
                () = self.restoration.audit_is_due() => {
                    self.audit();
                    self.audit_entries();
                    if self.doubts.exist() {
                        return;
                    }
                }
            }
        }
    }

    /// How much others removed or altered and this brought back, by kind, since it was opened.
    pub fn restored(&self) -> &BTreeMap<Resource, u64> {
        self.restoration.counts()
    }

    /// Makes the kernel equal `plan`, as far as it goes. What could not be done is in the report; all else was done.
    pub async fn apply(&mut self, plan: &NodePlan) -> Report {
        let mut report = Report {
            changes: std::mem::take(&mut self.opened),
            ..Report::default()
        };
        let mut findings = Vec::new();
        self.notice();
        // What fails, or is cut off, may have been done in part.
        let doubts = std::mem::replace(&mut self.doubts, Doubts::ALL);
        self.make(plan, doubts, &mut report, &mut findings).await;
        if report.failures.is_empty() {
            self.doubts = Doubts::NONE;
        }
        if report.changes > 0 {
            self.entry_audit = EntryAudit::default();
        }
        report.failures.extend(findings);
        report
    }

    /// Reads what is in doubt, compares, and changes what differs. What goes wrong with that is in the report, what else there is to
    /// tell in `findings`.
    async fn make(
        &mut self,
        plan: &NodePlan,
        mut doubts: Doubts,
        report: &mut Report,
        findings: &mut Vec<Failure>,
    ) {
        self.ensure(plan, &mut doubts, report, findings).await;
        self.restore_entries(doubts, report);
        let mut before = doubts.exist().then(|| self.kept.clone());
        if doubts.maps
            && let Err(error) = self
                .kept
                .read_maps(&self.maps, &self.egress, &self.policies)
        {
            return fail(report, "the eBPF maps' present state", &error);
        }
        let interfaces = match self.locate(plan, doubts).await {
            Ok(interfaces) => interfaces,
            Err(error) => return fail(report, "interfaces of pods", &error),
        };
        self.forget_moved_pods(&interfaces, before.as_ref(), report);
        if let Err(error) = self.observe(doubts).await {
            return fail(report, "the kernel's present state", &error);
        }
        if doubts == Doubts::ALL {
            self.restoration.note_reading();
        }
        let floating_ips = self.followed.want(&plan.floating_ips, &self.families);
        let mut desired = applicable(plan, floating_ips, &self.families, &interfaces, findings);
        // What this node's own pods sent while a floating IP was on its way here comes back through the tunnel.
        let own = self.uplink.addresses.iter().map(IpNet::addr);
        let own = own.filter(|address| self.families.contains(&Family::of(*address)));
        desired.peers.extend(own);
        self.policies
            .allocate(&mut self.maps.policies, &mut desired, &self.kept.plan);
        for kept in before.iter_mut().chain([&mut self.kept]) {
            kept.count_halves(&desired.floating_ips);
        }
        let was_settled = std::mem::replace(&mut self.is_settled, false);
        let mut changes = match doubts.exist() {
            true => diff(&self.kept.plan, &desired),
            false => {
                let differing = self.followed.differing(&self.kept);
                let changes = diff_with(&self.kept.plan, &desired, differing);
                debug_assert_eq!(changes, diff(&self.kept.plan, &desired));
                changes
            }
        };
        self.allocate_indices(&changes, report);
        let affected = match was_settled {
            true => affected_pods(&changes, &self.kept.plan, &desired),
            false => selected_pods(&[&self.kept.plan, &desired]),
        };
        let between = between(&affected, &self.kept.plan, &desired);
        let next = between.as_ref().map_or(&desired, |between| &between.plan);
        if between.is_some() {
            changes = diff(&self.kept.plan, next);
        }
        let (used, steered) = (self.in_use(&changes, doubts), desired.egress_ips());
        if !changes.is_empty() {
            self.leftovers.note_steered(self.kept.plan.egress_ips());
            self.leftovers.note_steered(steered.iter().copied());
        }
        // Before the guard goes: from then on, what a server sends in a connection that is forgotten could begin one from outside.
        let silenced = between
            .as_ref()
            .map_or(Ok(()), |between| self.silence(&between.stopped));
        if let Err(error) = expect_ends(&affected, next, expecting(&self.nft, &self.config)) {
            fail(report, "running connections of pods", &error);
        }
        let mut undone = self
            .change(&changes, next, &interfaces, report, findings)
            .await;
        // The guard is there, and holds until each pod has its program: the kernel takes some milliseconds for each.
        self.attach_steering(&desired, &interfaces, doubts, report)
            .await;
        // A binding is made by a flow's first packet. Where the decision has changed, flows have to start anew.
        match silenced.and_then(|()| self.forget(&affected, &desired)) {
            Ok(forgotten) => {
                report.changes += forgotten;
                self.is_settled = true;
            }
            Err(error) => fail(report, "running connections of pods", &error),
        }
        // With them forgotten, what stood still goes by what is desired.
        if between.is_some() && self.is_settled {
            let mut rest = diff(&self.kept.plan, &desired);
            // What could not be made is told once, and an address that another host has is asked for once.
            rest.retain(|change| !undone.contains(change));
            let failed = self.change(&rest, &desired, &interfaces, report, findings);
            undone.extend(failed.await);
            changes.extend(rest);
        }
        if doubts.tables
            && let Err(error) = self.expect_no_answers()
        {
            fail(report, "answers to flows that were forgotten", &error);
        }
        self.free_indices(used, &desired.floating_ips, &steered, report);
        if let Some(file) = &mut self.guard_file
            && let Err(error) = file.keep(GuardedRanges::of(&desired))
        {
            fail(report, "guard after a reboot", &error);
        }
        let expired = self.expired();
        let others = changes.iter().filter_map(|change| match change {
            Change::AddAddress(address) => Some(*address),
            _ => None,
        });
        let others = others.chain(steered).chain(expired.iter().copied());
        let others = others.collect();
        let comparison = Comparison {
            before,
            desired: &desired,
            interfaces: &interfaces,
            changes: &changes,
            undone,
        };
        self.restoration.finish(comparison, report);
        let counted = self
            .followed
            .settle(desired.floating_ips, &mut self.kept, expired);
        report.floating_ips = self.followed.usable();
        self.announcer.keep(&counted);
        findings.extend(self.tell_claims(counted, others));
        findings.extend(self.look_at_host(plan, &interfaces, doubts));
    }

    /// Makes the kernel forget connections of pods that were decided otherwise than `plan` does. Returns how many there were.
    fn forget(&mut self, pods: &BTreeSet<IpAddr>, plan: &NodePlan) -> Result<usize, ObserveError> {
        forget_stale(pods, plan, expecting(&self.nft, &self.config))
    }

    /// Lets go nowhere what pods say in connections that the kernel does not know any more.
    fn silence(&self, pods: &BTreeSet<IpAddr>) -> Result<(), ObserveError> {
        for family in Family::of_all(pods) {
            Forgotten::silence(&self.nft.lock(), &self.ruleset(family), pods)?;
        }
        Ok(())
    }

    /// Tracks all answers again, unless something is expected still.
    fn expect_no_answers(&self) -> Result<(), NftError> {
        let owner = self.nft.lock();
        for family in &self.families {
            Forgotten::end(&owner, *family)?;
        }
        Ok(())
    }

    fn ruleset(&self, family: Family) -> Ruleset {
        Ruleset::new(family, &self.config)
    }
}

/// Announces by an uplink.
fn announcer(
    uplink: &Uplink,
    nft: &SharedOwner,
    config: &Config,
) -> Result<Announcer, AnnounceError> {
    Announcer::open(uplink.index, uplink.mac, nft.clone(), config.announce_every)
}

/// Leaves answers to connections that are about to be forgotten untracked.
fn expecting(
    nft: &SharedOwner,
    config: &Config,
) -> impl FnMut(Family, &[Answer]) -> Result<(), ObserveError> {
    |family, answers| {
        let ruleset = Ruleset::new(family, config);
        Ok(Forgotten::expect(&nft.lock(), &ruleset, answers)?)
    }
}

/// Reading or writing the kernel's state failed.
#[derive(Debug, Error)]
pub(crate) enum ObserveError {
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
    #[error("floating IP {0} is not translated to here yet, and is not announced before")]
    NotTranslated(IpAddr),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Nft(#[from] NftError),
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    #[error(
        "egress IP {0} has no index on this node: at most as many are possible as the mark mask has room for"
    )]
    NoEgressIndex(IpAddr),
}

/// Notes a failure with everything that led to it.
fn fail(report: &mut Report, object: &str, error: &dyn std::error::Error) {
    report.failures.push(failure(object, error));
}

/// A failure with everything that led to it.
fn failure(object: &str, error: &dyn std::error::Error) -> Failure {
    Failure {
        object: object.to_owned(),
        message: chain(error),
    }
}

/// An error and its sources in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
