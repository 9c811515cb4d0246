//! The node's lease: that it is alive, what it gave back, and what it has planned with.

use std::time::Duration;

use egressnat_core::model::NodeName;
use egressnat_core::ownership::{LeaseRecord, Source};
use tokio::sync::watch;

use super::ownership::Ownership;
use super::{AgentConfig, Uplink};
use crate::clock::now;
use crate::lease::{lease_key, lease_object, put_mark, read_lease};
use crate::object::Object;
use crate::status::Mark;
use crate::store::{ObjectStore, StoreError};

/// A lease is renewed this many times in its duration, so that one lost renewal does no harm.
const RENEWALS: u32 = 3;

/// How often a renewal is tried at once when others write the lease at the same time.
const ATTEMPTS: u32 = 3;

/// Renews the node's lease.
pub(super) struct Renewal<S, U> {
    store: S,
    ownership: Ownership<U>,
    node: NodeName,
    lease_duration: Duration,
    /// The lease as last read or written.
    lease: Option<Object>,
    is_failing: bool,
    /// What the agent has planned with, put on the lease.
    planned: watch::Receiver<Option<Mark>>,
}

impl<S: ObjectStore, U: Uplink> Renewal<S, U> {
    pub(super) fn new(
        store: S,
        ownership: Ownership<U>,
        config: &AgentConfig,
        planned: watch::Receiver<Option<Mark>>,
    ) -> Self {
        Self {
            store,
            ownership,
            node: config.node.clone(),
            lease_duration: config.lease_duration,
            lease: None,
            is_failing: false,
            planned,
        }
    }

    /// Renews it for ever. A task of its own: a slow plan does not make the node look dead.
    pub(super) async fn keep(mut self) {
        let period = self.lease_duration / RENEWALS;
        let mut renewals = tokio::time::interval(period);
        renewals.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = renewals.tick() => {}
                () = self.ownership.given_back() => {}
            }
            // A renewal that hangs must not keep the next ones from being tried.
            let renewed = tokio::time::timeout(self.lease_duration / 2, self.renew()).await;
            let failure = match renewed {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error),
                Err(elapsed) => Some(StoreError::Unreachable {
                    operation: format!("renew {}", lease_key(&self.node)),
                    source: elapsed.into(),
                }),
            };
            match failure {
                None if self.is_failing => {
                    self.is_failing = false;
                    tracing::info!("the node's lease is renewed again");
                }
                Some(error) if !self.is_failing => {
                    self.is_failing = true;
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(
                        error,
                        "the node's lease cannot be renewed, without which it counts as down; trying again"
                    );
                }
                _ => {}
            }
        }
    }

    async fn renew(&mut self) -> Result<(), StoreError> {
        self.ownership.settle(self.lease_duration / 6).await;
        for _ in 0..ATTEMPTS {
            // Whatever comes back: if it is no answer, the version that we know may be an old one.
            let known = match self.lease.take() {
                Some(known) => Some(known),
                None => self.store.read(&lease_key(&self.node)).await?,
            };
            let record = match &known {
                Some(known) => read_lease(known),
                None => LeaseRecord {
                    term: self.ownership.next_term(),
                    ..LeaseRecord::default()
                },
            };
            let renewal = self.ownership.renewal(&record);
            let mut lease = lease_object(&self.node, &renewal, known.as_ref());
            put_mark(&mut lease, self.planned.borrow().as_ref());
            let sent = now();
            let renewed = match known {
                None => self.store.create(lease).await,
                Some(_) => self.store.update(lease).await,
            };
            match renewed {
                Ok(lease) => {
                    self.lease = Some(lease);
                    self.ownership.renewed(Source::Store, renewal.term, sent);
                    return Ok(());
                }
                // Somebody else touched it: it has to be read again.
                Err(StoreError::Conflict(_) | StoreError::NotFound(_) | StoreError::Exists(_)) => {}
                Err(error) => return Err(error),
            }
        }
        // The next renewal tries again.
        Ok(())
    }
}
