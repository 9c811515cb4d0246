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

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec::Vec;
use core::net::IpAddr;

use crate::finding::{Finding, Reason, Subject};
use crate::gateway::{EffectiveGateways, effective_gateways};
use crate::model::{Health, Node, NodeName, Snapshot};

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
    for address in gateways.owners.keys() {
        let Some(holder) = snapshot.previous.nodes.get(address) else {
            continue;
        };
        if let Some((name, node)) = snapshot.nodes.get_key_value(holder)
            && is_eligible(node, *address)
        {
            nodes.insert(*address, name.clone());
            *load.entry(name).or_default() += 1;
        }
    }

    let mut unassigned = BTreeMap::new();
    for address in gateways.owners.keys() {
        if nodes.contains_key(address) {
            continue;
        }
        match best_node(snapshot, &load, *address) {
            Ok(name) => {
                nodes.insert(*address, name.clone());
                *load.entry(name).or_default() += 1;
            }
            Err(reason) => {
                unassigned.insert(*address, reason);
            }
        }
    }

    let mut findings = gateways.findings.clone();
    findings.extend(unassigned.iter().map(|(address, reason)| {
        let owner = gateways.owners[address].clone();
        Finding::new(
            Subject::Gateway(owner),
            Reason::Unassigned,
            unassigned_message(*address, *reason),
        )
    }));
    findings.sort();
    Assigned {
        assignment: Assignment { nodes },
        unassigned,
        gateways,
        findings,
    }
}

fn is_eligible(node: &Node, address: IpAddr) -> bool {
    node.health == Health::Up && node.is_on_link(address)
}

/// E30, in this order:
/// 1. the IP lies in a subnet of the node (and the node is up);
/// 2. workers before control-plane nodes;
/// 3. nodes that hold no floating IP before those that do;
/// 4. the fewest floating IPs;
/// 5. name, so that the order is total.
fn best_node<'a>(
    snapshot: &'a Snapshot,
    load: &BTreeMap<&NodeName, usize>,
    address: IpAddr,
) -> Result<&'a NodeName, Unassigned> {
    let best = snapshot
        .nodes
        .iter()
        .filter(|(_, node)| is_eligible(node, address)) // 1
        .min_by_key(|(name, node)| {
            let holds = load.get(name).copied().unwrap_or(0);
            (
                node.role, // 2
                holds > 0, // 3
                holds,     // 4
                *name,     // 5
            )
        });
    match best {
        Some((name, _)) => Ok(name),
        None if snapshot.nodes.values().any(|node| node.is_on_link(address)) => {
            Err(Unassigned::NoNodeUp)
        }
        None => Err(Unassigned::NoSubnet),
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
