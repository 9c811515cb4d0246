//! Who owns which fields of a status.

use crate::kind::Kind;
use crate::object::Object;

/// One of the two writers of status, by the name that `kubectl get --show-managed-fields` shows.
///
/// Each field of a status has one owner, so that the two never wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FieldManager {
    /// The controller.
    Controller,
    /// The agent of a node.
    Agent,
}

impl FieldManager {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            FieldManager::Controller => "egressnat-controller",
            FieldManager::Agent => "egressnat-agent",
        }
    }

    /// The fields of `status` that it owns.
    pub fn status_fields(self, kind: Kind) -> &'static [&'static str] {
        match (self, kind) {
            (FieldManager::Controller, Kind::NetworkGatewayGroup | Kind::AnthosNetworkGateway) => {
                &["nodes", "floatingIPs", "grants", "conditions"]
            }
            (FieldManager::Controller, Kind::EgressNatPolicy) => {
                &["egressIPs", "nodes", "selectedPods", "conditions"]
            }
            (
                FieldManager::Controller,
                Kind::NetworkGatewayNode | Kind::AnthosNetworkGatewayNode,
            ) => &["health", "floatingIPs"],
            (FieldManager::Agent, Kind::NetworkGatewayNode) => &["report"],
            _ => &[],
        }
    }
}

/// The outcome of writing a part of a status.
#[derive(Debug, Clone, PartialEq)]
pub struct StatusApplied {
    /// The object as it is now.
    pub object: Object,
    /// Whose fields had to be taken back and which, in the words of the store.
    pub taken_back: Option<String>,
}
