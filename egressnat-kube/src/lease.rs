//! A node's lease: a `Lease` object that its agent renews.

use std::time::Duration;

use egressnat_core::gateway::SYSTEM_NAMESPACE;
use egressnat_core::model::NodeName;
use serde_json::json;

use crate::kind::Kind;
use crate::object::{Object, ObjectKey};
use crate::status::Mark;

const PREFIX: &str = "egressnat-node-";

/// The key of a node's lease.
pub(crate) fn lease_key(node: &NodeName) -> ObjectKey {
    ObjectKey::namespaced(Kind::Lease, SYSTEM_NAMESPACE, format!("{PREFIX}{node}"))
}

/// The lease of a node, renewed now.
pub(crate) fn renewed(node: &NodeName, duration: Duration) -> Object {
    let spec = json!({
        "holderIdentity": node.as_str(),
        "leaseDurationSeconds": duration.as_secs().max(1),
        "renewTime": micro_time(),
    });
    Object::new(&lease_key(node), json!({ "spec": spec }))
}

/// Now, as leases have it: the API server takes six digits after the point and no other number.
pub(crate) fn micro_time() -> String {
    format!("{:.6}", jiff::Timestamp::now())
}

/// What a lease says: whose it is, what changes with each renewal, and for how long one counts.
pub(crate) fn read_lease(object: &Object) -> Option<(NodeName, String, Duration)> {
    let node = lease_node(object.key())?;
    let renewal = object.at("/spec/renewTime").as_str()?.to_owned();
    let duration = Duration::from_secs(object.at("/spec/leaseDurationSeconds").as_u64()?);
    Some((node, renewal, duration))
}

/// Annotation of a node's lease: what its agent has planned with. It goes with renewals, which are written anyway.
const PLANNED: &str = "egressnat.io/planned";

/// Puts on a lease what its agent has planned with, if it has planned.
pub(crate) fn put_mark(lease: &mut Object, mark: Option<&Mark>) {
    if let Some(mark) = mark {
        lease.value_mut()["metadata"]["annotations"][PLANNED] = json!(mark.to_string());
    }
}

/// What an agent has planned with, told by its lease.
pub(crate) fn mark_of(lease: &Object) -> Option<Mark> {
    lease.annotation(PLANNED)?.parse().ok()
}

/// Whose lease it is by its name.
pub(crate) fn lease_node(key: &ObjectKey) -> Option<NodeName> {
    if key.kind != Kind::Lease || key.namespace.as_deref() != Some(SYSTEM_NAMESPACE) {
        return None;
    }
    key.name.strip_prefix(PREFIX)?.parse().ok()
}
