//! The status of a gateway group: pure, from what the controller decided and what the agents told.

use std::collections::BTreeMap;
use std::net::IpAddr;

use egressnat_core::Reason;
use egressnat_core::model::NodeName;

use super::condition::Condition;
use super::reason;

/// What the controller knows of a gateway group.
#[derive(Debug, Clone, Default)]
pub(crate) struct GatewayFacts<'a> {
    /// Why the object makes no sense, if it does not.
    pub(crate) invalid: Option<String>,
    /// What planning found about it, or about the copy that stands for it.
    pub(crate) findings: Vec<(Reason, &'a str)>,
    /// The floating IPs that it owns: all of its own but those that are refused.
    pub(crate) owned: Vec<IpAddr>,
    /// Which node holds which of them.
    pub(crate) holders: BTreeMap<IpAddr, &'a NodeName>,
    /// Whether the holder's kernel has it.
    pub(crate) is_programmed: BTreeMap<IpAddr, bool>,
}

/// Findings about single floating IPs, and others that keep the group from taking effect.
const REFUSED: [Reason; 6] = [
    Reason::ClusterSwitchOff,
    Reason::GatewayNameTaken,
    Reason::InvalidFloatingIp,
    Reason::DuplicateFloatingIp,
    Reason::FloatingIpIsNodeAddress,
    Reason::EgressIdConflict,
];

/// The conditions of a gateway group.
pub(crate) fn gateway_conditions(facts: &GatewayFacts<'_>) -> Vec<Condition> {
    let (refusals, refused) = messages(facts, &REFUSED);
    let mut conditions = Vec::new();
    if let Some(message) = &facts.invalid {
        conditions.push(Condition::new(
            reason::ACCEPTED,
            false,
            reason::INVALID,
            message.as_str(),
        ));
    } else if facts.owned.is_empty() {
        let reason = refusals.unwrap_or(reason::INVALID);
        let message = if refused.is_empty() {
            "the group has no floatingIPs: add at least one address".into()
        } else {
            refused
        };
        conditions.push(Condition::new(reason::ACCEPTED, false, reason, message));
    } else {
        let message = "the group has floating IPs that can be used";
        conditions.push(Condition::new(
            reason::ACCEPTED,
            true,
            reason::ACCEPTED,
            message,
        ));
        conditions.push(assigned(facts));
        conditions.push(programmed(facts));
        if let Some(reason) = refusals {
            conditions.push(Condition::new(
                reason::PARTIALLY_INVALID,
                true,
                reason,
                refused,
            ));
        }
        return conditions;
    }
    let message = "the group is not effective: see its other conditions";
    for kind in [reason::ASSIGNED, reason::PROGRAMMED] {
        conditions.push(Condition::new(kind, false, reason::NOT_APPLIED, message));
    }
    conditions
}

fn assigned(facts: &GatewayFacts<'_>) -> Condition {
    let (unassigned, message) = messages(facts, &[Reason::Unassigned]);
    if let Some(reason) = unassigned {
        return Condition::new(reason::ASSIGNED, false, reason, message);
    }
    // It is where it can do its work, and the word says that it should not be.
    let (stuck, message) = messages(facts, &[Reason::CannotMove]);
    match stuck {
        Some(reason) => Condition::new(reason::ASSIGNED, true, reason, message),
        None => {
            let message = "each floating IP is on a node";
            Condition::new(reason::ASSIGNED, true, reason::ASSIGNED, message)
        }
    }
}

fn programmed(facts: &GatewayFacts<'_>) -> Condition {
    let condition = |is_true, reason, message: String| {
        Condition::new(reason::PROGRAMMED, is_true, reason, message)
    };
    for address in &facts.owned {
        match facts.holders.get(address) {
            None => {
                let message = format!("floating IP {address} is on no node");
                return condition(false, Reason::Unassigned.as_str(), message);
            }
            Some(node) if facts.is_programmed.get(address) != Some(&true) => {
                let message = format!(
                    "node {node} has not told yet that its kernel has floating IP {address}"
                );
                return condition(false, reason::PENDING, message);
            }
            Some(_) => {}
        }
    }
    let message = "the kernels of the nodes that hold the floating IPs have them";
    condition(true, reason::PROGRAMMED, message.into())
}

/// The first reason of these, and all their messages.
fn messages(facts: &GatewayFacts<'_>, reasons: &[Reason]) -> (Option<&'static str>, String) {
    let found = facts
        .findings
        .iter()
        .filter(|(reason, _)| reasons.contains(reason));
    let texts: Vec<&str> = found.clone().map(|(_, message)| *message).collect();
    let first = found.map(|(reason, _)| reason.as_str()).next();
    (first, texts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: &str = "192.168.1.100";

    fn conditions(facts: &GatewayFacts<'_>) -> Vec<(&'static str, bool, &'static str)> {
        let conditions = gateway_conditions(facts);
        let told = conditions.iter();
        told.map(|condition| (condition.kind, condition.is_true, condition.reason))
            .collect()
    }

    fn held(node: &NodeName) -> GatewayFacts<'_> {
        let address: IpAddr = ADDRESS.parse().unwrap();
        GatewayFacts {
            owned: vec![address],
            holders: [(address, node)].into(),
            is_programmed: [(address, true)].into(),
            ..GatewayFacts::default()
        }
    }

    #[test]
    fn a_group_is_programmed_when_the_holders_kernels_have_all_its_addresses() {
        let node: NodeName = "worker1".parse().unwrap();
        let all = [
            ("Accepted", true, "Accepted"),
            ("Assigned", true, "Assigned"),
            ("Programmed", true, "Programmed"),
        ];
        assert_eq!(conditions(&held(&node)), all);
        let mut pending = held(&node);
        pending.is_programmed.clear();
        assert_eq!(conditions(&pending)[2], ("Programmed", false, "Pending"));
    }

    #[test]
    fn an_address_on_no_node_is_told_with_its_reason_e34() {
        let node: NodeName = "worker1".parse().unwrap();
        let mut facts = held(&node);
        facts.holders.clear();
        facts.findings = vec![(Reason::Unassigned, "every node is down")];
        let want = [
            ("Accepted", true, "Accepted"),
            ("Assigned", false, "Unassigned"),
            ("Programmed", false, "Unassigned"),
        ];
        assert_eq!(conditions(&facts), want);
    }

    #[test]
    fn a_drain_that_moves_nothing_is_told_where_the_address_is_e35() {
        let node: NodeName = "worker1".parse().unwrap();
        let mut facts = held(&node);
        facts.findings = vec![(Reason::CannotMove, "no other node")];
        assert_eq!(conditions(&facts)[1], ("Assigned", true, "CannotMove"));
    }

    #[test]
    fn a_duplicate_is_told_at_the_later_group_which_keeps_its_other_addresses_e23() {
        let node: NodeName = "worker1".parse().unwrap();
        let mut facts = held(&node);
        facts.findings = vec![(Reason::DuplicateFloatingIp, "belongs to another")];
        let partly = ("PartiallyInvalid", true, "DuplicateFloatingIP");
        assert_eq!(conditions(&facts)[3], partly);
        let nothing = GatewayFacts {
            findings: facts.findings,
            ..GatewayFacts::default()
        };
        let want = [
            ("Accepted", false, "DuplicateFloatingIP"),
            ("Assigned", false, "NotApplied"),
            ("Programmed", false, "NotApplied"),
        ];
        assert_eq!(conditions(&nothing), want);
    }
}
