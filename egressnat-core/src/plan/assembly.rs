//! From pods and the tables of their policy sets to one plan.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;
use core::net::IpAddr;
use ipnet::IpNet;

use super::selection::{Selected, host_network_findings};
use super::table::{Entry, Overlaps, SetTable, merge_overlaps, overlap_findings};
use super::{Applied, MAX_DESTINATIONS, NodePlan, Planned, PolicySetId};
use crate::finding::{Finding, Reason, Subject, some_of};
use crate::hash::fnv1a32;
use crate::model::{NodeName, PolicyName};

/// The part of a node's plan that is about its own pods.
pub(crate) fn assemble(
    node: &NodeName,
    applied: &[Applied<'_>],
    selected: Selected,
    mut tables: BTreeMap<Vec<usize>, SetTable>,
    internal_ranges: &BTreeSet<IpNet>,
) -> Planned {
    let mut planned = Planned {
        selected: selected.counts,
        ..Planned::default()
    };
    let names = |set: &[usize]| -> Vec<&PolicyName> {
        set.iter().map(|index| applied[*index].name).collect()
    };
    // By the names of the policies, whatever their indices are.
    let mut sets: Vec<(Vec<usize>, Vec<IpAddr>)> = selected.addresses_by_set.into_iter().collect();
    sets.sort_by(|(a, _), (b, _)| names(a).cmp(&names(b)));

    let plan = &mut planned.plan;
    let mut overlaps = Overlaps::new();
    let mut room = room(internal_ranges);
    let mut refused: BTreeSet<&PolicyName> = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for (set, addresses) in sets {
        let id = if set.is_empty() {
            PolicySetId::EMPTY
        } else {
            let table = tables.remove(&set).unwrap_or_default();
            let id = free_id(natural_id(names(&set).into_iter()), &mut taken);
            if let Some(left) = room.checked_sub(table.entries.len()) {
                room = left;
                merge_overlaps(&mut overlaps, &table.overlaps);
                plan.add_table(id, table.entries);
                let names = names(&set).into_iter().cloned();
                planned.policies.insert(id, names.collect());
                id
            } else {
                refused.extend(names(&set));
                refusal(set.iter().any(|index| applied[*index].is_strict()))
            }
        };
        plan.pods
            .extend(addresses.into_iter().map(|address| (address, id)));
    }
    if plan.pods.values().any(|id| *id == PolicySetId::CLOSED) {
        plan.add_table(PolicySetId::CLOSED, SetTable::closed(internal_ranges));
    }
    planned.findings.extend(overlap_findings(&overlaps));
    planned
        .findings
        .extend(host_network_findings(&selected.host_network));
    planned.findings.extend(refused_finding(node, &refused));
    planned.refused = refused.into_iter().cloned().collect();
    planned.findings.sort();
    planned
}

impl NodePlan {
    /// Adds the table of a policy set.
    fn add_table(&mut self, id: PolicySetId, entries: BTreeMap<IpNet, Entry>) {
        for (prefix, entry) in entries {
            self.set_destination(id, prefix, &entry);
        }
    }

    /// Sets one destination of a policy set, with its decider.
    pub(crate) fn set_destination(&mut self, id: PolicySetId, prefix: IpNet, entry: &Entry) {
        self.destinations.insert((id, prefix), entry.steering);
        match &entry.decider {
            Some(decider) => _ = self.deciders.insert((id, prefix), decider.clone()),
            None => _ = self.deciders.remove(&(id, prefix)),
        }
    }

    /// Removes one destination of a policy set.
    pub(crate) fn remove_destination(&mut self, id: PolicySetId, prefix: IpNet) {
        self.destinations.remove(&(id, prefix));
        self.deciders.remove(&(id, prefix));
    }
}

/// How many destinations the tables of all policy sets may have together. Room is left for the one that stands for all that do
/// not fit.
pub(crate) fn room(internal_ranges: &BTreeSet<IpNet>) -> usize {
    MAX_DESTINATIONS.saturating_sub(internal_ranges.len() + 2)
}

/// What stands for a policy set that does not fit.
fn refusal(is_strict: bool) -> PolicySetId {
    if is_strict {
        PolicySetId::CLOSED
    } else {
        PolicySetId::EMPTY
    }
}

fn refused_finding(node: &NodeName, refused: &BTreeSet<&PolicyName>) -> Option<Finding> {
    if refused.is_empty() {
        return None;
    }
    Some(Finding::new(
        Subject::Node(node.clone()),
        Reason::PlanTooLarge,
        format!(
            "the policies of the node's pods have more than {MAX_DESTINATIONS} destinations together. Without room: {}. Pods \
             that a strict one of them selects cannot leave the cluster; merge CIDRs, or let fewer pods differ in the policies \
             that select them",
            some_of(refused.iter())
        ),
    ))
}

/// The id that a set has unless another set of the node has it too.
pub(crate) fn natural_id<'a>(names: impl Iterator<Item = &'a PolicyName>) -> u32 {
    fnv1a32(names.flat_map(|name| name.as_str().bytes().chain([0])))
}

/// The next free id from the natural one, not one of those with a meaning of their own.
fn free_id(mut id: u32, taken: &mut BTreeSet<u32>) -> PolicySetId {
    while id == PolicySetId::EMPTY.0 || id == PolicySetId::CLOSED.0 || !taken.insert(id) {
        id = id.wrapping_add(1);
    }
    PolicySetId(id)
}
