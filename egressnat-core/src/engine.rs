//! The same decisions, kept up to date event by event.
//!
//! [`NodeEngine`] keeps the plan of one node, [`ClusterEngine`] the assignment and what policies resolve to, [`Membership`] which
//! policies select which pods. An event costs what it affects, not what exists; one that says nothing new costs a comparison. Events
//! that come together are taken together, by `apply_all`.
//!
//! # Guarantees
//!
//! After every sequence of events the result equals that of [`plan_node`](crate::plan_node) and
//! [`plan_cluster`](crate::plan_cluster) on the objects that are left, whatever the order of the events was, and whatever the seed.
//!
//! # Memory
//!
//! Pods with equal labels in one namespace are one class, and classes that the same policies select share one policy set.
//! Per object, on a 64-bit machine: a pod about 150 bytes and its name; a class, that is another combination of namespace and
//! labels, about 300 bytes and 50 for each label; a policy itself, and 100 bytes for each rule. Text is kept once, however often it
//! is used. What is deleted is given back. There is no cache that grows with the number of events.

mod cluster;
mod counted;
mod labels;
mod membership;
mod node;
mod resolution;
mod symbols;

pub use cluster::ClusterEngine;
pub use membership::{Membership, SelectedBy, SetId};
pub use node::NodeEngine;

#[cfg(test)]
mod tests;
