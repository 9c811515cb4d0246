//! What is told in the status of objects: computed here, from plain data and without a store; written by the loops.
//!
//! [`reason`] has the words. [`NodeReport`] is what an agent tells of its node, from which the status of policies is made.

mod condition;
mod confirmation;
mod gateway;
mod node_report;
mod policy;
pub mod reason;
mod sources;

pub(crate) use condition::{Condition, conditions_are, merged};
pub(crate) use confirmation::{Confirmations, Mark};
pub(crate) use gateway::{GatewayFacts, gateway_conditions};
pub(crate) use node_report::POLICIES_AT_MOST;
pub use node_report::{NodeReport, PolicyReport, Problem};
pub(crate) use policy::{PolicyFacts, policy_status};
pub(crate) use sources::{Participant, Sources};
