//! Indices of egress IPs: given before anything names them, freed when nothing does any more.

use std::collections::BTreeSet;
use std::net::IpAddr;

use egressnat_core::{Change, Report, Steering};

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

    /// Frees the indices of all egress IPs but those that this node is to hold or steers to.
    pub(super) fn free_indices(
        &mut self,
        held: &BTreeSet<IpAddr>,
        steered: &BTreeSet<IpAddr>,
        report: &mut Report,
    ) {
        match self.egress.retain(&mut self.maps, held, steered) {
            Ok(freed) => {
                for address in freed {
                    self.kept.count(&self.egress, address);
                }
            }
            Err(error) => fail(report, "egress IPs that are not used any more", &error),
        }
    }
}
