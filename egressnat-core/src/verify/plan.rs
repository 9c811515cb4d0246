//! Checks the plan of one node.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::vec::Vec;
use core::net::IpAddr;
use ipnet::IpNet;

use super::world::{Means, World, covers, is_unicast, selects, world};
use super::{Violation, violation};
use crate::assignment::Assignment;
use crate::model::{
    Enforcement, MasqueradeAction, NodeName, Pod, PodKey, PodPhase, Policy, PolicyName, Protocol,
    Snapshot,
};
use crate::plan::{Decision, MAX_DESTINATIONS, NodePlan};

/// Checks the plan of one node against the snapshot and the assignment it was made from.
///
/// Every pod of the node, and addresses of the node's range that no pod has, are tried with every destination at an edge of a
/// range that anything names.
pub fn verify_node_plan(
    snapshot: &Snapshot,
    assignment: &Assignment,
    node: &NodeName,
    plan: &NodePlan,
) -> Vec<Violation> {
    let world = world(snapshot);
    let expected = Expected {
        snapshot,
        assignment,
        world: &world,
    };
    let mut violations = Vec::new();
    let mut refuse = |rule, message| violations.push(violation(rule, message));

    let destinations = edges(snapshot);
    let protocols: BTreeSet<Option<Protocol>> = snapshot
        .masquerade
        .rules
        .keys()
        .map(|rule| rule.protocol)
        .chain([None])
        .collect();
    let mut known = BTreeSet::new();
    for (key, pod) in &snapshot.pods {
        let sends = &pod.node == node && pod.phase == PodPhase::Active && !pod.host_network;
        if !sends || !snapshot.namespaces.contains_key(&key.namespace) {
            continue;
        }
        for source in pod.ips.iter().filter(|ip| is_unicast(**ip)) {
            if !known.insert(*source) {
                continue;
            }
            if !plan.pods.contains_key(source) {
                refuse(
                    "E43",
                    format!("{key} ({source}) is a pod of {node} and not in its plan"),
                );
            }
            let is_full = expected.needs_more_than_fits(plan, key, pod);
            for destination in &destinations {
                let mut is_decided_right = true;
                for protocol in &protocols {
                    let want = expected.of_pod(key, pod, *source, *destination, *protocol);
                    let got = plan.decide(*source, *destination, *protocol);
                    if got != want && !(is_full && got == Decision::Drop) {
                        is_decided_right = false;
                        let rule = if is_internal(snapshot, *destination) {
                            "E12"
                        } else {
                            "E11"
                        };
                        refuse(
                            rule,
                            format!(
                                "{key} ({source}) to {destination}: the plan says {got}, the policies {want}"
                            ),
                        );
                    }
                }
                let want = expected.decider(key, pod, *destination);
                let got = plan.decider(*source, *destination);
                if is_decided_right && got != want && !(is_full && got.is_none()) {
                    let message = format!(
                        "{key} ({source}) to {destination}: the plan says that {got:?} decides, the policies {want:?}"
                    );
                    refuse("E16", message);
                }
            }
        }
    }
    for source in plan.pods.keys().filter(|source| !known.contains(*source)) {
        let message = format!(
            "{source} has a policy set and is no address of a pod of {node} that may be selected"
        );
        refuse("E15", message);
    }
    let own_ranges: Vec<IpNet> = snapshot
        .nodes
        .get(node)
        .into_iter()
        .flat_map(|node| node.pod_ranges.clone())
        .collect();
    let edges_of_ranges = own_ranges
        .iter()
        .flat_map(|range| [range.network(), range.broadcast()]);
    let not_placed = snapshot.pods.iter().filter(|(key, pod)| {
        &pod.node == node && !snapshot.namespaces.contains_key(&key.namespace)
    });
    let of_not_placed = not_placed.flat_map(|(_, pod)| pod.ips.iter().copied());
    let of_range = |ip: &IpAddr| own_ranges.iter().any(|range| covers(range, *ip));
    for source in edges_of_ranges.chain(of_not_placed.filter(of_range)) {
        for destination in destinations.iter().filter(|_| !known.contains(&source)) {
            let want = expected.of_nobody(source, *destination);
            let got = plan.decide(source, *destination, None);
            if got != want {
                let message = format!(
                    "{source}, which no pod has, to {destination}: the plan says {got}, the policies {want}"
                );
                refuse("E43", message);
            }
        }
    }

    if plan.destinations.len() > MAX_DESTINATIONS {
        refuse(
            "E43",
            format!("{} destinations do not fit", plan.destinations.len()),
        );
    }
    let held: BTreeSet<IpAddr> = assignment
        .nodes
        .iter()
        .filter(|(address, holder)| *holder == node && world.owners.contains_key(*address))
        .map(|(address, _)| *address)
        .collect();
    if plan.floating_ips != held {
        let message = format!(
            "{node} takes {:?} and is assigned {held:?}",
            plan.floating_ips
        );
        refuse("E33", message);
    }
    let others = snapshot.nodes.iter().filter(|(other, _)| *other != node);
    let peers: BTreeSet<IpAddr> = others
        .flat_map(|(_, other)| other.addresses.clone())
        .collect();
    if plan.peers != peers {
        let message = format!(
            "{node} accepts steered packets from {:?}, the other nodes are {peers:?}",
            plan.peers
        );
        refuse("E47", message);
    }
    violations.sort();
    violations
}

