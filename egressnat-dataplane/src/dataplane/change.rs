//! Making single changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use egressnat_core::gateway::EgressId;
use egressnat_core::model::{MasqueradeAction, MasqueradeMatch};
use egressnat_core::{Change, Report, Steering};
use ipnet::IpNet;

use super::{Dataplane, ObserveError, fail};
use crate::config::FloatingIpUse;
use crate::conntrack::forget_seen_as;
use crate::family::Family;
use crate::maps::{DROP, FORWARD, KEEP, PodEntry, map_error};
use crate::nft::{Elements, Fence, NftError, Owner, Ruleset, SetName};
use crate::programs::ProgramsError;

impl Dataplane {
    /// Makes all changes, each failure told and the others made all the same. Returns those that could not be made.
    pub(super) async fn change(
        &mut self,
        changes: &[Change],
        routes: &BTreeMap<IpAddr, u32>,
        report: &mut Report,
    ) -> BTreeSet<Change> {
        let mut undone = BTreeSet::new();
        let mut nft = NftChanges::default();
        for change in changes {
            nft.take(change);
        }
        if nft.commit(&self.nft.lock(), report) == Commit::Failed {
            undone.extend(changes.iter().copied().filter(is_of_table));
        }
        // Last, so that nothing waits until the network was asked, and what goes away is gone by then.
        let (addresses, others): (Vec<Change>, Vec<Change>) = changes
            .iter()
            .partition(|change| matches!(change, Change::AddAddress(_)));
        undone.extend(self.change_each(&others, routes, report).await);
        let contested = self.ask_for(&addresses, report).await;
        let free: Vec<Change> = addresses
            .into_iter()
            .filter(|change| !contested.contains(change))
            .collect();
        undone.extend(self.change_each(&free, routes, report).await);
        undone.extend(contested);
        undone
    }

    /// Makes changes one by one. Returns those that could not be made.
    async fn change_each(
        &mut self,
        changes: &[Change],
        routes: &BTreeMap<IpAddr, u32>,
        report: &mut Report,
    ) -> BTreeSet<Change> {
        let mut undone = BTreeSet::new();
        let mut crowded = Vec::new();
        for change in changes {
            match self.change_one(change, routes).await {
                Ok(Written::Yes) => report.changes += 1,
                Ok(Written::No) => {}
                Err(ObserveError::Programs(ProgramsError::Full { .. })) => crowded.push(change),
                Err(error) => {
                    fail(report, &change.to_string(), &error);
                    undone.insert(*change);
                }
            }
        }
        // What goes made room meanwhile.
        for change in crowded {
            match self.change_one(change, routes).await {
                Ok(_) => report.changes += 1,
                Err(error) => {
                    fail(report, &change.to_string(), &error);
                    undone.insert(*change);
                }
            }
        }
        undone
    }

