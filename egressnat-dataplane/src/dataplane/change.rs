//! Making single changes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use egressnat_core::gateway::EgressId;
use egressnat_core::model::{MasqueradeAction, MasqueradeMatch};
use egressnat_core::{Change, Report, Steering};
use ipnet::IpNet;

use super::{Dataplane, ObserveError, fail, ipv4, map_error};
use crate::conntrack::forget_seen_as;
use crate::maps::{DROP, FORWARD, KEEP, PodKey};
use crate::nft::{Elements, Fence, NftError, Ruleset, SetName};
use crate::programs::destination_key;

impl Dataplane {
    /// Makes all changes, each failure told and the others made all the same.
    pub(super) async fn change(
        &mut self,
        changes: &[Change],
        routes: &BTreeMap<Ipv4Addr, u32>,
        report: &mut Report,
    ) {
        let mut nft = NftChanges::default();
        for change in changes {
            nft.take(change);
        }
        nft.commit(report);
        for change in changes {
            match self.change_one(change, routes).await {
                Ok(Written::Yes) => report.changes += 1,
                Ok(Written::No) => {}
                Err(error) => fail(report, &change.to_string(), &error),
            }
        }
    }

    async fn change_one(
        &mut self,
        change: &Change,
        routes: &BTreeMap<Ipv4Addr, u32>,
    ) -> Result<Written, ObserveError> {
        match *change {
            Change::AddPeer(IpAddr::V4(peer)) => {
                self.maps
                    .peers
                    .insert(u32::from(peer), 1, 0)
                    .map_err(map_error("peers"))?;
            }
            Change::RemovePeer(IpAddr::V4(peer)) => {
                self.maps
                    .peers
                    .remove(&u32::from(peer))
                    .map_err(map_error("peers"))?;
            }
            Change::SetDestination(set, IpNet::V4(prefix), steering) => {
                let value = match steering {
                    Steering::Forward => FORWARD,
                    Steering::Keep => KEEP,
                    Steering::Drop => DROP,
                    Steering::Snat(address) => {
                        let index = ipv4(address).and_then(|address| self.egress.index(address));
                        index.ok_or(ObserveError::NoEgressIndex(address))?
                    }
                };
                let inserted =
                    self.maps
                        .destinations
                        .insert(&destination_key(set.0, prefix), value, 0);
                inserted.map_err(map_error("destinations"))?;
            }
            Change::RemoveDestination(set, IpNet::V4(prefix)) => {
                let removed = self
                    .maps
                    .destinations
                    .remove(&destination_key(set.0, prefix));
                removed.map_err(map_error("destinations"))?;
            }
            Change::SetPod(IpAddr::V4(address), set) => {
                if let Some(ifindex) = routes.get(&address) {
                    let inserted = self
                        .maps
                        .pods
                        .insert(PodKey::new(address, *ifindex), set.0, 0);
                    inserted.map_err(map_error("pods"))?;
                }
            }
            Change::RemovePod(IpAddr::V4(address)) => {
                if let Some(ifindex) = routes.get(&address) {
                    self.maps
                        .pods
                        .remove(&PodKey::new(address, *ifindex))
                        .map_err(map_error("pods"))?;
                }
            }
            Change::AddSnat(IpAddr::V4(address)) => self.add_snat(address)?,
            Change::AddAddress(IpAddr::V4(address)) => {
                // What this node knows of the address's flows from an earlier time would take their packets for invalid.
                if !self.translated()?.contains(&address) {
                    return Err(ObserveError::NotTranslated(address));
                }
                forget_seen_as(address)?;
                self.handover.widen();
                self.network.add_floating_ip(&self.uplink, address).await?;
                self.egress.set_local(&mut self.maps, address, true)?;
                self.announcer.announce(address);
            }
            Change::RemoveAddress(IpAddr::V4(address)) => {
                self.announcer.withdraw(address);
                self.handover.widen();
                self.egress.set_local(&mut self.maps, address, false)?;
                self.network
                    .forget_neighbor(self.uplink.index, address)
                    .await?;
                self.network
                    .remove_floating_ip(self.uplink.index, address)
                    .await?;
            }
            Change::RemoveSnat(IpAddr::V4(address)) => self.remove_snat(address)?,
            // Ranges and masquerade rules are made already, and IPv6 is not in what is applied.
            _ => return Ok(Written::No),
        }
        Ok(Written::Yes)
    }

