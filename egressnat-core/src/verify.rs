//! An independent check of plans: the oracle of tests, scenarios and fuzzing.
//!
//! Shares no matching and no assignment code with the planner. It looks at every pod, every policy and a set of
//! destinations that can make a difference, one by one, as slowly and plainly as can be.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;
use ipnet::IpNet;

use crate::assignment::Assignment;
use crate::gateway::effective_gateways;
use crate::model::{Health, NodeName, PodPhase, Snapshot};
use crate::plan::{Decision, NodePlan};
use crate::policy::{ResolvedPolicy, resolve_policies};
use crate::selector::{Operator, Selector};

/// Something a plan must not be, with the requirement it breaks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// The requirement, `E12`.
    pub rule: &'static str,
    /// What was found.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.message)
    }
}

fn violation(rule: &'static str, message: String) -> Violation {
    Violation { rule, message }
}

/// Checks who holds what: every floating IP on an eligible node if there is one, and no other address anywhere.
pub fn verify_assignment(snapshot: &Snapshot, assignment: &Assignment) -> Vec<Violation> {
    let mut violations = Vec::new();
    let floating_ips = effective_gateways(snapshot).owners;
    for (address, holder) in &assignment.nodes {
        if !floating_ips.contains_key(address) {
            let message = format!("{address} is on {holder} and no gateway has it");
            violations.push(violation("E23", message));
        }
        match snapshot.nodes.get(holder) {
            None => violations.push(violation(
                "E31",
                format!("{address} is on {holder}, which does not exist"),
            )),
            Some(node) => {
                if node.health == Health::Down {
                    let message = format!("{address} is on {holder}, which is down");
                    violations.push(violation("E31", message));
                }
                if !node.subnets.iter().any(|subnet| covers(subnet, *address)) {
                    let message = format!("{address} is on {holder}, which has no subnet for it");
                    violations.push(violation("E30", message));
                }
            }
        }
        if snapshot
            .nodes
            .values()
            .any(|node| node.addresses.contains(address))
        {
            let message = format!("{address} is the address of a node");
            violations.push(violation("E33", message));
        }
    }
    for address in floating_ips
        .keys()
        .filter(|a| !assignment.nodes.contains_key(a))
    {
        let able = snapshot.nodes.iter().find(|(_, node)| {
            node.health == Health::Up && node.subnets.iter().any(|subnet| covers(subnet, *address))
        });
        if let Some((name, _)) = able {
            let message = format!("{address} is on no node, and {name} could hold it");
            violations.push(violation("E34", message));
        }
    }
    for (address, before) in &snapshot.previous.nodes {
        let is_well_placed = floating_ips.contains_key(address)
            && snapshot.nodes.get(before).is_some_and(|node| {
                node.health == Health::Up
                    && node.subnets.iter().any(|subnet| covers(subnet, *address))
            });
        if is_well_placed && assignment.nodes.get(address) != Some(before) {
            let message = format!("{address} was well placed on {before} and moved");
            violations.push(violation("E32", message));
        }
    }
    violations.sort();
    violations
}

