//! Everything one node must have.

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;
use ipnet::IpNet;

use crate::assignment::Assignment;
use crate::finding::{Finding, Reason, Subject};
use crate::gateway::{effective_gateways, fnv1a32};
use crate::model::{Action, NodeName, Pod, PodKey, PodPhase, Policy, PolicyName, Snapshot};
use crate::policy::{ResolvedPolicy, resolve_policies};

/// The id of a policy set on its node: the ordered set of policies that select a pod.
///
/// Derived from the names of the policies, so an edit of a policy, or another policy set, leaves it as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PolicySetId(pub u32);

impl fmt::Display for PolicySetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// What happens to a packet of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Decision {
    /// Leave it to the node's routes and the masquerade rules.
    Forward,
    /// Keep the pod IP, without masquerading (E5).
    Keep,
    /// Steer it to the holder of this egress IP, to leave with that address.
    Snat(IpAddr),
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Decision::Forward => f.write_str("forward"),
            Decision::Keep => f.write_str("keep"),
            Decision::Snat(address) => write!(f, "snat to {address}"),
        }
    }
}

/// The desired state of one node: a complete value, without references to anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct NodePlan {
    /// Addresses of local pods that some policy selects, with their policy set.
    pub pods: BTreeMap<IpAddr, PolicySetId>,
    /// For each policy set the destination prefixes that matter; the longest match decides, no match is
    /// [`Decision::Forward`].
    pub destinations: BTreeMap<(PolicySetId, IpNet), Decision>,
    /// The floating IPs this node holds: it has the address, and translates to it.
    pub floating_ips: BTreeSet<IpAddr>,
    /// The other nodes' addresses: steered packets are accepted from these only (E47).
    pub peers: BTreeSet<IpAddr>,
    /// The ranges of this node's pods: their traffic is masqueraded unless something else is decided.
    pub pod_ranges: BTreeSet<IpNet>,
    /// Ranges inside the cluster: traffic to them is never egress and never masqueraded (E12).
    pub internal_ranges: BTreeSet<IpNet>,
}

impl NodePlan {
    /// What happens to a packet from `source` to `destination`, by the tables of this plan alone.
    ///
    /// This is the lookup that the packet path does, in the same two steps.
    pub fn decide(&self, source: IpAddr, destination: IpAddr) -> Decision {
        let Some(set) = self.pods.get(&source) else {
            return Decision::Forward;
        };
        self.destinations
            .iter()
            .filter(|((id, prefix), _)| id == set && prefix.contains(&destination))
            .max_by_key(|((_, prefix), _)| prefix.prefix_len())
            .map_or(Decision::Forward, |(_, decision)| *decision)
    }

    /// The egress IPs that this node steers to, whoever holds them.
    pub fn egress_ips(&self) -> BTreeSet<IpAddr> {
        self.destinations
            .values()
            .filter_map(|decision| match decision {
                Decision::Snat(address) => Some(*address),
                Decision::Forward | Decision::Keep => None,
            })
            .collect()
    }
}

/// A node's plan and what was noticed on the way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Planned {
    /// The plan.
    pub plan: NodePlan,
    /// How many pods of the node each applied policy selects.
    pub selected: BTreeMap<PolicyName, usize>,
    /// Findings about this node's pods and the policies that compete for them. Findings about the objects themselves are
    /// the controller's: [`assign`](crate::assign) and [`resolve_policies`] have them.
    pub findings: Vec<Finding>,
}

/// Plans `node`: what its kernel must have, given who holds which floating IP.
///
/// # Guarantees
///
/// Total and deterministic: every snapshot has a plan. No destination inside the cluster is ever egress (E12): such
/// prefixes are left out, and ranges of the cluster inside a wider destination are cut out of it.
pub fn plan_node(snapshot: &Snapshot, assignment: &Assignment, node: &NodeName) -> Planned {
    let gateways = effective_gateways(snapshot);
    let resolved = resolve_policies(snapshot, &gateways).policies;
    let applied: BTreeMap<&PolicyName, (&Policy, ResolvedPolicy)> = resolved
        .iter()
        .map(|(name, action)| (name, (&snapshot.policies[name], *action)))
        .collect();
    let internal_ranges = snapshot.internal_ranges();

    let mut planned = Planned::default();
    let mut pods_by_set: BTreeMap<Vec<&PolicyName>, Vec<IpAddr>> = BTreeMap::new();
    let mut claimed = BTreeSet::new();
    for (key, pod) in &snapshot.pods {
        if &pod.node != node || pod.phase == PodPhase::Finished {
            continue;
        }
        let set: Vec<&PolicyName> = applied
            .iter()
            .filter(|(_, (policy, _))| selects(policy, snapshot, key, pod))
            .map(|(name, _)| *name)
            .collect();
        if pod.host_network {
            if !set.is_empty() {
                planned.findings.push(host_network_finding(key, &set));
            }
            continue;
        }
        // While two pods tell the same address, it counts for the first by name.
        let addresses = pod.ips.iter().filter(|address| claimed.insert(**address));
        let addresses: Vec<IpAddr> = addresses.copied().collect();
        if set.is_empty() {
            continue;
        }
        for name in &set {
            *planned.selected.entry((*name).clone()).or_default() += 1;
        }
        pods_by_set.entry(set).or_default().extend(addresses);
    }

    let mut overlaps = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for (set, addresses) in pods_by_set {
        let id = set_id(&set, &mut taken);
        let policies: Vec<_> = set.iter().map(|name| (*name, applied[name])).collect();
        for (prefix, decision) in destinations(&policies, &internal_ranges, &mut overlaps) {
            planned.plan.destinations.insert((id, prefix), decision);
        }
        planned
            .plan
            .pods
            .extend(addresses.into_iter().map(|address| (address, id)));
    }
    planned.findings.extend(overlaps);
    planned.findings.sort();

    planned.plan.floating_ips = assignment
        .held_by(node)
        .filter(|address| gateways.owners.contains_key(address))
        .collect();
    for (name, other) in &snapshot.nodes {
        if name != node {
            planned.plan.peers.extend(&other.addresses);
        } else {
            planned.plan.pod_ranges = other.pod_ranges.iter().map(IpNet::trunc).collect();
        }
    }
    planned.plan.internal_ranges = internal_ranges;
    planned
}

