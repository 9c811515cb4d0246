//! The pods that the same policies select, their tables, and the part of the plan that comes of them.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::net::IpAddr;

use super::{Group, Names, NodeEngine, Touched};
use crate::diff::{Change, destination_changes, entries};
use crate::engine::counted::touches;
use crate::engine::membership::SetId;
use crate::model::{PodKey, PolicyName};
use crate::plan::assembly::{assemble, natural_id};
use crate::plan::selection::Selected;
use crate::plan::table::SetTable;
use crate::plan::{Applied, NodePlan, Planned, PolicySetId};

impl NodeEngine {
    /// Puts every address that was touched in the group where it belongs. Returns those addresses.
    pub(super) fn regroup(&mut self, touched: &mut Touched) -> BTreeSet<IpAddr> {
        let mut addresses = core::mem::take(&mut touched.addresses);
        for key in &touched.pods {
            if let Some(pod) = self.pods.get(key) {
                addresses.extend(&pod.addresses);
            }
        }
        let mut known: BTreeMap<SetId, Names> = BTreeMap::new();
        for address in &addresses {
            let owner = self.owner(address).and_then(|key| self.pods.get(key));
            let after = owner.map(|pod| {
                let names = known.entry(pod.set);
                let names = names.or_insert_with(|| self.names_of(pod.set));
                names.clone()
            });
            let before = match &after {
                Some(after) => self.group_of.insert(*address, after.clone()),
                None => self.group_of.remove(address),
            };
            if before == after {
                continue;
            }
            if let Some(group) = before.and_then(|before| self.groups.get_mut(&before)) {
                group.addresses.remove(address);
            }
            if let Some(after) = after {
                let group = self.groups.entry(after).or_default();
                group.addresses.insert(*address);
            }
        }
        addresses
    }

    /// The pod for which an address counts: the first by name of those whose namespace is known.
    fn owner(&self, address: &IpAddr) -> Option<&PodKey> {
        let mut claims = self.claims.get(address)?.iter();
        claims.find(|key| self.membership.has_namespace(&key.namespace))
    }

    pub(super) fn names_of(&self, set: SetId) -> Names {
        let names = self.membership.policies_of(set);
        names.into_iter().cloned().collect()
    }

    /// Builds the tables that are new or may be others, and takes those away that nobody uses. Returns how each was before.
    pub(super) fn rebuild(&mut self, touched: &Touched) -> BTreeMap<Names, Option<Group>> {
        let mut rebuilt = BTreeMap::new();
        let stale: Vec<Names> = self
            .groups
            .iter()
            .filter(|(names, group)| {
                group.addresses.is_empty() || self.is_stale(names, group, touched)
            })
            .map(|(names, _)| names.clone())
            .collect();
        for names in stale {
            let Some(before) = self.groups.remove(&names) else {
                continue;
            };
            self.destinations -= before.table.entries.len();
            if let Some(id) = before.id {
                self.natural_ids.remove(&id.0);
            }
            if !before.addresses.is_empty() {
                let table = self.table(&names);
                let id = group_id(&names);
                if !names.is_empty() {
                    self.natural_ids.add(id.0);
                }
                self.destinations += table.entries.len();
                let group = Group {
                    id: Some(id),
                    table,
                    addresses: before.addresses.clone(),
                };
                self.groups.insert(names.clone(), group);
            }
            rebuilt.insert(names, before.id.map(|_| before));
        }
        rebuilt
    }

    pub(super) fn is_stale(&self, names: &Names, group: &Group, touched: &Touched) -> bool {
        let policies = &self.resolution.objects.policies;
        let is_touched = |name: &PolicyName| {
            touched.policies.contains(name)
                || policies.get(name).is_some_and(|policy| {
                    let mut ranges = touched.ranges.iter();
                    ranges.any(|range| touches(&policy.destinations, range))
                })
        };
        group.id.is_none() || names.iter().any(is_touched)
    }

    pub(super) fn table(&self, names: &[PolicyName]) -> SetTable {
        let applied: Vec<Applied<'_>> =
            names.iter().filter_map(|name| self.applied(name)).collect();
        let is_held = |address: &IpAddr| self.holders.contains_key(address);
        SetTable::new(&applied, &self.plan.internal_ranges, is_held)
    }