struct Expected<'a> {
    snapshot: &'a Snapshot,
    assignment: &'a Assignment,
    world: &'a World<'a>,
}

impl Expected<'_> {
    fn selecting(
        &self,
        key: &PodKey,
        pod: &Pod,
    ) -> impl Iterator<Item = &(&PolicyName, &Policy, Means)> {
        let namespace = &self.snapshot.namespaces[&key.namespace];
        let all = self.world.policies.iter();
        all.filter(move |(_, policy, _)| selects(policy, namespace, &pod.labels))
    }

    fn of_pod(
        &self,
        key: &PodKey,
        pod: &Pod,
        source: IpAddr,
        destination: IpAddr,
        protocol: Option<Protocol>,
    ) -> Decision {
        if is_internal(self.snapshot, destination) {
            return Decision::Keep;
        }
        match self.by_policy(key, pod, destination) {
            Some((_, decision)) => decision,
            None => self.masquerade(source, destination, protocol),
        }
    }

    /// The policy that decides about a packet, if one does.
    fn decider(&self, key: &PodKey, pod: &Pod, destination: IpAddr) -> Option<&PolicyName> {
        if is_internal(self.snapshot, destination) {
            return None;
        }
        self.by_policy(key, pod, destination).map(|(name, _)| name)
    }

    /// What the policies say about a packet out of the cluster, and which of them says it. None where they leave it to the
    /// masquerade rules.
    fn by_policy(
        &self,
        key: &PodKey,
        pod: &Pod,
        destination: IpAddr,
    ) -> Option<(&PolicyName, Decision)> {
        let mut candidates = Vec::new();
        for (name, policy, means) in self.selecting(key, pod) {
            for prefix in &policy.destinations {
                if covers(prefix, destination) && !is_mapped(prefix) {
                    let rank = (
                        128 - prefix.prefix_len(),
                        *means == Means::Keep,
                        policy.created.0,
                        name.as_str(),
                    );
                    candidates.push((rank, *name, *means, policy.enforcement));
                }
            }
        }
        candidates.sort_by_key(|(rank, ..)| *rank);
        let (_, name, means, enforcement) = candidates.into_iter().next()?;
        let Means::Snat(v4, v6) = means else {
            return Some((name, Decision::Keep));
        };
        let ip = if destination.is_ipv4() { v4 } else { v6 };
        let is_held = |ip: &IpAddr| self.assignment.nodes.contains_key(ip);
        match (ip, enforcement) {
            (Some(ip), Enforcement::Strict) => Some((name, Decision::Snat(ip))),
            (None, Enforcement::Strict) => Some((name, Decision::Drop)),
            (Some(ip), Enforcement::BestEffort) if is_held(&ip) => Some((name, Decision::Snat(ip))),
            (_, Enforcement::BestEffort) => None,
        }
    }

    /// A packet with an address of the node's range that no pod is known to have.
    fn of_nobody(&self, source: IpAddr, destination: IpAddr) -> Decision {
        if is_internal(self.snapshot, destination) {
            return Decision::Keep;
        }
        let is_guarded = self.world.policies.iter().any(|(_, policy, means)| {
            policy.enforcement == Enforcement::Strict
                && *means != Means::Keep
                && policy
                    .destinations
                    .iter()
                    .any(|prefix| covers(prefix, destination))
        });
        if is_guarded {
            Decision::Drop
        } else {
            self.masquerade(source, destination, None)
        }
    }

    fn masquerade(
        &self,
        source: IpAddr,
        destination: IpAddr,
        protocol: Option<Protocol>,
    ) -> Decision {
        let mut best = None;
        for (rule, action) in &self.snapshot.masquerade.rules {
            let is_of_source = rule.source.is_none_or(|range| covers(&range, source));
            let is_of_protocol = rule.protocol.is_none() || rule.protocol == protocol;
            let rank = (
                rule.destination.prefix_len(),
                rule.source.map(|range| range.prefix_len()),
                rule.protocol,
            );
            if covers(&rule.destination, destination)
                && is_of_source
                && is_of_protocol
                && best.is_none_or(|(held, _)| held < rank)
            {
                best = Some((rank, *action));
            }
        }
        match best {
            Some((_, MasqueradeAction::Keep)) => Decision::Keep,
            _ => Decision::Masquerade,
        }
    }

    /// Whether the table of this pod's policies may be missing, as it would make the plan too large.
    fn needs_more_than_fits(&self, plan: &NodePlan, key: &PodKey, pod: &Pod) -> bool {
        let own: usize = self
            .selecting(key, pod)
            .map(|(_, policy, _)| policy.destinations.len())
            .sum();
        let holes = self.snapshot.internal_ranges().len();
        plan.destinations.len() + own + 2 * holes + 2 > MAX_DESTINATIONS
    }
}

fn is_mapped(range: &IpNet) -> bool {
    let mapped: IpNet = "::ffff:0:0/96".parse().expect("a CIDR");
    range.prefix_len() >= 96 && covers(&mapped, range.addr())
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
    ranges.extend(
        snapshot
            .masquerade
            .rules
            .keys()
            .map(|rule| rule.destination),
    );
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