/// E10: any rule, and within a rule both selectors. `NoSNAT` without sources selects every pod (E5).
fn selects(policy: &Policy, snapshot: &Snapshot, key: &PodKey, pod: &Pod) -> bool {
    if policy.action == Action::NoSnat && policy.sources.is_empty() {
        return true;
    }
    // A namespace that is not known (yet) selects nothing, not even by the empty selector: its labels decide.
    let Some(namespace) = snapshot.namespaces.get(&key.namespace) else {
        return false;
    };
    policy
        .sources
        .iter()
        .any(|source| source.namespaces.matches(namespace) && source.pods.matches(&pod.labels))
}

fn host_network_finding(key: &PodKey, set: &[&PolicyName]) -> Finding {
    let policies = set
        .iter()
        .map(|name| name.as_str())
        .collect::<Vec<_>>()
        .join(", ");
    Finding::new(
        Subject::Pod(key.clone()),
        Reason::HostNetworkPod,
        format!(
            "the pod matches {policies} and has hostNetwork: true: its traffic cannot be told from its node's and leaves \
             with the node's address; run it without hostNetwork"
        ),
    )
}

/// The hash of the names; the next free id on a collision within the node.
fn set_id(set: &[&PolicyName], taken: &mut BTreeSet<u32>) -> PolicySetId {
    let bytes = set.iter().flat_map(|name| name.as_str().bytes().chain([0]));
    let mut id = fnv1a32(bytes);
    // 0 is "no policy set" in the packet path.
    while id == 0 || !taken.insert(id) {
        id = id.wrapping_add(1);
    }
    PolicySetId(id)
}

/// The destination table of one policy set.
fn destinations(
    policies: &[(&PolicyName, (&Policy, ResolvedPolicy))],
    internal_ranges: &BTreeSet<IpNet>,
    overlaps: &mut BTreeSet<Finding>,
) -> BTreeMap<IpNet, Decision> {
    // E16: equal prefixes go to the oldest policy, then by name. Longer prefixes win by themselves.
    let mut by_age = policies.to_vec();
    by_age.sort_by_key(|(name, (policy, _))| (policy.created, *name));
    let mut winners: BTreeMap<IpNet, (&PolicyName, Decision)> = BTreeMap::new();
    for (name, (policy, action)) in by_age {
        let decision = match action {
            ResolvedPolicy::Snat(address) => Decision::Snat(address),
            ResolvedPolicy::Keep => Decision::Keep,
        };
        for prefix in policy.destinations.iter().map(IpNet::trunc) {
            if internal_ranges.iter().any(|range| range.contains(&prefix)) {
                continue;
            }
            match winners.get(&prefix) {
                Some((winner, won)) if *won != decision => {
                    overlaps.insert(Finding::new(
                        Subject::Policy(name.clone()),
                        Reason::Overlap,
                        format!(
                            "destination {prefix} also belongs to EgressNATPolicy {winner}, which is older or first by \
                             name and wins: narrow one of the two"
                        ),
                    ));
                }
                Some(_) => {}
                None => {
                    winners.insert(prefix, (name, decision));
                }
            }
        }
    }
    let holes: Vec<IpNet> = internal_ranges
        .iter()
        .filter(|range| winners.keys().any(|prefix| prefix.contains(*range)))
        .map(ToOwned::to_owned)
        .collect();
    let mut table: BTreeMap<IpNet, Decision> = winners
        .into_iter()
        .map(|(prefix, (_, decision))| (prefix, decision))
        .collect();
    table.extend(holes.into_iter().map(|range| (range, Decision::Forward)));
    table
}

#[cfg(test)]
mod tests;
