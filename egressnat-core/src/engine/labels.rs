//! Which selectors match which labels, in both directions, without trying them all.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::symbols::{Symbol, Symbols};
use crate::hash::{Map, Seed};
use crate::model::Labels;
use crate::selector::{Operator, Selector};
use crate::slab::Slab;

/// A combination of labels that some object has.
pub(super) type LabelSetId = u32;
/// A selector that some rule has.
pub(super) type SelectorId = u32;

/// A key with a value.
type Pair = (Symbol, Symbol);

/// Labels of one sort of objects, and the selectors for them.
#[derive(Debug, Clone)]
pub(super) struct LabelSpace {
    symbols: Symbols,
    sets: Slab<LabelSet>,
    set_ids: Map<Box<[Pair]>, LabelSetId>,
    sets_by_pair: Map<Pair, BTreeSet<LabelSetId>>,
    sets_by_key: Map<Symbol, BTreeSet<LabelSetId>>,
    selectors: Slab<Compiled>,
    selector_ids: Map<Box<[Wanted]>, SelectorId>,
    /// Selectors by one of the things they need, see [`LabelSpace::file`].
    selectors_by_pair: Map<Pair, BTreeSet<SelectorId>>,
    selectors_by_key: Map<Symbol, BTreeSet<SelectorId>>,
    /// Selectors that need no label to be there.
    other_selectors: BTreeSet<SelectorId>,
}

#[derive(Debug, Clone)]
struct LabelSet {
    /// In order of keys.
    pairs: Box<[Pair]>,
    users: u32,
}

#[derive(Debug, Clone)]
struct Compiled {
    wanted: Box<[Wanted]>,
    filed: Filed,
    users: u32,
}

/// A requirement.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Wanted {
    In(Symbol, Box<[Symbol]>),
    NotIn(Symbol, Box<[Symbol]>),
    Exists(Symbol),
    DoesNotExist(Symbol),
}

/// Where a selector is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filed {
    /// By the pairs of this requirement.
    ByPairs(usize),
    /// By the key of this requirement.
    ByKey(usize),
    Other,
}

impl Wanted {
    fn is_met(&self, pairs: &[Pair]) -> bool {
        let value = |key: Symbol| {
            let found = pairs.iter().find(|(other, _)| *other == key);
            found.map(|(_, value)| value)
        };
        match self {
            Wanted::In(key, values) => value(*key).is_some_and(|value| values.contains(value)),
            Wanted::NotIn(key, values) => value(*key).is_none_or(|value| !values.contains(value)),
            Wanted::Exists(key) => value(*key).is_some(),
            Wanted::DoesNotExist(key) => value(*key).is_none(),
        }
    }
}

impl LabelSpace {
    pub(super) fn new(seed: Seed) -> Self {
        Self {
            symbols: Symbols::new(seed),
            sets: Slab::default(),
            set_ids: Map::with_hasher(seed),
            sets_by_pair: Map::with_hasher(seed),
            sets_by_key: Map::with_hasher(seed),
            selectors: Slab::default(),
            selector_ids: Map::with_hasher(seed),
            selectors_by_pair: Map::with_hasher(seed),
            selectors_by_key: Map::with_hasher(seed),
            other_selectors: BTreeSet::new(),
        }
    }

    /// The number of a combination of labels, used once more.
    pub(super) fn take_labels(&mut self, labels: &Labels) -> LabelSetId {
        let mut pairs: Vec<Pair> = labels
            .iter()
            .map(|(key, value)| (self.symbols.take(key), self.symbols.take(value)))
            .collect();
        pairs.sort_unstable();
        if let Some(id) = self.set_ids.get(pairs.as_slice()) {
            self.sets[*id].users += 1;
            for (key, value) in pairs {
                self.symbols.give(key);
                self.symbols.give(value);
            }
            return *id;
        }
        let pairs: Box<[Pair]> = pairs.into();
        let id = self.sets.insert(LabelSet {
            pairs: pairs.clone(),
            users: 1,
        });
        for pair in &pairs {
            self.sets_by_pair.entry(*pair).or_default().insert(id);
            self.sets_by_key.entry(pair.0).or_default().insert(id);
        }
        self.set_ids.insert(pairs, id);
        id
    }

