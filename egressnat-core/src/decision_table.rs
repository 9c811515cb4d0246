//! Many decisions from one plan, in user space.

use alloc::vec::Vec;
use core::net::IpAddr;
use ipnet::IpNet;

use crate::hash::{Map, Seed};
use crate::model::{MasqueradeAction, MasqueradeRules, Protocol};
use crate::plan::{Decision, NodePlan, PolicySetId, Steering};
use crate::prefix_table::PrefixTable;

/// The tables of a [`NodePlan`], arranged for lookups.
///
/// Two steps, as in the packet path: address of the pod → policy set, then the longest prefix in the table of that set. So a
/// lookup costs the same however many pods and policies there are.
///
/// # Guarantees
///
/// [`DecisionTable::decide`] says what [`NodePlan::decide`] says.
#[derive(Debug, Clone)]
pub struct DecisionTable {
    pods: Map<IpAddr, u32>,
    /// Values are places in `steerings`: there are few different ones, and a table has to stay in the cache.
    sets: Vec<PrefixTable<u32>>,
    steerings: Vec<Steering>,
    pod_ranges: PrefixTable<()>,
    internal_ranges: PrefixTable<()>,
    guard_ranges: PrefixTable<()>,
    masquerade: MasqueradeRules,
}

impl DecisionTable {
    /// The tables of `plan`. `seed` is the seed of the hash table of pods: a number that those who choose addresses do not know.
    pub fn new(plan: &NodePlan, seed: u64) -> Self {
        let mut sets: Vec<PrefixTable<u32>> = Vec::new();
        let mut steerings: Vec<Steering> = plan.destinations.values().copied().collect();
        steerings.sort_unstable();
        steerings.dedup();
        let mut indices: Map<PolicySetId, u32> = Map::with_hasher(Seed(seed));
        let mut index = |sets: &mut Vec<_>, id: PolicySetId| {
            *indices.entry(id).or_insert_with(|| {
                sets.push(PrefixTable::new());
                u32::try_from(sets.len() - 1).expect("ids have 32 bits")
            })
        };
        for ((id, prefix), steering) in &plan.destinations {
            let index = index(&mut sets, *id);
            let place = steerings.partition_point(|other| other < steering);
            let place = u32::try_from(place).expect("plans have a limit");
            sets[index as usize].insert(prefix, place);
        }
        let mut pods = Map::with_hasher(Seed(seed));
        for (address, id) in &plan.pods {
            let index = index(&mut sets, *id);
            pods.insert(*address, index);
        }
        Self {
            pods,
            sets,
            steerings,
            pod_ranges: ranges(&plan.pod_ranges),
            internal_ranges: ranges(&plan.internal_ranges),
            guard_ranges: ranges(&plan.guard_ranges),
            masquerade: plan.masquerade.clone(),
        }
    }

    /// What happens to a packet from `source` to `destination`.
    pub fn decide(
        &self,
        source: IpAddr,
        destination: IpAddr,
        protocol: Option<Protocol>,
    ) -> Decision {
        let set = self.pods.get(&source);
        let found = set.and_then(|set| self.sets[*set as usize].find(destination));
        match found.map(|place| &self.steerings[*place as usize]) {
            Some(Steering::Snat(address)) => return Decision::Snat(*address),
            Some(Steering::Keep) => return Decision::Keep,
            Some(Steering::Drop) => return Decision::Drop,
            Some(Steering::Forward) | None => {}
        }
        let is_of_pod = set.is_some() || self.pod_ranges.find(source).is_some();
        if !is_of_pod || self.internal_ranges.find(destination).is_some() {
            return Decision::Keep;
        }
        if set.is_none() && self.guard_ranges.find(destination).is_some() {
            return Decision::Drop;
        }
        match self.masquerade.find(source, destination, protocol) {
            Some((_, MasqueradeAction::Keep)) => Decision::Keep,
            Some((_, MasqueradeAction::Masquerade)) | None => Decision::Masquerade,
        }
    }
}

fn ranges<'a>(ranges: impl IntoIterator<Item = &'a IpNet>) -> PrefixTable<()> {
    let mut table = PrefixTable::new();
    for range in ranges {
        table.insert(range, ());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary;
    use crate::assignment::assign;
    use crate::plan::plan_node;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_table_says_what_the_plan_says(
            snapshot in arbitrary::snapshot(),
            destinations in prop::collection::vec(arbitrary::range(), 1..10),
        ) {
            let assignment = assign(&snapshot).assignment;
            for node in snapshot.nodes.keys() {
                let plan = plan_node(&snapshot, &assignment, node).plan;
                let table = DecisionTable::new(&plan, 3);
                let unknown = "10.10.1.200".parse().unwrap();
                for source in plan.pods.keys().copied().chain([unknown]) {
                    for destination in destinations.iter().flat_map(|d| [d.addr(), d.broadcast()]) {
                        for protocol in [None, Some(Protocol::TCP)] {
                            prop_assert_eq!(
                                table.decide(source, destination, protocol),
                                plan.decide(source, destination, protocol)
                            );
                        }
                    }
                }
            }
        }
    }
}
