//! Which node holds which floating IP.
//!
//! A node is *eligible* for a floating IP when it is up and the IP lies in one of its subnets. It is *open* when it is
//! eligible, not being drained, and holds fewer floating IPs than its capacity. A floating IP is *well placed* when its node is
//! eligible, not being drained, and not over its capacity; of a node over its capacity, the IPs with the highest addresses are
//! the ones too many.
//!
//! # Guarantees
//!
//! 1. The order of input does not matter; there is no state but [`Snapshot::previous`].
//! 2. Each floating IP is on at most one node, and that node is eligible for it.
//! 3. An IP that is well placed does not move (E32). So losing a node moves exactly its IPs, a node that returns takes nothing,
//!    and new nodes or IPs move nothing.
//! 4. An IP that is not well placed moves to an open node if there is one, so a node that is drained gives away what it has
//!    (E35). If there is none, the IP stays where it is as long as that node is eligible: nobody's traffic stops for a drain or
//!    for a capacity. A finding says so.
//! 5. No IP is unassigned while an eligible node has room. One that is being drained is the last resort: better there than
//!    nowhere, and it moves on as soon as another node is open.
//! 6. Each placement picks the best open node by E30: worker before control plane, then a node without floating IPs, then
//!    the one with the fewest, then by name. So a fresh placement over nodes of one role and the same subnets, without
//!    capacities, is balanced within one.
//! 7. Assigning again, with the outcome as the previous assignment, changes nothing.

mod place;

pub(crate) use place::{Placement, Places};

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

use crate::finding::{Finding, Reason, Subject};
use crate::gateway::{EffectiveGateways, effective_gateways};
use crate::model::{NodeName, Snapshot};

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

/// A floating IP that changes its node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Move {
    /// Which.
    pub address: IpAddr,
    /// Where it was.
    pub from: Option<NodeName>,
    /// Where it is then.
    pub to: Option<NodeName>,
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |node: &Option<NodeName>| -> String {
            node.as_ref().map_or("nowhere", NodeName::as_str).into()
        };
        write!(
            f,
            "{}: {} -> {}",
            self.address,
            name(&self.from),
            name(&self.to)
        )
    }
}

/// Why a floating IP is on no node (E34).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unassigned {
    /// No node has a subnet that contains it.
    NoSubnet,
    /// Nodes have such a subnet, and none of them is up.
    NoNodeUp,
    /// Nodes are eligible, and they hold as many floating IPs as they may.
    NoRoom,
}

/// Why a floating IP is still where it should not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stuck {
    /// Its node is being drained.
    Draining,
    /// Its node holds more than its capacity.
    OverCapacity,
}

/// The outcome of an assignment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assigned {
    /// Who holds what.
    pub assignment: Assignment,
    /// Which floating IPs nobody holds, and why.
    pub unassigned: BTreeMap<IpAddr, Unassigned>,
    /// Which floating IPs stay on a node that should not have them, because nobody else can take them.
    pub stuck: BTreeMap<IpAddr, Stuck>,
    /// The gateways the assignment is for.
    pub gateways: EffectiveGateways,
    /// Findings of the gateways, and one for each IP that is unassigned or stuck.
    pub findings: Vec<Finding>,
}

/// Assigns the floating IPs of all effective gateways to nodes (E30–E35).
pub fn assign(snapshot: &Snapshot) -> Assigned {
    let gateways = effective_gateways(snapshot);
    let mut places = Places::default();
    for (name, node) in &snapshot.nodes {
        places.set_node(name, node);
    }
    for address in gateways.owners.keys() {
        places.add(*address, snapshot.previous.nodes.get(address));
    }
    places.settle();

    assigned_from(&places, gateways)
}

/// The outcome of a placement that has settled.
pub(crate) fn assigned_from(places: &Places, gateways: EffectiveGateways) -> Assigned {
    let mut assigned = Assigned {
        assignment: places.assignment(),
        ..Assigned::default()
    };
    assigned.findings.clone_from(&gateways.findings);
    for (address, owner) in &gateways.owners {
        let (reason, message) = match (places.placement(address), places.holder(address)) {
            (Placement::Stuck(stuck), Some(holder)) => {
                assigned.stuck.insert(*address, stuck);
                (Reason::CannotMove, stuck_message(*address, holder, stuck))
            }
            (Placement::Well | Placement::Stuck(_), _) => continue,
            (Placement::Nowhere, _) => {
                let why = places.why_unassigned(*address);
                assigned.unassigned.insert(*address, why);
                (Reason::Unassigned, unassigned_message(*address, why))
            }
        };
        let subject = Subject::Gateway(owner.clone());
        assigned
            .findings
            .push(Finding::new(subject, reason, message));
    }
    assigned.findings.sort();
    assigned.gateways = gateways;
    assigned
}

fn unassigned_message(address: IpAddr, reason: Unassigned) -> String {
    match reason {
        Unassigned::NoSubnet => format!(
            "floating IP {address} lies in no node's subnet: use an address of the nodes' network, or correct the nodes' \
             addresses"
        ),
        Unassigned::NoNodeUp => format!(
            "every node with a subnet for floating IP {address} is down: start the agent on one of them"
        ),
        Unassigned::NoRoom => format!(
            "every node with a subnet for floating IP {address} holds as many floating IPs as it may: raise a node's capacity, \
             or add a node"
        ),
    }
}

fn stuck_message(address: IpAddr, holder: &NodeName, stuck: Stuck) -> String {
    match stuck {
        Stuck::Draining => format!(
            "floating IP {address} is on node {holder}, which is cordoned or being drained: no other node with a subnet for \
             it is up and has room. Add one before {holder} goes, or its traffic stops"
        ),
        Stuck::OverCapacity => format!(
            "floating IP {address} stays on node {holder}, which holds more than its capacity: no other node with a subnet \
             for it is up and has room. Raise a capacity, or add a node"
        ),
    }
}

#[cfg(test)]
mod tests;
