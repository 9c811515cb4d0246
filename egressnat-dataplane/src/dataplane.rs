//! Making a plan real: observe, compare, change what differs.

mod applicable;
mod change;
mod claims;
mod ensure;
mod host;
mod observe;
mod reboot;
mod restoration;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_core::{Failure, NodePlan, Report, Resource, diff};
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
use crate::maps::Maps;
use crate::network::{Network, NetworkError, Uplink};
use crate::nft::{Events, NftError, Ruleset, SharedOwner};
use crate::ports::{PodInterfaces, Ports};
use crate::probe::{Mac, Prober};
use crate::programs::{Hook, Programs, ProgramsError, check_bpffs};
use crate::redecide::{affected_pods, forget_stale};
use crate::segment::Segment;
use applicable::applicable;
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
        let handover = HandoverQueue::of(network.neighbor_queues(&uplink.name, uplink.index)).await;
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
