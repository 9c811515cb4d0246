//! Entries of the eBPF maps, compared with what is kept.

use egressnat_core::PolicySetId;
use egressnat_core::gateway::EgressId;
use ipnet::IpNet;

use super::Kept;
use crate::egress::EgressTable;
use crate::family::Family;
use crate::maps::{DestinationValue, Entry, PodEntry};
use crate::policy_table::PolicyTable;

/// How many entries there are of those that come and go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::dataplane) struct Tally {
    pods: usize,
    destinations: usize,
    peers: usize,
    numbers: usize,
    names: usize,
}

impl Tally {
    /// Counts an entry that was met.
    pub(in crate::dataplane) fn count(&mut self, entry: &Entry) {
        match entry {
            Entry::Pod(_) => self.pods += 1,
            Entry::Destination(..) => self.destinations += 1,
            Entry::Peer(_) => self.peers += 1,
            Entry::Number { .. } => self.numbers += 1,
            Entry::Name(..) => self.names += 1,
            // Every slot is there; what is astray is found as such.
            Entry::Slot(_) | Entry::Astray => {}
        }
    }
}

impl Kept {
    /// Whether an entry is as it was written.
    pub(in crate::dataplane) fn has(
        &self,
        entry: &Entry,
        egress: &EgressTable,
        policies: &PolicyTable,
    ) -> bool {
        match entry {
            Entry::Pod(PodEntry {
                address,
                ifindex,
                set,
            }) => self.pods.get(&(*address, *ifindex)) == Some(&PolicySetId(*set)),
            Entry::Destination(set, prefix, value) => {
                self.has_destination((PolicySetId(*set), *prefix), *value, egress, policies)
            }
            Entry::Astray => false,
            Entry::Peer(peer) => self.plan.peers.contains(peer),
            Entry::Slot(slot) => *slot == egress.slot(Family::of(slot.address), slot.index),
            Entry::Number { vni, index } => {
                let address = egress.address(*index);
                address.is_some_and(|address| {
                    EgressId::of(address).vni() == *vni && self.is_numbered(address)
                })
            }
            Entry::Name(index, name) => {
                let index = u16::try_from(*index).ok();
                name.is_some() && index.and_then(|index| policies.name(index)) == name.as_ref()
            }
        }
    }

    fn has_destination(
        &self,
        key: (PolicySetId, IpNet),
        value: DestinationValue,
        egress: &EgressTable,
        policies: &PolicyTable,
    ) -> bool {
        let steering = self.plan.destinations.get(&key);
        steering.and_then(|steering| egress.value_of(*steering).ok()) == Some(value.egress)
            && policies.name(value.policy) == self.plan.deciders.get(&key)
    }

    /// How many entries there are if all are as they were written.
    pub(in crate::dataplane) fn tally(&self, policies: &PolicyTable) -> Tally {
        Tally {
            pods: self.pods.len(),
            destinations: self.plan.destinations.len(),
            peers: self.plan.peers.len(),
            numbers: self.numbered().count(),
            names: policies.len(),
        }
    }
}
