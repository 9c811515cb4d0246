//! Changes made one by one, as a node makes them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use egressnat_core::model::NodeName;
use egressnat_core::{Change, Decision, NodePlan, diff};
use ipnet::IpNet;

/// Makes the changes from one plan to the next, and looks at every packet after each of them.
///
/// # Panics
///
/// They do not lead there, or on the way a pod's packet has a fate that neither plan gives it (E43).
pub(crate) fn replay(node: &NodeName, before: &NodePlan, after: &NodePlan) -> Vec<Change> {
    let changes = diff(before, after);
    let packets = packets(before, after);
    let mut plan = before.clone();
    for change in &changes {
        make(&mut plan, change, after);
        for (source, destination) in &packets {
            let now = plan.decide(*source, *destination, None);
            let fates = fates(before, after, *source, *destination);
            assert!(
                now == Decision::Drop || fates.contains(&now),
                "node {node}: after `{change}` a packet from {source} to {destination} is decided as {now}, of {fates:?}"
            );
        }
        for address in &plan.floating_ips {
            let is_new_or_old =
                before.floating_ips.contains(address) || after.floating_ips.contains(address);
            assert!(is_new_or_old, "node {node}: {address} is in neither plan");
        }
    }
    assert!(
        &plan == after,
        "node {node}: the changes do not lead to the plan"
    );
    changes
}

/// What may happen to a packet between two plans: what either says; what the new tables say of the old policy set; and for a pod
/// that is new, what the new plan says of addresses that no pod has.
fn fates(
    before: &NodePlan,
    after: &NodePlan,
    source: IpAddr,
    destination: IpAddr,
) -> [Decision; 3] {
    let old = before.decide(source, destination, None);
    let new = after.decide(source, destination, None);
    let mut between = after.clone();
    match before.pods.get(&source) {
        Some(set) if after.destinations.keys().any(|(known, _)| known == set) => {
            between.pods.insert(source, *set);
        }
        Some(_) => return [old, new, old],
        None => {
            between.pods.remove(&source);
        }
    }
    [old, new, between.decide(source, destination, None)]
}

/// Every pod, and an address that no pod has, with the first and last address of every range that is named.
fn packets(before: &NodePlan, after: &NodePlan) -> Vec<(IpAddr, IpAddr)> {
    let plans = [before, after];
    let sources: BTreeSet<IpAddr> = plans
        .iter()
        .flat_map(|plan| {
            let of_nobody = plan.pod_ranges.iter().map(IpNet::broadcast);
            plan.pods.keys().copied().chain(of_nobody)
        })
        .collect();
    let ranges: BTreeSet<IpNet> = plans
        .iter()
        .flat_map(|plan| {
            let destinations = plan.destinations.keys().map(|(_, prefix)| *prefix);
            let rules = plan.masquerade.rules.keys().map(|rule| rule.destination);
            let ranges = plan.internal_ranges.iter().chain(&plan.guard_ranges);
            destinations.chain(rules).chain(ranges.copied())
        })
        .collect();
    let destinations: BTreeSet<IpAddr> = ranges
        .iter()
        .flat_map(|range| [range.network(), range.broadcast()])
        .collect();
    let is_packet = |(source, destination): &(IpAddr, IpAddr)| {
        source != destination && source.is_ipv4() == destination.is_ipv4()
    };
    sources
        .iter()
        .flat_map(|source| destinations.iter().map(|to| (*source, *to)))
        .filter(is_packet)
        .collect()
}

/// Makes one of the changes that lead to the plan `after`.
fn make(plan: &mut NodePlan, change: &Change, after: &NodePlan) {
    match *change {
        Change::AddPeer(ip) => assert!(plan.peers.insert(ip)),
        Change::AddInternalRange(range) => assert!(plan.internal_ranges.insert(range)),
        Change::AddGuardRange(range) => assert!(plan.guard_ranges.insert(range)),
        Change::SetMasquerade(rule, action) => {
            plan.masquerade.rules.insert(rule, action);
        }
        Change::AddPodRange(range) => assert!(plan.pod_ranges.insert(range)),
        // A plan has the two halves of a floating IP as one: it counts with the address, which comes later and goes earlier.
        Change::AddSnat(_) | Change::RemoveSnat(_) => {}
        Change::AddAddress(ip) => assert!(plan.floating_ips.insert(ip)),
        Change::SetDestination(set, prefix, steering) => {
            let key = (set, prefix);
            plan.destinations.insert(key, steering);
            plan.deciders.remove(&key);
            let decider = after.deciders.get(&key).cloned();
            plan.deciders.extend(decider.map(|decider| (key, decider)));
        }
        Change::SetPod(ip, set) => {
            plan.pods.insert(ip, set);
        }
        Change::RemovePod(ip) => assert!(plan.pods.remove(&ip).is_some()),
        Change::RemoveDestination(set, prefix) => {
            assert!(plan.destinations.remove(&(set, prefix)).is_some());
            plan.deciders.remove(&(set, prefix));
        }
        Change::RemoveAddress(ip) => assert!(plan.floating_ips.remove(&ip)),
        Change::RemovePodRange(range) => assert!(plan.pod_ranges.remove(&range)),
        Change::RemoveMasquerade(rule) => assert!(plan.masquerade.rules.remove(&rule).is_some()),
        Change::RemoveGuardRange(range) => assert!(plan.guard_ranges.remove(&range)),
        Change::RemoveInternalRange(range) => assert!(plan.internal_ranges.remove(&range)),
        Change::RemovePeer(ip) => assert!(plan.peers.remove(&ip)),
    }
}
