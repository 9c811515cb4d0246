use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::IpAddr;
use ipnet::IpNet;

use super::counted::{Counted, CountedCover, touches};
use super::membership::{Membership, SetId};
use super::resolution::{Resolution, Resolved};
use crate::diff::{Change, entries};
use crate::model::{
    Enforcement, Event, MasqueradeRules, Node, NodeName, Pod, PodKey, PodPhase, PolicyName,
};
use crate::plan::assembly::{assemble, natural_id, room};
use crate::plan::selection::{Selected, usable_addresses};
use crate::plan::table::SetTable;
use crate::plan::{Applied, NodePlan, Planned, PolicySetId, is_strict};
use crate::policy::ResolvedPolicy;

/// The plan of one node, kept up to date: the agent's engine.
///
/// Who holds which floating IP is told to it, by [`NodeEngine::set_holder`]; that is the controller's decision. Pods of other nodes
/// are not kept.
#[derive(Debug)]
pub struct NodeEngine {
    node: NodeName,
    resolution: Resolution,
    membership: Membership,
    holders: BTreeMap<IpAddr, NodeName>,
    pods: BTreeMap<PodKey, LocalPod>,
    /// The pods that tell an address; it counts for the first.
    claims: BTreeMap<IpAddr, BTreeSet<PodKey>>,
    /// By the names of the policies, as the plan is in order of them.
    groups: BTreeMap<Names, Group>,
    group_of: BTreeMap<IpAddr, Names>,
    /// The ids that groups would like to have.
    natural_ids: Counted<u32>,
    /// The sum of all tables.
    destinations: usize,
    internal: Counted<IpNet>,
    peers: Counted<IpAddr>,
    /// The destinations of strict policies, as they are in `guard`.
    guarded: BTreeMap<PolicyName, BTreeSet<IpNet>>,
    guard: CountedCover,
    plan: NodePlan,
    /// Whether the plan has one table per group with its natural id, so that groups can be changed one by one.
    is_simple: bool,
}

/// The names of policies, in order.
type Names = Arc<[PolicyName]>;

#[derive(Debug)]
struct LocalPod {
    addresses: Vec<IpAddr>,
    host_network: bool,
    set: SetId,
}

/// The pods that the same policies select.
#[derive(Debug, Default)]
struct Group {
    /// None until its table is built.
    id: Option<PolicySetId>,
    table: SetTable,
    addresses: BTreeSet<IpAddr>,
}

/// What an event has touched.
#[derive(Debug, Default)]
struct Touched {
    pods: BTreeSet<PodKey>,
    addresses: BTreeSet<IpAddr>,
    floating_ips: BTreeSet<IpAddr>,
    /// Policies whose part in tables may be another.
    policies: BTreeSet<PolicyName>,
    /// Ranges that are inside the cluster now and were not, or the other way.
    ranges: Vec<IpNet>,
    /// Ranges that may be in the guard now and were not, or the other way.
    guard: BTreeSet<IpNet>,
    changes: Vec<Change>,
}

impl NodeEngine {
    /// The engine of `node`, knowing nothing yet. `seed` is the seed of its hash tables: a number that those who choose labels and
    /// names do not know.
    pub fn new(node: NodeName, seed: u64) -> Self {
        Self {
            node,
            resolution: Resolution::default(),
            membership: Membership::new(seed),
            holders: BTreeMap::new(),
            pods: BTreeMap::new(),
            claims: BTreeMap::new(),
            groups: BTreeMap::new(),
            group_of: BTreeMap::new(),
            natural_ids: Counted::default(),
            destinations: 0,
            internal: Counted::default(),
            peers: Counted::default(),
            guarded: BTreeMap::new(),
            guard: CountedCover::default(),
            plan: NodePlan::default(),
            is_simple: true,
        }
    }

    /// The plan of the node.
    pub fn plan(&self) -> &NodePlan {
        &self.plan
    }

