//! From one plan to the next, by the fewest changes, in an order that leaks nothing.

mod between;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::fmt;
use core::net::IpAddr;
use ipnet::IpNet;

use crate::model::{MasqueradeAction, MasqueradeMatch};
use crate::plan::{NodePlan, PolicySetId, Steering};

pub use between::{Between, between};

/// One change of a node's state. The order of the variants is the order in which changes are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// Accept steered packets from this node.
    AddPeer(IpAddr),
    /// Never masquerade, and never treat as egress, traffic to this range.
    AddInternalRange(IpNet),
    /// Drop undecided packets to this range.
    AddGuardRange(IpNet),
    /// Set what happens to packets that no policy decides.
    SetMasquerade(MasqueradeMatch, MasqueradeAction),
    /// Masquerade traffic from this range of pods.
    AddPodRange(IpNet),
    /// Translate to this floating IP.
    AddSnat(IpAddr),
    /// Take and announce this floating IP.
    AddAddress(IpAddr),
    /// Set the decision for a destination of a policy set, and by which policy it is: that one is in the desired plan.
    SetDestination(PolicySetId, IpNet, Steering),
    /// Set the policy set of a pod address.
    SetPod(IpAddr, PolicySetId),
    /// A pod address is selected no more.
    RemovePod(IpAddr),
    /// A destination of a policy set is decided no more.
    RemoveDestination(PolicySetId, IpNet),
    /// Give this floating IP away.
    RemoveAddress(IpAddr),
    /// Translate to this floating IP no more.
    RemoveSnat(IpAddr),
    /// Stop masquerading traffic from this range.
    RemovePodRange(IpNet),
    /// A masquerade rule is gone.
    RemoveMasquerade(MasqueradeMatch),
    /// Undecided packets to this range may go.
    RemoveGuardRange(IpNet),
    /// This range is inside the cluster no more.
    RemoveInternalRange(IpNet),
    /// Accept no steered packets from this node.
    RemovePeer(IpAddr),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::AddPeer(ip) => write!(f, "+ peer {ip}"),
            Change::AddInternalRange(range) => write!(f, "+ internal range {range}"),
            Change::AddGuardRange(range) => write!(f, "+ guard range {range}"),
            Change::SetMasquerade(rule, action) => write!(f, "+ {action} {rule}"),
            Change::AddPodRange(range) => write!(f, "+ pod range {range}"),
            Change::AddSnat(ip) => write!(f, "+ snat to {ip}"),
            Change::AddAddress(ip) => write!(f, "+ address {ip}"),
            Change::SetDestination(set, prefix, decision) => {
                write!(f, "+ destination {prefix} of set {set}: {decision}")
            }
            Change::SetPod(ip, set) => write!(f, "+ pod {ip}: set {set}"),
            Change::RemovePod(ip) => write!(f, "- pod {ip}"),
            Change::RemoveDestination(set, prefix) => {
                write!(f, "- destination {prefix} of set {set}")
            }
            Change::RemoveAddress(ip) => write!(f, "- address {ip}"),
            Change::RemoveSnat(ip) => write!(f, "- snat to {ip}"),
            Change::RemovePodRange(range) => write!(f, "- pod range {range}"),
            Change::RemoveMasquerade(rule) => write!(f, "- masquerade rule {rule}"),
            Change::RemoveGuardRange(range) => write!(f, "- guard range {range}"),
            Change::RemoveInternalRange(range) => write!(f, "- internal range {range}"),
            Change::RemovePeer(ip) => write!(f, "- peer {ip}"),
        }
    }
}

/// The changes that lead from `observed` to `desired`, in the order in which to make them.
///
/// # Guarantees
///
/// * Minimal: equal plans have no changes, and nothing is removed and added again.
/// * SNAT is live before its address is announced; the address goes before SNAT goes.
/// * A policy set has its destinations before a pod uses it; no pod uses it any more when they go.
/// * While a table changes, each destination is decided as before or as after, whatever else lies around it (E43).
pub fn diff(observed: &NodePlan, desired: &NodePlan) -> Vec<Change> {
    let differing = observed
        .floating_ips
        .symmetric_difference(&desired.floating_ips);
    diff_with(observed, desired, differing.copied())
}

