//! The port through which both loops see and change objects.
//!
//! A directory of manifests implements it, and the Kubernetes API does. Both loops are written against it alone.

use std::any::Any;
use std::future::Future;

use egressnat_core::model::NodeName;
use thiserror::Error;
use tokio::sync::mpsc;

use crate::field_manager::{FieldManager, StatusApplied};
use crate::kind::Kind;
use crate::manifest::ManifestError;
use crate::object::{InvalidObject, Object, ObjectKey};

mod layer;

pub(crate) use layer::{Asked, Layer};

/// An operation on an object failed.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The object does not make sense.
    #[error(transparent)]
    Invalid(#[from] InvalidObject),
    /// Somebody else wrote the object since it was read.
    #[error("{0} was changed by somebody else meanwhile: read it again and repeat the change")]
    Conflict(ObjectKey),
    /// The object is there already.
    #[error("{0} exists already")]
    Exists(ObjectKey),
    /// There is no such object.
    #[error("{0} does not exist")]
    NotFound(ObjectKey),
    /// The object was written by hand, in a file that is not ours to change.
    #[error("{key} is written in {path}: change it there")]
    HandWritten {
        /// The object.
        key: ObjectKey,
        /// The file.
        path: String,
    },
    /// The store itself failed.
    #[error("could not {operation}")]
    Io {
        /// Verb and object.
        operation: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The store did not answer, or could not at the time. Whether a write took effect is not known.
    #[error("could not {operation}: the API server cannot be reached")]
    Unreachable {
        /// Verb and object.
        operation: String,
        /// What happened instead.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store will not do it, however often it is asked.
    #[error("could not {operation}: {message}")]
    Refused {
        /// Verb and object.
        operation: String,
        /// Its reason.
        message: String,
    },
    /// Another controller leads: this one does not write.
    #[error("another controller leads: {0} is left to it")]
    NotLeading(ObjectKey),
}

/// What to watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchRequest {
    /// The kinds of objects.
    pub kinds: Vec<Kind>,
    /// The only node whose pods and gateway node are wanted; those of all nodes if there is none.
    pub node: Option<NodeName>,
}

impl WatchRequest {
    /// All objects of some kinds.
    pub fn of(kinds: &[Kind]) -> Self {
        Self {
            kinds: kinds.to_vec(),
            node: None,
        }
    }

    /// Of pods only those on one node, of gateway nodes only its own: memory goes with the node, not with the cluster.
    pub fn of_node(mut self, node: NodeName) -> Self {
        self.node = Some(node);
        self
    }

    /// Whether it asks for this object.
    pub fn asks_for(&self, object: &Object) -> bool {
        let is_elsewhere = |node: &NodeName| match object.kind() {
            Kind::Pod => object.at("/spec/nodeName").as_str() != Some(node.as_str()),
            Kind::NetworkGatewayNode | Kind::AnthosNetworkGatewayNode => {
                object.key().name != node.as_str()
            }
            _ => false,
        };
        self.kinds.contains(&object.kind()) && !self.node.as_ref().is_some_and(is_elsewhere)
    }
}

/// What a watch tells.
#[derive(Debug, Clone, PartialEq)]
pub enum WatchEvent {
    /// An object is there, or has changed.
    Applied(Object),
    /// An object is gone.
    Deleted(ObjectKey),
    /// All objects that there are have been told. Once in a watch: before, what is missing may be yet to come.
    Synced,
    /// Something cannot be read; everything else goes on.
    Failed(ManifestError),
    /// The store cannot be seen now: what was told before may be old. Nothing has gone by that.
    Interrupted,
    /// The store can be seen again. What happened meanwhile is told like everything else, before or after.
    Resumed,
}

/// A running watch. Dropping it ends it.
pub struct Watch {
    events: mpsc::UnboundedReceiver<WatchEvent>,
    _source: Box<dyn Any + Send>,
}

impl Watch {
    /// A watch fed from `events`; `source` lives as long as the watch.
    pub fn new(events: mpsc::UnboundedReceiver<WatchEvent>, source: impl Any + Send) -> Self {
        Self {
            events,
            _source: Box::new(source),
        }
    }

    /// The next event; none when the store has gone away. Cancel safe.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        self.events.recv().await
    }

    /// An event that is there already.
    pub fn try_next(&mut self) -> Option<WatchEvent> {
        self.events.try_recv().ok()
    }
}

/// Objects with optimistic concurrency and watches.
///
/// # Guarantees
///
/// * A write that names a `resourceVersion` succeeds only if nobody wrote in between.
/// * `update` changes everything but `status`, `update_status` changes `status` alone, `apply_status` one writer's part of it.
/// * A watch tells all objects that there are, one by one, then [`WatchEvent::Synced`], and misses nothing after it.
pub trait ObjectStore: Clone + Send + Sync + 'static {
    /// Watches objects.
    fn watch(&self, request: &WatchRequest) -> Result<Watch, StoreError>;
    /// Reads one object.
    fn read(
        &self,
        key: &ObjectKey,
    ) -> impl Future<Output = Result<Option<Object>, StoreError>> + Send;
    /// Creates an object.
    fn create(&self, object: Object) -> impl Future<Output = Result<Object, StoreError>> + Send;
    /// Replaces an object but for its status.
    fn update(&self, object: Object) -> impl Future<Output = Result<Object, StoreError>> + Send;
    /// Replaces the status of an object.
    fn update_status(
        &self,
        object: Object,
    ) -> impl Future<Output = Result<Object, StoreError>> + Send;
    /// Makes a manager's fields of a status what the object says, whoever had written them; a field that it leaves out goes.
    /// Fields of others stay. It needs no `resourceVersion`, for there is one writer of each field; with one it succeeds only if nobody
    /// wrote in between.
    fn apply_status(
        &self,
        object: Object,
        manager: FieldManager,
    ) -> impl Future<Output = Result<StatusApplied, StoreError>> + Send;
    /// Deletes an object. Returns whether there was one.
    fn remove(&self, key: &ObjectKey) -> impl Future<Output = Result<bool, StoreError>> + Send;
}
