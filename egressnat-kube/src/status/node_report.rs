//! What an agent tells of its node's kernel: `status.report` of its `NetworkGatewayNode`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::object::fnv1a64;

/// An agent's report. Its size goes with the node's own pods: policies that select none of them are not in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// Made of all the rest: who has seen the agent's mark with this revision knows whether it has seen the report too.
    #[cfg_attr(feature = "crd", schemars(length(max = 64)))]
    pub revision: String,
    /// The floating IPs that the node's kernel translates to and answers for now.
    #[serde(
        default,
        rename = "floatingIPs",
        skip_serializing_if = "BTreeSet::is_empty"
    )]
    #[cfg_attr(
        feature = "crd",
        schemars(with = "Vec<String>", length(max = 1000), extend("x-kubernetes-list-type" = "atomic"))
    )]
    pub floating_ips: BTreeSet<IpAddr>,
    /// The policies that select pods of the node, or would if they could; in the order of names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(
        feature = "crd",
        schemars(length(max = 1000), extend("x-kubernetes-list-type" = "atomic"))
    )]
    pub policies: Vec<PolicyReport>,
    /// How many more there are than the list may hold.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[cfg_attr(feature = "crd", schemars(with = "i64", range(min = 0)))]
    pub omitted: usize,
    /// What is wrong with the node as such.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(
        feature = "crd",
        schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))
    )]
    pub problems: Vec<Problem>,
}

/// What a node has of one policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct PolicyReport {
    /// Its name.
    #[cfg_attr(feature = "crd", schemars(length(max = 253)))]
    pub name: String,
    /// Of the object that it was planned with.
    #[cfg_attr(feature = "crd", schemars(length(max = 64)))]
    pub uid: String,
    /// Of that object, too.
    pub generation: i64,
    /// Of everything about it that the plan depends on: [`PolicyMeaning::digest`](egressnat_core::PolicyMeaning::digest).
    #[cfg_attr(feature = "crd", schemars(length(max = 16)))]
    pub digest: String,
    /// How many pods of the node it selects.
    #[cfg_attr(feature = "crd", schemars(with = "i64", range(min = 0)))]
    pub pods: usize,
    /// Whether the node's kernel has all of it.
    pub programmed: bool,
    /// What is to be told about it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(
        feature = "crd",
        schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))
    )]
    pub problems: Vec<Problem>,
}

/// A reason and a message for people.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Problem {
    /// One word.
    #[cfg_attr(feature = "crd", schemars(length(max = 64)))]
    pub reason: String,
    /// What it is, and the fix.
    #[cfg_attr(feature = "crd", schemars(length(max = 4096)))]
    pub message: String,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// A node with more policies for its pods tells how many more there are: an object has room for 1.5 MB.
pub(crate) const POLICIES_AT_MOST: usize = 1000;

impl NodeReport {
    /// Gives the report its revision, when all the rest is there.
    pub(crate) fn seal(mut self) -> Self {
        self.revision = String::new();
        let text = serde_json::to_string(&self).unwrap_or_default();
        self.revision = format!("{:016x}", fnv1a64(text.bytes()));
        self
    }

    /// The report in an object's status; none if there is none that can be read.
    pub(crate) fn read(value: &Value) -> Option<Self> {
        Self::deserialize(value).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_revision_is_of_the_content_alone() {
        let report = NodeReport {
            floating_ips: ["192.168.1.100".parse().unwrap()].into(),
            ..NodeReport::default()
        };
        let sealed = report.clone().seal();
        assert_eq!(sealed.revision.len(), 16);
        assert_eq!(sealed.clone().seal(), sealed);
        assert_ne!(NodeReport::default().seal().revision, sealed.revision);
    }

    #[test]
    fn a_report_is_read_as_it_is_written_and_without_what_another_release_says() {
        let report = NodeReport {
            policies: vec![PolicyReport {
                name: "egress".into(),
                digest: "c9bc5572427ef560".into(),
                pods: 2,
                ..PolicyReport::default()
            }],
            ..NodeReport::default()
        }
        .seal();
        let mut value = json!(report);
        value["later"] = json!(1);
        let read = NodeReport::read(&value).unwrap();
        assert_eq!(read, report);
        assert_eq!(NodeReport::read(&json!({})), None);
        assert_eq!(NodeReport::read(&Value::Null), None);
    }
}
