//! Everything one node must have.
//!
//! The phases are files: `selection` (which policies select a pod), `table` (what a policy set does to which destination),
//! `assembly` (from pods and tables to one plan within its limits).

pub(crate) mod assembly;
pub(crate) mod selection;
pub(crate) mod table;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;
use ipnet::IpNet;

use crate::assignment::Assignment;
use crate::cidr::Cover;
use crate::finding::Finding;
use crate::gateway::effective_gateways;
use crate::model::{
    Action, Enforcement, MasqueradeAction, MasqueradeRules, NodeName, Policy, PolicyName, Protocol,
    Snapshot,
};
use crate::policy::{ResolvedPolicy, resolve_policies};

/// The most destinations of all policy sets of a node together: the size of the packet path's table.
///
/// Pods whose policy sets do not fit keep what is promised to them: if one of their policies is strict, their traffic out of
/// the cluster is dropped, and a finding says so.
pub const MAX_DESTINATIONS: usize = 262_144;

/// The id of a policy set on its node: the ordered set of policies that select a pod.
///
/// Derived from the names of the policies, so an edit of a policy, or another policy set, leaves it as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PolicySetId(pub u32);

impl PolicySetId {
    /// No policy: the pod is known, and nothing selects it.
    pub const EMPTY: Self = Self(0);
    /// Stands for every policy set that does not fit in the plan and must not leak.
    pub const CLOSED: Self = Self(u32::MAX);
}

impl fmt::Display for PolicySetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// What the table of a policy set says about a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Steering {
    /// No policy decides: leave the packet to the node's routes and the masquerade rules.
    Forward,
    /// Keep the pod IP, without masquerading (E5).
    Keep,
    /// Steer it to the holder of this egress IP, to leave with that address.
    Snat(IpAddr),
    /// Let it not leave: a strict policy selects it and has no egress IP for it (E43).
    Drop,
}

impl fmt::Display for Steering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Steering::Forward => f.write_str("forward"),
            Steering::Keep => f.write_str("keep"),
            Steering::Snat(address) => write!(f, "snat to {address}"),
            Steering::Drop => f.write_str("drop"),
        }
    }
}

/// What happens to the source address of a packet of a pod, with everything taken together that may translate it.
///
/// The order in which they decide: an egress policy, a `NoSNAT` policy, the non-masquerade list, masquerading. Among policies
/// the longest destination prefix comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Decision {
    /// The packet leaves with this egress IP, by way of the node that holds it.
    Snat(IpAddr),
    /// It leaves with the pod's address.
    Keep,
    /// It leaves with the address of the pod's node.
    Masquerade,
    /// It does not leave.
    Drop,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Decision::Snat(address) => write!(f, "snat to {address}"),
            Decision::Keep => f.write_str("keep"),
            Decision::Masquerade => f.write_str("masquerade"),
            Decision::Drop => f.write_str("drop"),
        }
    }
}

/// The desired state of one node: a complete value, without references to anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct NodePlan {
    /// Addresses of the node's pods with their policy set: [`PolicySetId::EMPTY`] for a pod that no policy selects. A pod whose
    /// namespace is not known yet is not among them, as nobody can tell yet what selects it.
    pub pods: BTreeMap<IpAddr, PolicySetId>,
    /// For each policy set the destination prefixes that matter; the longest match decides, no match is
    /// [`Steering::Forward`].
    pub destinations: BTreeMap<(PolicySetId, IpNet), Steering>,
    /// Which policy each of the destinations is what it is by, for those that are not [`Steering::Forward`]: what is counted for
    /// it counts there. The destinations of [`PolicySetId::CLOSED`] are no policy's.
    pub deciders: BTreeMap<(PolicySetId, IpNet), PolicyName>,
    /// The floating IPs this node holds: it has the address, and translates to it.
    pub floating_ips: BTreeSet<IpAddr>,
    /// The other nodes' addresses: steered packets are accepted from these only (E47).
    pub peers: BTreeSet<IpAddr>,
    /// The ranges of this node's pods: their traffic is masqueraded unless something else is decided.
    pub pod_ranges: BTreeSet<IpNet>,
    /// Ranges inside the cluster: traffic to them is never egress and never masqueraded (E12).
    pub internal_ranges: BTreeSet<IpNet>,
    /// Destinations of strict policies: packets to them from an address of `pod_ranges` that is not in `pods` are dropped,
    /// unless they go to one of `internal_ranges` (E43).
    pub guard_ranges: BTreeSet<IpNet>,
    /// What happens to packets of pods that no policy decides.
    pub masquerade: MasqueradeRules,
}

impl NodePlan {
    /// What happens to a packet from `source` to `destination`, by the tables of this plan alone.
    ///
    /// This is the lookup that the packet path does, in the same steps: the pod's policy set, then the longest prefix in the
    /// set's table, then the guard, then the masquerade rules. For many lookups build a [`DecisionTable`](crate::DecisionTable).
    pub fn decide(
        &self,
        source: IpAddr,
        destination: IpAddr,
        protocol: Option<Protocol>,
    ) -> Decision {
        let contains =
            |ranges: &BTreeSet<IpNet>, ip: &IpAddr| ranges.iter().any(|range| range.contains(ip));
        let set = self.pods.get(&source);
        match set.map_or(Steering::Forward, |set| self.steer(*set, destination)) {
            Steering::Snat(address) => return Decision::Snat(address),
            Steering::Keep => return Decision::Keep,
            Steering::Drop => return Decision::Drop,
            Steering::Forward => {}
        }
        let is_of_pod = set.is_some() || contains(&self.pod_ranges, &source);
        if !is_of_pod || contains(&self.internal_ranges, &destination) {
            return Decision::Keep;
        }
        if set.is_none() && contains(&self.guard_ranges, &destination) {
            return Decision::Drop;
        }
        match self.masquerade.find(source, destination, protocol) {
            Some((_, MasqueradeAction::Keep)) => Decision::Keep,
            Some((_, MasqueradeAction::Masquerade)) | None => Decision::Masquerade,
        }
    }

