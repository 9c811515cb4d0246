//! The node's gateway node: that it takes part, and its subnets (E2). Others see its report there, too.

use std::collections::BTreeSet;
use std::time::Duration;

use egressnat_core::gateway::SYSTEM_NAMESPACE;
use egressnat_core::model::NodeName;
use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::kind::Kind;
use crate::object::{Object, ObjectKey, fingerprint};
use crate::resource::GatewayNodeSpec;
use crate::store::{ObjectStore, StoreError, Watch, WatchEvent, WatchRequest};

/// Two writes are at least this far apart, whoever removes it how often.
const PACE: Duration = Duration::from_secs(1);

/// Where a node describes itself.
pub(super) fn gateway_node_key(node: &NodeName) -> ObjectKey {
    ObjectKey::namespaced(Kind::NetworkGatewayNode, SYSTEM_NAMESPACE, node.as_str())
}

/// A description as it was last seen.
#[derive(Debug)]
pub(super) struct Seen {
    spec: Value,
    /// The fingerprint of its report, which is too large to be kept only for comparing.
    pub(super) report: u64,
}

impl From<&Object> for Seen {
    fn from(object: &Object) -> Self {
        Self {
            spec: object.at("/spec").clone(),
            report: fingerprint(object.at("/status/report")),
        }
    }
}

/// Writes the node's description, and again whenever somebody alters or removes it.
pub(super) struct Description<S> {
    store: S,
    key: ObjectKey,
    spec: Value,
    watch: Watch,
    /// None if it is not there.
    seen: watch::Sender<Option<Seen>>,
    is_failing: bool,
}

impl<S: ObjectStore> Description<S> {
    /// The receiver sees it as it changes, its report included.
    ///
    /// # Errors
    ///
    /// The watch cannot be started.
    pub(super) fn new(
        store: S,
        node: &NodeName,
        subnets: &BTreeSet<IpNet>,
    ) -> Result<(Self, watch::Receiver<Option<Seen>>), StoreError> {
        let request = WatchRequest::of(&[Kind::NetworkGatewayNode]).of_node(node.clone());
        let watch = store.watch(&request)?;
        let subnets = subnets.iter().map(IpNet::trunc).collect();
        let (seen, receiver) = watch::channel(None);
        let description = Self {
            store,
            key: gateway_node_key(node),
            spec: json!(GatewayNodeSpec { subnets }),
            watch,
            seen,
            is_failing: false,
        };
        Ok((description, receiver))
    }

    /// Keeps it until the store goes away.
    pub(super) async fn keep(mut self) {
        loop {
            while let Some(event) = self.watch.try_next() {
                self.take(event);
            }
            if self.is_right() {
                match self.watch.next().await {
                    Some(event) => self.take(event),
                    None => return,
                }
                continue;
            }
            match write(&self.store, &self.key, &self.spec).await {
                Ok(written) => {
                    self.recovered();
                    self.seen.send_replace(Some(Seen::from(&written)));
                }
                // What it has become is told by the watch, or read next time.
                Err(StoreError::Conflict(_) | StoreError::NotFound(_) | StoreError::Exists(_)) => {}
                Err(error) => self.failed(&error),
            }
            tokio::time::sleep(PACE).await;
        }
    }

    fn take(&self, event: WatchEvent) {
        match event {
            WatchEvent::Applied(object) => {
                self.seen.send_replace(Some(Seen::from(&object)));
            }
            WatchEvent::Deleted(_) => {
                tracing::warn!("somebody removed the node's description: written again");
                self.seen.send_replace(None);
            }
            // The agent's loop tells the same of its own watch.
            WatchEvent::Synced
            | WatchEvent::Failed(_)
            | WatchEvent::Interrupted
            | WatchEvent::Resumed => {}
        }
    }

    fn is_right(&self) -> bool {
        let seen = self.seen.borrow();
        seen.as_ref().is_some_and(|seen| seen.spec == self.spec)
    }

    fn recovered(&mut self) {
        if std::mem::take(&mut self.is_failing) {
            tracing::info!("the node's description is written again");
        }
    }

    fn failed(&mut self, error: &StoreError) {
        if std::mem::replace(&mut self.is_failing, true) {
            return;
        }
        let error = error as &dyn std::error::Error;
        tracing::error!(
            error,
            "the node's description cannot be written, without which it takes no part; trying again"
        );
    }
}

/// Makes a description right, as it is now: the watch may be behind.
async fn write<S: ObjectStore>(
    store: &S,
    key: &ObjectKey,
    spec: &Value,
) -> Result<Object, StoreError> {
    match store.read(key).await? {
        None => {
            let object = Object::new(key, json!({ "spec": spec }));
            store.create(object).await
        }
        Some(known) if known.at("/spec") == spec => Ok(known),
        Some(mut known) => {
            known.value_mut()["spec"] = spec.clone();
            store.update(known).await
        }
    }
}
