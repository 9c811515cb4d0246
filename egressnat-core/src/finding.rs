//! What is wrong with the user's objects, and how to mend it.
//!
//! Planning never fails: an object that makes no sense is left out, everything else is planned, and a
//! [`Finding`] says so. The controller turns findings into events and conditions.

use alloc::string::String;
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
    /// A floating IP that is a node's own address.
    FloatingIpIsNodeAddress => "FloatingIPIsNodeAddress",
    /// Two floating IPs with the same tunnel id.
    EgressIdConflict => "EgressIDConflict",
    /// An `egressSourceIP` that an older v1alpha1 policy uses already (E20).
    DuplicateEgressSourceIp => "DuplicateEgressSourceIP",
    /// No eligible node for a floating IP (E34).
    Unassigned => "Unassigned",
    /// A gateway group in a namespace whose `Cluster` does not switch the feature on (E7).
    ClusterSwitchOff => "ClusterSwitchOff",
    /// A gateway group whose name in `kube-system` another group has (E7).
    GatewayNameTaken => "GatewayNameTaken",
    /// A policy without sources or destinations (E3, E4).
    IncompletePolicy => "IncompletePolicy",
    /// A pod that shares the node's network is not selected (E15).
    HostNetworkPod => "HostNetworkPod",
    /// Another policy has the same destination and wins (E16).
    Overlap => "Overlap",
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