    async fn change_one(
        &mut self,
        change: &Change,
        routes: &BTreeMap<IpAddr, u32>,
    ) -> Result<Written, ObserveError> {
        match *change {
            Change::AddPeer(peer) => self.maps.add_peer(peer)?,
            Change::RemovePeer(peer) => self.maps.remove_peer(peer)?,
            Change::SetDestination(set, prefix, steering) => {
                let value = match steering {
                    Steering::Forward => FORWARD,
                    Steering::Keep => KEEP,
                    Steering::Drop => DROP,
                    Steering::Snat(address) => self
                        .egress
                        .index(address)
                        .ok_or(ObserveError::NoEgressIndex(address))?,
                };
                self.maps.set_destination(set.0, prefix, value)?;
            }
            Change::RemoveDestination(set, prefix) => {
                self.maps.remove_destination(set.0, prefix)?;
            }
            Change::SetPod(address, set) => {
                if let Some(ifindex) = routes.get(&address) {
                    self.maps.set_pod(PodEntry {
                        address,
                        ifindex: *ifindex,
                        set: set.0,
                    })?;
                }
            }
            Change::RemovePod(address) => {
                if let Some(ifindex) = routes.get(&address) {
                    self.maps.remove_pod(address, *ifindex)?;
                }
            }
            Change::AddSnat(address) => self.add_snat(address)?,
            Change::AddAddress(address) => {
                // What this node knows of the address's flows from an earlier time would take their packets for invalid.
                if !self.translated()?.contains(&address) {
                    return Err(ObserveError::NotTranslated(address));
                }
                forget_seen_as(address, |_| true)?;
                let waits = self.config.floating_ip_use == FloatingIpUse::UntilDeadline;
                if waits && !Fence::is_fenced(address)? {
                    self.deadlines().hold_until(address, Instant::now())?;
                }
                self.handover.widen().await;
                self.network.add_floating_ip(&self.uplink, address).await?;
                self.egress.set_local(&mut self.maps, address, true)?;
                if let IpAddr::V4(address) = address {
                    self.prober.hold(address);
                }
                self.announcer.announce(address);
            }
            Change::RemoveAddress(address) => {
                self.announcer.withdraw(address);
                self.handover.widen().await;
                self.egress.set_local(&mut self.maps, address, false)?;
                // The node's own pods go through the tunnel from here on, and not as who they were here. What was translated for
                // other nodes stays known: answers to it are on their way.
                forget_seen_as(address, |source| routes.contains_key(source))?;
                self.network
                    .forget_neighbor(self.uplink.index, address)
                    .await?;
                self.network
                    .remove_floating_ip(self.uplink.index, address)
                    .await?;
                if let IpAddr::V4(address) = address {
                    self.prober.let_go(address);
                }
            }
            Change::RemoveSnat(address) => self.remove_snat(address)?,
            // Made already, as a whole.
            Change::AddInternalRange(_)
            | Change::RemoveInternalRange(_)
            | Change::AddGuardRange(_)
            | Change::RemoveGuardRange(_)
            | Change::AddPodRange(_)
            | Change::RemovePodRange(_)
            | Change::SetMasquerade(..)
            | Change::RemoveMasquerade(_) => return Ok(Written::No),
        }
        Ok(Written::Yes)
    }

    fn add_snat(&mut self, address: IpAddr) -> Result<(), ObserveError> {
        let family = Family::of(address);
        let no_index = || ObserveError::NoEgressIndex(address);
        let mark = self.egress.mark(address).ok_or_else(no_index)?;
        let index = self.egress.index(address).ok_or_else(no_index)?;
        let none = || Elements::of(family, SetName::EgressIps);
        let stale = Ruleset::mappings(family, SetName::EgressIps)?
            .into_iter()
            .filter(|(other, _)| *other == mark)
            .fold(none(), |elements, (mark, address)| {
                elements.mapping(mark, address)
            });
        let mapping = none().mapping(mark, address);
        let floating = Elements::of(family, SetName::FloatingIps).address(address);
        Ruleset::change(
            &self.nft.lock(),
            &[stale],
            &[mapping, floating],
            &format!("snat to {address}"),
        )?;
        let vni = EgressId::of(address).vni();
        Ok(self
            .maps
            .vnis
            .insert(vni, index, 0)
            .map_err(map_error("vnis"))?)
    }

    fn remove_snat(&mut self, address: IpAddr) -> Result<(), ObserveError> {
        let family = Family::of(address);
        // No error when it is not there: the table may have been made anew.
        let _ = self.maps.vnis.remove(&EgressId::of(address).vni());
        let mapping = Ruleset::mappings(family, SetName::EgressIps)?
            .into_iter()
            .filter(|(_, mapped)| *mapped == address)
            .fold(
                Elements::of(family, SetName::EgressIps),
                |elements, (mark, address)| elements.mapping(mark, address),
            );
        let mut floating = Elements::of(family, SetName::FloatingIps);
        if Ruleset::addresses(family, SetName::FloatingIps)?.contains(&address) {
            floating = floating.address(address);
        }
        Ruleset::change(
            &self.nft.lock(),
            &[mapping, floating],
            &[],
            &format!("the end of snat to {address}"),
        )?;
        Ok(Fence::release(&self.nft.lock(), address)?)
    }
}

