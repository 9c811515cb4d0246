//! The node's own small index of policies: what counts for whom.

use std::collections::{BTreeMap, BTreeSet};

use egressnat_core::NodePlan;
use egressnat_core::model::PolicyName;

use crate::maps::{FIRST_POLICY, MAX_POLICIES, PolicyMaps};
use crate::programs::ProgramsError;

/// Policy ↔ index, kept in the map `policy_names`, from which a restarted agent reads it back: counters go on.
///
/// A policy that decides nothing any more keeps its index, so that what it sent can still be read and goes on when pods of it come
/// back. It loses the index to another policy once no other is free.
#[derive(Default)]
pub(crate) struct PolicyTable {
    indices: BTreeMap<PolicyName, u16>,
    names: BTreeMap<u16, PolicyName>,
    /// Whether it was told that some policies are not counted.
    has_told: bool,
}

impl PolicyTable {
    /// Reads the table back.
    pub(crate) fn read(maps: &PolicyMaps) -> Result<Self, ProgramsError> {
        let mut table = Self::default();
        for (index, name) in maps.names()? {
            if let Ok(index) = u16::try_from(index) {
                table.insert(index, name);
            }
        }
        Ok(table)
    }

    pub(crate) fn index(&self, name: &PolicyName) -> Option<u16> {
        self.indices.get(name).copied()
    }

    pub(crate) fn name(&self, index: u16) -> Option<&PolicyName> {
        self.names.get(&index)
    }

    /// How many policies have an index.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// Writes the names anew that somebody altered, and takes away others. Returns the indices of both.
    pub(crate) fn restore(&self, maps: &mut PolicyMaps) -> Result<Vec<u32>, ProgramsError> {
        let mut missing = self.names.clone();
        let mut restored = Vec::new();
        for (index, name) in maps.entries()? {
            let own = u16::try_from(index).ok();
            let own = own.and_then(|own| Some((own, self.name(own)?)));
            match own {
                Some((own, right)) if name.as_ref() == Some(right) => _ = missing.remove(&own),
                // Written below.
                Some(_) => {}
                None => {
                    maps.remove_name(index)?;
                    restored.push(index);
                }
            }
        }
        for (index, name) in &missing {
            let index = u32::from(*index);
            maps.rewrite_name(index, name)?;
            restored.push(index);
        }
        Ok(restored)
    }

    /// Gives an index to every policy that decides in `desired`; those of `observed` may still be counting. A policy without one,
    /// for lack of room or because the kernel refuses it, decides all the same and counts nowhere: it is taken out of the deciders.
    pub(crate) fn allocate(
        &mut self,
        maps: &mut PolicyMaps,
        desired: &mut NodePlan,
        observed: &NodePlan,
    ) {
        let news = self.without_index(desired);
        if news.is_empty() {
            return;
        }
        let mut free = self.free(desired, observed).into_iter();
        let mut refused = None;
        for name in &news {
            let Some(index) = free.next() else { break };
            if let Some(before) = self.names.remove(&index) {
                self.indices.remove(&before);
            }
            match maps.set_name(u32::from(index), name) {
                Ok(()) => self.insert(index, name.clone()),
                Err(error) => refused = Some(error),
            }
        }
        let uncounted = self.without_index(desired);
        if !uncounted.is_empty() {
            self.tell(&uncounted, refused.as_ref());
            let deciders = &mut desired.deciders;
            deciders.retain(|_, name| self.indices.contains_key(name));
        }
    }

    /// The policies that decide in a plan and have no index.
    fn without_index(&self, plan: &NodePlan) -> BTreeSet<PolicyName> {
        let mut without = BTreeSet::new();
        let mut last = None;
        // Destinations are many, and neighbors mostly of one policy.
        for name in plan.deciders.values() {
            if last.replace(name) != Some(name) && !self.indices.contains_key(name) {
                without.insert(name.clone());
            }
        }
        without
    }

