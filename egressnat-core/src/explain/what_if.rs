use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

use crate::assignment::assign;
use crate::model::{Health, NodeName, Snapshot};

/// A floating IP that would change its node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Move {
    /// Which.
    pub address: IpAddr,
    /// Where it is now.
    pub from: Option<NodeName>,
    /// Where it would be; nowhere if nobody could take it.
    pub to: Option<NodeName>,
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show =
            |node: &Option<NodeName>| node.as_ref().map_or("nowhere", NodeName::as_str).into();
        let (from, to): (alloc::string::String, alloc::string::String) =
            (show(&self.from), show(&self.to));
        write!(f, "{}: {from} -> {to}", self.address)
    }
}

/// Which floating IPs would move if these nodes went down and those were drained.
pub fn what_if(snapshot: &Snapshot, lost: &[NodeName], drained: &[NodeName]) -> Vec<Move> {
    let before = assign(snapshot).assignment;
    let mut after = snapshot.clone();
    for name in lost {
        if let Some(node) = after.nodes.get_mut(name) {
            node.health = Health::Down;
        }
    }
    for name in drained {
        if let Some(node) = after.nodes.get_mut(name) {
            node.draining = true;
        }
    }
    after.previous = before.clone();
    let assigned = assign(&after);
    let owned = assigned.gateways.owners.keys();
    let moves = owned.filter_map(|address| {
        let from = before.nodes.get(address);
        let to = assigned.assignment.nodes.get(address);
        (from != to).then(|| Move {
            address: *address,
            from: from.cloned(),
            to: to.cloned(),
        })
    });
    moves.collect()
}
