//! What a policy set does to which destination (E12, E16).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;
use ipnet::IpNet;

use super::{Applied, Steering};
use crate::cidr::{is_v4_mapped, nested_in};
use crate::finding::{Finding, Reason, Subject, some_of};
use crate::model::{Action, Enforcement, Policy, PolicyName, Timestamp};
use crate::policy::ResolvedPolicy;

/// Where policies compete for one destination: loser → winner → destinations.
pub(crate) type Overlaps = BTreeMap<PolicyName, BTreeMap<PolicyName, BTreeSet<IpNet>>>;

/// What a policy set does to a destination, and by which policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) steering: Steering,
    /// None where no policy decides.
    pub(crate) decider: Option<PolicyName>,
}

impl Entry {
    fn new(steering: Steering, policy: &PolicyName) -> Self {
        let decides = steering != Steering::Forward;
        Self {
            steering,
            decider: decides.then(|| policy.clone()),
        }
    }

    /// That of no policy.
    fn of_nobody(steering: Steering) -> Self {
        Self {
            steering,
            decider: None,
        }
    }
}

/// The destination table of one policy set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SetTable {
    pub(crate) entries: BTreeMap<IpNet, Entry>,
    pub(crate) overlaps: Overlaps,
}

/// Among policies with the same prefix, the first wins:
/// 1. an egress policy before one that keeps the address: it is the more special of the two;
/// 2. the oldest;
/// 3. by name, so that the order is total (E16).
pub(crate) fn precedence<'a>(applied: &Applied<'a>) -> (bool, Timestamp, &'a PolicyName) {
    (
        applied.policy.action == Action::NoSnat,
        applied.policy.created,
        applied.name,
    )
}

/// What `applied` does to packets to `prefix`, which is one of its destinations.
pub(crate) fn steering(
    applied: &Applied<'_>,
    prefix: &IpNet,
    is_held: impl Fn(&IpAddr) -> bool,
) -> Steering {
    let egress_ips = match applied.resolved {
        ResolvedPolicy::Keep => return Steering::Keep,
        ResolvedPolicy::Snat(egress_ips) => egress_ips,
    };
    match (applied.policy.enforcement, egress_ips.of_family(prefix)) {
        // Who holds the address is no matter of this node's: while nobody does, nobody answers, and nothing leaves.
        (Enforcement::Strict, Some(address)) => Steering::Snat(address),
        (Enforcement::Strict, None) => Steering::Drop,
        (Enforcement::BestEffort, Some(address)) if is_held(&address) => Steering::Snat(address),
        (Enforcement::BestEffort, _) => Steering::Forward,
    }
}

/// The destinations that a policy really has: truncated, without those that no packet can have.
pub(crate) fn prefixes(policy: &Policy) -> impl Iterator<Item = IpNet> + '_ {
    policy
        .destinations
        .iter()
        .filter(|prefix| !is_v4_mapped(prefix))
        .map(IpNet::trunc)
}

impl SetTable {
    /// The table of these policies. `is_held` says whether a node holds an egress IP.
    pub(crate) fn new(
        policies: &[Applied<'_>],
        internal_ranges: &BTreeSet<IpNet>,
        is_held: impl Fn(&IpAddr) -> bool,
    ) -> Self {
        let mut by_precedence = policies.to_vec();
        by_precedence.sort_by_key(precedence);
        let mut overlaps = Overlaps::new();
        let mut winners: BTreeMap<IpNet, (&PolicyName, Steering)> = BTreeMap::new();
        for applied in &by_precedence {
            for prefix in prefixes(applied.policy) {
                let steering = steering(applied, &prefix, &is_held);
                match winners.get(&prefix) {
                    Some((winner, won)) if *won != steering => {
                        let lost = overlaps.entry(applied.name.clone()).or_default();
                        let lost = lost.entry((*winner).clone()).or_default();
                        lost.insert(prefix);
                    }
                    Some(_) => {}
                    None => {
                        winners.insert(prefix, (applied.name, steering));
                    }
                }
            }
        }
        for inside in nested_in(winners.keys(), internal_ranges) {
            winners.remove(&inside);
            for lost in overlaps.values_mut().flat_map(BTreeMap::values_mut) {
                lost.remove(&inside);
            }
        }
        for by_winner in overlaps.values_mut() {
            by_winner.retain(|_, lost| !lost.is_empty());
        }
        overlaps.retain(|_, by_winner| !by_winner.is_empty());
        let holes = nested_in(internal_ranges, winners.keys());
        let mut entries: BTreeMap<IpNet, Entry> = winners
            .into_iter()
            .map(|(prefix, (name, steering))| (prefix, Entry::new(steering, name)))
            .collect();
        let inside = Entry::of_nobody(Steering::Forward);
        entries.extend(holes.into_iter().map(|range| (range, inside.clone())));
        Self { entries, overlaps }
    }

    /// The table for policy sets that do not fit: nothing leaves the cluster.
    pub(crate) fn closed(internal_ranges: &BTreeSet<IpNet>) -> BTreeMap<IpNet, Entry> {
        let everything = ["0.0.0.0/0", "::/0"].map(|text| text.parse().expect("a CIDR"));
        let holes = internal_ranges
            .iter()
            .map(|range| (*range, Steering::Forward));
        holes
            .chain(everything.map(|range| (range, Steering::Drop)))
            .map(|(range, steering)| (range, Entry::of_nobody(steering)))
            .collect()
    }
}

/// Adds the overlaps of one set to those of others.
pub(crate) fn merge_overlaps(into: &mut Overlaps, from: &Overlaps) {
    for (loser, by_winner) in from {
        let known = into.entry(loser.clone()).or_default();
        for (winner, prefixes) in by_winner {
            known.entry(winner.clone()).or_default().extend(prefixes);
        }
    }
}

/// One finding per policy that loses, however many destinations there are (E16).
pub(crate) fn overlap_findings(overlaps: &Overlaps) -> impl Iterator<Item = Finding> + '_ {
    overlaps.iter().map(|(loser, by_winner)| {
        let winners: Vec<String> = by_winner
            .iter()
            .map(|(winner, lost)| {
                format!("EgressNATPolicy {winner} wins {}", some_of(lost.iter()))
            })
            .collect();
        Finding::new(
            Subject::Policy(loser.clone()),
            Reason::Overlap,
            format!(
                "another policy has the same destination and comes first: {}; for the pods that both select this policy has \
                 no effect there. Narrow the destinations or the sources of one of the two",
                some_of(winners.iter())
            ),
        )
    })
}
