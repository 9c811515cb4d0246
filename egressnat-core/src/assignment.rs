//! Which node holds which floating IP.
//!
//! # Guarantees
//!
//! * The order of input does not matter; there is no state but [`Snapshot::previous`].
//! * Each floating IP is on at most one node, and that node is eligible: up, and with a subnet that contains the IP.
//! * An IP whose node is still eligible does not move. So losing a node moves exactly its IPs, a node that returns takes
//!   nothing, and new nodes or IPs move nothing (E32).
//! * No IP is unassigned while a node is eligible for it.
//! * Each placement picks the best node by E30: worker before control plane, then a node without floating IPs, then the
//!   one with the fewest, then by name.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;
use core::net::IpAddr;
use ipnet::IpNet;

use crate::finding::{Finding, Reason, Subject};
use crate::gateway::{EffectiveGateways, effective_gateways};
use crate::model::{Health, NodeName, Role, Snapshot};

/// Floating IP → node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Assignment {
    /// The node that holds each assigned floating IP.
    pub nodes: BTreeMap<IpAddr, NodeName>,
}

impl Assignment {
    /// The floating IPs that `node` holds, in order.
    pub fn held_by<'a>(&'a self, node: &'a NodeName) -> impl Iterator<Item = IpAddr> + 'a {
        self.nodes
            .iter()
            .filter(move |(_, holder)| *holder == node)
            .map(|(address, _)| *address)
    }
}

/// Why a floating IP is on no node (E34).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unassigned {
    /// No node has a subnet that contains it.
    NoSubnet,
    /// Nodes have such a subnet, and none of them is up.
    NoNodeUp,
}

/// The outcome of an assignment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assigned {
    /// Who holds what.
    pub assignment: Assignment,
    /// Which floating IPs nobody holds, and why.
    pub unassigned: BTreeMap<IpAddr, Unassigned>,
    /// The gateways the assignment is for.
    pub gateways: EffectiveGateways,
    /// Findings of the gateways, and one for each unassigned IP.
    pub findings: Vec<Finding>,
}

/// Assigns the floating IPs of all effective gateways to nodes (E30–E34).
pub fn assign(snapshot: &Snapshot) -> Assigned {
    let gateways = effective_gateways(snapshot);
    let mut nodes: BTreeMap<IpAddr, NodeName> = BTreeMap::new();
    let mut load: BTreeMap<&NodeName, usize> = BTreeMap::new();

    // What is well placed stays, before anything new is placed.
    let mut open = Vec::new();
    for address in gateways.owners.keys() {
        let holder = snapshot.previous.nodes.get(address);
        match holder.and_then(|holder| snapshot.nodes.get_key_value(holder)) {
            Some((name, node)) if node.health == Health::Up && node.is_on_link(*address) => {
                nodes.insert(*address, name.clone());
                *load.entry(name).or_default() += 1;
            }
            _ => open.push(*address),
        }
    }

    let mut unassigned = BTreeMap::new();
    if !open.is_empty() {
        let mut candidates = Candidates::new(snapshot, &load);
        for address in open {
            match candidates.take_best(address) {
                Some(name) => {
                    nodes.insert(address, name.clone());
                }
                None => {
                    let is_known = snapshot.nodes.values().any(|node| node.is_on_link(address));
                    let reason = if is_known {
                        Unassigned::NoNodeUp
                    } else {
                        Unassigned::NoSubnet
                    };
                    unassigned.insert(address, reason);
                }
            }
        }
    }

    let mut findings = gateways.findings.clone();
    findings.extend(unassigned.iter().map(|(address, reason)| {
        let owner = gateways.owners[address].clone();
        let message = unassigned_message(*address, *reason);
        Finding::new(Subject::Gateway(owner), Reason::Unassigned, message)
    }));
    findings.sort();
    Assigned {
        assignment: Assignment { nodes },
        unassigned,
        gateways,
        findings,
    }
}

/// The order of E30 among the nodes of one subnet that are up. The first is the best:
/// 1. the IP lies in a subnet of the node, and the node is up: by being in the list at all;
/// 2. workers before control-plane nodes;
/// 3. nodes that hold no floating IP before those that do: follows from 4, and stands here because the seed says it;
/// 4. the fewest floating IPs;
/// 5. name, so that the order is total.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank<'a> {
    role: Role,
    is_holding: bool,
    holds: usize,
    name: &'a NodeName,
}

/// The eligible nodes by subnet, each list in the order of E30, so that a placement costs the logarithm of their number.
struct Candidates<'a> {
    snapshot: &'a Snapshot,
    by_subnet: BTreeMap<IpNet, BTreeSet<Rank<'a>>>,
}

impl<'a> Candidates<'a> {
    fn new(snapshot: &'a Snapshot, load: &BTreeMap<&NodeName, usize>) -> Self {
        let mut by_subnet: BTreeMap<IpNet, BTreeSet<Rank<'a>>> = BTreeMap::new();
        for (name, node) in &snapshot.nodes {
            if node.health != Health::Up {
                continue;
            }
            let holds = load.get(name).copied().unwrap_or(0);
            let rank = Rank {
                role: node.role,
                is_holding: holds > 0,
                holds,
                name,
            };
            for subnet in &node.subnets {
                by_subnet.entry(subnet.trunc()).or_default().insert(rank);
            }
        }
        Self {
            snapshot,
            by_subnet,
        }
    }

    /// The best node for `address`, counted as holding it from now on.
    fn take_best(&mut self, address: IpAddr) -> Option<&'a NodeName> {
        let best = self
            .by_subnet
            .iter()
            .filter(|(subnet, _)| subnet.contains(&address))
            .filter_map(|(_, ranks)| ranks.first())
            .min()
            .copied()?;
        let holds = best.holds + 1;
        let next = Rank {
            is_holding: true,
            holds,
            ..best
        };
        for subnet in &self.snapshot.nodes[best.name].subnets {
            if let Some(ranks) = self.by_subnet.get_mut(&subnet.trunc()) {
                ranks.remove(&best);
                ranks.insert(next);
            }
        }
        Some(best.name)
    }
}

fn unassigned_message(address: IpAddr, reason: Unassigned) -> alloc::string::String {
    match reason {
        Unassigned::NoSubnet => format!(
            "floating IP {address} lies in no node's subnet: use an address of the nodes' network, or correct the nodes' \
             addresses"
        ),
        Unassigned::NoNodeUp => format!(
            "every node with a subnet for floating IP {address} is down: start the agent on one of them"
        ),
    }
}

#[cfg(test)]
mod tests;
