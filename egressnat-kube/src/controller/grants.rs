//! Who may use which floating IP: what the granter says, written.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use egressnat_core::model::NodeName;
use egressnat_core::ownership::{GrantRecord, GranterStep, LeaseRecord, Version};
use egressnat_core::{Assigned, Assignment, EffectiveGateways};

use super::Controller;
use crate::clock::now;
use crate::event::{Fact, Sameness, Severity};
use crate::lease::{lease_key, lease_object, read_lease};
use crate::resource::object_key;
use crate::store::{ObjectStore, StoreError};

/// How long a node may hold what is granted to it when its lease is not there to tell: longer than leases last.
const UNTOLD: Duration = Duration::from_secs(60);

impl<S: ObjectStore> Controller<S> {
    /// The grants as they should be written, so that the floating IPs get where they belong, and the leases to be taken for that.
    pub(super) fn grants_for(
        &mut self,
        belongs: &Assignment,
    ) -> (BTreeMap<IpAddr, GrantRecord>, Vec<(NodeName, LeaseRecord)>) {
        let mut records = self.granter.grants().clone();
        let mut takes = Vec::new();
        for step in self.granter.step(belongs, now()) {
            match step {
                GranterStep::Write { address, record } => {
                    records.insert(address, record);
                }
                GranterStep::Take { node, record } => takes.push((node, record)),
            }
        }
        (records, takes)
    }

    /// Takes what the gateways' status says of the grants.
    pub(super) fn read_grants(&mut self, gateways: &EffectiveGateways) {
        let mut told: BTreeMap<IpAddr, GrantRecord> = self.index.grants(gateways);
        for address in gateways.owners.keys() {
            let record = told.remove(address).unwrap_or_default();
            if let Some(grant) = &record.grant
                && self.index.object(&lease_key(&grant.node)).is_none()
            {
                let untold = LeaseRecord {
                    term: grant.term,
                    duration: UNTOLD,
                    ..LeaseRecord::default()
                };
                self.granter.saw_lease(&grant.node, untold, now());
                self.granter.lost_lease(&grant.node);
            }
            self.granter.saw_grant(*address, record);
        }
    }

    /// Takes the leases of silent nodes. Returns whether one had still not been renewed.
    pub(super) async fn take_leases(
        &mut self,
        takes: Vec<(NodeName, LeaseRecord)>,
    ) -> Result<bool, StoreError> {
        let mut has_taken = false;
        for (node, record) in takes {
            has_taken |= self.take_lease(&node, record).await?;
        }
        Ok(has_taken)
    }

    /// Takes the lease of a silent node. Returns whether it had still not been renewed.
    async fn take_lease(
        &mut self,
        node: &NodeName,
        record: LeaseRecord,
    ) -> Result<bool, StoreError> {
        let key = lease_key(node);
        let known = self.index.object(&key);
        let over = record.version;
        if over != known.map_or(Version::ABSENT, |lease| lease.version()) {
            return Ok(false);
        }
        let lease = lease_object(node, &record, known);
        let taken = match known {
            None => self.store.create(lease).await,
            Some(_) => self.store.update(lease).await,
        };
        match taken {
            Ok(lease) => {
                tracing::info!(%node, "the node is silent: its lease is taken from it");
                self.granter.took(node, over, read_lease(&lease), now());
                self.remember(lease);
                Ok(true)
            }
            // It is alive after all, and the watch is about to tell so.
            Err(StoreError::Conflict(_) | StoreError::Exists(_) | StoreError::NotFound(_)) => {
                Ok(false)
            }
            Err(error) => self.settle(Err(error)).map(|()| false),
        }
    }
}

/// Who holds which of the gateways' floating IPs by these grants.
pub(super) fn holders(
    records: &BTreeMap<IpAddr, GrantRecord>,
    gateways: &EffectiveGateways,
) -> Assignment {
    let owned = records
        .iter()
        .filter(|(address, _)| gateways.owners.contains_key(*address));
    let held = owned.filter_map(|(ip, record)| Some((*ip, record.grant.as_ref()?.node.clone())));
    Assignment {
        nodes: held.collect(),
    }
}

/// What changed hands.
pub(super) fn moves(before: &Assignment, after: &Assignment, assigned: &Assigned) -> Vec<Fact> {
    let mut facts = Vec::new();
    for (address, node) in &after.nodes {
        let Some(owner) = assigned.gateways.owners.get(address) else {
            continue;
        };
        let (reason, message) = match before.nodes.get(address) {
            Some(old) if old == node => continue,
            Some(old) => (
                "Moved",
                format!("floating IP {address} moved from node {old} to node {node}"),
            ),
            None => (
                "Assigned",
                format!("floating IP {address} is assigned to node {node}"),
            ),
        };
        facts.push(Fact {
            about: object_key(owner),
            uid: None,
            severity: Severity::Normal,
            reason,
            message,
            sameness: Sameness::Message,
        });
    }
    facts
}