    /// The indices that nobody has; behind them those of policies that decide nothing.
    fn free(&self, desired: &NodePlan, observed: &NodePlan) -> Vec<u16> {
        let deciders = desired.deciders.values().chain(observed.deciders.values());
        let deciding: BTreeSet<&PolicyName> = deciders.collect();
        let all = (FIRST_POLICY..MAX_POLICIES).filter_map(|index| u16::try_from(index).ok());
        let mut free: Vec<u16> = all
            .filter(|index| !self.names.contains_key(index))
            .collect();
        let idle = self.names.iter();
        let idle = idle.filter(|(_, name)| !deciding.contains(name));
        free.extend(idle.map(|(index, _)| *index));
        free
    }

    /// Told in the log, and once: a failure in the report would say of policies that they are not in force.
    fn tell(&mut self, uncounted: &BTreeSet<PolicyName>, refused: Option<&ProgramsError>) {
        if std::mem::replace(&mut self.has_told, true) {
            return;
        }
        let error = refused.map(|error| error as &dyn std::error::Error);
        tracing::warn!(
            error,
            policies = uncounted.len(),
            first = uncounted.first().map(PolicyName::as_str),
            "policies are in force and not counted: a node counts for {} at once",
            MAX_POLICIES - FIRST_POLICY
        );
    }

    fn insert(&mut self, index: u16, name: PolicyName) {
        self.indices.insert(name.clone(), index);
        self.names.insert(index, name);
    }
}

#[cfg(test)]
mod tests {
    use egressnat_core::PolicySetId;
    use ipnet::{IpNet, Ipv4Net};

    use super::*;
    use crate::programs::tests::Pins;
    use crate::programs::{CountedAt, Programs};

    fn name(number: u32) -> PolicyName {
        format!("policy-{number}").parse().unwrap()
    }

    /// A plan in which each of these policies decides about a range.
    fn plan(policies: impl IntoIterator<Item = u32>) -> NodePlan {
        let range = |number: u32| IpNet::from(Ipv4Net::from(std::net::Ipv4Addr::from(number)));
        let deciders = policies.into_iter();
        NodePlan {
            deciders: deciders
                .map(|number| ((PolicySetId(1), range(number)), name(number)))
                .collect(),
            ..NodePlan::default()
        }
    }

    #[test]
    fn who_decides_has_an_index_which_outlasts_the_process_and_goes_when_another_needs_it() {
        const ROOM: u32 = MAX_POLICIES - FIRST_POLICY;
        let pins = Pins::mount();
        let (_programs, mut maps) = Programs::load(&pins.config(), CountedAt::Pod).unwrap();
        let maps = &mut maps.policies;
        let mut table = PolicyTable::read(maps).unwrap();
        let nothing = NodePlan::default();
        table.allocate(maps, &mut plan([7, 8]), &nothing);
        let before = [7, 8].map(|number| table.index(&name(number)).unwrap());
        assert_ne!(before[0], before[1]);

        // Another process. Policies that decide nothing keep their index as long as there is room.
        let mut table = PolicyTable::read(maps).unwrap();
        let mut some = plan(100..99 + ROOM - 1);
        table.allocate(maps, &mut some, &plan([8]));
        assert_eq!(
            [7, 8].map(|number| table.index(&name(number)).unwrap()),
            before
        );
        assert_eq!(table.index(&name(99 + ROOM - 1)), None);

        // One more than there are: the one that decides nothing, and not the one that still counts.
        let mut full = plan(100..100 + ROOM - 1);
        table.allocate(maps, &mut full, &plan([8]));
        assert_eq!(full, plan(100..100 + ROOM - 1));
        assert_eq!(table.index(&name(7)), None);
        assert_eq!(table.index(&name(8)), Some(before[1]));
        assert_eq!(table.index(&name(100 + ROOM - 2)), Some(before[0]));

        let mut more = plan(100..100 + ROOM + 1);
        table.allocate(maps, &mut more, &full);
        assert_eq!(more, plan(100..100 + ROOM), "the last one counts nowhere");
        assert_eq!(maps.names().unwrap().len() as u32, ROOM);
    }
}