/// Checks the plan of one node against the snapshot and the assignment it was made from.
///
/// Every pod of the node is tried with every destination at an edge of a range that any policy or the cluster names.
pub fn verify_node_plan(
    snapshot: &Snapshot,
    assignment: &Assignment,
    node: &NodeName,
    plan: &NodePlan,
) -> Vec<Violation> {
    let mut violations = Vec::new();
    let resolved = resolve_policies(snapshot, &effective_gateways(snapshot)).policies;
    let destinations = edges(snapshot);
    let mut known = BTreeSet::new();
    for (key, pod) in &snapshot.pods {
        let sends = &pod.node == node && pod.phase == PodPhase::Active && !pod.host_network;
        if !sends {
            continue;
        }
        for source in pod.ips.iter().filter(|source| known.insert(**source)) {
            for destination in &destinations {
                let mut best: Option<(u8, Ranked<'_>)> = None;
                for (name, action) in &resolved {
                    let policy = &snapshot.policies[name];
                    let all_pods = policy.sources.is_empty();
                    let selected = all_pods
                        || policy.sources.iter().any(|rule| {
                            snapshot
                                .namespaces
                                .get(&key.namespace)
                                .is_some_and(|labels| {
                                    satisfies(&rule.namespaces, labels)
                                        && satisfies(&rule.pods, &pod.labels)
                                })
                        });
                    for prefix in policy.destinations.iter().filter(|_| selected) {
                        let candidate = Ranked {
                            created: policy.created.0,
                            name: name.as_str(),
                            action: *action,
                        };
                        let wins = match &best {
                            None => true,
                            Some((len, held)) => {
                                prefix.prefix_len() > *len
                                    || (prefix.prefix_len() == *len
                                        && (candidate.created, candidate.name)
                                            < (held.created, held.name))
                            }
                        };
                        if covers(prefix, *destination) && wins {
                            best = Some((prefix.prefix_len(), candidate));
                        }
                    }
                }
                let internal = is_internal(snapshot, *destination);
                let want = match best {
                    Some(_) if internal => Decision::Forward,
                    None => Decision::Forward,
                    Some((
                        _,
                        Ranked {
                            action: ResolvedPolicy::Keep,
                            ..
                        },
                    )) => Decision::Keep,
                    Some((
                        _,
                        Ranked {
                            action: ResolvedPolicy::Snat(address),
                            ..
                        },
                    )) => Decision::Snat(address),
                };
                let got = plan.decide(*source, *destination);
                if got != want {
                    let rule = if internal { "E12" } else { "E11" };
                    let message = format!(
                        "{key} ({source}) to {destination}: the plan says {got}, the policies {want}"
                    );
                    violations.push(violation(rule, message));
                }
            }
        }
    }
    for source in plan.pods.keys().filter(|source| !known.contains(*source)) {
        let message = format!(
            "{source} has a policy set and is no address of a pod of {node} that may be selected"
        );
        violations.push(violation("E15", message));
    }
    let held: BTreeSet<IpAddr> = assignment
        .nodes
        .iter()
        .filter(|(_, holder)| *holder == node)
        .map(|(address, _)| *address)
        .collect();
    for address in plan.floating_ips.difference(&held) {
        let message = format!("{node} takes {address}, which is not assigned to it");
        violations.push(violation("E33", message));
    }
    for (other, members) in snapshot.nodes.iter().filter(|(other, _)| *other != node) {
        for address in members.addresses.difference(&plan.peers) {
            let message = format!("{node} accepts nothing from {other} ({address})");
            violations.push(violation("E47", message));
        }
    }
    for peer in &plan.peers {
        if !snapshot
            .nodes
            .iter()
            .any(|(other, members)| other != node && members.addresses.contains(peer))
        {
            let message =
                format!("{node} accepts steered packets from {peer}, which is no other node");
            violations.push(violation("E47", message));
        }
    }
    violations.sort();
    violations
}

struct Ranked<'a> {
    created: i64,
    name: &'a str,
    action: ResolvedPolicy,
}

/// The first and last address of every range named anywhere, and their neighbors outside.
fn edges(snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    let mut ranges: BTreeSet<IpNet> = snapshot.cluster_ranges.clone();
    for node in snapshot.nodes.values() {
        ranges.extend(&node.pod_ranges);
        ranges.extend(node.addresses.iter().map(|address| IpNet::from(*address)));
    }
    for policy in snapshot.policies.values() {
        ranges.extend(&policy.destinations);
    }
    let mut edges = BTreeSet::new();
    for range in ranges {
        let (first, last) = (range.network(), range.broadcast());
        edges.extend([first, last]);
        edges.extend(step(first, -1));
        edges.extend(step(last, 1));
    }
    edges
}

fn step(address: IpAddr, by: i8) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => u32::from(v4)
            .checked_add_signed(by.into())
            .map(|n| IpAddr::V4(n.into())),
        IpAddr::V6(v6) => u128::from(v6)
            .checked_add_signed(by.into())
            .map(|n| IpAddr::V6(n.into())),
    }
}

fn is_internal(snapshot: &Snapshot, destination: IpAddr) -> bool {
    snapshot
        .cluster_ranges
        .iter()
        .any(|range| covers(range, destination))
        || snapshot.nodes.values().any(|node| {
            node.addresses.contains(&destination)
                || node
                    .pod_ranges
                    .iter()
                    .any(|range| covers(range, destination))
        })
}

/// Whether the leading bits of `address` are those of `range`.
fn covers(range: &IpNet, address: IpAddr) -> bool {
    let shift = |width: u32| width - u32::from(range.prefix_len());
    match (range.addr(), address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            (u32::from(a) ^ u32::from(b))
                .checked_shr(shift(32))
                .unwrap_or(0)
                == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            (u128::from(a) ^ u128::from(b))
                .checked_shr(shift(128))
                .unwrap_or(0)
                == 0
        }
        _ => false,
    }
}

fn satisfies(selector: &Selector, labels: &crate::model::Labels) -> bool {
    for (key, value) in &selector.match_labels {
        if labels.get(key).map(String::as_str) != Some(value.as_str()) {
            return false;
        }
    }
    for requirement in &selector.match_expressions {
        let is_met = match (&requirement.operator, labels.get(&requirement.key)) {
            (Operator::Exists | Operator::NotIn(_), None) => {
                matches!(requirement.operator, Operator::NotIn(_))
            }
            (Operator::Exists, Some(_)) | (Operator::DoesNotExist, None) => true,
            (Operator::DoesNotExist, Some(_)) | (Operator::In(_), None) => false,
            (Operator::In(values), Some(value)) => values.iter().any(|v| v == value),
            (Operator::NotIn(values), Some(value)) => values.iter().all(|v| v != value),
        };
        if !is_met {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests;
