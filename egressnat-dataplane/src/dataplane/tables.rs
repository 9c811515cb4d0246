//! Changes that are made in the tables as a whole: ranges and masquerade rules.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use egressnat_core::model::MasqueradeMatch;
use egressnat_core::{Change, Report};
use ipnet::IpNet;

use super::{Dataplane, fail};
use crate::family::Family;
use crate::nft::{Elements, NftError, Ruleset, SetName, all_but_refused};

impl Dataplane {
    /// Makes the changes of sets and rules, a batch for each set, in an order that leaks nothing: inside of the cluster nothing is
    /// guarded or masqueraded, the guard is there before pods are, and the rules are there before what they are about. Returns those
    /// that the kernel refused.
    pub(super) fn change_tables(
        &mut self,
        changes: &[Change],
        report: &mut Report,
    ) -> BTreeSet<Change> {
        let mut undone = self.change_ranges(SetName::InternalRanges, changes, report);
        undone.extend(self.change_ranges(SetName::GuardRanges, changes, report));
        for family in Family::ALL {
            undone.extend(self.change_masquerade(family, changes, report));
        }
        undone.extend(self.change_ranges(SetName::PodRanges, changes, report));
        undone
    }

    /// What goes from a set goes in the same batch as what comes: the kernel refuses ranges that overlap, even for an instant.
    fn change_ranges(
        &mut self,
        set: SetName,
        changes: &[Change],
        report: &mut Report,
    ) -> BTreeSet<Change> {
        let of_set = changes.iter().filter_map(|change| {
            let (name, range) = range_of(change)?;
            (name == set).then_some((range, *change))
        });
        let nests = nests(of_set.collect());
        let refused = all_but_refused(&nests, &mut |part| {
            let elements = |is_wanted: fn(&Change) -> bool| {
                Family::ALL.map(|family| {
                    let changes = part.iter().flatten();
                    let ranges = changes.filter(|(range, change)| {
                        Family::of_range(range) == family && is_wanted(change)
                    });
                    let none = Elements::of(family, set);
                    ranges.fold(none, |elements, (range, _)| elements.range(*range))
                })
            };
            let (removed, added) = (elements(|change| !comes(change)), elements(comes));
            let what = format!("ranges of {set:?}");
            Ruleset::change(&self.nft.lock(), &removed, &added, &what)
        });
        let changes = nests.iter().flatten().map(|(_, change)| *change);
        let refused = refused.into_iter().flat_map(|(nest, error)| {
            let message = Arc::new(error);
            nest.into_iter()
                .map(move |(_, change)| (change, Arc::clone(&message)))
        });
        self.note_all(changes.collect(), refused.collect(), report)
    }

    fn change_masquerade(
        &mut self,
        family: Family,
        changes: &[Change],
        report: &mut Report,
    ) -> BTreeSet<Change> {
        let is_of = |rule: &MasqueradeMatch| Family::of_range(&rule.destination) == family;
        let of_family = changes.iter().filter(|change| match change {
            Change::SetMasquerade(rule, _) | Change::RemoveMasquerade(rule) => is_of(rule),
            _ => false,
        });
        let of_family: Vec<Change> = of_family.copied().collect();
        let refused = all_but_refused(&of_family, &mut |part| {
            let (mut set, mut removed) = (BTreeMap::new(), Vec::new());
            for change in part {
                match change {
                    Change::SetMasquerade(rule, action) => _ = set.insert(*rule, *action),
                    Change::RemoveMasquerade(rule) => removed.push(*rule),
                    _ => {}
                }
            }
            Ruleset::change_masquerade(&self.nft.lock(), family, &set, &removed)
        });
        let refused = refused.into_iter();
        let refused = refused.map(|(change, error)| (change, Arc::new(error)));
        self.note_all(of_family, refused.collect(), report)
    }

    /// Notes changes as made, but those that were refused, which are returned.
    fn note_all(
        &mut self,
        changes: Vec<Change>,
        refused: BTreeMap<Change, Arc<NftError>>,
        report: &mut Report,
    ) -> BTreeSet<Change> {
        for change in changes {
            match refused.get(&change) {
                Some(error) => fail(report, &change.to_string(), error),
                None => {
                    self.kept.note(&change);
                    report.changes += 1;
                }
            }
        }
        refused.into_keys().collect()
    }
}

/// The set and the range that a change is about.
fn range_of(change: &Change) -> Option<(SetName, IpNet)> {
    match change {
        Change::AddInternalRange(range) | Change::RemoveInternalRange(range) => {
            Some((SetName::InternalRanges, *range))
        }
        Change::AddGuardRange(range) | Change::RemoveGuardRange(range) => {
            Some((SetName::GuardRanges, *range))
        }
        Change::AddPodRange(range) | Change::RemovePodRange(range) => {
            Some((SetName::PodRanges, *range))
        }
        _ => None,
    }
}

/// Whether a change puts a range in.
fn comes(change: &Change) -> bool {
    matches!(
        change,
        Change::AddInternalRange(_) | Change::AddGuardRange(_) | Change::AddPodRange(_)
    )
}

/// A range with all that lie in it: they come and go together.
type Nest = Vec<(IpNet, Change)>;

/// Takes changes of ranges apart into those that have nothing to do with each other.
fn nests(mut changes: Vec<(IpNet, Change)>) -> Vec<Nest> {
    // A range comes before all that lie in it.
    changes.sort_by_key(|(range, _)| (range.network(), range.prefix_len()));
    let mut nests: Vec<Nest> = Vec::new();
    for (range, change) in changes {
        match nests.last_mut() {
            Some(nest) if nest[0].0.contains(&range) => nest.push((range, change)),
            _ => nests.push(vec![(range, change)]),
        }
    }
    nests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_lie_in_each_other_come_and_go_together() {
        let range = |text: &str| text.parse::<IpNet>().unwrap();
        let added = ["8.8.0.0/16", "8.9.0.0/16", "9.9.9.0/24", "fd00::/8"];
        let removed = ["8.0.0.0/8", "10.0.0.0/8"];
        let added = added.map(|text| (range(text), Change::AddGuardRange(range(text))));
        let removed = removed.map(|text| (range(text), Change::RemoveGuardRange(range(text))));
        let nests = nests([&added[..], &removed[..]].concat());
        let ranges = nests.iter().map(|nest| {
            let ranges = nest.iter().map(|(range, _)| range.to_string());
            ranges.collect::<Vec<_>>().join(" ")
        });
        assert_eq!(
            ranges.collect::<Vec<_>>(),
            [
                "8.0.0.0/8 8.8.0.0/16 8.9.0.0/16",
                "9.9.9.0/24",
                "10.0.0.0/8",
                "fd00::/8"
            ]
        );
    }
}