    fn add_snat(&mut self, address: Ipv4Addr) -> Result<(), ObserveError> {
        let no_index = || ObserveError::NoEgressIndex(IpAddr::V4(address));
        let mark = self.egress.mark(address).ok_or_else(no_index)?;
        let index = self.egress.index(address).ok_or_else(no_index)?;
        let stale = Elements::of(SetName::EgressIps);
        let stale = Ruleset::mappings(SetName::EgressIps)?
            .into_iter()
            .filter(|(other, _)| *other == mark)
            .fold(stale, |elements, (mark, address)| {
                elements.mapping(mark, address)
            });
        let mapping = Elements::of(SetName::EgressIps).mapping(mark, address);
        let floating = Elements::of(SetName::FloatingIps).address(address);
        Ruleset::change(
            &[stale],
            &[mapping, floating],
            &format!("snat to {address}"),
        )?;
        let vni = EgressId::of(IpAddr::V4(address)).vni();
        Ok(self
            .maps
            .vnis
            .insert(vni, index, 0)
            .map_err(map_error("vnis"))?)
    }

    fn remove_snat(&mut self, address: Ipv4Addr) -> Result<(), ObserveError> {
        // No error when it is not there: the table may have been made anew.
        let _ = self
            .maps
            .vnis
            .remove(&EgressId::of(IpAddr::V4(address)).vni());
        let mapping = Ruleset::mappings(SetName::EgressIps)?
            .into_iter()
            .filter(|(_, mapped)| *mapped == address)
            .fold(
                Elements::of(SetName::EgressIps),
                |elements, (mark, address)| elements.mapping(mark, address),
            );
        let mut floating = Elements::of(SetName::FloatingIps);
        if Ruleset::addresses(SetName::FloatingIps)?.contains(&address) {
            floating = floating.address(address);
        }
        Ruleset::change(
            &[mapping, floating],
            &[],
            &format!("the end of snat to {address}"),
        )?;
        Ok(Fence::release(address)?)
    }
}

/// Whether a change wrote anything here.
enum Written {
    Yes,
    No,
}

/// What comes and goes in the table as a whole, whatever is done about single pods and addresses.
#[derive(Default)]
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
    fn commit(self, report: &mut Report) {
        let mut note = |object: &str, outcome: Result<usize, NftError>| match outcome {
            Ok(written) => report.changes += written,
            Err(error) => fail(report, object, &error),
        };
        let internal_ranges = self.internal_ranges.commit(SetName::InternalRanges);
        note("internal ranges", internal_ranges);
        note(
            "guard ranges",
            self.guard_ranges.commit(SetName::GuardRanges),
        );
        let rules = self.masquerade.len() + self.not_masquerade.len();
        let masquerade = Ruleset::change_masquerade(&self.masquerade, &self.not_masquerade);
        note("masquerade rules", masquerade.map(|()| rules));
        note("pod ranges", self.pod_ranges.commit(SetName::PodRanges));
    }
}

/// The ranges that come and go in one set.
#[derive(Default)]
struct RangeChange {
    removed: Vec<IpNet>,
    added: Vec<IpNet>,
}

impl RangeChange {
    fn commit(self, set: SetName) -> Result<usize, NftError> {
        if self.removed.is_empty() && self.added.is_empty() {
            return Ok(0);
        }
        let elements = |ranges: &[IpNet]| {
            ranges
                .iter()
                .fold(Elements::of(set), |elements, range| match range {
                    IpNet::V4(range) => elements.range(*range),
                    IpNet::V6(_) => elements,
                })
        };
        Ruleset::change(
            &[elements(&self.removed)],
            &[elements(&self.added)],
            &format!("ranges of {set:?}"),
        )?;
        Ok(self.removed.len() + self.added.len())
    }
}
