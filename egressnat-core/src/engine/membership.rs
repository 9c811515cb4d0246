//! Which policies select which pods (E10), kept up to date.

mod classes;

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::labels::{LabelSetId, LabelSpace, SelectorId, remove_from};
use crate::hash::{Map, Seed};
use crate::model::{
    Labels, Name, NamespaceName, NodeName, Pod, PodKey, PodPhase, Policy, PolicyName,
};
use crate::slab::Slab;

type NamespaceId = u32;
type ClassId = u32;
type PodId = u32;
type NodeId = u32;
type PolicyId = u32;
type RuleId = u32;

/// The rules that select a pod, as a number: pods with equal numbers are selected by the same policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId(u64);

impl SetId {
    /// No rule.
    const EMPTY: Self = Self(0);
}

/// What a change of a pod came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SelectedBy {
    /// What selected it before; none if it was not there.
    pub before: Option<SetId>,
    /// What selects it now; none if it is gone.
    pub after: Option<SetId>,
}

/// Pods, namespaces, policies, and which of them select which.
///
/// Pods with equal labels in one namespace are treated as one, and policies with equal rules too. So a change of a pod looks for
/// rules only if its combination of labels is new, and a new rule looks at combinations of labels, not at pods.
#[derive(Debug, Clone)]
pub struct Membership {
    namespace_labels: LabelSpace,
    pod_labels: LabelSpace,
    namespaces: Slab<Namespace>,
    namespace_ids: Map<NamespaceName, NamespaceId>,
    namespaces_by_labels: Map<LabelSetId, BTreeSet<NamespaceId>>,
    classes: Slab<Class>,
    class_ids: Map<(NamespaceId, LabelSetId), ClassId>,
    classes_by_labels: Map<LabelSetId, BTreeSet<ClassId>>,
    pods: Slab<PodRecord>,
    pod_ids: Map<(NamespaceId, Name), PodId>,
    nodes: Slab<NodeRecord>,
    node_ids: Map<NodeName, NodeId>,
    policies: Slab<PolicyRecord>,
    policy_ids: Map<PolicyName, PolicyId>,
    rules: Slab<Rule>,
    rule_ids: Map<(SelectorId, SelectorId), RuleId>,
    rules_by_namespaces: Map<SelectorId, BTreeSet<RuleId>>,
    rules_by_pods: Map<SelectorId, BTreeSet<RuleId>>,
    /// Policies that select every pod (E5).
    for_all: BTreeSet<PolicyId>,
    sets: Map<SetId, RuleSet>,
    set_ids: Map<Box<[RuleId]>, SetId>,
    last_set: SetId,
    /// Classes whose set has changed since [`Membership::take_changed`]; none while nobody asks.
    changed: Option<BTreeSet<ClassId>>,
}

#[derive(Debug, Clone)]
struct Namespace {
    name: NamespaceName,
    /// None while the namespace is not known: then no rule selects its pods.
    labels: Option<LabelSetId>,
    classes: BTreeSet<ClassId>,
}

/// The pods of one namespace with the same labels.
#[derive(Debug, Clone)]
struct Class {
    namespace: NamespaceId,
    labels: LabelSetId,
    set: SetId,
    pods: Vec<PodId>,
    /// How many of them each node has, in order of nodes.
    nodes: Vec<(NodeId, u32)>,
}

impl Class {
    fn count(&mut self, node: NodeId) {
        match self.nodes.binary_search_by_key(&node, |(node, _)| *node) {
            Ok(position) => self.nodes[position].1 += 1,
            Err(position) => self.nodes.insert(position, (node, 1)),
        }
    }

    fn discount(&mut self, node: NodeId) {
        if let Ok(position) = self.nodes.binary_search_by_key(&node, |(node, _)| *node) {
            self.nodes[position].1 -= 1;
            if self.nodes[position].1 == 0 {
                self.nodes.remove(position);
            }
        }
    }
}

