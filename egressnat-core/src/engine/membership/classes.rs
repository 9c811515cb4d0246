//! Pods in classes, rules for classes, sets of rules.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::{
    Class, ClassId, Membership, Namespace, NamespaceId, PodId, PodRecord, PolicyId, Rule, RuleId,
    RuleSet, SetId,
};
use crate::engine::labels::{LabelSetId, SelectorId, remove_from};
use crate::hash::Map;
use crate::model::NamespaceName;

impl Membership {
    pub(super) fn namespace(&mut self, name: &NamespaceName) -> NamespaceId {
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

    pub(super) fn forget_namespace(&mut self, id: NamespaceId) {
        let namespace = &self.namespaces[id];
        if namespace.labels.is_none()
            && namespace.classes.is_empty()
            && let Some(gone) = self.namespaces.remove(id)
        {
            self.namespace_ids.remove(&gone.name);
        }
    }

    /// The class of pods with these labels, made if it is the first one.
    pub(super) fn class(&mut self, namespace: NamespaceId, labels: LabelSetId) -> ClassId {
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
            nodes: Vec::new(),
        });
        self.class_ids.insert((namespace, labels), id);
        self.classes_by_labels.entry(labels).or_default().insert(id);
        self.namespaces[namespace].classes.insert(id);
        id
    }

    pub(super) fn join(&mut self, pod: PodId, class: ClassId) {
        let record = &mut self.pods[pod];
        let joined = &mut self.classes[class];
        record.class = class;
        record.position = u32::try_from(joined.pods.len()).expect("pods have 32-bit numbers");
        joined.pods.push(pod);
        joined.count(record.node);
    }

    /// Takes a pod out of its class, and the class away if it was the last one.
    pub(super) fn leave(&mut self, pod: PodId) {
        let PodRecord {
            class: id,
            position,
            node,
            ..
        } = self.pods[pod];
        let class = &mut self.classes[id];
        class.discount(node);
        class.pods.swap_remove(position as usize);
        if let Some(moved) = class.pods.get(position as usize) {
            self.pods[*moved].position = position;
        }
        let labels = class.labels;
        if class.pods.is_empty()
            && let Some(class) = self.classes.remove(id)
        {
            self.class_ids.remove(&(class.namespace, labels));
            remove_from(&mut self.classes_by_labels, &labels, id);
            self.namespaces[class.namespace].classes.remove(&id);
            self.give_set(class.set);
            if let Some(changed) = &mut self.changed {
                changed.remove(&id);
            }
        }
        self.pod_labels.give_labels(labels);
        self.give_node(node);
    }

    /// The rules that select pods with these labels in this namespace, in order.
    pub(super) fn rules_for(&self, namespace: NamespaceId, labels: LabelSetId) -> Vec<RuleId> {
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
    pub(super) fn classes_for(&self, rule: RuleId) -> Vec<ClassId> {
        let Rule {
            namespaces, pods, ..
        } = self.rules[rule];
        // Whichever side narrows it down more.
        let by_namespaces = self.namespace_labels.share(namespaces);
        if by_namespaces < self.pod_labels.share(pods) {
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
    pub(super) fn rule(&mut self, namespaces: SelectorId, pods: SelectorId) -> RuleId {
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
        self.change_rules(id, |rules| {
            if let Err(position) = rules.binary_search(&id) {
                rules.insert(position, id);
            }
        });
        id
    }

    /// A policy has the rule no more.
    pub(super) fn drop_rule(&mut self, id: RuleId, policy: PolicyId) {
        let rule = &mut self.rules[id];
        rule.policies.remove(&policy);
        if !rule.policies.is_empty() {
            return;
        }
        self.change_rules(id, |rules| rules.retain(|rule| *rule != id));
        let Some(rule) = self.rules.remove(id) else {
            return;
        };
        self.rule_ids.remove(&(rule.namespaces, rule.pods));
        remove_from(&mut self.rules_by_namespaces, &rule.namespaces, id);
        remove_from(&mut self.rules_by_pods, &rule.pods, id);
        self.namespace_labels.give_selector(rule.namespaces);
        self.pod_labels.give_selector(rule.pods);
    }

    /// Changes the sets of all classes that a rule selects.
    pub(super) fn change_rules(&mut self, rule: RuleId, change: impl Fn(&mut Vec<RuleId>)) {
        // Classes next to each other often have the same set, and then get the same one.
        let mut last: Option<(SetId, SetId)> = None;
        for class in self.classes_for(rule) {
            let set = self.classes[class].set;
            match last {
                Some((before, after)) if before == set => {
                    if let Some(set) = self.sets.get_mut(&after) {
                        set.classes += 1;
                    }
                    self.set_set(class, after);
                }
                _ => {
                    let mut rules = self.sets[&set].rules.to_vec();
                    change(&mut rules);
                    let after = self.take_set(rules);
                    self.set_set(class, after);
                    last = self.sets.contains_key(&set).then_some((set, after));
                }
            }
        }
    }

    pub(super) fn set_rules(&mut self, class: ClassId, rules: Vec<RuleId>) {
        let set = self.take_set(rules);
        self.set_set(class, set);
    }

    /// Gives a class a set that was taken for it.
    fn set_set(&mut self, class: ClassId, set: SetId) {
        let before = core::mem::replace(&mut self.classes[class].set, set);
        if before != set
            && let Some(changed) = &mut self.changed
        {
            changed.insert(class);
        }
        self.give_set(before);
    }

    pub(super) fn take_set(&mut self, rules: Vec<RuleId>) -> SetId {
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

    pub(super) fn give_set(&mut self, id: SetId) {
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
