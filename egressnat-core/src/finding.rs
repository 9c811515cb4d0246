//! What is wrong with the user's objects, and how to mend it.
//!
//! Planning never fails: an object that makes no sense is left out, everything else is planned, and a
//! [`Finding`] says so. The controller turns findings into events and conditions.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::model::{GatewayKey, NodeName, PodKey, PolicyName};

/// The object a finding is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A gateway group.
    Gateway(GatewayKey),
    /// An egress policy.
    Policy(PolicyName),
    /// A node.
    Node(NodeName),
    /// A pod.
    Pod(PodKey),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Gateway(key) => key.fmt(f),
            Subject::Policy(name) => write!(f, "EgressNATPolicy {name}"),
            Subject::Node(name) => write!(f, "Node {name}"),
            Subject::Pod(key) => write!(f, "Pod {key}"),
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident => $text:literal,)*) => {
        /// Why an object, or a part of it, has no effect. The text is the `reason` of the event: stable, one word.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[$doc])* $variant,)*
        }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &[Reason] = &[$(Reason::$variant,)*];

            /// The stable text.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Reason::$variant => $text,)*
                }
            }
        }
    };
}

reasons! {
    /// An `egressSourceIP` that no gateway node holds (E21).
    UnknownEgressIp => "UnknownEgressIP",
    /// A `gatewayRef` to a group that is not there or has no usable first address (E22).
    InvalidGatewayRef => "InvalidGatewayRef",
    /// A floating IP that an older gateway group has already (E23).
    DuplicateFloatingIp => "DuplicateFloatingIP",
    /// A floating IP that no host can send with: multicast, loopback, IPv4 in the form of IPv6.
    InvalidFloatingIp => "InvalidFloatingIP",
    /// A floating IP that is a node's own address.
    FloatingIpIsNodeAddress => "FloatingIPIsNodeAddress",
    /// Two floating IPs with the same tunnel id.
    EgressIdConflict => "EgressIDConflict",
    /// An `egressSourceIP` that an older v1alpha1 policy uses already (E20).
    DuplicateEgressSourceIp => "DuplicateEgressSourceIP",
    /// No eligible node for a floating IP (E34).
    Unassigned => "Unassigned",
    /// A floating IP stays on a node that is being drained or holds too many: nobody else can take it (E35).
    CannotMove => "CannotMove",
    /// A gateway group in a namespace whose `Cluster` does not switch the feature on (E7).
    ClusterSwitchOff => "ClusterSwitchOff",
    /// A gateway group whose name in `kube-system` another group has (E7).
    GatewayNameTaken => "GatewayNameTaken",
    /// A policy without sources or destinations (E3, E4).
    IncompletePolicy => "IncompletePolicy",
    /// A selector that the API server would refuse (E10); the policy is not applied.
    InvalidSelector => "InvalidSelector",
    /// A destination that no packet can have; the others are applied.
    InvalidDestination => "InvalidDestination",
    /// A destination inside the cluster: never egress traffic (E12).
    InternalDestination => "InternalDestination",
    /// A destination of a family of which the policy has no egress IP.
    NoEgressIpOfFamily => "NoEgressIPOfFamily",
    /// A pod that shares the node's network is not selected (E15).
    HostNetworkPod => "HostNetworkPod",
    /// Another policy has the same destination and wins (E16).
    Overlap => "Overlap",
    /// The policies of a node's pods have more destinations than its packet path can hold.
    PlanTooLarge => "PlanTooLarge",
    /// Two nodes with one address: neither can be told from the other.
    DuplicateNodeAddress => "DuplicateNodeAddress",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A problem noticed while planning.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The object it is about.
    pub subject: Subject,
    /// What kind of problem.
    pub reason: Reason,
    /// The value and the fix, for the person who wrote the object.
    pub message: String,
}

impl Finding {
    /// A finding about `subject`.
    pub fn new(subject: Subject, reason: Reason, message: impl Into<String>) -> Self {
        Self {
            subject,
            reason,
            message: message.into(),
        }
    }
}

/// The first few of a list and how many there are more: a message stays short, whatever it is about.
pub(crate) fn some_of<T: fmt::Display>(items: impl ExactSizeIterator<Item = T>) -> String {
    const SHOWN: usize = 3;
    let more = items.len().saturating_sub(SHOWN);
    let shown: Vec<String> = items.take(SHOWN).map(|item| item.to_string()).collect();
    let shown = shown.join(", ");
    if more == 0 {
        shown
    } else {
        format!("{shown} and {more} more")
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.subject, self.reason, self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn reasons_are_distinct_single_words() {
        let texts: BTreeSet<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(texts.len(), Reason::ALL.len());
        assert!(
            texts
                .iter()
                .all(|t| t.chars().all(|c| c.is_ascii_alphanumeric()))
        );
    }
}