#[derive(Debug, Clone)]
struct PodRecord {
    name: Name,
    class: ClassId,
    /// Its place in the class.
    position: u32,
    node: NodeId,
}

#[derive(Debug, Clone)]
struct NodeRecord {
    name: NodeName,
    pods: u32,
}

#[derive(Debug, Clone)]
struct PolicyRecord {
    name: PolicyName,
    rules: Vec<RuleId>,
}

#[derive(Debug, Clone)]
struct Rule {
    namespaces: SelectorId,
    pods: SelectorId,
    policies: BTreeSet<PolicyId>,
}

#[derive(Debug, Clone)]
struct RuleSet {
    rules: Box<[RuleId]>,
    classes: u32,
}

impl Membership {
    /// Nothing yet. `seed` is the seed of its hash tables: a number that those who choose labels and names do not know.
    pub fn new(seed: u64) -> Self {
        let seed = Seed(seed);
        let mut sets = Map::with_hasher(seed);
        let rules: Box<[RuleId]> = Box::new([]);
        let mut set_ids = Map::with_hasher(seed);
        set_ids.insert(rules.clone(), SetId::EMPTY);
        sets.insert(SetId::EMPTY, RuleSet { rules, classes: 1 });
        Self {
            namespace_labels: LabelSpace::new(seed),
            pod_labels: LabelSpace::new(seed),
            namespaces: Slab::default(),
            namespace_ids: Map::with_hasher(seed),
            namespaces_by_labels: Map::with_hasher(seed),
            classes: Slab::default(),
            class_ids: Map::with_hasher(seed),
            classes_by_labels: Map::with_hasher(seed),
            pods: Slab::default(),
            pod_ids: Map::with_hasher(seed),
            nodes: Slab::default(),
            node_ids: Map::with_hasher(seed),
            policies: Slab::default(),
            policy_ids: Map::with_hasher(seed),
            rules: Slab::default(),
            rule_ids: Map::with_hasher(seed),
            rules_by_namespaces: Map::with_hasher(seed),
            rules_by_pods: Map::with_hasher(seed),
            for_all: BTreeSet::new(),
            sets,
            set_ids,
            last_set: SetId::EMPTY,
            changed: None,
        }
    }

    /// From now on notes which classes change, for [`Membership::take_changed`].
    pub(super) fn note_changes(&mut self) {
        self.changed = Some(BTreeSet::new());
    }

    /// Adds, replaces or removes a pod. One that has finished counts as gone.
    pub fn set_pod(&mut self, key: &PodKey, pod: Option<&Pod>) -> SelectedBy {
        match pod.filter(|pod| pod.phase == PodPhase::Active) {
            Some(pod) => self.put_pod(key, pod),
            None => SelectedBy {
                before: self.remove_pod(key),
                after: None,
            },
        }
    }

    fn put_pod(&mut self, key: &PodKey, pod: &Pod) -> SelectedBy {
        let namespace = self.namespace(&key.namespace);
        let labels = self.pod_labels.take_labels(&pod.labels);
        let node = self.take_node(&pod.node);
        let known = self.pod_ids.get(&(namespace, key.name.clone())).copied();
        let class = self.class(namespace, labels);
        let after = Some(self.classes[class].set);
        let Some(id) = known else {
            let record = PodRecord {
                name: key.name.clone(),
                class,
                position: 0,
                node,
            };
            let id = self.pods.insert(record);
            self.pod_ids.insert((namespace, key.name.clone()), id);
            self.join(id, class);
            return SelectedBy {
                before: None,
                after,
            };
        };
        let before = Some(self.classes[self.pods[id].class].set);
        let PodRecord {
            class: old_class,
            node: old_node,
            ..
        } = self.pods[id];
        if old_class == class {
            self.pod_labels.give_labels(labels);
            self.classes[class].discount(old_node);
            self.classes[class].count(node);
            self.pods[id].node = node;
            self.give_node(old_node);
        } else {
            self.leave(id);
            self.pods[id].node = node;
            self.join(id, class);
        }
        SelectedBy { before, after }
    }