    pub(super) fn applied<'a>(&'a self, name: &PolicyName) -> Option<Applied<'a>> {
        let (name, resolved) = self.resolution.policies.get_key_value(name)?;
        Some(Applied {
            name,
            policy: self.resolution.objects.policies.get(name)?,
            resolved: *resolved,
        })
    }

    /// Writes what was touched, group by group.
    pub(super) fn write(
        &mut self,
        moved: &BTreeSet<IpAddr>,
        rebuilt: &BTreeMap<Names, Option<Group>>,
        changes: &mut Vec<Change>,
    ) {
        let none = BTreeMap::new();
        for (names, before) in rebuilt {
            let id = group_id(names);
            let before = before.as_ref().map_or(&none, |group| &group.table.entries);
            let after = self.groups.get(names);
            let after = after.map_or(&none, |group| &group.table.entries);
            entries(
                changes,
                (before, after),
                |prefix, entry| Change::SetDestination(id, *prefix, entry.steering),
                |prefix| Change::RemoveDestination(id, *prefix),
            );
            for prefix in before.keys().filter(|prefix| !after.contains_key(prefix)) {
                self.plan.remove_destination(id, *prefix);
            }
            for (prefix, entry) in after {
                if before.get(prefix) != Some(entry) {
                    self.plan.set_destination(id, *prefix, entry);
                }
            }
        }
        for address in moved {
            match self.group_of.get(address).map(|names| group_id(names)) {
                Some(id) => {
                    if self.plan.pods.insert(*address, id) != Some(id) {
                        changes.push(Change::SetPod(*address, id));
                    }
                }
                None => {
                    if self.plan.pods.remove(address).is_some() {
                        changes.push(Change::RemovePod(*address));
                    }
                }
            }
        }
    }

    /// Writes everything anew: two groups would have the same id, or not all fit.
    pub(super) fn write_all(&mut self, changes: &mut Vec<Change>) {
        let NodePlan {
            pods,
            destinations,
            deciders,
            ..
        } = self.assembled().plan;
        let before = NodePlan {
            pods: core::mem::replace(&mut self.plan.pods, pods),
            destinations: core::mem::replace(&mut self.plan.destinations, destinations),
            deciders: core::mem::replace(&mut self.plan.deciders, deciders),
            ..NodePlan::default()
        };
        destination_changes(changes, &before, &self.plan);
        entries(
            changes,
            (&before.pods, &self.plan.pods),
            |address, set| Change::SetPod(*address, *set),
            |address| Change::RemovePod(*address),
        );
    }

    /// Pods and destinations of the plan, from the groups as they are.
    pub(super) fn assembled(&self) -> Planned {
        let names = self.resolution.policies.keys();
        let applied: Vec<Applied<'_>> = names.filter_map(|name| self.applied(name)).collect();
        let index = |name: &PolicyName| applied.binary_search_by(|applied| applied.name.cmp(name));
        let mut selected = Selected::default();
        let mut tables = BTreeMap::new();
        for (names, group) in &self.groups {
            let set: Vec<usize> = names.iter().filter_map(|name| index(name).ok()).collect();
            tables.insert(set.clone(), group.table.clone());
            let addresses = group.addresses.iter().copied().collect();
            selected.addresses_by_set.insert(set, addresses);
        }
        // What many pods have in common is looked at once: a policy may select all of them.
        let mut pods: BTreeMap<SetId, usize> = BTreeMap::new();
        for (key, pod) in &self.pods {
            if pod.host_network {
                let names = self.membership.policies_of(pod.set).into_iter();
                let policies = &self.resolution.objects.policies;
                for name in names.filter(|name| !policies[*name].is_for_all_pods()) {
                    let pods = selected.host_network.entry(name.clone()).or_default();
                    pods.insert(key.clone());
                }
            } else if pod.addresses.iter().any(|ip| self.owner(ip) == Some(key)) {
                *pods.entry(pod.set).or_default() += 1;
            }
        }
        for (set, pods) in pods {
            for name in self.membership.policies_of(set) {
                *selected.counts.entry(name.clone()).or_default() += pods;
            }
        }
        assemble(
            &self.node,
            &applied,
            selected,
            tables,
            &self.plan.internal_ranges,
        )
    }
}

/// The id of a group unless another one has it too.
fn group_id(names: &[PolicyName]) -> PolicySetId {
    if names.is_empty() {
        PolicySetId::EMPTY
    } else {
        PolicySetId(natural_id(names.iter()))
    }
}
