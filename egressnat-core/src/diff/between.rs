//! Between two plans, while running connections begin anew.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::net::IpAddr;
use ipnet::IpNet;

use crate::model::PolicyName;
use crate::plan::{NodePlan, PolicySetId, Steering};

/// What is in force between two plans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Between {
    /// The plan of that time.
    pub plan: NodePlan,
    /// The pods of which something goes nowhere by it.
    pub stopped: BTreeSet<IpAddr>,
}

/// What has to be in force while connections of `pods` are forgotten: as `desired`, but what was steered, and that nobody decides
/// about any more, goes nowhere. It was not translated on this node, and as long as its connection lasts it would leave with the
/// pod's own address.
///
/// Nothing if there is no such thing.
pub fn between(
    pods: &BTreeSet<IpAddr>,
    observed: &NodePlan,
    desired: &NodePlan,
) -> Option<Between> {
    let mut pods_of: BTreeMap<_, Vec<IpAddr>> = BTreeMap::new();
    for pod in pods {
        if let (Some(old), Some(new)) = (observed.pods.get(pod), desired.pods.get(pod)) {
            pods_of.entry((*old, *new)).or_default().push(*pod);
        }
    }
    let mut between: Option<Between> = None;
    for ((old, new), pods) in pods_of {
        let Some(stopped) = stopped((observed, old), (desired, new)) else {
            continue;
        };
        let Between { plan, stopped: all } = between.get_or_insert_with(|| Between {
            plan: desired.clone(),
            stopped: BTreeSet::new(),
        });
        let set = match old == new {
            // Its destinations change before its pods do.
            true => new,
            // Others than these pods may have the next one.
            false => unused_set(&[observed, plan]),
        };
        for (prefix, (steering, decider)) in stopped {
            plan.destinations.insert((set, prefix), steering);
            if let Some(decider) = decider {
                plan.deciders.insert((set, prefix), decider.clone());
            }
        }
        plan.pods.extend(pods.iter().map(|pod| (*pod, set)));
        all.extend(pods);
    }
    between
}

/// What a policy set says about a prefix, and by which policy.
type Entry<'a> = (Steering, Option<&'a PolicyName>);

/// A policy set as it is to be, without what was steered before and is not decided any more. Nothing if there is no such thing.
fn stopped<'a>(
    before: (&'a NodePlan, PolicySetId),
    after: (&'a NodePlan, PolicySetId),
) -> Option<BTreeMap<IpNet, Entry<'a>>> {
    let internal = &after.0.internal_ranges;
    let is_internal = |prefix: &IpNet| internal.iter().any(|range| range.contains(prefix));
    let prefixes = [before, after].into_iter().flat_map(|(plan, set)| {
        let from_here = plan.destinations.range((set, IpNet::default())..);
        let of_set = from_here.take_while(move |((other, _), _)| *other == set);
        of_set.map(|((_, prefix), _)| *prefix)
    });
    let mut is_any = false;
    let mut destinations = BTreeMap::new();
    for prefix in prefixes {
        let (was, by) = entry(before, prefix);
        let mut entry = entry(after, prefix);
        // What is dropped may be so since the last time, which did not come to its end.
        let was_decided = matches!(was, Steering::Snat(_) | Steering::Drop);
        let is_undecided = entry.0 == Steering::Forward && !is_internal(&prefix);
        if was_decided && is_undecided {
            entry = (Steering::Drop, by);
            is_any = true;
        }
        destinations.insert(prefix, entry);
    }
    is_any.then_some(destinations)
}

/// What a set says about all of a prefix.
fn entry((plan, set): (&NodePlan, PolicySetId), prefix: IpNet) -> Entry<'_> {
    let covering = (0..=prefix.prefix_len()).rev();
    let mut covering = covering.filter_map(|length| IpNet::new(prefix.addr(), length).ok());
    let found = covering.find_map(|range| plan.destinations.get_key_value(&(set, range.trunc())));
    found.map_or((Steering::Forward, None), |(key, steering)| {
        (*steering, plan.deciders.get(key))
    })
}

/// A policy set that no plan has.
fn unused_set(plans: &[&NodePlan]) -> PolicySetId {
    let is_used = |set: &PolicySetId| {
        plans.iter().any(|plan| {
            let mut sets = plan.destinations.keys().map(|(set, _)| set);
            sets.any(|other| other == set) || plan.pods.values().any(|other| other == set)
        })
    };
    let mut sets = (0..=u32::MAX).rev().map(PolicySetId);
    sets.find(|set| !is_used(set)).unwrap_or(PolicySetId::EMPTY)
}
