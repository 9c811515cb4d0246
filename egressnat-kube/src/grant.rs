//! To whom each floating IP is granted, as the status of its gateway tells.

use std::collections::BTreeMap;
use std::net::IpAddr;

use egressnat_core::model::NodeName;
use egressnat_core::ownership::{Generation, Grant, GrantRecord, Term};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::object::Object;

/// Who may use a floating IP. Written by the controller that leads; without it no node uses the address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct FloatingIpGrant {
    /// How often the floating IP was granted.
    pub generation: u64,
    /// The node it is granted to; none while it is nobody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// In which term of the node's lease (`leaseTransitions`).
    #[serde(default, skip_serializing_if = "is_default")]
    pub term: u64,
    /// Whether the node is asked to give it back.
    #[serde(default, skip_serializing_if = "is_default")]
    pub withdrawn: bool,
    /// Whether the node before gave it back, and did not fall silent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub handed_over: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Who holds each address, as the status of a gateway tells. What does not make sense is not told.
pub(crate) fn read_holders(gateway: &Object) -> BTreeMap<IpAddr, NodeName> {
    let told = gateway.at("/status/floatingIPs").as_object();
    let read = |(address, node): (&String, &Value)| {
        Some((address.parse().ok()?, node.as_str()?.parse().ok()?))
    };
    told.into_iter().flatten().filter_map(read).collect()
}

/// The grant of each address that the status of a gateway tells. What does not make sense is not told.
pub(crate) fn read_grants(gateway: &Object) -> BTreeMap<IpAddr, GrantRecord> {
    let Value::Object(told) = gateway.at("/status/grants") else {
        return BTreeMap::new();
    };
    let version = gateway.version();
    let read = |(address, told): (&String, &Value)| {
        let told = FloatingIpGrant::deserialize(told).ok()?;
        let grant = match told.node {
            None => None,
            Some(node) => Some(Grant {
                node: node.parse().ok()?,
                term: Term(told.term),
                is_withdrawn: told.withdrawn,
                is_handed_over: told.handed_over,
            }),
        };
        let record = GrantRecord {
            version,
            generation: Generation(told.generation),
            grant,
        };
        Some((address.parse().ok()?, record))
    };
    told.iter().filter_map(read).collect()
}

/// `status.floatingIPs` and `status.grants` of a gateway, in this order: who holds each address, and all that there is to its grant.
pub(crate) fn grants_status<'a>(
    records: impl IntoIterator<Item = (&'a IpAddr, &'a GrantRecord)>,
) -> (Value, Value) {
    let (mut holders, mut grants) = (BTreeMap::new(), BTreeMap::new());
    for (address, record) in records {
        // Never granted: nothing to tell.
        if record.generation == Generation::default() && record.grant.is_none() {
            continue;
        }
        let grant = record.grant.as_ref();
        if let Some(grant) = grant {
            holders.insert(address.to_string(), grant.node.to_string());
        }
        let told = FloatingIpGrant {
            generation: record.generation.0,
            node: grant.map(|grant| grant.node.to_string()),
            term: grant.map_or(0, |grant| grant.term.0),
            withdrawn: grant.is_some_and(|grant| grant.is_withdrawn),
            handed_over: grant.is_some_and(|grant| grant.is_handed_over),
        };
        grants.insert(address.to_string(), json!(told));
    }
    (json!(holders), json!(grants))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;
    use crate::object::ObjectKey;

    #[test]
    fn what_is_written_is_read_again_and_nonsense_is_not() {
        let granted = GrantRecord {
            generation: Generation(3),
            grant: Some(Grant {
                node: "worker1".parse().unwrap(),
                term: Term(2),
                is_withdrawn: true,
                is_handed_over: true,
            }),
            ..GrantRecord::default()
        };
        let nobody = GrantRecord {
            generation: Generation(7),
            ..GrantRecord::default()
        };
        let records: BTreeMap<IpAddr, GrantRecord> = [
            ("192.168.1.100".parse().unwrap(), granted),
            ("2001:db8::1".parse().unwrap(), nobody),
            ("192.168.1.102".parse().unwrap(), GrantRecord::default()),
        ]
        .into();
        let (holders, mut grants) = grants_status(&records);
        assert_eq!(holders, json!({"192.168.1.100": "worker1"}));
        assert_eq!(
            grants,
            json!({
                "192.168.1.100": {
                    "generation": 3, "node": "worker1", "term": 2, "withdrawn": true, "handedOver": true,
                },
                "2001:db8::1": {"generation": 7},
            })
        );
        grants["x"] = json!({"generation": 1});
        grants["192.168.1.103"] = json!({"generation": "x"});
        grants["192.168.1.104"] = json!({"generation": 1, "node": "Not A Name"});
        let key = ObjectKey::namespaced(Kind::NetworkGatewayGroup, "kube-system", "default");
        let read = read_grants(&Object::new(&key, json!({"status": {"grants": grants}})));
        let without_version = |record: &GrantRecord| GrantRecord {
            version: Default::default(),
            ..record.clone()
        };
        let read: Vec<_> = read.iter().map(|(a, r)| (*a, without_version(r))).collect();
        let told: Vec<_> = records.into_iter().take(3).collect();
        let told: Vec<_> = told
            .into_iter()
            .filter(|(_, record)| record.generation.0 > 0)
            .collect();
        assert_eq!(read, told);
    }
}
