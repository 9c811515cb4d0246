//! What the node tells of itself: that it takes part, its subnets, and that it is alive.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use egressnat_core::gateway::SYSTEM_NAMESPACE;
use egressnat_core::model::NodeName;
use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::AgentConfig;
use crate::kind::Kind;
use crate::lease;
use crate::object::{Object, ObjectKey};
use crate::resource::GatewayNodeSpec;
use crate::status::Mark;
use crate::store::{ObjectStore, StoreError};

/// A lease is renewed this many times in its duration, so that one lost renewal does no harm.
const RENEWALS: u32 = 3;

/// How often the description is looked at although it is right: somebody may have removed it.
const LOOK: Duration = Duration::from_secs(60);

/// The node's description and its lease.
pub(super) struct OwnNode<S> {
    store: S,
    node: NodeName,
    lease_duration: Duration,
    spec: Value,
    described: Option<Instant>,
    /// The lease as last read or written.
    lease: Option<Object>,
    is_failing: bool,
    /// What the agent has planned with, put on the lease.
    planned: watch::Receiver<Option<Mark>>,
}

impl<S: ObjectStore> OwnNode<S> {
    pub(super) fn new(
        store: S,
        config: &AgentConfig,
        subnets: &BTreeSet<IpNet>,
        planned: watch::Receiver<Option<Mark>>,
    ) -> Self {
        let subnets = subnets.iter().map(IpNet::trunc).collect();
        Self {
            store,
            node: config.node.clone(),
            lease_duration: config.lease_duration,
            spec: json!(GatewayNodeSpec { subnets }),
            described: None,
            lease: None,
            is_failing: false,
            planned,
        }
    }

    /// Tells it for ever. A task of its own: a slow plan does not make the node look dead.
    pub(super) async fn tell(mut self) {
        let period = self.lease_duration / RENEWALS;
        let mut renewals = tokio::time::interval(period);
        renewals.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            renewals.tick().await;
            // A renewal that hangs must not keep the next ones from being tried.
            let told = tokio::time::timeout(self.lease_duration / 2, self.tell_once()).await;
            let failure = match told {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error),
                Err(elapsed) => Some(StoreError::Unreachable {
                    operation: format!("renew {}", lease::lease_key(&self.node)),
                    source: elapsed.into(),
                }),
            };
            match failure {
                None if self.is_failing => {
                    self.is_failing = false;
                    tracing::info!("lease and description of the node are written again");
                }
                Some(error) if !self.is_failing => {
                    self.is_failing = true;
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(
                        error,
                        "lease and description of the node cannot be written, without which it counts as down; trying again"
                    );
                }
                _ => {}
            }
        }
    }

    async fn tell_once(&mut self) -> Result<(), StoreError> {
        // The lease first: it is what cannot wait.
        self.renew().await?;
        if self.described.is_none_or(|time| time.elapsed() >= LOOK) {
            self.describe().await?;
            self.described = Some(Instant::now());
        }
        Ok(())
    }

    async fn renew(&mut self) -> Result<(), StoreError> {
        let mut lease = lease::renewed(&self.node, self.lease_duration);
        if self.lease.is_none() {
            self.lease = self.store.read(lease.key()).await?;
        }
        let planned = self.planned.borrow().clone();
        // Whatever comes back: if it is no answer, the version that we know may be an old one.
        let renewed = match self.lease.take() {
            None => {
                lease::put_mark(&mut lease, planned.as_ref());
                self.store.create(lease).await
            }
            Some(known) => {
                let spec = lease.value_mut()["spec"].take();
                let mut lease = known;
                lease.value_mut()["spec"] = spec;
                lease::put_mark(&mut lease, planned.as_ref());
                self.store.update(lease).await
            }
        };
        match renewed {
            Ok(lease) => {
                self.lease = Some(lease);
                Ok(())
            }
            // Somebody else touched it: the next renewal reads it first.
            Err(StoreError::Conflict(_) | StoreError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Tells the controller that the node takes part, and what subnets it has (E2).
    async fn describe(&self) -> Result<(), StoreError> {
        let name = self.node.as_str();
        let key = ObjectKey::namespaced(Kind::NetworkGatewayNode, SYSTEM_NAMESPACE, name);
        let written = match self.store.read(&key).await? {
            None => {
                let object = Object::new(&key, json!({ "spec": self.spec }));
                self.store.create(object).await
            }
            Some(known) if known.at("/spec") == &self.spec => return Ok(()),
            Some(mut known) => {
                known.value_mut()["spec"] = self.spec.clone();
                self.store.update(known).await
            }
        };
        written.map(drop)
    }
}
