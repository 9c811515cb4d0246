use alloc::vec::Vec;

use crate::assignment::{Move, assign};
use crate::model::{Health, NodeName, Snapshot};

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
