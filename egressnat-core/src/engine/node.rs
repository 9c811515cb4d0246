mod groups;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::IpAddr;
use ipnet::IpNet;

use super::counted::{Counted, CountedCover};
use super::membership::{Membership, SetId};
use super::resolution::{Resolution, Resolved};
use crate::assignment::Assignment;
use crate::diff::{Change, entries, sort};
use crate::gateway::EffectiveGateways;
use crate::model::{
    Enforcement, Event, MasqueradeRules, Node, NodeName, Pod, PodKey, PodPhase, PolicyName,
    Snapshot,
};
use crate::plan::assembly::room;
use crate::plan::selection::usable_addresses;
use crate::plan::table::SetTable;
use crate::plan::{NodePlan, Planned, PolicySetId, is_strict};
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

#[derive(Debug, PartialEq)]
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
    /// Whether anything is not as it was.
    is_news: bool,
}

impl NodeEngine {
    /// The engine of `node`, knowing nothing yet. `seed` is the seed of its hash tables: a number that those who choose labels and
    /// names do not know.
    pub fn new(node: NodeName, seed: u64) -> Self {
        let mut membership = Membership::new(seed);
        membership.note_changes();
        Self {
            node,
            resolution: Resolution::default(),
            membership,
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

    /// What gateways, policies, nodes and clusters are now: neither pods nor namespaces.
    pub fn objects(&self) -> &Snapshot {
        &self.resolution.objects
    }

    /// The gateways that take effect.
    pub fn gateways(&self) -> &EffectiveGateways {
        &self.resolution.gateways
    }

    /// What the policies that are applied resolve to.
    pub fn resolved(&self) -> &BTreeMap<PolicyName, ResolvedPolicy> {
        &self.resolution.policies
    }

    /// Takes one event. Returns the changes of the plan, in the order in which to make them.
    pub fn apply(&mut self, event: Event) -> Vec<Change> {
        let mut touched = Touched::default();
        self.take(event, &mut touched);
        self.settle(touched)
    }

    /// Takes events one after another, and works out once what all of them come to: what several affect costs no more than what one
    /// does. Says whether any of them was news, by which what [`NodeEngine::planned`] says may be another.
    pub fn apply_all(&mut self, events: impl IntoIterator<Item = Event>) -> bool {
        let mut touched = Touched::default();
        for event in events {
            self.take(event, &mut touched);
        }
        let is_news = touched.is_news;
        if is_news {
            self.settle(touched);
        }
        is_news
    }

    fn take(&mut self, event: Event, touched: &mut Touched) {
        match event {
            Event::Pod(key, pod) => self.set_pod(key, pod, touched),
            Event::Namespace(name, labels) => {
                let was_known = self.membership.has_namespace(&name);
                if was_known != labels.is_some() {
                    let pods = self.pods.keys().filter(|key| key.namespace == name);
                    touched.pods.extend(pods.cloned());
                    touched.is_news = true;
                }
                self.membership.set_namespace(&name, labels.as_ref());
            }
            Event::Node(name, node) => {
                let before = self.resolution.objects.nodes.get(&name).cloned();
                self.set_node(&name, before.as_ref(), node.as_ref(), touched);
                let resolved = self.resolution.apply(Event::Node(name, node));
                self.take_resolved(resolved, touched);
            }
            Event::ClusterRanges(ranges) => {
                let before = core::mem::take(&mut self.resolution.objects.cluster_ranges);
                touched.is_news |= before != ranges;
                self.add_internal(ranges.iter().map(IpNet::trunc), touched);
                self.remove_internal(before.iter().map(IpNet::trunc), touched);
                self.resolution.objects.cluster_ranges = ranges;
            }
            Event::Masquerade(rules) => self.set_masquerade(rules, touched),
            event @ (Event::Gateway(..) | Event::Cluster(..) | Event::Policy(..)) => {
                let resolved = self.resolution.apply(event);
                self.take_resolved(resolved, touched);
            }
        }
        self.find_sets(touched);
    }

    /// Says who holds a floating IP, or that nobody does. Returns the changes of the plan.
    pub fn set_holder(&mut self, address: IpAddr, holder: Option<NodeName>) -> Vec<Change> {
        let mut touched = Touched::default();
        self.take_holder(address, holder, &mut touched);
        self.settle(touched)
    }

    /// Says who holds what, and that nobody holds anything else. Says whether that was news.
    pub fn set_holders(&mut self, assignment: &Assignment) -> bool {
        let mut touched = Touched::default();
        let gone = self.holders.keys();
        let gone = gone.filter(|address| !assignment.nodes.contains_key(*address));
        let gone: Vec<IpAddr> = gone.copied().collect();
        for address in gone {
            self.take_holder(address, None, &mut touched);
        }
        for (address, node) in &assignment.nodes {
            if self.holders.get(address) != Some(node) {
                self.take_holder(*address, Some(node.clone()), &mut touched);
            }
        }
        let is_news = touched.is_news;
        self.settle(touched);
        is_news
    }

    fn take_holder(&mut self, address: IpAddr, holder: Option<NodeName>, touched: &mut Touched) {
        let is_held = holder.is_some();
        let before = match holder {
            Some(holder) => self.holders.insert(address, holder),
            None => self.holders.remove(&address),
        };
        touched.is_news = true;
        touched.floating_ips.insert(address);
        if before.is_some() != is_held {
            let objects = &self.resolution.objects;
            let falls_back = self.resolution.policies.iter().filter(|(name, resolved)| {
                objects.policies[*name].enforcement == Enforcement::BestEffort
                    && matches!(resolved, ResolvedPolicy::Snat(ips) if ips.iter().any(|ip| ip == address))
            });
            let falls_back = falls_back.map(|(name, _)| name.clone());
            touched.policies.extend(falls_back);
        }
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
        let after = pod.zip(selected.after).map(|(pod, set)| LocalPod {
            addresses: match pod.host_network {
                true => Vec::new(),
                false => usable_addresses(&pod).collect(),
            },
            host_network: pod.host_network,
            set,
        });
        if self.pods.get(&key) == after.as_ref() {
            return;
        }
        touched.is_news = true;
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
        if let Some(after) = after {
            for address in &after.addresses {
                touched.addresses.insert(*address);
                self.claims.entry(*address).or_default().insert(key.clone());
            }
            self.pods.insert(key, after);
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
        touched.is_news |= self.plan.masquerade != rules;
        self.plan.masquerade = rules;
    }

    fn take_resolved(&mut self, resolved: Resolved, touched: &mut Touched) {
        touched.is_news |= resolved.is_news;
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
                touched.is_news = true;
            }
        }
    }

    /// Brings the plan up to date.
    fn settle(&mut self, mut touched: Touched) -> Vec<Change> {
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
        sort(&mut changes);
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
}
