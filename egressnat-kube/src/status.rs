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

#[cfg(test)]
mod tests {
    use super::reason::*;

    #[test]
    fn the_documentation_lists_every_condition_and_every_reason() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/status.md");
        let text = std::fs::read_to_string(path).unwrap();
        let types = [OF_POLICIES.as_slice(), OF_GATEWAYS.as_slice()].concat();
        let reasons = [
            RESOLVED,
            INVALID,
            NOT_APPLIED,
            PENDING,
            NODE_FAILED,
            NO_PODS_SELECTED,
            STATUS_OVERWRITTEN,
            COPY_OVERWRITTEN,
            PLAN_TOO_LARGE,
        ];
        let findings = egressnat_core::Reason::ALL
            .iter()
            .map(|reason| reason.as_str());
        for word in types.into_iter().chain(reasons).chain(findings) {
            assert!(
                text.contains(&format!("`{word}`")),
                "{word} is not in docs/status.md"
            );
        }
    }
}
