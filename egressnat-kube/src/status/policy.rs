//! The status of an egress policy: pure, from what the controller decided and what the agents told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_core::model::NodeName;
use egressnat_core::{Digest, Reason, ResolvedPolicy};

use super::condition::Condition;
use super::node_report::PolicyReport;
use super::reason;
use super::sources::Sources;
use crate::event::Severity;

/// What the controller knows of a policy.
#[derive(Debug, Clone)]
pub(crate) struct PolicyFacts<'a> {
    pub(crate) name: &'a str,
    pub(crate) uid: &'a str,
    /// Why the object makes no sense, if it does not.
    pub(crate) invalid: Option<String>,
    /// What it resolves to; none if it is not applied.
    pub(crate) resolved: Option<ResolvedPolicy>,
    /// What planning found about it.
    pub(crate) findings: Vec<(Reason, &'a str)>,
    /// The policy as it is now, and since which step.
    pub(crate) version: Option<(Digest, u64)>,
    /// Whether it may select nothing without that being worth a word.
    pub(crate) is_for_all_pods: bool,
}

/// What the status of a policy should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PolicyStatus {
    pub(crate) egress_ips: Vec<IpAddr>,
    /// The nodes that hold them, each once.
    pub(crate) nodes: Vec<NodeName>,
    /// Pods on nodes that are up.
    pub(crate) selected_pods: usize,
    pub(crate) conditions: Vec<Condition>,
    /// What is worth an event besides the findings: told when it begins to hold.
    pub(crate) told: Vec<(Severity, &'static str, String)>,
}

/// Findings that keep a policy from taking effect because of what it says.
const NOT_ACCEPTED: [Reason; 3] = [
    Reason::IncompletePolicy,
    Reason::InvalidSelector,
    Reason::DuplicateEgressSourceIp,
];

/// Findings that keep it from taking effect because of what it names.
const NOT_RESOLVED: [Reason; 2] = [Reason::UnknownEgressIp, Reason::InvalidGatewayRef];

/// Findings about parts of an applied policy.
const PARTIAL: [Reason; 3] = [
    Reason::InvalidDestination,
    Reason::InternalDestination,
    Reason::NoEgressIpOfFamily,
];

/// How many nodes a message names. It does not say how many there are more: a message that counts is written anew with each of
/// a thousand.
const NAMED: usize = 3;

/// The status of a policy. `holders` says which node holds which floating IP.
pub(crate) fn policy_status(
    facts: &PolicyFacts<'_>,
    holders: &BTreeMap<IpAddr, NodeName>,
    sources: &Sources<'_>,
) -> PolicyStatus {
    let told = sources.told(facts.name);
    let own = |(_, policy): &&(&NodeName, &PolicyReport)| policy.uid == facts.uid;
    let mut status = PolicyStatus {
        selected_pods: told.iter().filter(own).map(|(_, policy)| policy.pods).sum(),
        ..PolicyStatus::default()
    };
    if let Some(ResolvedPolicy::Snat(ips)) = facts.resolved {
        status.egress_ips = ips.iter().collect();
        let nodes: BTreeSet<&NodeName> = ips.iter().filter_map(|ip| holders.get(&ip)).collect();
        status.nodes = nodes.into_iter().cloned().collect();
    }
    status.conditions.push(accepted(facts));
    status.conditions.extend(resolved_refs(facts));
    let programmed = programmed(facts, &status, holders, sources);
    let mut limits = vec![partially_invalid(facts)];
    if facts.resolved.is_some() {
        limits.push(from_nodes(facts, told, Reason::Overlap, reason::OVERLAPPED));
        limits.push(from_nodes(
            facts,
            told,
            Reason::HostNetworkPod,
            reason::PODS_EXCLUDED,
        ));
    }
    if facts.invalid.is_some() {
        let message = status.conditions[0].message.clone();
        status
            .told
            .push((Severity::Warning, reason::INVALID, message));
    }
    match programmed.reason {
        reason::NO_PODS_SELECTED => {
            let message = programmed.message.clone();
            status
                .told
                .push((Severity::Normal, programmed.reason, message));
        }
        reason::NODE_FAILED | reason::PLAN_TOO_LARGE => {
            let message = programmed.message.clone();
            status
                .told
                .push((Severity::Warning, programmed.reason, message));
        }
        _ => {}
    }
    status.conditions.push(programmed);
    for limit in limits.into_iter().flatten() {
        if limit.kind != reason::PARTIALLY_INVALID {
            status
                .told
                .push((Severity::Warning, limit.reason, limit.message.clone()));
        }
        status.conditions.push(limit);
    }
    status
}

