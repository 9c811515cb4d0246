//! A node's lease: a `Lease` object that its agent renews, and that the controller takes from a silent node.
//!
//! ```yaml
//! metadata:
//!   annotations:
//!     egressnat.io/released: '{"192.168.1.100":4,"192.168.1.101":7}' # newest grant of each address that was given back
//!     egressnat.io/unused: '["192.168.1.101"]'                       # those of them that were not used by that grant
//! spec:
//!   holderIdentity: worker1    # nobody while it is taken
//!   leaseTransitions: 2        # its term: how often it was taken
//!   leaseDurationSeconds: 3    # for how long the node holds its floating IPs by a renewal
//!   renewTime: …               # for people; only compared for being different
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use egressnat_core::gateway::SYSTEM_NAMESPACE;
use egressnat_core::model::NodeName;
use egressnat_core::ownership::{Generation, LeaseRecord, Release, Term};
use serde_json::{Value, json};

use crate::kind::Kind;
use crate::object::{Object, ObjectKey};
use crate::status::Mark;

const PREFIX: &str = "egressnat-node-";

/// What a node has given back.
const RELEASED: &str = "egressnat.io/released";

/// What of it the node has not used.
const UNUSED: &str = "egressnat.io/unused";

/// The key of a node's lease.
pub(crate) fn lease_key(node: &NodeName) -> ObjectKey {
    ObjectKey::namespaced(Kind::Lease, SYSTEM_NAMESPACE, format!("{PREFIX}{node}"))
}

/// Now, as leases have it: the API server takes six digits after the point and no other number.
pub(crate) fn micro_time() -> String {
    format!("{:.6}", jiff::Timestamp::now())
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

/// What the lease of a node says.
pub(crate) fn read_lease(lease: &Object) -> LeaseRecord {
    let number = |pointer| lease.at(pointer).as_u64().unwrap_or_default();
    let released = lease.annotation(RELEASED);
    let released: BTreeMap<IpAddr, u64> = released
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let unused = lease.annotation(UNUSED);
    let unused: BTreeSet<IpAddr> = unused
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let released = released.into_iter().map(|(ip, of)| {
        let release = Release {
            generation: Generation(of),
            was_used: !unused.contains(&ip),
        };
        (ip, release)
    });
    LeaseRecord {
        version: lease.version(),
        term: Term(number("/spec/leaseTransitions")),
        is_taken: matches!(lease.at("/spec/holderIdentity").as_str(), None | Some("")),
        duration: Duration::from_secs(number("/spec/leaseDurationSeconds")),
        released: released.collect(),
    }
}

/// The lease of `node` that says `record`, over the one that is there.
pub(crate) fn lease_object(
    node: &NodeName,
    record: &LeaseRecord,
    known: Option<&Object>,
) -> Object {
    let mut lease = match known {
        Some(known) => known.clone(),
        None => Object::new(&lease_key(node), json!({ "spec": {} })),
    };
    let spec = &mut lease.value_mut()["spec"];
    spec["holderIdentity"] = json!(if record.is_taken { "" } else { node.as_str() });
    spec["leaseDurationSeconds"] = json!(record.duration.as_secs().max(1));
    if record.term != Term::default() {
        spec["leaseTransitions"] = json!(record.term.0);
    }
    spec["renewTime"] = json!(micro_time());
    let released = record.released.iter();
    let unused: BTreeSet<&IpAddr> = released
        .clone()
        .filter_map(|(ip, release)| (!release.was_used).then_some(ip))
        .collect();
    let released: BTreeMap<&IpAddr, u64> = released
        .map(|(ip, release)| (ip, release.generation.0))
        .collect();
    let released = (!released.is_empty()).then(|| json!(released));
    let unused = (!unused.is_empty()).then(|| json!(unused));
    for (name, told) in [(RELEASED, released), (UNUSED, unused)] {
        if let Some(told) = told {
            lease.value_mut()["metadata"]["annotations"][name] = json!(told.to_string());
        } else if let Some(Value::Object(annotations)) =
            lease.value_mut().pointer_mut("/metadata/annotations")
        {
            annotations.remove(name);
        }
    }
    lease
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_e33() {
        let node: NodeName = "worker1".parse().unwrap();
        let record = LeaseRecord {
            term: Term(2),
            duration: Duration::from_secs(3),
            released: [("192.168.1.100", 4, true), ("192.168.1.101", 7, false)]
                .map(|(ip, of, was_used)| {
                    let generation = Generation(of);
                    let release = Release {
                        generation,
                        was_used,
                    };
                    (ip.parse().unwrap(), release)
                })
                .into(),
            ..LeaseRecord::default()
        };
        let written = lease_object(&node, &record, None);
        assert_eq!(lease_node(written.key()), Some(node.clone()));
        assert_eq!(
            [RELEASED, UNUSED].map(|name| written.annotation(name)),
            [
                r#"{"192.168.1.100":4,"192.168.1.101":7}"#,
                r#"["192.168.1.101"]"#
            ]
            .map(Some),
            "as the documentation has it"
        );
        let version = written.version();
        let read = |record: LeaseRecord| LeaseRecord { version, ..record };
        assert_eq!(read_lease(&written), read(record.clone()));
        let taken = LeaseRecord {
            is_taken: true,
            released: BTreeMap::new(),
            ..record
        };
        let written = lease_object(&node, &taken, Some(&written));
        assert_eq!(read_lease(&written), read(taken));
    }
}
