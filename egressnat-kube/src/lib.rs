//! The Kubernetes side of egressnat: resources, the object store port, and the two loops.
//!
//! **Promise**: both loops are written against one small port, [`ObjectStore`]. They turn objects into the planner's
//! events, let `egressnat-core` decide, and write only what differs.
//!
//! ```text
//!  ObjectStore ──watch──events──► egressnat-core ──► status, events      (controller)
//!                                               └──► NodeDataplane       (agent)
//! ```
//!
//! * [`Kind`], [`ObjectKey`], [`Object`]: objects of known kinds as JSON documents, so that nothing unknown is lost.
//! * [`read_manifests`], [`validate`]: YAML files, and errors that name file, field and fix.
//! * [`ObjectStore`]: the port; [`DirectoryStore`]: a directory of YAML files that implements it without a cluster.
//! * `ApiStore`, with the feature `api`: the Kubernetes API behind the same port; [`Election`]: which of several controllers writes.
//! * [`status`]: conditions and their reasons.
//! * [`Index`]: objects to the planner's events, synchronous and without I/O.
//! * `crd`, with the feature of that name: the resources as types for kube's client, and their CustomResourceDefinitions.
//! * [`LocalPods`]: the pods of a node from the program that makes them, in place of the API's.
//! * [`run_controller`], [`run_agent`]: the loops; [`NodeDataplane`]: what an embedder of the agent brings.
//! * [`Pulse`]: what a loop tells of itself; `serve_health`, with the feature `health`: the same as probes over HTTP.
//!
//! # Example
//!
//! ```
//! use egressnat_kube::{Applied, DirectoryStore, Kind, Object, ObjectKey};
//! use serde_json::json;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! let store = DirectoryStore::open(directory.path())?;
//! let key = ObjectKey::namespaced(Kind::NetworkGatewayGroup, "kube-system", "default");
//! let gateway = Object::new(&key, json!({ "spec": { "floatingIPs": ["192.168.1.100"] } }));
//! assert_eq!(store.apply(gateway.clone())?, Applied::Created);
//! assert_eq!(store.apply(gateway)?, Applied::Unchanged);
//! # Ok(())
//! # }
//! ```
#![deny(missing_docs)]

mod agent;
#[cfg(feature = "api")]
mod api;
mod clock;
mod controller;
#[cfg(feature = "crd")]
pub mod crd;
mod directory;
mod election;
mod event;
mod field_manager;
mod grant;
#[cfg(feature = "health")]
mod health;
mod index;
mod kind;
mod lease;
mod local_pods;
mod manifest;
mod object;
mod pulse;
mod resource;
pub mod status;
mod store;

pub use agent::{AgentConfig, NoUplink, NodeDataplane, StoreOutage, Uplink, run_agent};
#[cfg(feature = "api")]
pub use api::{ApiStore, ConnectError};
pub use controller::{ControllerConfig, run_controller, run_controller_until};
pub use directory::{Applied, DirectoryStore};
pub use election::Election;
pub use field_manager::{FieldManager, StatusApplied};
pub use grant::FloatingIpGrant;
#[cfg(feature = "health")]
pub use health::{HealthError, serve_health};
pub use index::Index;
pub use kind::{Kind, UnknownKind};
pub use local_pods::{LocalPods, PodsBeside};
pub use manifest::{ManifestError, Manifests, read_manifests};
pub use object::{InvalidObject, Object, ObjectKey};
pub use pulse::{Pulse, Verdict};
pub use resource::validate;
pub use store::{ObjectStore, StoreError, Watch, WatchEvent, WatchRequest};
