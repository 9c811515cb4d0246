//! Making a plan real: observe, compare, change what differs.

mod change;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use egressnat_core::gateway::EgressId;
use egressnat_core::model::{MasqueradeMatch, MasqueradeRules};
use egressnat_core::{Failure, NodePlan, PolicySetId, Report, Steering, diff};
use ipnet::{IpNet, Ipv4Net};
use thiserror::Error;

use crate::announce::{AnnounceError, Announcer};
use crate::config::Config;
use crate::conntrack::ConntrackError;
use crate::egress::EgressTable;
use crate::handover::HandoverQueue;
use crate::maps::{DROP, DestinationKey, FORWARD, KEEP};
use crate::network::{Network, NetworkError, Uplink, is_forwarding};
use crate::nft::{Counter, Fence, NftError, Ruleset, SetName};
use crate::ports::{PodInterfaces, Ports};
use crate::programs::{Counters, Hook, Maps, Programs, ProgramsError};
use crate::redecide::{affected_pods, forget_stale};

/// The packet path could not be put in place at all.
#[derive(Debug, Error)]
pub enum OpenError {
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
}

/// How long writing a deadline may take: by so much the kernel's is earlier, so that it is never later.
const FENCE_MARGIN: Duration = Duration::from_millis(100);

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
/// 6.6, for TCX.
pub struct Dataplane {
    config: Config,
    network: Network,
    ports: Ports,
    uplink: Uplink,
    programs: Programs,
    maps: Maps,
    egress: EgressTable,
    announcer: Announcer,
    handover: HandoverQueue,
    steered: BTreeSet<u32>,
    /// Objects written while opening, for the next report.
    opened: usize,
}

