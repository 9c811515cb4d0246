//! Making a plan real: observe, compare, change what differs.

mod applicable;
mod change;
mod claims;
mod host;
mod reboot;
mod restoration;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_core::gateway::EgressId;
use egressnat_core::{Failure, NodePlan, PolicySetId, Report, Resource, Restored, Steering, diff};
use thiserror::Error;

use crate::announce::{AnnounceError, Announcer};
use crate::capabilities::{self, CapabilitiesError};
use crate::config::Config;
use crate::conntrack::ConntrackError;
use crate::deadlines::Deadlines;
use crate::egress::EgressTable;
use crate::family::Family;
use crate::guard_file::{GuardFile, GuardFileError, GuardedRanges};
use crate::handover::HandoverQueue;
use crate::lock::{Lock, LockError};
use crate::maps::{DROP, FORWARD, KEEP, Maps};
use crate::network::{Network, NetworkError, Uplink, ipv6};
use crate::nft::{Events, Fence, NftError, Ruleset, SetName, SharedOwner};
use crate::ports::{PodInterfaces, Ports};
use crate::probe::{Mac, Prober};
use crate::programs::{Hook, Programs, ProgramsError, check_bpffs};
use crate::redecide::{affected_pods, forget_stale};
use crate::segment::Segment;
use applicable::{applicable, asks_for, missed};
use reboot::restore_guard;
use restoration::Restoration;

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
/// * Dropping it leaves everything in the kernel: traffic goes on, and the next [`open`](Self::open) takes it over.
/// * It touches nothing that is not its own; [`cleanup`](crate::cleanup) removes all that is.
///
/// # Minimum kernel version
///
/// 5.18; from 6.6 on programs are attached by TCX, and deadlines of floating IPs take 6.3.
pub struct Dataplane {
    config: Config,
    nft: SharedOwner,
    network: Network,
    ports: Ports,
    uplink: Uplink,
    programs: Programs,
    maps: Maps,
    egress: EgressTable,
    announcer: Announcer,
    handover: HandoverQueue,
    prober: Prober,
    steered: BTreeSet<u32>,
    /// Those with a table: IPv4, and IPv6 since a plan first asked for it.
    families: BTreeSet<Family>,
    /// Index of the tunnel device.
    tunnel: u32,
    /// What others do to our tables.
    table_events: Option<Events>,
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
        let network = Network::open()?;
        let mut uplink = network.uplink(&config).await?;
        check_bpffs(&config.bpffs)?;
        let lock = Lock::take(&config.pin_root()).await?;
        let (mut programs, mut maps) = Programs::load(&config)?;
        let nft = SharedOwner::open(config.table_ownership)?;
        let ruleset = Ruleset::new(Family::Ipv4, &config);
        let mut opened = usize::from(ruleset.ensure(&mut nft.lock())?);
        let mut families = BTreeSet::from([Family::Ipv4]);
        let guard_file = config.guard_file.as_deref().map(GuardFile::open);
        let guard_file = guard_file.transpose()?;
        if let Some(ranges) = guard_file.as_ref().and_then(GuardFile::ranges) {
            opened += restore_guard(&mut nft.lock(), &config, ranges)?;
        }
        let (tunnel, changes) = network.ensure_tunnel(&config, &uplink).await?;
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
        let table_events = nft.lock().events()?;
        let egress = EgressTable::read(&mut maps, config.mark)?;
        let announcer = Announcer::open(uplink.index, uplink.mac)?;
        let handover = HandoverQueue::of(&uplink.name);
        let prober = Prober::open(uplink.index, uplink.mac)?;
        Ok(Self {
            config,
            nft,
            network,
            ports: Ports::open()?,
            uplink,
            programs,
            maps,
            egress,
            announcer,
            handover,
            prober,
            steered,
            families,
            tunnel,
            table_events,
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
        let neighbors = self.network.neighbors(self.uplink.index);
        Segment::new(self.prober.ears(), neighbors)
    }

    /// Waits until the plan wants to be applied again: links, addresses, routes or rules of the namespace changed, or somebody
    /// touched what is ours. What the kernel tells nobody, such as a program that is taken off an interface, is looked for
    /// twice a second.
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
                () = self.network.changed() => return,
                () = self.ports.changed() => return,
                () = self.prober.changed() => return,
                () = tables => return,
                () = self.restoration.audit_is_due() => {
                    if !self.is_in_place() {
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
        self.ensure(plan, &mut report).await;

        let interfaces = match self.pod_interfaces(plan).await {
            Ok(interfaces) => interfaces,
            Err(error) => {
                fail(&mut report, "interfaces of pods", &error);
                return report;
            }
        };
        let desired = applicable(plan, &self.families, &interfaces, &mut report);
        let routes = &interfaces.by_address;
        let observed = match self.observe(&desired, routes, &mut report).await {
            Ok(observed) => observed,
            Err(error) => {
                fail(&mut report, "the kernel's present state", &error);
                return report;
            }
        };
        let needed = &desired.egress_ips() | &desired.floating_ips;
        for address in &needed {
            if let Err(error) = self.egress.allocate(&mut self.maps, *address) {
                fail(&mut report, &format!("egress IP {address}"), &error);
            }
        }
        let changes = diff(&observed, &desired);
        let undone = self.change(&changes, routes, &mut report).await;
        // The guard is there, and holds until each pod has its program: the kernel takes some milliseconds for each.
        self.attach_steering(&desired, &interfaces, &mut report)
            .await;
        // A binding is made by a flow's first packet. Where the decision has changed, flows have to start anew.
        match forget_stale(&affected_pods(&changes, &observed, &desired), &desired) {
            Ok(forgotten) => report.changes += forgotten,
            Err(error) => fail(&mut report, "running connections of pods", &error),
        }
        if let Err(error) = self.egress.retain(&mut self.maps, &needed) {
            fail(&mut report, "egress IPs that are not used any more", &error);
        }
        match self.usable().await {
            Ok(usable) => report.floating_ips = usable,
            Err(error) => fail(&mut report, "floating IPs", &error),
        }
        self.tell_claims(needed, &mut report).await;
        self.look_at_host(plan, &interfaces, &mut report);
        if let Some(file) = &mut self.guard_file
            && let Err(error) = file.keep(GuardedRanges::of(&desired))
        {
            fail(&mut report, "guard after a reboot", &error);
        }
        self.restoration.finish(
            desired,
            interfaces.by_address,
            &changes,
            undone,
            &mut report,
        );
        report
    }

    /// Where the pods are. What counted until now is in the map, which outlives this process.
    async fn pod_interfaces(&mut self, plan: &NodePlan) -> Result<PodInterfaces, ObserveError> {
        let mut before = BTreeMap::new();
        for pod in self.maps.pods()? {
            before.insert(pod.address, pod.ifindex);
        }
        let routes = self.network.host_routes().await?;
        Ok(self.ports.find(plan, routes, &before).await?)
    }

    fn ruleset(&self, family: Family) -> Ruleset {
        Ruleset::new(family, &self.config)
    }

    /// Brings back what others removed: the tables, the tunnel device, its rules and routes. Makes what is of IPv6 once a plan
    /// asks for it.
    async fn ensure(&mut self, plan: &NodePlan, report: &mut Report) {
        match self.ruleset(Family::Ipv4).ensure(&mut self.nft.lock()) {
            Ok(made) => wrote(report, made, Resource::Table, "ip egressnat"),
            Err(error) => fail(report, Ruleset::name(Family::Ipv4), &error),
        }
        let ipv6_before = self.families.contains(&Family::Ipv6);
        self.ensure_ipv6_table(plan, report);
        match Fence::repair(&mut self.nft.lock()) {
            Ok(made) => wrote(report, made, Resource::Table, "arp egressnat"),
            Err(error) => fail(report, "table arp egressnat", &error),
        }
        match self.network.ensure_tunnel(&self.config, &self.uplink).await {
            Ok((index, changes)) => {
                self.tunnel = index;
                let is_right = changes.is_empty();
                report.changes += changes.len();
                report.restored.extend(changes);
                if self.families.contains(&Family::Ipv6) {
                    self.ensure_ipv6_way(ipv6_before, report).await;
                }
                let name = &self.config.tunnel_device;
                for hook in [Hook::Encap, Hook::Decap] {
                    if is_right && self.programs.is_attached(hook, index) {
                        continue;
                    }
                    match self.programs.attach(hook, name, index) {
                        Ok(made) => {
                            wrote(
                                report,
                                made,
                                Resource::Program,
                                &format!("{hook} on {name}"),
                            );
                        }
                        Err(error) => fail(report, name, &error),
                    }
                }
            }
            Err(error) => fail(report, &self.config.tunnel_device, &error),
        }
        let followed = self
            .network
            .follow_mtu(&self.config, &mut self.uplink, &self.families)
            .await;
        match followed {
            Ok(set) => report.changes += usize::from(set),
            Err(error) => fail(report, "the tunnel's MTU", &error),
        }
    }

    /// The table of IPv6, on nodes that speak it: with it, the family is applied. Nodes that do not speak it carry IPv4 all the
    /// same.
    fn ensure_ipv6_table(&mut self, plan: &NodePlan, report: &mut Report) {
        let was_there = self.families.contains(&Family::Ipv6);
        if !was_there && !asks_for(plan, Family::Ipv6) {
            return;
        }
        if let Err(reason) = ipv6() {
            self.families.remove(&Family::Ipv6);
            report
                .failures
                .extend(missed(plan, Family::Ipv6).map(|missed| Failure {
                    object: Family::Ipv6.to_string(),
                    message: format!("{reason}; until then, {missed}"),
                }));
            return;
        }
        match self.ruleset(Family::Ipv6).ensure(&mut self.nft.lock()) {
            // Made for the first time, it is not restored.
            Ok(made) if was_there => wrote(report, made, Resource::Table, "ip6 egressnat"),
            Ok(made) => report.changes += usize::from(made),
            Err(error) => {
                self.families.remove(&Family::Ipv6);
                return fail(report, Ruleset::name(Family::Ipv6), &error);
            }
        }
        self.families.insert(Family::Ipv6);
    }

    /// The tunnel's way for IPv6. Made for the first time, it is not restored.
    async fn ensure_ipv6_way(&mut self, was_there: bool, report: &mut Report) {
        match self.network.ensure_ipv6(&self.config, self.tunnel).await {
            Ok(changes) => {
                report.changes += changes.len();
                if was_there {
                    report.restored.extend(changes);
                }
            }
            Err(error) => fail(report, "the tunnel's way for IPv6", &error),
        }
    }

    /// Programs go on the interfaces of known pods and the ports of their bridges, back on where somebody took them off, and
    /// off all others.
    async fn attach_steering(
        &mut self,
        desired: &NodePlan,
        interfaces: &PodInterfaces,
        report: &mut Report,
    ) {
        let interface = |address: &IpAddr| interfaces.by_address.get(address).copied();
        let of_pods = desired.pods.keys().filter_map(interface);
        let wanted: BTreeSet<u32> = of_pods.chain(interfaces.ports.iter().copied()).collect();
        for ifindex in self.steered.clone().difference(&wanted) {
            match self.programs.detach_steer(*ifindex) {
                Ok(()) => report.changes += 1,
                Err(error) => fail(report, &format!("steering on interface {ifindex}"), &error),
            }
            self.steered.remove(ifindex);
        }
        // Pods that something selects first: without a program, they wait for it.
        let is_selected = |(_, set): &(&IpAddr, &PolicySetId)| **set != PolicySetId::EMPTY;
        let selected = desired.pods.iter().filter(is_selected);
        let selected: BTreeSet<u32> = selected.filter_map(|(ip, _)| interface(ip)).collect();
        let others = wanted.difference(&selected);
        for ifindex in selected.iter().chain(others).copied() {
            // An interface that vanished meanwhile: its route goes too, and we are told.
            let Some(name) = interfaces.names.get(&ifindex) else {
                continue;
            };
            let was_steered = self.steered.contains(&ifindex);
            if was_steered && self.programs.is_attached(Hook::Steer, ifindex) {
                continue;
            }
            match self.programs.attach(Hook::Steer, name, ifindex) {
                Ok(made) if was_steered => {
                    let object = format!("{} on {name}", Hook::Steer);
                    wrote(report, made, Resource::Program, &object);
                }
                Ok(made) => {
                    report.changes += usize::from(made);
                    self.steered.insert(ifindex);
                }
                Err(error) => fail(report, &format!("steering on {name}"), &error),
            }
            // A node's first plan attaches many: whoever shares this thread, such as a lease, has its turn in between.
            tokio::task::yield_now().await;
        }
    }

    /// What the kernel has, as a plan.
    async fn observe(
        &mut self,
        desired: &NodePlan,
        routes: &BTreeMap<IpAddr, u32>,
        report: &mut Report,
    ) -> Result<NodePlan, ObserveError> {
        let mut observed = NodePlan::default();
        for pod in self.maps.pods()? {
            if routes.get(&pod.address) == Some(&pod.ifindex) {
                observed.pods.insert(pod.address, PolicySetId(pod.set));
            } else {
                // The address is on another interface now, or on none.
                self.maps.remove_pod(pod.address, pod.ifindex)?;
                report.changes += 1;
            }
        }
        for (set, prefix, value) in self.maps.destinations()? {
            let steering = match value {
                FORWARD => Steering::Forward,
                KEEP => Steering::Keep,
                DROP => Steering::Drop,
                index => match self.egress.address(index) {
                    Some(address) => Steering::Snat(address),
                    None => Steering::Forward,
                },
            };
            let key = (PolicySetId(set), prefix);
            observed.destinations.insert(key, steering);
        }
        observed.peers = self.maps.peers()?.into_iter().collect();
        for family in self.families.iter().copied() {
            let ranges = |name| Ruleset::ranges(family, name);
            observed.pod_ranges.extend(ranges(SetName::PodRanges)?);
            let internal = ranges(SetName::InternalRanges)?;
            observed.internal_ranges.extend(internal);
            observed.guard_ranges.extend(ranges(SetName::GuardRanges)?);
            let masquerade = Ruleset::masquerade(family)?.rules;
            observed.masquerade.rules.extend(masquerade);
        }
        let (addresses, translated) = self.held().await?;
        // Half of a floating IP is none, when it is wanted, and one, when it is not.
        let whole = addresses.intersection(&translated);
        let unwanted = addresses
            .union(&translated)
            .filter(|address| !desired.floating_ips.contains(address));
        observed.floating_ips = whole.chain(unwanted).copied().collect();
        Ok(observed)
    }

    /// The floating IPs that are in use: on the uplink, translated to, and before their deadline if they have one.
    async fn usable(&self) -> Result<BTreeSet<IpAddr>, ObserveError> {
        let (addresses, translated) = self.held().await?;
        let mut usable = &addresses & &translated;
        for family in &self.families {
            let expired = Fence::expired(*family)?;
            usable.retain(|address| !expired.contains(address));
        }
        Ok(usable)
    }

    /// The floating IPs that are on the uplink, and those that are translated to.
    async fn held(&self) -> Result<(BTreeSet<IpAddr>, BTreeSet<IpAddr>), ObserveError> {
        let addresses = self.network.floating_ips(self.uplink.index).await?;
        let has_family = |address: &IpAddr| self.families.contains(&Family::of(*address));
        let addresses = addresses.into_iter().filter(has_family).collect();
        Ok((addresses, self.translated()?))
    }

    /// The floating IPs that everything is in place for but the address itself: an agent may have been killed in between.
    fn translated(&self) -> Result<BTreeSet<IpAddr>, ObserveError> {
        let mut translated = BTreeSet::new();
        for family in self.families.iter().copied() {
            let guarded = Ruleset::addresses(family, SetName::FloatingIps)?;
            let mapped = Ruleset::mappings(family, SetName::EgressIps)?;
            let is_whole = |(mark, address): &(u32, IpAddr)| {
                let vni = EgressId::of(*address).vni();
                let index = self.maps.vnis.get(&vni, 0).ok();
                self.egress.mark(*address) == Some(*mark)
                    && index == self.egress.index(*address)
                    && guarded.contains(address)
            };
            let whole = mapped.into_iter().filter(is_whole);
            translated.extend(whole.map(|(_, address)| address));
        }
        Ok(translated)
    }
}

/// Reading or writing the kernel's state failed.
#[derive(Debug, Error)]
pub(crate) enum ObserveError {
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
    #[error("floating IP {0} is not translated to here yet, and is not announced before")]
    NotTranslated(IpAddr),
    #[error(
        "{mac} has it on {interface}: it is taken once that host lets go of it, or remove it from the gateway group"
    )]
    Claimed { mac: Mac, interface: String },
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

/// Notes what is always there, and had to be made anew.
fn wrote(report: &mut Report, made: bool, resource: Resource, object: &str) {
    if made {
        let object = object.to_owned();
        report.changes += 1;
        report.restored.push(Restored { resource, object });
    }
}

/// Notes a failure with everything that led to it.
fn fail(report: &mut Report, object: &str, error: &dyn std::error::Error) {
    report.failures.push(Failure {
        object: object.to_owned(),
        message: chain(error),
    });
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
