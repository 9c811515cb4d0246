//! What the whole cluster comes to: the controller's counterpart of [`plan_node`](crate::plan_node).

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec::Vec;
use core::net::IpAddr;

use crate::assignment::{Assigned, assign};
use crate::finding::{Finding, Reason, Subject};
use crate::model::{Enforcement, NodeName, PolicyName, Snapshot};
use crate::policy::{ResolvedPolicies, ResolvedPolicy, resolve_policies};

/// Everything that does not depend on pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterPlan {
    /// Effective gateways, and which node holds which floating IP.
    pub assigned: Assigned,
    /// Which policies are applied, with which egress IP.
    pub policies: BTreeMap<PolicyName, ResolvedPolicy>,
    /// Everything that is to be told about gateways, policies and nodes.
    pub findings: Vec<Finding>,
}

/// Plans what the controller decides: gateways, assignment, policies.
///
/// # Guarantees
///
/// Total and deterministic, and does not look at pods.
pub fn plan_cluster(snapshot: &Snapshot) -> ClusterPlan {
    let assigned = assign(snapshot);
    let resolved = resolve_policies(snapshot, &assigned.gateways);
    plan_of(snapshot, assigned, resolved)
}

/// The plan, with everything that is to be told about what was decided.
pub(crate) fn plan_of(
    snapshot: &Snapshot,
    assigned: Assigned,
    resolved: ResolvedPolicies,
) -> ClusterPlan {
    let ResolvedPolicies {
        policies,
        mut findings,
    } = resolved;
    findings.extend(assigned.findings.iter().cloned());
    for (name, policy) in &policies {
        let is_held = |address: &IpAddr| assigned.assignment.nodes.contains_key(address);
        let enforcement = snapshot.policies[name].enforcement;
        findings.extend(unheld(name, policy, enforcement, is_held));
    }
    findings.extend(duplicate_node_addresses(snapshot));
    findings.sort();
    ClusterPlan {
        assigned,
        policies,
        findings,
    }
}

/// E21: what is to be told while no node holds a policy's egress IP.
fn unheld(
    name: &PolicyName,
    resolved: &ResolvedPolicy,
    enforcement: Enforcement,
    is_held: impl Fn(&IpAddr) -> bool,
) -> impl Iterator<Item = Finding> {
    let addresses = match resolved {
        ResolvedPolicy::Snat(ips) => ips.iter().filter(|ip| !is_held(ip)).collect(),
        ResolvedPolicy::Keep => Vec::new(),
    };
    let outcome = match enforcement {
        Enforcement::Strict => "is held back until a node takes it",
        Enforcement::BestEffort => "leaves with the node's address until a node takes it",
    };
    addresses.into_iter().map(move |address| {
        Finding::new(
            Subject::Policy(name.clone()),
            Reason::UnknownEgressIp,
            format!(
                "egress IP {address} is on no gateway node now: traffic that the policy selects {outcome}; see the events of \
                 its gateway"
            ),
        )
    })
}

fn duplicate_node_addresses(snapshot: &Snapshot) -> impl Iterator<Item = Finding> {
    let mut owners: BTreeMap<IpAddr, &NodeName> = BTreeMap::new();
    let mut findings = Vec::new();
    for (name, node) in &snapshot.nodes {
        for address in &node.addresses {
            match owners.get(address) {
                None => {
                    owners.insert(*address, name);
                }
                Some(first) => findings.push(Finding::new(
                    Subject::Node(name.clone()),
                    Reason::DuplicateNodeAddress,
                    format!(
                        "address {address} is also that of node {first}: give each node its own, or remove the Node object \
                         that is out of date"
                    ),
                )),
            }
        }
    }
    findings.into_iter()
}