    /// Takes one event. Returns the changes of the plan, in the order in which to make them.
    pub fn apply(&mut self, event: Event) -> Vec<Change> {
        let mut touched = Touched::default();
        match event {
            Event::Pod(key, pod) => self.set_pod(key, pod, &mut touched),
            Event::Namespace(name, labels) => {
                self.membership.set_namespace(&name, labels.as_ref());
            }
            Event::Node(name, node) => {
                let before = self.resolution.objects.nodes.get(&name).cloned();
                self.set_node(&name, before.as_ref(), node.as_ref(), &mut touched);
                let resolved = self.resolution.apply(Event::Node(name, node));
                self.take(resolved, &mut touched);
            }
            Event::ClusterRanges(ranges) => {
                let before = core::mem::take(&mut self.resolution.objects.cluster_ranges);
                self.add_internal(ranges.iter().map(IpNet::trunc), &mut touched);
                self.remove_internal(before.iter().map(IpNet::trunc), &mut touched);
                self.resolution.objects.cluster_ranges = ranges;
            }
            Event::Masquerade(rules) => self.set_masquerade(rules, &mut touched),
            event @ (Event::Gateway(..) | Event::Cluster(..) | Event::Policy(..)) => {
                let resolved = self.resolution.apply(event);
                self.take(resolved, &mut touched);
            }
        }
        self.settle(touched)
    }

    /// Says who holds a floating IP, or that nobody does. Returns the changes of the plan.
    pub fn set_holder(&mut self, address: IpAddr, holder: Option<NodeName>) -> Vec<Change> {
        let is_held = holder.is_some();
        let before = match holder {
            Some(holder) => self.holders.insert(address, holder),
            None => self.holders.remove(&address),
        };
        let mut touched = Touched::default();
        touched.floating_ips.insert(address);
        if before.is_some() != is_held {
            let objects = &self.resolution.objects;
            let falls_back = self.resolution.policies.iter().filter(|(name, resolved)| {
                objects.policies[*name].enforcement == Enforcement::BestEffort
                    && matches!(resolved, ResolvedPolicy::Snat(ips) if ips.iter().any(|ip| ip == address))
            });
            touched.policies = falls_back.map(|(name, _)| name.clone()).collect();
        }
        self.settle(touched)
    }

    /// The plan with everything that is to be told about it. Costs a pass over the plan.
    pub fn planned(&self) -> Planned {
        let mut planned = self.assembled();
        planned.plan = self.plan.clone();
        planned
    }

