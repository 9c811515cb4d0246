//! Making the changes of a comparison.

use std::collections::BTreeSet;
use std::mem::discriminant;
use std::net::IpAddr;

use egressnat_core::{Change, Failure, NodePlan, Report};

use super::{Dataplane, ObserveError, fail};
use crate::maps::{DestinationValue, PodEntry};
use crate::ports::PodInterfaces;
use crate::programs::ProgramsError;

impl Dataplane {
    /// Makes all changes, each failure told and the others made all the same. Returns those that could not be made.
    pub(super) async fn change(
        &mut self,
        changes: &[Change],
        desired: &NodePlan,
        interfaces: &PodInterfaces,
        report: &mut Report,
        findings: &mut Vec<Failure>,
    ) -> BTreeSet<Change> {
        let mut undone = self.change_tables(changes, report);
        // Last, so that nothing waits until the network was asked, and what goes away is gone by then.
        let (addresses, others): (Vec<Change>, Vec<Change>) = changes
            .iter()
            .partition(|change| matches!(change, Change::AddAddress(_)));
        let mut crowded = Vec::new();
        for group in others.chunk_by(|a, b| discriminant(a) == discriminant(b)) {
            undone.extend(match group[0] {
                Change::AddSnat(_) => self.add_snat(&addresses_of(group), report),
                Change::RemoveSnat(_) => self.remove_snat(&addresses_of(group), report),
                Change::RemoveAddress(_) => {
                    let addresses = addresses_of(group);
                    self.remove_addresses(&addresses, interfaces, report).await
                }
                _ => self.change_maps(group, desired, interfaces, report, Some(&mut crowded)),
            });
        }
        // What goes made room meanwhile.
        undone.extend(self.change_maps(&crowded, desired, interfaces, report, None));
        if !addresses.is_empty() {
            let addresses = addresses_of(&addresses);
            let contested = self.ask_for(&addresses, report, findings).await;
            let (taken, free): (Vec<IpAddr>, Vec<IpAddr>) =
                addresses.iter().partition(|ip| contested.contains(ip));
            let left = self.add_addresses(&free, desired, report, findings).await;
            undone.extend(left);
            undone.extend(taken.into_iter().map(Change::AddAddress));
        }
        undone
    }

    /// Makes changes of maps one by one. Returns those that could not be made. What has no room goes to `crowded`, if that is given.
    fn change_maps(
        &mut self,
        changes: &[Change],
        desired: &NodePlan,
        interfaces: &PodInterfaces,
        report: &mut Report,
        mut crowded: Option<&mut Vec<Change>>,
    ) -> BTreeSet<Change> {
        let mut undone = BTreeSet::new();
        for change in changes {
            match (self.change_map(change, desired, interfaces), &mut crowded) {
                (Ok(Written::Yes), _) => {
                    self.kept.note(change);
                    report.changes += 1;
                }
                (Ok(Written::No), _) => {}
                (Err(ObserveError::Programs(ProgramsError::Full { .. })), Some(crowded)) => {
                    crowded.push(*change);
                }
                (Err(error), _) => {
                    fail(report, &change.to_string(), &error);
                    undone.insert(*change);
                }
            }
        }
        undone
    }

    fn change_map(
        &mut self,
        change: &Change,
        desired: &NodePlan,
        interfaces: &PodInterfaces,
    ) -> Result<Written, ObserveError> {
        match *change {
            Change::AddPeer(peer) => self.maps.add_peer(peer)?,
            Change::RemovePeer(peer) => self.maps.remove_peer(peer)?,
            Change::SetDestination(set, prefix, steering) => {
                let egress = self.egress.value_of(steering)?;
                let decider = desired.deciders.get(&(set, prefix));
                let policy = decider.and_then(|name| self.policies.index(name));
                let value = DestinationValue {
                    egress,
                    policy: policy.unwrap_or_default(),
                };
                self.maps.set_destination(set.0, prefix, value)?;
                self.kept.note_decider((set, prefix), decider);
            }
            Change::RemoveDestination(set, prefix) => {
                self.maps.remove_destination(set.0, prefix)?;
            }
            Change::SetPod(address, set) => {
                let Some(ifindex) = interfaces.by_address.get(&address).copied() else {
                    return Ok(Written::No);
                };
                self.maps.set_pod(PodEntry {
                    address,
                    ifindex,
                    set: set.0,
                })?;
                self.kept.note_pod(address, ifindex, set);
            }
            Change::RemovePod(address) => {
                let Some(ifindex) = interfaces.by_address.get(&address).copied() else {
                    return Ok(Written::No);
                };
                self.maps.remove_pod(address, ifindex)?;
                self.kept.note_no_pod(address, ifindex);
            }
            // Made elsewhere, many at once.
            Change::AddSnat(_)
            | Change::AddAddress(_)
            | Change::RemoveAddress(_)
            | Change::RemoveSnat(_)
            | Change::AddInternalRange(_)
            | Change::RemoveInternalRange(_)
            | Change::AddGuardRange(_)
            | Change::RemoveGuardRange(_)
            | Change::AddPodRange(_)
            | Change::RemovePodRange(_)
            | Change::SetMasquerade(..)
            | Change::RemoveMasquerade(_) => return Ok(Written::No),
        }
        Ok(Written::Yes)
    }
}

/// Whether a change wrote anything here.
enum Written {
    Yes,
    No,
}

/// The addresses of changes that are about floating IPs.
fn addresses_of(changes: &[Change]) -> Vec<IpAddr> {
    let address = |change: &Change| match change {
        Change::AddSnat(address)
        | Change::AddAddress(address)
        | Change::RemoveAddress(address)
        | Change::RemoveSnat(address) => Some(*address),
        _ => None,
    };
    changes.iter().filter_map(address).collect()
}