    /// The policy that decides about a packet from `source` to `destination`, if one does.
    pub fn decider(&self, source: IpAddr, destination: IpAddr) -> Option<&PolicyName> {
        let (key, _) = self.find(*self.pods.get(&source)?, destination)?;
        self.deciders.get(key)
    }

    fn steer(&self, set: PolicySetId, destination: IpAddr) -> Steering {
        let found = self.find(set, destination);
        found.map_or(Steering::Forward, |(_, steering)| *steering)
    }

    /// The longest match in the table of one policy set.
    fn find(
        &self,
        set: PolicySetId,
        destination: IpAddr,
    ) -> Option<(&(PolicySetId, IpNet), &Steering)> {
        let width = if destination.is_ipv4() { 32 } else { 128 };
        (0..=width)
            .rev()
            .filter_map(|length| IpNet::new(destination, length).ok())
            .find_map(|prefix| self.destinations.get_key_value(&(set, prefix.trunc())))
    }

    /// The egress IPs that this node steers to, whoever holds them.
    pub fn egress_ips(&self) -> BTreeSet<IpAddr> {
        let address = |steering: &Steering| match steering {
            Steering::Snat(address) => Some(*address),
            Steering::Forward | Steering::Keep | Steering::Drop => None,
        };
        self.destinations.values().filter_map(address).collect()
    }
}

/// A node's plan and what was noticed on the way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Planned {
    /// The plan.
    pub plan: NodePlan,
    /// How many pods of the node each applied policy selects.
    pub selected: BTreeMap<PolicyName, usize>,
    /// The policies of each policy set of the plan, those without room left out.
    pub policies: BTreeMap<PolicySetId, BTreeSet<PolicyName>>,
    /// Policies of pods whose policy sets do not fit in the plan: those pods keep what is promised to them and get no more.
    pub refused: BTreeSet<PolicyName>,
    /// Findings about this node's pods and the policies that compete for them. Findings about the objects themselves are
    /// the controller's: [`assign`](crate::assign) and [`resolve_policies`] have them.
    pub findings: Vec<Finding>,
}

/// Plans `node`: what its kernel must have, given who holds which floating IP.
///
/// # Guarantees
///
/// Total and deterministic: every snapshot has a plan, of at most [`MAX_DESTINATIONS`] destinations. No destination inside the
/// cluster is ever egress (E12): such prefixes are left out, and ranges of the cluster inside a wider destination are cut out
/// of it.
pub fn plan_node(snapshot: &Snapshot, assignment: &Assignment, node: &NodeName) -> Planned {
    let gateways = effective_gateways(snapshot);
    let resolved = resolve_policies(snapshot, &gateways).policies;
    let internal_ranges = snapshot.internal_ranges();
    let applied: Vec<Applied<'_>> = resolved
        .iter()
        .map(|(name, resolved)| Applied {
            name,
            policy: &snapshot.policies[name],
            resolved: *resolved,
        })
        .collect();

    let selected = selection::select(snapshot, node, &applied);
    let tables = selected
        .addresses_by_set
        .keys()
        .filter(|set| !set.is_empty())
        .map(|set| {
            let policies: Vec<Applied<'_>> = set.iter().map(|index| applied[*index]).collect();
            let is_held = |address: &IpAddr| assignment.nodes.contains_key(address);
            (
                set.clone(),
                table::SetTable::new(&policies, &internal_ranges, is_held),
            )
        })
        .collect();
    let mut planned = assembly::assemble(node, &applied, selected, tables, &internal_ranges);

    let plan = &mut planned.plan;
    plan.floating_ips = assignment
        .held_by(node)
        .filter(|address| gateways.owners.contains_key(address))
        .collect();
    for (name, other) in &snapshot.nodes {
        if name != node {
            plan.peers.extend(&other.addresses);
        } else {
            plan.pod_ranges = other.pod_ranges.iter().map(IpNet::trunc).collect();
        }
    }
    plan.guard_ranges = guard_ranges(&applied);
    plan.internal_ranges = internal_ranges;
    plan.masquerade = snapshot.masquerade.clone();
    planned
}

/// A policy that is applied, and to what it resolved.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Applied<'a> {
    pub(crate) name: &'a PolicyName,
    pub(crate) policy: &'a Policy,
    pub(crate) resolved: ResolvedPolicy,
}

impl Applied<'_> {
    /// Whether it promises that its traffic never leaves with another address.
    pub(crate) fn is_strict(&self) -> bool {
        is_strict(self.policy)
    }
}

/// Whether a policy promises that its traffic never leaves with another address.
pub(crate) fn is_strict(policy: &Policy) -> bool {
    policy.enforcement == Enforcement::Strict && matches!(policy.action, Action::Snat(_))
}

/// E43: what undecided packets must not reach, none of them inside another.
fn guard_ranges(applied: &[Applied<'_>]) -> BTreeSet<IpNet> {
    let strict = applied.iter().filter(|applied| applied.is_strict());
    let all: BTreeSet<IpNet> = strict
        .flat_map(|applied| &applied.policy.destinations)
        .map(IpNet::trunc)
        .collect();
    Cover::new(&all).into_ranges()
}

#[cfg(test)]
mod tests;