    /// The combination is used once less.
    pub(super) fn give_labels(&mut self, id: LabelSetId) {
        let set = &mut self.sets[id];
        set.users -= 1;
        if set.users > 0 {
            return;
        }
        let Some(set) = self.sets.remove(id) else {
            return;
        };
        for (key, value) in &set.pairs {
            remove_from(&mut self.sets_by_pair, &(*key, *value), id);
            remove_from(&mut self.sets_by_key, key, id);
            self.symbols.give(*key);
            self.symbols.give(*value);
        }
        self.set_ids.remove(&set.pairs);
    }

    /// The number of a selector, used once more.
    pub(super) fn take_selector(&mut self, selector: &Selector) -> SelectorId {
        let wanted = self.compile(selector);
        if let Some(id) = self.selector_ids.get(&wanted).copied() {
            self.selectors[id].users += 1;
            for requirement in &wanted {
                self.give_requirement(requirement);
            }
            return id;
        }
        let filed = self.file(&wanted);
        let id = self.selectors.insert(Compiled {
            wanted: wanted.clone(),
            filed,
            users: 1,
        });
        match filed {
            Filed::ByPairs(index) => {
                for pair in pairs_of(&wanted[index]) {
                    self.selectors_by_pair.entry(pair).or_default().insert(id);
                }
            }
            Filed::ByKey(index) => {
                let key = key_of(&wanted[index]);
                self.selectors_by_key.entry(key).or_default().insert(id);
            }
            Filed::Other => {
                self.other_selectors.insert(id);
            }
        }
        self.selector_ids.insert(wanted, id);
        id
    }

    /// The selector is used once less.
    pub(super) fn give_selector(&mut self, id: SelectorId) {
        let selector = &mut self.selectors[id];
        selector.users -= 1;
        if selector.users > 0 {
            return;
        }
        let Some(selector) = self.selectors.remove(id) else {
            return;
        };
        match selector.filed {
            Filed::ByPairs(index) => {
                for pair in pairs_of(&selector.wanted[index]) {
                    remove_from(&mut self.selectors_by_pair, &pair, id);
                }
            }
            Filed::ByKey(index) => {
                remove_from(
                    &mut self.selectors_by_key,
                    &key_of(&selector.wanted[index]),
                    id,
                );
            }
            Filed::Other => {
                self.other_selectors.remove(&id);
            }
        }
        self.selector_ids.remove(&selector.wanted);
        for requirement in &selector.wanted {
            self.give_requirement(requirement);
        }
    }

    fn compile(&mut self, selector: &Selector) -> Box<[Wanted]> {
        let symbols = &mut self.symbols;
        let mut wanted = Vec::new();
        for (key, value) in &selector.match_labels {
            let values = Box::new([symbols.take(value)]);
            wanted.push(Wanted::In(symbols.take(key), values));
        }
        for requirement in &selector.match_expressions {
            let key = symbols.take(&requirement.key);
            let mut list = |values: &BTreeSet<alloc::string::String>| -> Box<[Symbol]> {
                let mut values: Vec<Symbol> = values.iter().map(|v| symbols.take(v)).collect();
                values.sort_unstable();
                values.into()
            };
            wanted.push(match &requirement.operator {
                Operator::In(values) => Wanted::In(key, list(values)),
                Operator::NotIn(values) => Wanted::NotIn(key, list(values)),
                Operator::Exists => Wanted::Exists(key),
                Operator::DoesNotExist => Wanted::DoesNotExist(key),
            });
        }
        wanted.sort_unstable();
        wanted.into()
    }

    fn give_requirement(&mut self, wanted: &Wanted) {
        self.symbols.give(key_of(wanted));
        if let Wanted::In(_, values) | Wanted::NotIn(_, values) = wanted {
            for value in values {
                self.symbols.give(*value);
            }
        }
    }

    /// By which of its requirements to find a selector: the one that fewest selectors are filed by. So a label that many
    /// selectors ask for besides others does not make each of them be tried for every object that has it.
    fn file(&self, wanted: &[Wanted]) -> Filed {
        let cost = |(index, wanted): (usize, &Wanted)| match wanted {
            Wanted::In(key, values) => {
                let filed = |value: &Symbol| {
                    let found = self.selectors_by_pair.get(&(*key, *value));
                    found.map_or(0, BTreeSet::len) + 1
                };
                Some((values.iter().map(filed).sum(), Filed::ByPairs(index)))
            }
            Wanted::Exists(key) => {
                let filed = self.selectors_by_key.get(key).map_or(0, BTreeSet::len);
                Some((filed + 1, Filed::ByKey(index)))
            }
            Wanted::NotIn(..) | Wanted::DoesNotExist(_) => None,
        };
        let costs = wanted.iter().enumerate().filter_map(cost);
        costs
            .min_by_key(|(cost, _): &(usize, _)| *cost)
            .map_or(Filed::Other, |(_, filed)| filed)
    }

