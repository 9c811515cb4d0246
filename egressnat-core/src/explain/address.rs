use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

use crate::assignment::{Stuck, Unassigned, assign};
use crate::finding::{Finding, Subject};
use crate::model::{GatewayKey, Health, NodeName, Role, Snapshot};

/// Why a floating IP is on its node, or on none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressExplanation {
    /// The address.
    pub address: IpAddr,
    /// The gateway group it belongs to.
    pub gateway: Option<GatewayKey>,
    /// Why gateway groups that list it do not have it.
    pub refusals: Vec<Finding>,
    /// What each node is to it.
    pub nodes: BTreeMap<NodeName, NodeVerdict>,
    /// What follows.
    pub conclusion: Conclusion,
}

/// What a node is to a floating IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeVerdict {
    /// None of its subnets contains the address (E30).
    NoSubnet,
    /// It is down (E31).
    Down,
    /// It is cordoned or being drained (E35).
    Draining,
    /// It holds as many floating IPs as it may.
    Full {
        /// So many.
        holds: usize,
    },
    /// It could take it.
    Open {
        /// Workers come before control-plane nodes.
        role: Role,
        /// So many other floating IPs it has; the fewest come first.
        holds: usize,
    },
}

/// Where a floating IP is and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conclusion {
    /// No effective gateway has it.
    NoGateway,
    /// It stays where it was: nothing that is well placed moves (E32).
    Stays(NodeName),
    /// It is placed anew, on the best open node.
    Placed(NodeName),
    /// It should leave its node, and nobody else can take it.
    Stuck(NodeName, Stuck),
    /// It is on no node (E34).
    Unassigned(Unassigned),
}

/// Explains where a floating IP is, and how every node compares.
pub fn explain_address(snapshot: &Snapshot, address: IpAddr) -> AddressExplanation {
    let assigned = assign(snapshot);
    let lists_it = |key: &GatewayKey| {
        let gateway = snapshot
            .gateways
            .get(key)
            .or_else(|| assigned.gateways.gateways.get(key));
        gateway.is_some_and(|gateway| gateway.floating_ips.contains(&address))
    };
    let gateway = assigned.gateways.owners.get(&address).cloned();
    let refusals = assigned.gateways.findings.iter().filter(|finding| {
        matches!(&finding.subject, Subject::Gateway(key) if lists_it(key))
            && finding.message.contains(&alloc::format!("{address}"))
    });
    let refusals = refusals.cloned().collect();
    let holder = assigned.assignment.nodes.get(&address);
    let nodes = snapshot.nodes.iter().map(|(name, node)| {
        let others = assigned
            .assignment
            .held_by(name)
            .filter(|other| *other != address);
        let holds = others.count();
        let verdict = if !node.is_on_link(address) {
            NodeVerdict::NoSubnet
        } else if node.health == Health::Down {
            NodeVerdict::Down
        } else if node.draining {
            NodeVerdict::Draining
        } else if node.capacity.is_some_and(|most| holds >= most) {
            NodeVerdict::Full { holds }
        } else {
            NodeVerdict::Open {
                role: node.role,
                holds,
            }
        };
        (name.clone(), verdict)
    });
    let conclusion = match (&gateway, holder) {
        (None, _) => Conclusion::NoGateway,
        (Some(_), None) => Conclusion::Unassigned(assigned.unassigned[&address]),
        (Some(_), Some(node)) => match assigned.stuck.get(&address) {
            Some(stuck) => Conclusion::Stuck(node.clone(), *stuck),
            None if snapshot.previous.nodes.get(&address) == Some(node) => {
                Conclusion::Stays(node.clone())
            }
            None => Conclusion::Placed(node.clone()),
        },
    };
    AddressExplanation {
        address,
        gateway,
        refusals,
        nodes: nodes.collect(),
        conclusion,
    }
}

impl fmt::Display for NodeVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NodeVerdict::NoSubnet => f.write_str("has no subnet for it"),
            NodeVerdict::Down => f.write_str("is down"),
            NodeVerdict::Draining => f.write_str("is cordoned or being drained"),
            NodeVerdict::Full { holds } => write!(f, "is full: it holds {holds}"),
            NodeVerdict::Open { role, holds } => {
                let role = match role {
                    Role::Worker => "worker",
                    Role::ControlPlane => "control plane",
                };
                write!(f, "could hold it: {role}, with {holds} others")
            }
        }
    }
}

impl fmt::Display for AddressExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address;
        match &self.gateway {
            Some(gateway) => writeln!(f, "{address} belongs to {gateway}")?,
            None => writeln!(f, "{address} belongs to no gateway in force")?,
        }
        for refusal in &self.refusals {
            writeln!(f, "{refusal}")?;
        }
        for (node, verdict) in &self.nodes {
            writeln!(f, "node {node} {verdict}")?;
        }
        match &self.conclusion {
            Conclusion::NoGateway => writeln!(f, "=> nobody may hold it"),
            Conclusion::Stays(node) => {
                writeln!(
                    f,
                    "=> stays on node {node}: what is well placed does not move"
                )
            }
            Conclusion::Placed(node) => writeln!(
                f,
                "=> placed on node {node}: workers first, then the fewest floating IPs, then by name"
            ),
            Conclusion::Stuck(node, Stuck::Draining) => {
                writeln!(
                    f,
                    "=> on node {node}, which is being drained: nobody else can take it"
                )
            }
            Conclusion::Stuck(node, Stuck::OverCapacity) => {
                writeln!(
                    f,
                    "=> on node {node}, which holds too many: nobody else can take it"
                )
            }
            Conclusion::Unassigned(Unassigned::NoSubnet) => {
                writeln!(f, "=> on no node: none has a subnet for it")
            }
            Conclusion::Unassigned(Unassigned::NoNodeUp) => {
                writeln!(f, "=> on no node: none with a subnet for it is up")
            }
            Conclusion::Unassigned(Unassigned::NoRoom) => {
                writeln!(f, "=> on no node: none has room")
            }
        }
    }
}