fn found<'a>(facts: &'a PolicyFacts<'_>, reasons: &[Reason]) -> Option<&'a (Reason, &'a str)> {
    facts
        .findings
        .iter()
        .find(|(reason, _)| reasons.contains(reason))
}

fn accepted(facts: &PolicyFacts<'_>) -> Condition {
    let condition =
        |is_true, reason, message: &str| Condition::new(reason::ACCEPTED, is_true, reason, message);
    if let Some(message) = &facts.invalid {
        return condition(false, reason::INVALID, message);
    }
    match found(facts, &NOT_ACCEPTED) {
        Some((reason, message)) => condition(false, reason.as_str(), message),
        None => condition(true, reason::ACCEPTED, "the policy makes sense"),
    }
}

/// None where nobody can say what it refers to.
fn resolved_refs(facts: &PolicyFacts<'_>) -> Option<Condition> {
    let condition = |is_true, reason, message: &str| {
        Condition::new(reason::RESOLVED_REFS, is_true, reason, message)
    };
    if facts.invalid.is_some() {
        return None;
    }
    match (facts.resolved, found(facts, &NOT_RESOLVED)) {
        (None, Some((reason, message))) => Some(condition(false, reason.as_str(), message)),
        (None, None) => None,
        (Some(ResolvedPolicy::Keep), _) => Some(condition(
            true,
            reason::RESOLVED,
            "the policy needs no gateway",
        )),
        (Some(ResolvedPolicy::Snat(_)), _) => Some(condition(
            true,
            reason::RESOLVED,
            "the gateway has the egress IP",
        )),
    }
}

fn partially_invalid(facts: &PolicyFacts<'_>) -> Option<Condition> {
    let found: Vec<&(Reason, &str)> = facts
        .findings
        .iter()
        .filter(|(reason, _)| PARTIAL.contains(reason))
        .collect();
    let messages: Vec<&str> = found.iter().map(|(_, message)| *message).collect();
    let (first, _) = found.first()?;
    Some(Condition::new(
        reason::PARTIALLY_INVALID,
        true,
        first.as_str(),
        messages.join("; "),
    ))
}

/// Whether the kernels have it. The first of these that holds:
/// 1. the policy is not applied;
/// 2. no node holds an egress IP of it;
/// 3. a source node tried and failed;
/// 4. the holder's kernel does not have the egress IP yet;
/// 5. a source node has not told yet;
/// 6. they have it.
fn programmed(
    facts: &PolicyFacts<'_>,
    status: &PolicyStatus,
    holders: &BTreeMap<IpAddr, NodeName>,
    sources: &Sources<'_>,
) -> Condition {
    let condition = |is_true, reason, message: String| {
        Condition::new(reason::PROGRAMMED, is_true, reason, message)
    };
    if facts.resolved.is_none() {
        let message = "the policy is not applied: see its other conditions";
        return condition(false, reason::NOT_APPLIED, message.into());
    }
    if let Some((reason, message)) = found(facts, &[Reason::UnknownEgressIp]) {
        return condition(false, reason.as_str(), (*message).into());
    }
    if let Some((reason, message)) = failure(facts, sources) {
        return condition(false, reason, message);
    }
    if sources.is_empty() {
        let message = "no agent has told anything yet: run egressnat-agent on the nodes";
        return condition(false, reason::PENDING, message.into());
    }
    for address in &status.egress_ips {
        let Some(holder) = holders.get(address) else {
            continue;
        };
        let has_it = |report: &super::NodeReport| report.floating_ips.contains(address);
        if !sources.report(holder).is_some_and(has_it) {
            let message =
                format!("node {holder} has not told yet that its kernel has egress IP {address}");
            return condition(false, reason::PENDING, message);
        }
    }
    let pending = pending(facts, sources);
    if !pending.is_empty() {
        let message = format!("not told yet by {}", nodes(&pending));
        return condition(false, reason::PENDING, message);
    }
    if status.selected_pods == 0 && !facts.is_for_all_pods {
        let message = "no pod is selected now: if that is not meant, compare namespaceSelector and podSelector with the labels \
                       of namespaces and pods; a rule needs both";
        return condition(true, reason::NO_PODS_SELECTED, message.into());
    }
    let message = "the kernels of all nodes with selected pods and of the gateway nodes have it";
    condition(true, reason::PROGRAMMED, message.into())
}