    /// How many things are kept.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.symbols.len()
            + self.sets.len()
            + self.selectors.len()
            + self.sets_by_pair.len()
            + self.sets_by_key.len()
            + self.selectors_by_pair.len()
            + self.selectors_by_key.len()
            + self.other_selectors.len()
    }

    /// Whether a selector matches a combination of labels.
    pub(super) fn matches(&self, selector: SelectorId, set: LabelSetId) -> bool {
        let pairs = &self.sets[set].pairs;
        self.selectors[selector]
            .wanted
            .iter()
            .all(|wanted| wanted.is_met(pairs))
    }

    /// The selectors that match a combination of labels.
    pub(super) fn selectors_for(&self, set: LabelSetId) -> Vec<SelectorId> {
        let mut matching = Vec::new();
        let mut try_all = |ids: Option<&BTreeSet<SelectorId>>| {
            let ids = ids.into_iter().flatten();
            matching.extend(ids.copied().filter(|id| self.matches(*id, set)));
        };
        for pair in &self.sets[set].pairs {
            try_all(self.selectors_by_pair.get(pair));
            try_all(self.selectors_by_key.get(&pair.0));
        }
        try_all(Some(&self.other_selectors));
        matching
    }

    /// The combinations of labels that a selector matches.
    pub(super) fn label_sets_for(&self, selector: SelectorId) -> Vec<LabelSetId> {
        let selector = &self.selectors[selector];
        let is_met = |set: &LabelSetId| {
            let pairs = &self.sets[*set].pairs;
            selector.wanted.iter().all(|wanted| wanted.is_met(pairs))
        };
        match self.candidates(selector) {
            Some(lists) => lists
                .into_iter()
                .flatten()
                .copied()
                .filter(is_met)
                .collect(),
            None => self.sets.iter().map(|(id, _)| id).filter(is_met).collect(),
        }
    }

    /// Which share of all combinations of labels has to be looked at to find those that a selector matches, in millionths.
    pub(super) fn share(&self, selector: SelectorId) -> usize {
        let all = self.sets.len();
        let candidates = self.candidates(&self.selectors[selector]);
        let candidates = candidates.map_or(all, |lists| count(&lists));
        candidates.saturating_mul(1_000_000) / all.max(1)
    }

    /// The shortest lists that have every combination of labels that a selector can match; none if only all have.
    fn candidates(&self, selector: &Compiled) -> Option<Vec<&BTreeSet<LabelSetId>>> {
        let lists = |wanted: &Wanted| match wanted {
            Wanted::In(..) => {
                let by_pair = pairs_of(wanted).filter_map(|pair| self.sets_by_pair.get(&pair));
                Some(by_pair.collect())
            }
            Wanted::Exists(key) => Some(self.sets_by_key.get(key).into_iter().collect()),
            Wanted::NotIn(..) | Wanted::DoesNotExist(_) => None,
        };
        let all = selector.wanted.iter().filter_map(lists);
        all.min_by_key(|lists: &Vec<_>| count(lists))
    }
}

fn count(lists: &[&BTreeSet<u32>]) -> usize {
    lists.iter().map(|list| list.len()).sum()
}

fn key_of(wanted: &Wanted) -> Symbol {
    match wanted {
        Wanted::In(key, _)
        | Wanted::NotIn(key, _)
        | Wanted::Exists(key)
        | Wanted::DoesNotExist(key) => *key,
    }
}

fn pairs_of(wanted: &Wanted) -> impl Iterator<Item = Pair> + '_ {
    let values = match wanted {
        Wanted::In(key, values) => Some((*key, values)),
        Wanted::NotIn(..) | Wanted::Exists(_) | Wanted::DoesNotExist(_) => None,
    };
    values
        .into_iter()
        .flat_map(|(key, values)| values.iter().map(move |value| (key, *value)))
}

/// Takes a number out of an index.
pub(super) fn remove_from<K: Eq + core::hash::Hash>(
    index: &mut Map<K, BTreeSet<u32>>,
    key: &K,
    id: u32,
) {
    if let Some(ids) = index.get_mut(key) {
        ids.remove(&id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}
