//! Which policies select which pods (E10), kept up to date.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::labels::{LabelSetId, LabelSpace, SelectorId};
use super::slab::Slab;
use crate::hash::{Map, Seed};
use crate::model::{
    Labels, Name, NamespaceName, NodeName, Pod, PodKey, PodPhase, Policy, PolicyName,
};

type NamespaceId = u32;
type ClassId = u32;
type PodId = u32;
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
    /// Classes whose set has changed since [`Membership::take_changed`].
    changed: BTreeSet<ClassId>,
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
}

#[derive(Debug, Clone)]
struct PodRecord {
    name: Name,
    class: ClassId,
    /// Its place in the class.
    position: u32,
    node: NodeName,
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
            changed: BTreeSet::new(),
        }
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
        let known = self.pod_ids.get(&(namespace, key.name.clone())).copied();
        if let Some(id) = known {
            let class = self.pods[id].class;
            let set = self.classes[class].set;
            if self.classes[class].labels == labels {
                self.pod_labels.give_labels(labels);
                if self.pods[id].node != pod.node {
                    self.pods[id].node = pod.node.clone();
                }
                return SelectedBy {
                    before: Some(set),
                    after: Some(set),
                };
            }
            let class = self.class(namespace, labels);
            self.leave(id);
            self.pods[id].node = pod.node.clone();
            self.join(id, class);
            return SelectedBy {
                before: Some(set),
                after: Some(self.classes[class].set),
            };
        }
        let class = self.class(namespace, labels);
        let id = self.pods.insert(PodRecord {
            name: key.name.clone(),
            class,
            position: 0,
            node: pod.node.clone(),
        });
        self.pod_ids.insert((namespace, key.name.clone()), id);
        self.join(id, class);
        SelectedBy {
            before: None,
            after: Some(self.classes[class].set),
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
            remove_from(&mut self.namespaces_by_labels, before, id);
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
        let id = self.policy_ids.get(policy);
        let classes: BTreeSet<ClassId> = match id {
            None => BTreeSet::new(),
            Some(id) if self.for_all.contains(id) => {
                self.classes.iter().map(|(class, _)| class).collect()
            }
            Some(id) => {
                let rules = self.policies[*id].rules.iter();
                rules.flat_map(|rule| self.classes_for(*rule)).collect()
            }
        };
        classes.into_iter().flat_map(|class| self.pods_in(class))
    }

    /// The nodes with pods that a policy selects.
    pub fn nodes_of(&self, policy: &PolicyName) -> BTreeSet<&NodeName> {
        self.pods_of(policy).map(|(_, node)| node).collect()
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
        let changed = core::mem::take(&mut self.changed);
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
            (PodKey::new(namespace.clone(), pod.name.clone()), &pod.node)
        })
    }

    fn namespace(&mut self, name: &NamespaceName) -> NamespaceId {
        if let Some(id) = self.namespace_ids.get(name) {
            return *id;
        }
        let id = self.namespaces.insert(Namespace {
            name: name.clone(),
            labels: None,
            classes: BTreeSet::new(),
        });
        self.namespace_ids.insert(name.clone(), id);
        id
    }

    fn forget_namespace(&mut self, id: NamespaceId) {
        let namespace = &self.namespaces[id];
        if namespace.labels.is_none()
            && namespace.classes.is_empty()
            && let Some(gone) = self.namespaces.remove(id)
        {
            self.namespace_ids.remove(&gone.name);
        }
    }

    /// The class of pods with these labels, made if it is the first one.
    fn class(&mut self, namespace: NamespaceId, labels: LabelSetId) -> ClassId {
        if let Some(id) = self.class_ids.get(&(namespace, labels)) {
            return *id;
        }
        let rules = self.rules_for(namespace, labels);
        let set = self.take_set(rules);
        let id = self.classes.insert(Class {
            namespace,
            labels,
            set,
            pods: Vec::new(),
        });
        self.class_ids.insert((namespace, labels), id);
        self.classes_by_labels.entry(labels).or_default().insert(id);
        self.namespaces[namespace].classes.insert(id);
        id
    }

    fn join(&mut self, pod: PodId, class: ClassId) {
        let pods = &mut self.classes[class].pods;
        let position = u32::try_from(pods.len()).expect("pods have 32-bit numbers");
        pods.push(pod);
        let record = &mut self.pods[pod];
        record.class = class;
        record.position = position;
    }

    /// Takes a pod out of its class, and the class away if it was the last one.
    fn leave(&mut self, pod: PodId) {
        let PodRecord {
            class: id,
            position,
            ..
        } = self.pods[pod];
        let class = &mut self.classes[id];
        class.pods.swap_remove(position as usize);
        if let Some(moved) = class.pods.get(position as usize) {
            self.pods[*moved].position = position;
        }
        let labels = class.labels;
        if class.pods.is_empty()
            && let Some(class) = self.classes.remove(id)
        {
            self.class_ids.remove(&(class.namespace, labels));
            remove_from(&mut self.classes_by_labels, labels, id);
            self.namespaces[class.namespace].classes.remove(&id);
            self.give_set(class.set);
            self.changed.remove(&id);
        }
        self.pod_labels.give_labels(labels);
    }

    /// The rules that select pods with these labels in this namespace, in order.
    fn rules_for(&self, namespace: NamespaceId, labels: LabelSetId) -> Vec<RuleId> {
        let Some(namespace) = self.namespaces[namespace].labels else {
            return Vec::new();
        };
        let namespaces = self.namespace_labels.selectors_for(namespace);
        let pods = self.pod_labels.selectors_for(labels);
        let listed = |index: &Map<SelectorId, BTreeSet<RuleId>>, ids: &[SelectorId]| -> usize {
            let lists = ids.iter().filter_map(|id| index.get(id));
            lists.map(BTreeSet::len).sum()
        };
        // Whichever way there are the fewest to try.
        let pairs = namespaces.len() * pods.len();
        let by_namespaces = listed(&self.rules_by_namespaces, &namespaces);
        let by_pods = listed(&self.rules_by_pods, &pods);
        let mut rules: Vec<RuleId> = if pairs <= by_namespaces.min(by_pods) {
            let pairs = namespaces
                .iter()
                .flat_map(|n| pods.iter().map(move |p| (*n, *p)));
            pairs
                .filter_map(|pair| self.rule_ids.get(&pair).copied())
                .collect()
        } else {
            let (index, ids) = if by_namespaces <= by_pods {
                (&self.rules_by_namespaces, &namespaces)
            } else {
                (&self.rules_by_pods, &pods)
            };
            let listed = ids.iter().filter_map(|id| index.get(id)).flatten().copied();
            let is_met = |rule: &RuleId| {
                let rule = &self.rules[*rule];
                self.namespace_labels.matches(rule.namespaces, namespace)
                    && self.pod_labels.matches(rule.pods, labels)
            };
            listed.filter(is_met).collect()
        };
        rules.sort_unstable();
        rules
    }

    /// The classes that a rule selects.
    fn classes_for(&self, rule: RuleId) -> Vec<ClassId> {
        let Rule {
            namespaces, pods, ..
        } = self.rules[rule];
        // Whichever side narrows it down more.
        if self.namespace_labels.estimate(namespaces) < self.pod_labels.estimate(pods) {
            let labels = self.namespace_labels.label_sets_for(namespaces);
            let named = labels
                .iter()
                .filter_map(|labels| self.namespaces_by_labels.get(labels))
                .flatten();
            let classes = named.flat_map(|namespace| &self.namespaces[*namespace].classes);
            classes
                .copied()
                .filter(|class| self.pod_labels.matches(pods, self.classes[*class].labels))
                .collect()
        } else {
            let labels = self.pod_labels.label_sets_for(pods);
            let classes = labels
                .iter()
                .filter_map(|labels| self.classes_by_labels.get(labels))
                .flatten();
            let is_of_namespace = |class: &ClassId| {
                let namespace = &self.namespaces[self.classes[*class].namespace];
                namespace
                    .labels
                    .is_some_and(|labels| self.namespace_labels.matches(namespaces, labels))
            };
            classes.copied().filter(is_of_namespace).collect()
        }
    }

    /// The rule with these selectors, each of which was taken for it.
    fn rule(&mut self, namespaces: SelectorId, pods: SelectorId) -> RuleId {
        if let Some(id) = self.rule_ids.get(&(namespaces, pods)) {
            self.namespace_labels.give_selector(namespaces);
            self.pod_labels.give_selector(pods);
            return *id;
        }
        let id = self.rules.insert(Rule {
            namespaces,
            pods,
            policies: BTreeSet::new(),
        });
        self.rule_ids.insert((namespaces, pods), id);
        self.rules_by_namespaces
            .entry(namespaces)
            .or_default()
            .insert(id);
        self.rules_by_pods.entry(pods).or_default().insert(id);
        for class in self.classes_for(id) {
            self.change_rules(class, |rules| {
                if let Err(position) = rules.binary_search(&id) {
                    rules.insert(position, id);
                }
            });
        }
        id
    }

    /// A policy has the rule no more.
    fn drop_rule(&mut self, id: RuleId, policy: PolicyId) {
        let rule = &mut self.rules[id];
        rule.policies.remove(&policy);
        if !rule.policies.is_empty() {
            return;
        }
        for class in self.classes_for(id) {
            self.change_rules(class, |rules| rules.retain(|rule| *rule != id));
        }
        let Some(rule) = self.rules.remove(id) else {
            return;
        };
        self.rule_ids.remove(&(rule.namespaces, rule.pods));
        remove_from(&mut self.rules_by_namespaces, rule.namespaces, id);
        remove_from(&mut self.rules_by_pods, rule.pods, id);
        self.namespace_labels.give_selector(rule.namespaces);
        self.pod_labels.give_selector(rule.pods);
    }

    fn change_rules(&mut self, class: ClassId, change: impl FnOnce(&mut Vec<RuleId>)) {
        let set = self.classes[class].set;
        let mut rules = self.sets[&set].rules.to_vec();
        change(&mut rules);
        self.set_rules(class, rules);
    }

    fn set_rules(&mut self, class: ClassId, rules: Vec<RuleId>) {
        let set = self.take_set(rules);
        let before = core::mem::replace(&mut self.classes[class].set, set);
        if before != set {
            self.changed.insert(class);
        }
        self.give_set(before);
    }

    fn take_set(&mut self, rules: Vec<RuleId>) -> SetId {
        if let Some(id) = self.set_ids.get(rules.as_slice()) {
            if let Some(set) = self.sets.get_mut(id) {
                set.classes += 1;
            }
            return *id;
        }
        // Never the number of one that is gone, so that who remembers a number is not deceived.
        self.last_set.0 += 1;
        let id = self.last_set;
        let rules: Box<[RuleId]> = rules.into();
        self.set_ids.insert(rules.clone(), id);
        self.sets.insert(id, RuleSet { rules, classes: 1 });
        id
    }

    fn give_set(&mut self, id: SetId) {
        let Some(set) = self.sets.get_mut(&id) else {
            return;
        };
        set.classes -= 1;
        if set.classes == 0
            && let Some(gone) = self.sets.remove(&id)
        {
            self.set_ids.remove(&gone.rules);
        }
    }
}

fn remove_from(index: &mut Map<u32, BTreeSet<u32>>, key: u32, id: u32) {
    if let Some(ids) = index.get_mut(&key) {
        ids.remove(&id);
        if ids.is_empty() {
            index.remove(&key);
        }
    }
}