/// The same, for who knows already which floating IPs only one of the two has: of ten thousand mostly one has changed, and to find it again
/// is most of what a comparison costs. `differing` may have others, but has to have all of those, each once.
pub fn diff_with(
    observed: &NodePlan,
    desired: &NodePlan,
    differing: impl IntoIterator<Item = IpAddr>,
) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut missing =
        |have: &BTreeSet<IpNet>, want: &BTreeSet<IpNet>, change: fn(IpNet) -> Change| {
            changes.extend(want.difference(have).map(|range| change(*range)));
        };
    let (o, d) = (observed, desired);
    missing(
        &o.internal_ranges,
        &d.internal_ranges,
        Change::AddInternalRange,
    );
    missing(&o.guard_ranges, &d.guard_ranges, Change::AddGuardRange);
    missing(&o.pod_ranges, &d.pod_ranges, Change::AddPodRange);
    missing(&d.pod_ranges, &o.pod_ranges, Change::RemovePodRange);
    missing(
        &d.internal_ranges,
        &o.internal_ranges,
        Change::RemoveInternalRange,
    );
    missing(&d.guard_ranges, &o.guard_ranges, Change::RemoveGuardRange);

    changes.extend(d.peers.difference(&o.peers).map(|ip| Change::AddPeer(*ip)));
    changes.extend(
        o.peers
            .difference(&d.peers)
            .map(|ip| Change::RemovePeer(*ip)),
    );
    for ip in differing {
        match (o.floating_ips.contains(&ip), d.floating_ips.contains(&ip)) {
            (false, true) => changes.extend([Change::AddSnat(ip), Change::AddAddress(ip)]),
            (true, false) => changes.extend([Change::RemoveAddress(ip), Change::RemoveSnat(ip)]),
            _ => {}
        }
    }
    entries(
        &mut changes,
        (&o.masquerade.rules, &d.masquerade.rules),
        |rule, action| Change::SetMasquerade(*rule, *action),
        |rule| Change::RemoveMasquerade(*rule),
    );
    destination_changes(&mut changes, o, d);
    entries(
        &mut changes,
        (&o.pods, &d.pods),
        |ip, set| Change::SetPod(*ip, *set),
        |ip| Change::RemovePod(*ip),
    );
    sort(&mut changes);
    changes
}

/// The changes of destinations, each of which is told anew also when only its decider is another.
pub(crate) fn destination_changes(
    changes: &mut Vec<Change>,
    observed: &NodePlan,
    desired: &NodePlan,
) {
    let (o, d) = (observed, desired);
    entries(
        changes,
        (&o.destinations, &d.destinations),
        |(set, prefix), steering| Change::SetDestination(*set, *prefix, *steering),
        |(set, prefix)| Change::RemoveDestination(*set, *prefix),
    );
    // Nearly always they are the same, which is found out in one pass.
    if o.deciders == d.deciders {
        return;
    }
    for (key, steering) in &d.destinations {
        let is_same = o.destinations.get(key) == Some(steering);
        if is_same && o.deciders.get(key) != d.deciders.get(key) {
            changes.push(Change::SetDestination(key.0, key.1, *steering));
        }
    }
}

/// Brings changes into the order in which to make them.
pub(crate) fn sort(changes: &mut [Change]) {
    changes.sort_unstable_by(order);
}

/// By kind, and where the longest match decides the narrow entries first when they are set and last when they are removed: in
/// between every packet then finds its old entry or its new one, and never a wider entry that is new too.
fn order(a: &Change, b: &Change) -> Ordering {
    match (a, b) {
        // A range comes after all that it lies in.
        (Change::SetDestination(set, prefix, _), Change::SetDestination(other, than, _)) => {
            set.cmp(other).then_with(|| than.cmp(prefix))
        }
        (Change::SetMasquerade(rule, _), Change::SetMasquerade(than, _)) => than.cmp(rule),
        _ => a.cmp(b),
    }
}

/// The changes from one map to another.
pub(crate) fn entries<K: Ord, V: PartialEq>(
    changes: &mut Vec<Change>,
    (observed, desired): (&BTreeMap<K, V>, &BTreeMap<K, V>),
    set: impl Fn(&K, &V) -> Change,
    remove: impl Fn(&K) -> Change,
) {
    for (key, value) in desired {
        if observed.get(key) != Some(value) {
            changes.push(set(key, value));
        }
    }
    let gone = observed.keys().filter(|key| !desired.contains_key(key));
    changes.extend(gone.map(remove));
}

#[cfg(test)]
mod tests;
