//! Indices of egress IPs: given before anything names them, freed when nothing does any more.

use std::collections::BTreeSet;
use std::net::IpAddr;

use egressnat_core::{Change, Report, Steering};

use super::doubt::Doubts;
use super::{Dataplane, fail};

impl Dataplane {
    /// Gives an index to each egress IP that changes name: all others that are wanted have theirs.
    pub(super) fn allocate_indices(&mut self, changes: &[Change], report: &mut Report) {
        let named = changes.iter().filter_map(|change| match change {
            Change::AddSnat(address) | Change::SetDestination(_, _, Steering::Snat(address)) => {
                Some(*address)
            }
            _ => None,
        });
        for address in named.collect::<BTreeSet<IpAddr>>() {
            if let Err(error) = self.egress.allocate(&mut self.maps, address) {
                fail(report, &format!("egress IP {address}"), &error);
            }
        }
    }

    /// The egress IPs that changes may leave without use; all of them where it is not known what an earlier run or a failure has left.
    pub(super) fn in_use(&self, changes: &[Change], doubts: Doubts) -> BTreeSet<IpAddr> {
        if doubts.exist() {
            return self.egress.indices().map(|(address, _)| address).collect();
        }
        let mut used = self.kept.plan.egress_ips();
        used.extend(changes.iter().filter_map(|change| match change {
            Change::RemoveSnat(address) => Some(*address),
            _ => None,
        }));
        used
    }

    /// Frees the indices of egress IPs that were in use, and that this node neither is to hold nor steers to any more.
    pub(super) fn free_indices(
        &mut self,
        mut used: BTreeSet<IpAddr>,
        held: &BTreeSet<IpAddr>,
        steered: &BTreeSet<IpAddr>,
        report: &mut Report,
    ) {
        used.retain(|address| !held.contains(address) && !steered.contains(address));
        if let Err(error) = self.egress.free(&mut self.maps, &used) {
            fail(report, "egress IPs that are not used any more", &error);
        }
        for address in used {
            self.kept.count(&self.egress, address);
        }
    }
}
