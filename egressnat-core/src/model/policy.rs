use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::net::IpAddr;
use ipnet::IpNet;

use super::{GatewayKey, Name, NamespaceName, Timestamp};
use crate::selector::Selector;

/// One rule of a policy: pods that match `pods`, in namespaces that match `namespaces` (E10).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Source {
    /// Selects namespaces by their labels.
    pub namespaces: Selector,
    /// Selects pods by their labels.
    pub pods: Selector,
}

impl Source {
    /// Every pod of every namespace.
    pub fn everything() -> Self {
        Self::default()
    }
}

/// Where the egress IP of a policy comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum EgressSource {
    /// v1 `gatewayRef`: the first floating IP of the named group (E20).
    Gateway {
        /// Namespace of the group.
        namespace: NamespaceName,
        /// Name of the group.
        name: Name,
    },
    /// v1alpha1 `egressSourceIP`: one of a gateway's floating IPs (E20).
    Address(IpAddr),
}

impl From<&GatewayKey> for EgressSource {
    fn from(key: &GatewayKey) -> Self {
        EgressSource::Gateway {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        }
    }
}

/// What happens to the traffic that a policy selects.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Action {
    /// The source becomes an egress IP.
    Snat(EgressSource),
    /// The pod keeps its address (E5).
    NoSnat,
}

/// What happens to selected traffic that cannot leave with the egress IP (E43).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Enforcement {
    /// It does not leave at all.
    #[default]
    Strict,
    /// It leaves with the address of its node.
    BestEffort,
}

impl core::fmt::Display for Enforcement {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Enforcement::Strict => "Strict",
            Enforcement::BestEffort => "BestEffort",
        })
    }
}

/// An egress policy of either version, in one form.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Policy {
    /// When it was created; of two policies with the same prefix the older wins (E16).
    pub created: Timestamp,
    /// A pod is selected when it matches any of these (E10).
    pub sources: Vec<Source>,
    /// Traffic is selected when its destination lies in any of these (E11).
    pub destinations: BTreeSet<IpNet>,
    /// What then happens.
    pub action: Action,
    /// What happens when that cannot be done.
    pub enforcement: Enforcement,
}

impl Policy {
    /// A policy that translates to the address that `source` names.
    pub fn snat(
        sources: impl IntoIterator<Item = Source>,
        destinations: impl IntoIterator<Item = IpNet>,
        source: EgressSource,
    ) -> Self {
        Self {
            created: Timestamp::default(),
            sources: sources.into_iter().collect(),
            destinations: destinations.into_iter().map(|d| d.trunc()).collect(),
            action: Action::Snat(source),
            enforcement: Enforcement::default(),
        }
    }

    /// Whether it selects every pod there is: `NoSNAT` without sources (E5).
    pub fn is_for_all_pods(&self) -> bool {
        self.action == Action::NoSnat && self.sources.is_empty()
    }
}