    fn take_node(&mut self, name: &NodeName) -> NodeId {
        if let Some(id) = self.node_ids.get(name) {
            self.nodes[*id].pods += 1;
            return *id;
        }
        let id = self.nodes.insert(NodeRecord {
            name: name.clone(),
            pods: 1,
        });
        self.node_ids.insert(name.clone(), id);
        id
    }

    fn give_node(&mut self, id: NodeId) {
        let node = &mut self.nodes[id];
        node.pods -= 1;
        if node.pods == 0
            && let Some(gone) = self.nodes.remove(id)
        {
            self.node_ids.remove(&gone.name);
        }
    }

    fn remove_pod(&mut self, key: &PodKey) -> Option<SetId> {
        let namespace = *self.namespace_ids.get(&key.namespace)?;
        let id = self.pod_ids.remove(&(namespace, key.name.clone()))?;
        let set = self.classes[self.pods[id].class].set;
        self.leave(id);
        self.pods.remove(id);
        self.forget_namespace(namespace);
        Some(set)
    }

    /// Adds, replaces or removes a namespace. The pods of one that is not there are selected by no rule.
    pub fn set_namespace(&mut self, name: &NamespaceName, labels: Option<&Labels>) {
        let id = self.namespace(name);
        let labels = labels.map(|labels| self.namespace_labels.take_labels(labels));
        let before = core::mem::replace(&mut self.namespaces[id].labels, labels);
        if let Some(before) = before {
            remove_from(&mut self.namespaces_by_labels, &before, id);
            self.namespace_labels.give_labels(before);
        }
        if let Some(labels) = labels {
            self.namespaces_by_labels
                .entry(labels)
                .or_default()
                .insert(id);
        }
        if before != labels {
            let classes: Vec<ClassId> = self.namespaces[id].classes.iter().copied().collect();
            for class in classes {
                let rules = self.rules_for(id, self.classes[class].labels);
                self.set_rules(class, rules);
            }
        }
        self.forget_namespace(id);
    }

