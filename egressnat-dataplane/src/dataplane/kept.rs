//! What the kernel has, as far as this process has read or written it.

mod entries;
mod floating;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_core::gateway::EgressId;
use egressnat_core::model::PolicyName;
use egressnat_core::{Change, NodePlan, PolicySetId, Steering};
use ipnet::IpNet;

use super::ObserveError;
use crate::egress::EgressTable;
use crate::family::Family;
use crate::maps::{DROP, FORWARD, KEEP, Maps};
use crate::nft::{NftError, Ruleset, SetName};
use crate::policy_table::PolicyTable;

pub(super) use entries::Tally;
pub(super) use floating::Parts;

/// What the kernel has. Every write that the kernel has acknowledged is noted here; what it refused is read again.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept {
    /// As a plan. Its floating IPs are those of which everything is in place, and halves that the last comparison did not want.
    pub(super) plan: NodePlan,
    /// The pods of the plan with their interfaces.
    pub(super) pods: BTreeMap<(IpAddr, u32), PolicySetId>,
    /// What there is of each floating IP of which there is anything.
    parts: BTreeMap<IpAddr, Parts>,
    /// Marks and the egress IPs that they are translated to.
    mappings: BTreeMap<(Family, u32), IpAddr>,
    /// Marks and the egress IPs that what has them may leave with.
    translated: BTreeSet<(u32, IpAddr)>,
    /// Floating IPs of which something is missing.
    halves: BTreeSet<IpAddr>,
    /// Floating IPs that were counted anew since somebody took them from here.
    counted: BTreeSet<IpAddr>,
}

impl Kept {
    /// Reads pods, destinations and peers from the maps.
    pub(super) fn read_maps(
        &mut self,
        maps: &Maps,
        egress: &EgressTable,
        policies: &PolicyTable,
    ) -> Result<(), ObserveError> {
        let pods = maps.pods()?.into_iter();
        self.pods = pods
            .map(|pod| ((pod.address, pod.ifindex), PolicySetId(pod.set)))
            .collect();
        self.count_pods();
        self.plan.destinations.clear();
        self.plan.deciders.clear();
        for (set, prefix, value) in maps.destinations()? {
            let steering = match value.egress {
                FORWARD => Steering::Forward,
                KEEP => Steering::Keep,
                DROP => Steering::Drop,
                // An index of none is nothing that any plan says: written by others, it differs whatever is desired.
                index => Steering::Snat(
                    egress
                        .address(u32::from(index))
                        .unwrap_or_else(|| Family::of_range(&prefix).unspecified()),
                ),
            };
            let key = (PolicySetId(set), prefix);
            self.plan.destinations.insert(key, steering);
            if let Some(name) = policies.name(value.policy) {
                self.plan.deciders.insert(key, name.clone());
            }
        }
        self.plan.peers = maps.peers()?.into_iter().collect();
        Ok(())
    }

    /// Reads sets and masquerade rules from the tables of some families.
    pub(super) fn read_tables(&mut self, families: &BTreeSet<Family>) -> Result<(), NftError> {
        self.clear_tables();
        let plan = &mut self.plan;
        plan.pod_ranges.clear();
        plan.internal_ranges.clear();
        plan.guard_ranges.clear();
        plan.masquerade.rules.clear();
        for family in families.iter().copied() {
            let ranges = |name| Ruleset::ranges(family, name);
            let plan = &mut self.plan;
            plan.pod_ranges.extend(ranges(SetName::PodRanges)?);
            plan.internal_ranges
                .extend(ranges(SetName::InternalRanges)?);
            plan.guard_ranges.extend(ranges(SetName::GuardRanges)?);
            let masquerade = Ruleset::masquerade(family)?.rules;
            plan.masquerade.rules.extend(masquerade);
            for (mark, address) in Ruleset::mappings(family, SetName::EgressIps)? {
                self.insert_mapping(mark, address);
            }
            for (mark, address) in Ruleset::translated(family)? {
                self.insert_translated(mark, address);
            }
            for address in Ruleset::addresses(family, SetName::FloatingIps)? {
                self.insert_guarded(address);
            }
        }
        Ok(())
    }

    /// Reads which of the mapped egress IPs packets of other nodes are led to.
    pub(super) fn read_vnis(&mut self, maps: &Maps, egress: &EgressTable) {
        self.replace_numbers(|address| {
            let index = maps.vnis.get(&EgressId::of(address).vni(), 0);
            index.ok() == egress.index(address)
        });
    }

    /// Brings the plan's pods in line with the entries of the map.
    pub(super) fn count_pods(&mut self) {
        let pods = self.pods.iter();
        self.plan.pods = pods.map(|((address, _), set)| (*address, *set)).collect();
    }

    /// Notes that a change was made. Those of pods and floating IPs are noted where they are made, with more than the change says,
    /// and so is which policy decides about a destination.
    pub(super) fn note(&mut self, change: &Change) {
        let plan = &mut self.plan;
        match *change {
            Change::AddPeer(peer) => _ = plan.peers.insert(peer),
            Change::RemovePeer(peer) => _ = plan.peers.remove(&peer),
            Change::AddInternalRange(range) => _ = plan.internal_ranges.insert(range),
            Change::RemoveInternalRange(range) => _ = plan.internal_ranges.remove(&range),
            Change::AddGuardRange(range) => _ = plan.guard_ranges.insert(range),
            Change::RemoveGuardRange(range) => _ = plan.guard_ranges.remove(&range),
            Change::AddPodRange(range) => _ = plan.pod_ranges.insert(range),
            Change::RemovePodRange(range) => _ = plan.pod_ranges.remove(&range),
            Change::SetMasquerade(rule, action) => {
                plan.masquerade.rules.insert(rule, action);
            }
            Change::RemoveMasquerade(rule) => _ = plan.masquerade.rules.remove(&rule),
            Change::SetDestination(set, prefix, steering) => {
                plan.destinations.insert((set, prefix), steering);
            }
            Change::RemoveDestination(set, prefix) => {
                plan.destinations.remove(&(set, prefix));
                plan.deciders.remove(&(set, prefix));
            }
            Change::SetPod(..)
            | Change::RemovePod(_)
            | Change::AddSnat(_)
            | Change::AddAddress(_)
            | Change::RemoveAddress(_)
            | Change::RemoveSnat(_) => {}
        }
    }

    /// Notes which policy decides about a destination, if one does.
    pub(super) fn note_decider(&mut self, key: (PolicySetId, IpNet), decider: Option<&PolicyName>) {
        match decider {
            Some(decider) => _ = self.plan.deciders.insert(key, decider.clone()),
            None => _ = self.plan.deciders.remove(&key),
        }
    }

    /// Notes a pod with its interface.
    pub(super) fn note_pod(&mut self, address: IpAddr, ifindex: u32, set: PolicySetId) {
        self.pods.insert((address, ifindex), set);
        self.plan.pods.insert(address, set);
    }

    /// Notes that a pod is gone.
    pub(super) fn note_no_pod(&mut self, address: IpAddr, ifindex: u32) {
        self.pods.remove(&(address, ifindex));
        self.plan.pods.remove(&address);
    }
}
