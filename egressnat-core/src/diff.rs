//! From one plan to the next, by the fewest changes, in an order that leaks nothing.

use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;
use ipnet::IpNet;

use crate::plan::{Decision, NodePlan, PolicySetId};

/// One change of a node's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// Accept steered packets from this node.
    AddPeer(IpAddr),
    /// Never masquerade, and never treat as egress, traffic to this range.
    AddInternalRange(IpNet),
    /// Masquerade traffic from this range of pods.
    AddPodRange(IpNet),
    /// Translate to this floating IP.
    AddSnat(IpAddr),
    /// Take and announce this floating IP.
    AddAddress(IpAddr),
    /// Set the decision for a destination of a policy set.
    SetDestination(PolicySetId, IpNet, Decision),
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
pub fn diff(observed: &NodePlan, desired: &NodePlan) -> Vec<Change> {
    let mut changes = Vec::new();
    changes.extend(
        desired
            .peers
            .difference(&observed.peers)
            .map(|ip| Change::AddPeer(*ip)),
    );
    changes.extend(
        desired
            .internal_ranges
            .difference(&observed.internal_ranges)
            .map(|range| Change::AddInternalRange(*range)),
    );
    changes.extend(
        desired
            .pod_ranges
            .difference(&observed.pod_ranges)
            .map(|range| Change::AddPodRange(*range)),
    );
    let gained: Vec<IpAddr> = desired
        .floating_ips
        .difference(&observed.floating_ips)
        .copied()
        .collect();
    changes.extend(gained.iter().map(|ip| Change::AddSnat(*ip)));
    changes.extend(gained.iter().map(|ip| Change::AddAddress(*ip)));
    for ((set, prefix), decision) in &desired.destinations {
        if observed.destinations.get(&(*set, *prefix)) != Some(decision) {
            changes.push(Change::SetDestination(*set, *prefix, *decision));
        }
    }
    for (ip, set) in &desired.pods {
        if observed.pods.get(ip) != Some(set) {
            changes.push(Change::SetPod(*ip, *set));
        }
    }

    for ip in observed.pods.keys() {
        if !desired.pods.contains_key(ip) {
            changes.push(Change::RemovePod(*ip));
        }
    }
    for (set, prefix) in observed.destinations.keys() {
        if !desired.destinations.contains_key(&(*set, *prefix)) {
            changes.push(Change::RemoveDestination(*set, *prefix));
        }
    }
    let lost: Vec<IpAddr> = observed
        .floating_ips
        .difference(&desired.floating_ips)
        .copied()
        .collect();
    changes.extend(lost.iter().map(|ip| Change::RemoveAddress(*ip)));
    changes.extend(lost.iter().map(|ip| Change::RemoveSnat(*ip)));
    changes.extend(
        observed
            .pod_ranges
            .difference(&desired.pod_ranges)
            .map(|range| Change::RemovePodRange(*range)),
    );
    changes.extend(
        observed
            .internal_ranges
            .difference(&desired.internal_ranges)
            .map(|range| Change::RemoveInternalRange(*range)),
    );
    changes.extend(
        observed
            .peers
            .difference(&desired.peers)
            .map(|ip| Change::RemovePeer(*ip)),
    );
    changes
}

#[cfg(test)]
mod tests;