    /// Adds or replaces a policy, with the pods that its sources select.
    pub fn set_policy(&mut self, name: &PolicyName, policy: &Policy) {
        let mut rules = Vec::new();
        for source in &policy.sources {
            let namespaces = self.namespace_labels.take_selector(&source.namespaces);
            let pods = self.pod_labels.take_selector(&source.pods);
            let rule = self.rule(namespaces, pods);
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        let id = match self.policy_ids.get(name) {
            Some(id) => *id,
            None => {
                let record = PolicyRecord {
                    name: name.clone(),
                    rules: Vec::new(),
                };
                let id = self.policies.insert(record);
                self.policy_ids.insert(name.clone(), id);
                id
            }
        };
        for rule in &rules {
            self.rules[*rule].policies.insert(id);
        }
        let before = core::mem::replace(&mut self.policies[id].rules, rules);
        for rule in before {
            if !self.policies[id].rules.contains(&rule) {
                self.drop_rule(rule, id);
            }
        }
        if policy.is_for_all_pods() {
            self.for_all.insert(id);
        } else {
            self.for_all.remove(&id);
        }
    }

    /// Removes a policy.
    pub fn remove_policy(&mut self, name: &PolicyName) {
        let Some(id) = self.policy_ids.remove(name) else {
            return;
        };
        self.for_all.remove(&id);
        for rule in core::mem::take(&mut self.policies[id].rules) {
            self.drop_rule(rule, id);
        }
        self.policies.remove(id);
    }

    /// Whether a namespace is there.
    pub fn has_namespace(&self, name: &NamespaceName) -> bool {
        let id = self.namespace_ids.get(name);
        id.is_some_and(|id| self.namespaces[*id].labels.is_some())
    }

    /// What selects a pod.
    pub fn set_of(&self, key: &PodKey) -> Option<SetId> {
        let namespace = self.namespace_ids.get(&key.namespace)?;
        let id = self.pod_ids.get(&(*namespace, key.name.clone()))?;
        Some(self.classes[self.pods[*id].class].set)
    }

    /// The policies that select the pods with this set, by name.
    pub fn policies_of(&self, set: SetId) -> BTreeSet<&PolicyName> {
        let rules = self.sets.get(&set).map(|set| &set.rules);
        let by_rule = rules.into_iter().flatten();
        let by_rule = by_rule.flat_map(|rule| &self.rules[*rule].policies);
        by_rule
            .chain(&self.for_all)
            .map(|id| &self.policies[*id].name)
            .collect()
    }

    /// Whether a policy is one of those that select the pods with this set.
    pub fn is_selected_by(&self, set: SetId, policy: &PolicyName) -> bool {
        let Some(id) = self.policy_ids.get(policy) else {
            return false;
        };
        let rules = self.sets.get(&set).map(|set| &set.rules);
        let has = |rule: &RuleId| rules.is_some_and(|rules| rules.binary_search(rule).is_ok());
        self.for_all.contains(id) || self.policies[*id].rules.iter().any(has)
    }

    /// The pods that a policy selects, with their nodes.
    pub fn pods_of(&self, policy: &PolicyName) -> impl Iterator<Item = (PodKey, &NodeName)> {
        let classes = self.classes_of(policy).into_iter();
        classes.flat_map(|class| self.pods_in(class))
    }

    /// The nodes with pods that a policy selects, each once.
    pub fn nodes_of(&self, policy: &PolicyName) -> Vec<&NodeName> {
        let classes = self.classes_of(policy);
        let counts = classes.iter().flat_map(|class| &self.classes[*class].nodes);
        let mut nodes: Vec<NodeId> = counts.map(|(node, _)| *node).collect();
        // Those of one class are in order already, and each is there once.
        if classes.len() > 1 {
            nodes.sort_unstable();
            nodes.dedup();
        }
        nodes.iter().map(|node| &self.nodes[*node].name).collect()
    }

    fn classes_of(&self, policy: &PolicyName) -> Vec<ClassId> {
        let Some(id) = self.policy_ids.get(policy) else {
            return Vec::new();
        };
        if self.for_all.contains(id) {
            return self.classes.iter().map(|(class, _)| class).collect();
        }
        let rules = &self.policies[*id].rules;
        let mut classes: Vec<ClassId> = rules
            .iter()
            .flat_map(|rule| self.classes_for(*rule))
            .collect();
        if rules.len() > 1 {
            classes.sort_unstable();
            classes.dedup();
        }
        classes
    }

    /// How many pods there are.
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// Whether there are no pods.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many things are kept.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.namespace_labels.kept()
            + self.pod_labels.kept()
            + self.namespaces.len()
            + self.classes.len()
            + self.pods.len()
            + self.nodes.len()
            + self.policies.len()
            + self.rules.len()
            + self.for_all.len()
            + (self.sets.len() - 1)
            + self.rules_by_namespaces.len()
            + self.rules_by_pods.len()
            + self.classes_by_labels.len()
            + self.namespaces_by_labels.len()
    }

    /// The pods whose set has changed since the last time, but for changes of the pods themselves.
    pub(super) fn take_changed(&mut self) -> Vec<PodKey> {
        let changed = self
            .changed
            .as_mut()
            .map(core::mem::take)
            .unwrap_or_default();
        let there = changed.into_iter().filter(|class| self.classes.has(*class));
        there
            .flat_map(|class| self.pods_in(class))
            .map(|(key, _)| key)
            .collect()
    }

    fn pods_in(&self, class: ClassId) -> impl Iterator<Item = (PodKey, &NodeName)> {
        let class = &self.classes[class];
        let namespace = &self.namespaces[class.namespace].name;
        class.pods.iter().map(|id| {
            let pod = &self.pods[*id];
            let key = PodKey::new(namespace.clone(), pod.name.clone());
            (key, &self.nodes[pod.node].name)
        })
    }
}