/// Whether a change wrote anything here.
enum Written {
    Yes,
    No,
}

/// What became of the batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Commit {
    Whole,
    /// At least one was refused.
    Failed,
}

/// Whether a change is made in the table as a whole.
fn is_of_table(change: &Change) -> bool {
    let mut nft = NftChanges::default();
    nft.take(change);
    nft != NftChanges::default()
}

/// What comes and goes in the table as a whole, whatever is done about single pods and addresses.
#[derive(Default, PartialEq)]
struct NftChanges {
    internal_ranges: RangeChange,
    guard_ranges: RangeChange,
    pod_ranges: RangeChange,
    masquerade: BTreeMap<MasqueradeMatch, MasqueradeAction>,
    not_masquerade: Vec<MasqueradeMatch>,
}

impl NftChanges {
    fn take(&mut self, change: &Change) {
        match change {
            Change::AddInternalRange(range) => self.internal_ranges.added.push(*range),
            Change::RemoveInternalRange(range) => self.internal_ranges.removed.push(*range),
            Change::AddGuardRange(range) => self.guard_ranges.added.push(*range),
            Change::RemoveGuardRange(range) => self.guard_ranges.removed.push(*range),
            Change::AddPodRange(range) => self.pod_ranges.added.push(*range),
            Change::RemovePodRange(range) => self.pod_ranges.removed.push(*range),
            Change::SetMasquerade(rule, action) => {
                self.masquerade.insert(*rule, *action);
            }
            Change::RemoveMasquerade(rule) => self.not_masquerade.push(*rule),
            _ => {}
        }
    }

    /// In the order of the changes: inside of the cluster nothing is guarded or masqueraded, the guard is there before pods
    /// are, and the rules are there before what they are about. What goes from a set goes in the same batch as what comes:
    /// the kernel refuses ranges that overlap, even for an instant.
    fn commit(self, owner: &Owner, report: &mut Report) -> Commit {
        let mut outcome = Commit::Whole;
        let mut note = |object: &str, written: Result<usize, NftError>| match written {
            Ok(written) => report.changes += written,
            Err(error) => {
                fail(report, object, &error);
                outcome = Commit::Failed;
            }
        };
        let internal_ranges = self.internal_ranges.commit(owner, SetName::InternalRanges);
        note("internal ranges", internal_ranges);
        note(
            "guard ranges",
            self.guard_ranges.commit(owner, SetName::GuardRanges),
        );
        for family in Family::ALL {
            let is_of = |rule: &MasqueradeMatch| Family::of_range(&rule.destination) == family;
            let mut set = self.masquerade.clone();
            set.retain(|rule, _| is_of(rule));
            let mut removed = self.not_masquerade.clone();
            removed.retain(is_of);
            let masquerade = Ruleset::change_masquerade(owner, family, &set, &removed);
            let rules = set.len() + removed.len();
            note("masquerade rules", masquerade.map(|()| rules));
        }
        note(
            "pod ranges",
            self.pod_ranges.commit(owner, SetName::PodRanges),
        );
        outcome
    }
}

/// The ranges that come and go in one set.
#[derive(Default, PartialEq)]
struct RangeChange {
    removed: Vec<IpNet>,
    added: Vec<IpNet>,
}

impl RangeChange {
    fn commit(self, owner: &Owner, set: SetName) -> Result<usize, NftError> {
        if self.removed.is_empty() && self.added.is_empty() {
            return Ok(0);
        }
        // A message is about the set of one family; the batch has both.
        let elements = |ranges: &[IpNet]| {
            Family::ALL.map(|family| {
                let ranges = ranges.iter().copied();
                ranges
                    .filter(|range| Family::of_range(range) == family)
                    .fold(Elements::of(family, set), Elements::range)
            })
        };
        Ruleset::change(
            owner,
            &elements(&self.removed),
            &elements(&self.added),
            &format!("ranges of {set:?}"),
        )?;
        Ok(self.removed.len() + self.added.len())
    }
}