/// Whether a node tells of the policy as it is now.
fn is_current(facts: &PolicyFacts<'_>, policy: &PolicyReport) -> bool {
    let now = facts.version.map(|(digest, _)| digest);
    now.is_some_and(|now| policy.digest.parse() == Ok(now))
}

/// The nodes that have not told of the policy as it is now, in order.
fn pending<'a>(facts: &PolicyFacts<'_>, sources: &Sources<'a>) -> BTreeSet<&'a NodeName> {
    let Some((_, since)) = facts.version else {
        return BTreeSet::new();
    };
    let mut current: BTreeSet<&NodeName> = BTreeSet::new();
    let mut outdated: BTreeSet<&'a NodeName> = BTreeSet::new();
    for &(node, policy) in sources.told(facts.name) {
        if is_current(facts, policy) {
            current.insert(node);
        } else {
            outdated.insert(node);
        }
    }
    let behind = sources.behind(since).chain(sources.cut_short());
    let mut pending: BTreeSet<&NodeName> = behind.filter(|node| !current.contains(node)).collect();
    pending.append(&mut outdated);
    pending
}

/// What nodes could not do, of the policy as it is now.
fn failure(facts: &PolicyFacts<'_>, sources: &Sources<'_>) -> Option<(&'static str, String)> {
    let told = sources.told(facts.name).iter();
    let failed: Vec<&(&NodeName, &PolicyReport)> = told
        .filter(|(_, policy)| is_current(facts, policy) && !policy.programmed)
        .collect();
    let is_too_large = |(_, policy): &(&NodeName, &PolicyReport)| {
        policy
            .problems
            .iter()
            .any(|problem| problem.reason == reason::PLAN_TOO_LARGE)
    };
    let why = |policy: &PolicyReport| {
        let told = [reason::PLAN_TOO_LARGE, reason::NODE_FAILED];
        let mut problems = policy.problems.iter();
        let problem = problems.find(|problem| told.contains(&problem.reason.as_str()));
        problem
            .map_or("no reason is told", |problem| problem.message.as_str())
            .to_owned()
    };
    let reason = match failed.first()? {
        first if is_too_large(first) => reason::PLAN_TOO_LARGE,
        _ => reason::NODE_FAILED,
    };
    let texts = failed
        .iter()
        .map(|(node, policy)| format!("node {node}: {}", why(policy)));
    Some((reason, some_of(texts)))
}

/// A condition that holds while any node tells a problem of some reason; the messages of different nodes beside each other.
fn from_nodes(
    facts: &PolicyFacts<'_>,
    told: &[(&NodeName, &PolicyReport)],
    reason: Reason,
    kind: &'static str,
) -> Option<Condition> {
    let current = told.iter().filter(|(_, policy)| is_current(facts, policy));
    let problems = current.flat_map(|(_, policy)| &policy.problems);
    let messages: BTreeSet<&str> = problems
        .filter(|problem| problem.reason == reason.as_str())
        .map(|problem| problem.message.as_str())
        .collect();
    if messages.is_empty() {
        return None;
    }
    let message = some_of(messages.into_iter().map(str::to_owned));
    Some(Condition::new(kind, true, reason.as_str(), message))
}

fn nodes(pending: &BTreeSet<&NodeName>) -> String {
    let names: Vec<&str> = pending.iter().map(|node| node.as_str()).collect();
    match names.as_slice() {
        [] => "anybody".into(),
        [name] => format!("node {name}"),
        names if names.len() <= NAMED => format!("nodes {}", names.join(", ")),
        _ => format!("more than {NAMED} nodes"),
    }
}

/// The first few, and whether there are more.
fn some_of(mut texts: impl Iterator<Item = String>) -> String {
    let shown: Vec<String> = texts.by_ref().take(NAMED).collect();
    let more = if texts.next().is_some() {
        "; and more"
    } else {
        ""
    };
    format!("{}{more}", shown.join("; "))
}

#[cfg(test)]
mod tests;