    /// How many things are kept for pods and policies.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.pods.len()
            + self.claims.len()
            + self.groups.len()
            + self.group_of.len()
            + self.natural_ids.len()
            + self.guarded.len()
            + self.destinations
            + self.membership.kept()
    }

    fn set_pod(&mut self, key: PodKey, pod: Option<Pod>, touched: &mut Touched) {
        let pod = pod.filter(|pod| pod.node == self.node && pod.phase == PodPhase::Active);
        let selected = self.membership.set_pod(&key, pod.as_ref());
        if let Some(before) = self.pods.remove(&key) {
            for address in before.addresses {
                touched.addresses.insert(address);
                if let Some(claims) = self.claims.get_mut(&address) {
                    claims.remove(&key);
                    if claims.is_empty() {
                        self.claims.remove(&address);
                    }
                }
            }
        }
        if let (Some(pod), Some(set)) = (pod, selected.after) {
            let addresses: Vec<IpAddr> = if pod.host_network {
                Vec::new()
            } else {
                usable_addresses(&pod).collect()
            };
            for address in &addresses {
                touched.addresses.insert(*address);
                self.claims.entry(*address).or_default().insert(key.clone());
            }
            let host_network = pod.host_network;
            let local = LocalPod {
                addresses,
                host_network,
                set,
            };
            self.pods.insert(key, local);
        }
    }

    fn set_node(
        &mut self,
        name: &NodeName,
        before: Option<&Node>,
        after: Option<&Node>,
        touched: &mut Touched,
    ) {
        let ranges = |node: Option<&Node>| -> Vec<IpNet> {
            node.into_iter().flat_map(Node::internal_ranges).collect()
        };
        self.add_internal(ranges(after).into_iter(), touched);
        self.remove_internal(ranges(before).into_iter(), touched);
        if *name == self.node {
            let ranges = after.into_iter().flat_map(|node| &node.pod_ranges);
            let ranges: BTreeSet<IpNet> = ranges.map(IpNet::trunc).collect();
            let before = core::mem::replace(&mut self.plan.pod_ranges, ranges);
            let after = &self.plan.pod_ranges;
            let added = after.difference(&before).map(|r| Change::AddPodRange(*r));
            touched.changes.extend(added);
            let removed = before.difference(after).map(|r| Change::RemovePodRange(*r));
            touched.changes.extend(removed);
            return;
        }
        for address in after.into_iter().flat_map(|node| &node.addresses) {
            if self.peers.add(*address) && self.plan.peers.insert(*address) {
                touched.changes.push(Change::AddPeer(*address));
            }
        }
        for address in before.into_iter().flat_map(|node| &node.addresses) {
            if self.peers.remove(address) && self.plan.peers.remove(address) {
                touched.changes.push(Change::RemovePeer(*address));
            }
        }
    }

    fn add_internal(&mut self, ranges: impl Iterator<Item = IpNet>, touched: &mut Touched) {
        for range in ranges {
            if self.internal.add(range) {
                self.plan.internal_ranges.insert(range);
                touched.ranges.push(range);
                touched.changes.push(Change::AddInternalRange(range));
            }
        }
    }

    fn remove_internal(&mut self, ranges: impl Iterator<Item = IpNet>, touched: &mut Touched) {
        for range in ranges {
            if self.internal.remove(&range) {
                self.plan.internal_ranges.remove(&range);
                touched.ranges.push(range);
                touched.changes.push(Change::RemoveInternalRange(range));
            }
        }
    }

    fn set_masquerade(&mut self, rules: MasqueradeRules, touched: &mut Touched) {
        entries(
            &mut touched.changes,
            (&self.plan.masquerade.rules, &rules.rules),
            |rule, action| Change::SetMasquerade(*rule, *action),
            |rule| Change::RemoveMasquerade(*rule),
        );
        self.plan.masquerade = rules;
    }

    fn take(&mut self, resolved: Resolved, touched: &mut Touched) {
        touched.floating_ips.extend(&resolved.gained);
        touched.floating_ips.extend(&resolved.lost);
        for name in resolved.policies {
            self.take_policy(&name, touched);
            touched.policies.insert(name);
        }
    }

    /// Brings selection and guard up to date with a policy.
    fn take_policy(&mut self, name: &PolicyName, touched: &mut Touched) {
        self.touch_selected(name, touched);
        let policy = self.resolution.objects.policies.get(name);
        let policy = policy.filter(|_| self.resolution.policies.contains_key(name));
        match policy {
            Some(policy) => self.membership.set_policy(name, policy),
            None => self.membership.remove_policy(name),
        }
        let strict = policy.filter(|policy| is_strict(policy));
        let strict = strict.map(|policy| policy.destinations.clone());
        self.find_sets(touched);
        self.touch_selected(name, touched);

        let after = strict.unwrap_or_default();
        let before = self.guarded.remove(name).unwrap_or_default();
        for range in after.difference(&before) {
            touched.guard.extend(self.guard.add(*range));
        }
        for range in before.difference(&after) {
            touched.guard.extend(self.guard.remove(*range));
        }
        if !after.is_empty() {
            self.guarded.insert(name.clone(), after);
        }
    }

    /// The pods that a policy selects now.
    fn touch_selected(&mut self, name: &PolicyName, touched: &mut Touched) {
        let selected = self
            .pods
            .iter()
            .filter(|(_, pod)| self.membership.is_selected_by(pod.set, name));
        touched.pods.extend(selected.map(|(key, _)| key.clone()));
    }

    /// Reads the sets of the pods that have another one.
    fn find_sets(&mut self, touched: &mut Touched) {
        for key in self.membership.take_changed() {
            if let (Some(pod), Some(set)) = (self.pods.get_mut(&key), self.membership.set_of(&key))
            {
                pod.set = set;
                touched.pods.insert(key);
            }
        }
    }

    /// Brings the plan up to date.
    fn settle(&mut self, mut touched: Touched) -> Vec<Change> {
        self.find_sets(&mut touched);
        self.settle_guard(&mut touched);
        self.settle_floating_ips(&mut touched);
        let moved = self.regroup(&mut touched);
        let rebuilt = self.rebuild(&touched);

        let was_simple = self.is_simple;
        self.is_simple = self.destinations <= room(&self.plan.internal_ranges)
            && self.natural_ids.len() + usize::from(self.groups.contains_key(&Names::default()))
                == self.groups.len()
            && ![PolicySetId::EMPTY, PolicySetId::CLOSED]
                .iter()
                .any(|id| self.natural_ids.has(&id.0));
        let mut changes = touched.changes;
        if was_simple && self.is_simple {
            self.write(&moved, &rebuilt, &mut changes);
        } else {
            self.write_all(&mut changes);
        }
        changes.sort_unstable();
        changes
    }

    fn settle_guard(&mut self, touched: &mut Touched) {
        for range in core::mem::take(&mut touched.guard) {
            let ranges = &mut self.plan.guard_ranges;
            if self.guard.has(&range) {
                if ranges.insert(range) {
                    touched.changes.push(Change::AddGuardRange(range));
                }
            } else if ranges.remove(&range) {
                touched.changes.push(Change::RemoveGuardRange(range));
            }
        }
    }

    fn settle_floating_ips(&mut self, touched: &mut Touched) {
        for address in core::mem::take(&mut touched.floating_ips) {
            let is_held = self.holders.get(&address) == Some(&self.node)
                && self.resolution.gateways.owners.contains_key(&address);
            let held = &mut self.plan.floating_ips;
            if is_held && held.insert(address) {
                let taken = [Change::AddSnat(address), Change::AddAddress(address)];
                touched.changes.extend(taken);
            } else if !is_held && held.remove(&address) {
                let given = [Change::RemoveAddress(address), Change::RemoveSnat(address)];
                touched.changes.extend(given);
            }
        }
    }

    /// Puts every address that was touched in the group where it belongs. Returns those addresses.
    fn regroup(&mut self, touched: &mut Touched) -> BTreeSet<IpAddr> {
        let mut addresses = core::mem::take(&mut touched.addresses);
        for key in &touched.pods {
            if let Some(pod) = self.pods.get(key) {
                addresses.extend(&pod.addresses);
            }
        }
        let mut known: BTreeMap<SetId, Names> = BTreeMap::new();
        for address in &addresses {
            let claims = self.claims.get(address);
            let owner = claims.and_then(|claims| self.pods.get(claims.first()?));
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

    fn names_of(&self, set: SetId) -> Names {
        let names = self.membership.policies_of(set);
        names.into_iter().cloned().collect()
    }

    /// Builds the tables that are new or may be others, and takes those away that nobody uses. Returns how each was before.
    fn rebuild(&mut self, touched: &Touched) -> BTreeMap<Names, Option<Group>> {
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

    fn is_stale(&self, names: &Names, group: &Group, touched: &Touched) -> bool {
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

    fn table(&self, names: &[PolicyName]) -> SetTable {
        let applied: Vec<Applied<'_>> =
            names.iter().filter_map(|name| self.applied(name)).collect();
        let is_held = |address: &IpAddr| self.holders.contains_key(address);
        SetTable::new(&applied, &self.plan.internal_ranges, is_held)
    }

    fn applied<'a>(&'a self, name: &PolicyName) -> Option<Applied<'a>> {
        let (name, resolved) = self.resolution.policies.get_key_value(name)?;
        Some(Applied {
            name,
            policy: self.resolution.objects.policies.get(name)?,
            resolved: *resolved,
        })
    }

    /// Writes what was touched, group by group.
    fn write(
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
                |prefix, steering| Change::SetDestination(id, *prefix, *steering),
                |prefix| Change::RemoveDestination(id, *prefix),
            );
            let table = &mut self.plan.destinations;
            for prefix in before.keys().filter(|prefix| !after.contains_key(prefix)) {
                table.remove(&(id, *prefix));
            }
            for (prefix, steering) in after {
                if before.get(prefix) != Some(steering) {
                    table.insert((id, *prefix), *steering);
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
    fn write_all(&mut self, changes: &mut Vec<Change>) {
        let NodePlan {
            pods, destinations, ..
        } = self.assembled().plan;
        entries(
            changes,
            (&self.plan.destinations, &destinations),
            |(set, prefix), steering| Change::SetDestination(*set, *prefix, *steering),
            |(set, prefix)| Change::RemoveDestination(*set, *prefix),
        );
        entries(
            changes,
            (&self.plan.pods, &pods),
            |address, set| Change::SetPod(*address, *set),
            |address| Change::RemovePod(*address),
        );
        self.plan.destinations = destinations;
        self.plan.pods = pods;
    }

    /// Pods and destinations of the plan, from the groups as they are.
    fn assembled(&self) -> Planned {
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
        for (key, pod) in &self.pods {
            let is_owner = |address: &IpAddr| {
                let claims = self.claims.get(address);
                claims.is_some_and(|claims| claims.first() == Some(key))
            };
            let is_selected = pod.addresses.iter().any(is_owner);
            for name in self.membership.policies_of(pod.set) {
                if is_selected {
                    *selected.counts.entry(name.clone()).or_default() += 1;
                } else if pod.host_network
                    && !self.resolution.objects.policies[name].is_for_all_pods()
                {
                    let pods = selected.host_network.entry(name.clone()).or_default();
                    pods.insert(key.clone());
                }
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