impl Dataplane {
    /// Puts programs, table, tunnel device, rule and route in place, or takes them over from an earlier run.
    ///
    /// # Errors
    ///
    /// Whatever keeps the node from carrying egress traffic at all: missing capabilities, no bpffs, no uplink.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        let network = Network::open()?;
        let mut uplink = network.uplink(&config).await?;
        let (mut programs, mut maps) = Programs::load(&config)?;
        let mut opened = usize::from(Ruleset::new(config.mark, config.tunnel_port).ensure()?);
        let (tunnel, changes) = network.ensure_tunnel(&config, &uplink).await?;
        opened += changes;
        opened += usize::from(network.follow_mtu(&config, &mut uplink).await?);
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
        let egress = EgressTable::read(&mut maps, config.mark)?;
        let announcer = Announcer::open(uplink.index, uplink.mac)?;
        let handover = HandoverQueue::of(&uplink.name);
        Ok(Self {
            config,
            network,
            ports: Ports::open()?,
            uplink,
            programs,
            maps,
            egress,
            announcer,
            handover,
            steered,
            opened,
        })
    }

    /// The interface that floating IPs go on, with its own addresses and their subnets.
    pub fn uplink(&self) -> &Uplink {
        &self.uplink
    }

    /// What the programs counted since they were first pinned, over all interfaces.
    ///
    /// # Errors
    ///
    /// The counters cannot be read.
    pub fn counters(&self) -> Result<Counters, ProgramsError> {
        self.maps.counters()
    }

    /// How many packets the guard dropped since the table was made: from a pod's address, to a destination of a strict
    /// policy, and undecided (E43).
    ///
    /// # Errors
    ///
    /// The counter cannot be read.
    pub fn undecided(&self) -> Result<u64, NftError> {
        Ruleset::packets(Counter::Undecided)
    }

    /// Lets this node use a floating IP until `deadline` and no longer, counted by the kernel: from then on the address answers
    /// no ARP, and nothing goes out or comes in with it, not even for connections that run, whether this process runs, is
    /// frozen or is gone. Called again it moves the deadline, without a gap for packets; one that has passed ends the use at
    /// once.
    ///
    /// An address that this was never called for may be used for ever. The fence goes with the floating IP, when a plan has it
    /// no more. It is not taken over when the table is made anew: such an address waits for the next call.
    ///
    /// # Errors
    ///
    /// nf_tables refused: the kernel has no tables of family arp, or is older than 6.3. The old deadline stands.
    pub fn hold_until(&mut self, address: Ipv4Addr, deadline: Instant) -> Result<(), NftError> {
        loop {
            let start = Instant::now();
            let left = deadline.saturating_duration_since(start + FENCE_MARGIN);
            Fence::hold(address, left)?;
            // The kernel counts from when it got it: had we been frozen on the way, that would be too long.
            if left.is_zero() || start.elapsed() <= FENCE_MARGIN {
                return Ok(());
            }
        }
    }

    /// Waits until links, addresses, routes or rules of the namespace changed, so that the plan wants to be applied again.
    ///
    /// Cancel safe.
    pub async fn changed(&mut self) {
        tokio::select! {
            () = self.network.changed() => {}
            () = self.ports.changed() => {}
        }
    }

    /// Makes the kernel equal `plan`, as far as it goes. What could not be done is in the report; all else was done.
    pub async fn apply(&mut self, plan: &NodePlan) -> Report {
        let mut report = Report {
            changes: std::mem::take(&mut self.opened),
            ..Report::default()
        };
        if !is_forwarding() {
            report.failures.push(Failure {
                object: "sysctl net.ipv4.ip_forward".to_owned(),
                message: "it is 0, so no pod's packet leaves this node: run 'sysctl -w net.ipv4.ip_forward=1'".to_owned(),
            });
        }
        self.ensure(&mut report).await;

        let interfaces = match self.pod_interfaces(plan).await {
            Ok(interfaces) => interfaces,
            Err(error) => {
                fail(&mut report, "interfaces of pods", &error);
                return report;
            }
        };
        let desired = self.applicable(plan, &interfaces, &mut report);
        let routes = &interfaces.by_address;
        let observed = match self.observe(&desired, routes, &mut report).await {
            Ok(observed) => observed,
            Err(error) => {
                fail(&mut report, "the kernel's present state", &error);
                return report;
            }
        };
        let needed: BTreeSet<Ipv4Addr> = desired
            .egress_ips()
            .into_iter()
            .chain(desired.floating_ips.iter().copied())
            .filter_map(ipv4)
            .collect();
        for address in &needed {
            if let Err(error) = self.egress.allocate(&mut self.maps, *address) {
                fail(&mut report, &format!("egress IP {address}"), &error);
            }
        }
        let changes = diff(&observed, &desired);
        self.change(&changes, routes, &mut report).await;
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
            Ok(usable) => report.floating_ips = usable.into_iter().map(IpAddr::V4).collect(),
            Err(error) => fail(&mut report, "floating IPs", &error),
        }
        report
    }

    /// Where the pods are. What counted until now is in the map, which outlives this process.
    async fn pod_interfaces(&mut self, plan: &NodePlan) -> Result<PodInterfaces, ObserveError> {
        let mut before = BTreeMap::new();
        for key in self.maps.pods.keys() {
            let key = key.map_err(map_error("pods"))?;
            before.insert(key.address(), key.ifindex);
        }
        let routes = self.network.host_routes().await?;
        Ok(self.ports.find(plan, routes, &before).await?)
    }

    /// Brings back what others removed: the table, the tunnel device, its rule and route.
    async fn ensure(&mut self, report: &mut Report) {
        match Ruleset::new(self.config.mark, self.config.tunnel_port).ensure() {
            Ok(made) => report.changes += usize::from(made),
            Err(error) => fail(report, "table ip egressnat", &error),
        }
        match self.network.ensure_tunnel(&self.config, &self.uplink).await {
            Ok((index, changes)) => {
                report.changes += changes;
                let name = &self.config.tunnel_device;
                for hook in [Hook::Encap, Hook::Decap] {
                    if changes == 0 && self.programs.is_attached(hook, index) {
                        continue;
                    }
                    match self.programs.attach(hook, name, index) {
                        Ok(made) => report.changes += usize::from(made),
                        Err(error) => fail(report, name, &error),
                    }
                }
            }
            Err(error) => fail(report, &self.config.tunnel_device, &error),
        }
        let followed = self
            .network
            .follow_mtu(&self.config, &mut self.uplink)
            .await;
        match followed {
            Ok(set) => report.changes += usize::from(set),
            Err(error) => fail(report, "the tunnel's MTU", &error),
        }
    }

    /// The part of a plan that can be applied now: IPv4, pods that have an interface, ranges without overlap.
    fn applicable(
        &self,
        plan: &NodePlan,
        interfaces: &PodInterfaces,
        report: &mut Report,
    ) -> NodePlan {
        let is_ipv4 = |address: &IpAddr| address.is_ipv4();
        let mut later = |object: String| {
            report.failures.push(Failure {
                object,
                message: "IPv6 is not steered yet: nothing was changed for it".to_owned(),
            });
        };
        for address in plan.floating_ips.iter().filter(|address| !is_ipv4(address)) {
            later(format!("floating IP {address}"));
        }
        for (address, set) in &plan.pods {
            if !is_ipv4(address) && *set != PolicySetId::EMPTY {
                later(format!("pod {address}"));
            }
        }
        for range in plan
            .guard_ranges
            .iter()
            .filter(|range| !is_ipv4(&range.addr()))
        {
            later(format!("guard range {range}"));
        }
        let is_ipv6 = |rule: &MasqueradeMatch| rule.destination.addr().is_ipv6();
        for rule in plan.masquerade.rules.keys().filter(|rule| is_ipv6(rule)) {
            later(format!("masquerade rule {rule}"));
        }
        let routes = &interfaces.by_address;
        for (address, text) in &interfaces.contested {
            report.failures.push(Failure {
                object: format!("pod {address}"),
                message: text.clone(),
            });
        }
        let is_contested = |address: &IpAddr| {
            ipv4(*address).is_some_and(|ip| interfaces.contested.contains_key(&ip))
        };
        let is_here = |address: &IpAddr| ipv4(*address).is_some_and(|ip| routes.contains_key(&ip));
        for (address, set) in &plan.pods {
            // Without a guard, a pod that nothing selects misses nothing.
            let matters = *set != PolicySetId::EMPTY || !plan.guard_ranges.is_empty();
            if is_ipv4(address) && matters && !is_here(address) && !is_contested(address) {
                report.failures.push(Failure {
                    object: format!("pod {address}"),
                    message: "it has no route of its own and is at no bridge yet: until its interface is there, it does \
                              not reach the destinations of strict policies"
                        .to_owned(),
                });
            }
        }
        let decided = |steering: &Steering| !matches!(steering, Steering::Snat(IpAddr::V6(_)));
        NodePlan {
            pods: plan
                .pods
                .iter()
                .filter(|(address, _)| is_here(address))
                .map(|(address, set)| (*address, *set))
                .collect(),
            destinations: plan
                .destinations
                .iter()
                .filter(|((_, prefix), steering)| prefix.addr().is_ipv4() && decided(steering))
                .map(|(key, steering)| (*key, *steering))
                .collect(),
            floating_ips: plan.floating_ips.iter().copied().filter(is_ipv4).collect(),
            peers: plan.peers.iter().copied().filter(is_ipv4).collect(),
            pod_ranges: without_overlap(&plan.pod_ranges),
            internal_ranges: without_overlap(&plan.internal_ranges),
            guard_ranges: without_overlap(&plan.guard_ranges),
            masquerade: ipv4_rules(&plan.masquerade),
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
        let interface = |address: &IpAddr| interfaces.by_address.get(&ipv4(*address)?).copied();
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
            if self.steered.contains(&ifindex) && self.programs.is_attached(Hook::Steer, ifindex) {
                continue;
            }
            match self.programs.attach(Hook::Steer, name, ifindex) {
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
        routes: &BTreeMap<Ipv4Addr, u32>,
        report: &mut Report,
    ) -> Result<NodePlan, ObserveError> {
        let mut observed = NodePlan::default();
        for entry in self.maps.pods.iter().collect::<Vec<_>>() {
            let (key, set) = entry.map_err(map_error("pods"))?;
            if routes.get(&key.address()) == Some(&key.ifindex) {
                observed
                    .pods
                    .insert(IpAddr::V4(key.address()), PolicySetId(set));
            } else {
                // The address is on another interface now, or on none.
                self.maps.pods.remove(&key).map_err(map_error("pods"))?;
                report.changes += 1;
            }
        }
        for entry in self.maps.destinations.iter() {
            let (key, value) = entry.map_err(map_error("destinations"))?;
            let data = key.data();
            let length = key.prefix_len().saturating_sub(DestinationKey::SET_BITS) as u8;
            let Ok(prefix) = Ipv4Net::new(data.address(), length) else {
                continue;
            };
            let steering = match value {
                FORWARD => Steering::Forward,
                KEEP => Steering::Keep,
                DROP => Steering::Drop,
                index => match self.egress.address(index) {
                    Some(address) => Steering::Snat(IpAddr::V4(address)),
                    None => Steering::Forward,
                },
            };
            observed
                .destinations
                .insert((PolicySetId(data.set), IpNet::V4(prefix)), steering);
        }
        for entry in self.maps.peers.iter() {
            let (peer, _) = entry.map_err(map_error("peers"))?;
            observed.peers.insert(IpAddr::V4(Ipv4Addr::from(peer)));
        }
        let ranges = |name| -> Result<BTreeSet<IpNet>, NftError> {
            let ranges = Ruleset::ranges(name)?.into_iter();
            Ok(ranges.map(IpNet::V4).collect())
        };
        observed.pod_ranges = ranges(SetName::PodRanges)?;
        observed.internal_ranges = ranges(SetName::InternalRanges)?;
        observed.guard_ranges = ranges(SetName::GuardRanges)?;
        observed.masquerade = Ruleset::masquerade()?;
        let (addresses, translated) = self.held().await?;
        // Half of a floating IP is none, when it is wanted, and one, when it is not.
        let whole = addresses.intersection(&translated);
        let unwanted = addresses
            .union(&translated)
            .filter(|a| !desired.floating_ips.contains(&IpAddr::V4(**a)));
        observed.floating_ips = whole.chain(unwanted).copied().map(IpAddr::V4).collect();
        Ok(observed)
    }

    /// The floating IPs that are in use: on the uplink, translated to, and before their deadline if they have one.
    async fn usable(&self) -> Result<BTreeSet<Ipv4Addr>, ObserveError> {
        let (addresses, translated) = self.held().await?;
        let expired = Fence::expired()?;
        let mut usable: BTreeSet<Ipv4Addr> = &addresses & &translated;
        usable.retain(|address| !expired.contains(address));
        Ok(usable)
    }

    /// The floating IPs that are on the uplink, and those that are translated to.
    async fn held(&self) -> Result<(BTreeSet<Ipv4Addr>, BTreeSet<Ipv4Addr>), ObserveError> {
        let addresses = self
            .network
            .floating_ips(self.uplink.index)
            .await?
            .into_iter()
            .collect();
        Ok((addresses, self.translated()?))
    }

    /// The floating IPs that everything is in place for but the address itself: an agent may have been killed in between.
    fn translated(&self) -> Result<BTreeSet<Ipv4Addr>, ObserveError> {
        let guarded = Ruleset::addresses(SetName::FloatingIps)?;
        let mapped = Ruleset::mappings(SetName::EgressIps)?;
        let is_whole = |(mark, address): &(u32, Ipv4Addr)| {
            let vni = EgressId::of(IpAddr::V4(*address)).vni();
            let index = self.maps.vnis.get(&vni, 0).ok();
            self.egress.mark(*address) == Some(*mark)
                && index == self.egress.index(*address)
                && guarded.contains(address)
        };
        let whole = mapped.into_iter().filter(is_whole);
        Ok(whole.map(|(_, address)| address).collect())
    }
}

/// Reading or writing the kernel's state failed.
#[derive(Debug, Error)]
pub(crate) enum ObserveError {
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
    #[error("floating IP {0} is not translated to here yet, and is not announced before")]
    NotTranslated(Ipv4Addr),
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

pub(crate) fn map_error(name: &'static str) -> impl FnOnce(aya::maps::MapError) -> ProgramsError {
    move |source| ProgramsError::Map { name, source }
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

pub(crate) fn ipv4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

/// The rules that IPv4 packets can match.
fn ipv4_rules(rules: &MasqueradeRules) -> MasqueradeRules {
    let ipv4 = rules.rules.iter().filter_map(|(rule, action)| {
        let is_ipv4 = |range: &IpNet| range.addr().is_ipv4();
        let rule = MasqueradeMatch {
            destination: rule.destination.trunc(),
            source: rule.source.map(|range| range.trunc()),
            ..*rule
        };
        (is_ipv4(&rule.destination) && rule.source.as_ref().is_none_or(is_ipv4))
            .then_some((rule, *action))
    });
    MasqueradeRules {
        rules: ipv4.collect(),
    }
}

/// The IPv4 ranges, merged: an interval set takes no overlap.
fn without_overlap(ranges: &BTreeSet<IpNet>) -> BTreeSet<IpNet> {
    let ipv4: Vec<Ipv4Net> = ranges
        .iter()
        .filter_map(|range| match range {
            IpNet::V4(range) => Some(range.trunc()),
            IpNet::V6(_) => None,
        })
        .collect();
    Ipv4Net::aggregate(&ipv4)
        .into_iter()
        .map(IpNet::V4)
        .collect()
}
