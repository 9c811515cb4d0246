//! The decisions of an egress NAT gateway as pure functions of plain data.
//!
//! **Promise**: deterministic, no I/O, no clock, no randomness. The same [`Snapshot`] gives the same
//! [`Assignment`] and the same [`NodePlan`], in any order of input, on any machine.
//!
//! ```text
//!  Snapshot ──assign──► Assignment ──plan_node──► NodePlan ──diff──► [Change]
//!                                                      ▲
//!                              what the kernel has now ┘
//! ```
//!
//! * [`model`]: nodes, namespaces, pods, gateways, policies, and the [`Snapshot`] that holds them.
//! * [`selector`]: Kubernetes label selectors.
//! * [`gateway`]: which gateways are effective and which addresses they own.
//! * [`policy`]: which egress IP a policy resolves to, or why to none.
//! * [`assignment`]: which node holds which floating IP.
//! * [`plan`]: everything one node must have, and [`diff()`]: the ordered changes from one plan to the next, and
//!   [`between()`]: what is in force while connections begin anew.
//! * [`digest`]: which policies a plan was made with.
//! * [`verify`]: an independent checker of assignments and plans.
//! * [`finding`]: what is wrong with the user's objects, and how to mend it.
//!
//! # Example
//!
//! From plain types to the address a pod leaves with:
//!
//! ```
//! use egressnat_core::model::*;
//! use egressnat_core::{assign, plan_node, Decision};
//!
//! let mut snapshot = Snapshot::default();
//! let worker: NodeName = "worker1".parse()?;
//! let mut node = Node::new(Health::Up);
//! node.subnets.insert("192.168.1.0/24".parse().unwrap());
//! snapshot.nodes.insert(worker.clone(), node);
//! snapshot.namespaces.insert("alice".parse()?, Labels::from([("user".into(), "alice".into())]));
//!
//! let mut pod = Pod::new(worker.clone());
//! pod.ips.insert("10.10.1.2".parse().unwrap());
//! snapshot.pods.insert(PodKey::new("alice".parse()?, "frontend-0".parse()?), pod);
//!
//! let key = GatewayKey::group("kube-system".parse()?, "default".parse()?);
//! snapshot.gateways.insert(key.clone(), Gateway::new(["192.168.1.100".parse().unwrap()]));
//! let policy = Policy::snat([Source::everything()], ["8.8.8.0/24".parse().unwrap()], EgressSource::from(&key));
//! snapshot.policies.insert("egress".parse()?, policy);
//!
//! let assignment = assign(&snapshot).assignment;
//! let plan = plan_node(&snapshot, &assignment, &worker).plan;
//! let decision = plan.decide("10.10.1.2".parse().unwrap(), "8.8.8.8".parse().unwrap(), None);
//! assert_eq!(decision, Decision::Snat("192.168.1.100".parse().unwrap()));
//! # Ok::<(), InvalidName>(())
//! ```
//!
//! # Features
//!
//! * `serde`: `Serialize` and `Deserialize` for the model and the plan.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

extern crate alloc;

#[cfg(test)]
mod arbitrary;
pub mod assignment;
mod cidr;
pub mod cluster;
pub mod decision_table;
pub mod diff;
pub mod digest;
pub mod engine;
pub mod explain;
pub mod finding;
pub mod gateway;
mod hash;
pub mod model;
pub mod ownership;
pub mod plan;
pub mod policy;
mod prefix_table;
pub mod report;
pub mod selector;
mod slab;
pub mod verify;

pub use assignment::{Assigned, Assignment, Move, assign};
pub use cluster::{ClusterPlan, plan_cluster};
pub use decision_table::DecisionTable;
pub use diff::{Between, Change, between, diff, diff_with};
pub use digest::{Digest, PolicyMeaning};
pub use engine::{ClusterEngine, Membership, NodeEngine};
pub use explain::{Explanation, explain, explain_address, what_if};
pub use finding::{Finding, Reason, Subject};
pub use gateway::{EffectiveGateways, effective_gateways};
pub use model::Snapshot;
pub use plan::{Decision, NodePlan, Planned, PolicySetId, Steering, plan_node};
pub use policy::{EgressIps, ResolvedPolicy, resolve_policies};
pub use report::{Failure, Report, Resource, Restored};
pub use verify::{Violation, verify_assignment, verify_node_plan};
