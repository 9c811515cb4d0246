//! Checks who holds what.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::vec::Vec;
use core::net::IpAddr;

use super::world::{covers, world};
use super::{Violation, violation};
use crate::assignment::Assignment;
use crate::model::{Health, Node, NodeName, Role, Snapshot};

/// Checks the guarantees of [`assign`](crate::assign) for an assignment that was made from `snapshot`.
pub fn verify_assignment(snapshot: &Snapshot, assignment: &Assignment) -> Vec<Violation> {
    let owners = world(snapshot).owners;
    let mut violations = Vec::new();
    let mut refuse = |rule, message| violations.push(violation(rule, message));
    let check = Check {
        snapshot,
        assignment,
    };

    for (address, holder) in &assignment.nodes {
        if !owners.contains_key(address) {
            refuse(
                "E23",
                format!("{address} is on {holder} and no gateway has it"),
            );
        }
        let Some(node) = snapshot.nodes.get(holder) else {
            refuse(
                "E31",
                format!("{address} is on {holder}, which does not exist"),
            );
            continue;
        };
        if node.health == Health::Down {
            refuse("E31", format!("{address} is on {holder}, which is down"));
        }
        if !is_on_link(node, *address) {
            refuse(
                "E30",
                format!("{address} is on {holder}, which has no subnet for it"),
            );
        }
        if snapshot
            .nodes
            .values()
            .any(|node| node.addresses.contains(address))
        {
            refuse("E33", format!("{address} is the address of a node"));
        }
        if let Some(open) = check.open_node(*address) {
            if node.draining {
                refuse(
                    "E35",
                    format!(
                        "{address} is on {holder}, which is being drained, and {open} could take it"
                    ),
                );
            }
            if check.is_too_many(*address, holder, node) {
                refuse(
                    "E35",
                    format!("{address} is too many on {holder}, and {open} could take it"),
                );
            }
        }
        if check.is_new(*address, holder) {
            if node
                .capacity
                .is_some_and(|most| check.held_by(holder).len() > most)
            {
                refuse(
                    "E35",
                    format!("{address} was put on {holder}, which has no room for it"),
                );
            }
            let open_worker = check
                .open_nodes(*address)
                .find(|(_, node)| node.role == Role::Worker);
            if let (Role::ControlPlane, Some((worker, _))) = (node.role, open_worker) {
                refuse(
                    "E30",
                    format!(
                        "{address} was put on the control-plane node {holder}, and worker {worker} is open"
                    ),
                );
            }
        }
    }
    for address in owners.keys().filter(|a| !assignment.nodes.contains_key(a)) {
        let with_room = snapshot
            .nodes
            .iter()
            .find(|(name, node)| check.has_room(name, node, *address));
        if let Some((name, _)) = with_room {
            refuse(
                "E34",
                format!("{address} is on no node, and {name} has room for it"),
            );
        }
        if let Some(before) = snapshot.previous.nodes.get(address)
            && snapshot
                .nodes
                .get(before)
                .is_some_and(|node| is_eligible(node, *address))
        {
            refuse(
                "E32",
                format!("{address} was on {before}, which is eligible, and is on no node now"),
            );
        }
    }
    for (address, before) in &snapshot.previous.nodes {
        if owners.contains_key(address)
            && was_well_placed(
                snapshot,
                &owners.keys().copied().collect(),
                *address,
                before,
            )
            && assignment.nodes.get(address) != Some(before)
        {
            refuse(
                "E32",
                format!("{address} was well placed on {before} and moved"),
            );
        }
    }
    for (name, node) in &snapshot.nodes {
        let new: Vec<IpAddr> = check
            .held_by(name)
            .into_iter()
            .filter(|address| check.is_new(*address, name))
            .collect();
        let holds = check.held_by(name).len();
        let emptier = snapshot.nodes.iter().find(|(other, emptier)| {
            !new.is_empty()
                && emptier.role == node.role
                && check.held_by(other).len() + 1 < holds
                && new
                    .iter()
                    .all(|address| check.is_open(other, emptier, *address))
        });
        if let Some((emptier, _)) = emptier {
            refuse(
                "E30",
                format!("{name} was given more than {emptier}, which could have taken them"),
            );
        }
    }
    violations.sort();
    violations
}

struct Check<'a> {
    snapshot: &'a Snapshot,
    assignment: &'a Assignment,
}

impl<'a> Check<'a> {
    fn held_by(&self, node: &NodeName) -> Vec<IpAddr> {
        let held = self
            .assignment
            .nodes
            .iter()
            .filter(|(_, holder)| *holder == node);
        held.map(|(address, _)| *address).collect()
    }

    fn is_open(&self, name: &NodeName, node: &Node, address: IpAddr) -> bool {
        !node.draining && self.has_room(name, node, address)
    }

    fn has_room(&self, name: &NodeName, node: &Node, address: IpAddr) -> bool {
        is_eligible(node, address)
            && node
                .capacity
                .is_none_or(|most| self.held_by(name).len() < most)
    }

    fn open_nodes(&self, address: IpAddr) -> impl Iterator<Item = (&'a NodeName, &'a Node)> {
        self.snapshot
            .nodes
            .iter()
            .filter(move |(name, node)| self.is_open(name, node, address))
    }

    fn open_node(&self, address: IpAddr) -> Option<&'a NodeName> {
        self.open_nodes(address).next().map(|(name, _)| name)
    }

    fn is_new(&self, address: IpAddr, holder: &NodeName) -> bool {
        self.snapshot.previous.nodes.get(&address) != Some(holder)
    }

    fn is_too_many(&self, address: IpAddr, holder: &NodeName, node: &Node) -> bool {
        let lower = self
            .held_by(holder)
            .into_iter()
            .filter(|other| *other < address);
        node.capacity.is_some_and(|most| lower.count() >= most)
    }
}

fn is_on_link(node: &Node, address: IpAddr) -> bool {
    node.subnets.iter().any(|subnet| covers(subnet, address))
}

fn is_eligible(node: &Node, address: IpAddr) -> bool {
    node.health == Health::Up && is_on_link(node, address)
}

/// On a node that is eligible, not being drained, and not over its capacity by this or a lower address.
fn was_well_placed(
    snapshot: &Snapshot,
    owned: &BTreeSet<IpAddr>,
    address: IpAddr,
    before: &NodeName,
) -> bool {
    let Some(node) = snapshot.nodes.get(before) else {
        return false;
    };
    let lower = snapshot.previous.nodes.iter().filter(|(other, holder)| {
        **other < address
            && *holder == before
            && owned.contains(*other)
            && is_eligible(node, **other)
    });
    is_eligible(node, address)
        && !node.draining
        && node.capacity.is_none_or(|most| lower.count() < most)
}
