//! What the controller tells in status: gathered from the index for `crate::status`, which computes it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use egressnat_core::model::{GatewayKey, Health, NodeName, PolicyName, Snapshot};
use egressnat_core::ownership::GrantRecord;
use egressnat_core::{ClusterPlan, Digest, Reason, Subject};
use serde_json::{Map, Value, json};

use super::write::{node_key, uses_anthos};
use crate::event::{Fact, Sameness, Severity};
use crate::field_manager::FieldManager;
use crate::grant::grants_status;
use crate::index::Index;
use crate::kind::Kind;
use crate::object::{Object, ObjectKey};
use crate::resource::gateway_key;
use crate::status::{
    Condition, Confirmations, GatewayFacts, Mark, NodeReport, Participant, PolicyFacts, Sources,
    conditions_are, gateway_conditions, merged, policy_status, reason,
};

/// How long to wait for the reports of other nodes, at least: after an edit all of them come within one renewal of the leases.
const GATHER: Duration = Duration::from_millis(100);

/// Of the time at most one part in so many goes into looking at reports.
const SHARE: u32 = 5;

/// What agents tell of their kernels, and what is made of it.
#[derive(Debug, Default)]
pub(super) struct Telling {
    marks: BTreeMap<NodeName, Mark>,
    confirmations: Confirmations,
    /// Nodes that take part in the last plan.
    participants: BTreeSet<NodeName>,
    due: Option<Instant>,
    /// How long the last run took.
    took: Duration,
}

/// Statuses that differ from what is told, in the order in which to write them, and facts worth an event.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) gateways: Vec<Object>,
    pub(super) nodes: Vec<Object>,
    pub(super) policies: Vec<Object>,
    pub(super) facts: Vec<Fact>,
}

impl Telling {
    /// A lease was seen, with its mark.
    pub(super) fn saw(&mut self, node: &NodeName, mark: Option<Mark>, now: Instant) {
        if let Some(mark) = mark
            && self.marks.get(node) != Some(&mark)
        {
            self.marks.insert(node.clone(), mark);
            self.heard(now);
        }
    }

    /// A lease is gone.
    pub(super) fn gone(&mut self, node: &NodeName) {
        self.marks.remove(node);
    }

    /// An agent told something.
    pub(super) fn heard(&mut self, now: Instant) {
        let at = now + GATHER.max(self.took * SHARE);
        self.due.get_or_insert(at);
    }

    /// When what was told is to be looked at.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether it is time for that, which then is done.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        self.due.take_if(|due| *due <= now).is_some()
    }

    /// A run that began then is over.
    pub(super) fn finished(&mut self, began: Instant) {
        self.took = began.elapsed();
    }

    /// Takes what the policies are now, and what each node has planned with.
    pub(super) fn learn(&mut self, index: &Index, snapshot: &Snapshot, plan: &ClusterPlan) {
        let holders = &plan.assigned.assignment.nodes;
        let is_held = |address: &IpAddr| holders.contains_key(address);
        let meanings = index.meanings(&snapshot.policies, &plan.policies, is_held);
        let all = Digest::of_all(meanings.values().copied());
        let each = meanings
            .iter()
            .map(|(name, meaning)| ((*name).clone(), meaning.digest()));
        self.confirmations.policies_are(all, each);
        let is_up = |name: &NodeName| {
            let node = snapshot.nodes.get(name);
            node.is_some_and(|node| node.health == Health::Up)
        };
        let gateway_nodes = index.gateway_nodes().into_iter();
        self.participants = gateway_nodes
            .filter(|name| is_up(name) && self.marks.contains_key(name))
            .collect();
        for (node, mark) in &self.marks {
            // A mark that came before its report says nothing yet.
            let has_report = |report: &NodeReport| report.revision == mark.revision;
            if index.report(node).is_some_and(has_report) {
                self.confirmations.node_has(node, mark.policies);
            }
        }
        let marks = &self.marks;
        self.confirmations
            .retain_nodes(|node| marks.contains_key(node));
    }

    /// What the status of every object should be, where that is not what it is.
    /// `grants` are what stands behind the assignment of the plan.
    pub(super) fn wanted(
        &self,
        index: &Index,
        snapshot: &Snapshot,
        plan: &ClusterPlan,
        grants: &BTreeMap<IpAddr, GrantRecord>,
    ) -> Wanted {
        let nothing = NodeReport::default();
        let participants = self.participants.iter().map(|name| Participant {
            name,
            report: index.report(name).unwrap_or(&nothing),
            step: self.confirmations.step_of(name),
        });
        let sources: Sources<'_> = participants.collect();
        let mut telling = Run {
            index,
            snapshot,
            plan,
            grants,
            sources,
            now: now(),
            wanted: Wanted::default(),
        };
        telling.gateways();
        telling.nodes();
        telling.policies(&self.confirmations);
        telling.node_problems();
        telling.wanted
    }
}

/// Now, as conditions have it.
fn now() -> String {
    let now = jiff::Timestamp::now().round(jiff::Unit::Second);
    now.unwrap_or_default().to_string()
}

/// One run over all objects.
struct Run<'a> {
    index: &'a Index,
    snapshot: &'a Snapshot,
    plan: &'a ClusterPlan,
    grants: &'a BTreeMap<IpAddr, GrantRecord>,
    sources: Sources<'a>,
    now: String,
    wanted: Wanted,
}

/// The status that an object should have besides its conditions.
type Fields = Map<String, Value>;

fn fields(fields: Value) -> Fields {
    match fields {
        Value::Object(fields) => fields,
        _ => Fields::new(),
    }
}

impl Run<'_> {
    /// The object with the status that it should have; none if it has it.
    fn differing(
        &self,
        known: &Object,
        mut fields: Fields,
        conditions: &[Condition],
        ours: &[&str],
    ) -> Option<Object> {
        let told = known.at("/status");
        let generation = known.generation();
        let owned = FieldManager::Controller.status_fields(known.kind()).iter();
        let mut plain = owned.filter(|field| **field != "conditions");
        let are_told = plain.all(|field| told.get(*field) == fields.get(*field));
        if are_told && conditions_are(&told["conditions"], conditions, ours, generation) {
            return None;
        }
        if !conditions.is_empty() {
            let conditions = merged(&told["conditions"], conditions, generation, &self.now);
            fields.insert("conditions".to_owned(), conditions);
        }
        let mut object = Object::new(known.key(), json!({ "status": fields }));
        if let Some(uid) = known.uid() {
            object.value_mut()["metadata"]["uid"] = json!(uid);
        }
        Some(object)
    }

    /// The seeds' own shape, `nodes: {node: Up|Down}` and `floatingIPs: {ip: node}`, and conditions; of the groups in `kube-system`
    /// and of those in the namespaces of clusters, which are told what their copies are told (E7).
    fn gateways(&mut self) {
        let nodes: BTreeMap<String, String> = self
            .index
            .gateway_nodes()
            .iter()
            .filter_map(|name| {
                let health = self.snapshot.nodes.get(name)?.health;
                Some((name.to_string(), health.to_string()))
            })
            .collect();
        let mut findings: BTreeMap<&GatewayKey, Vec<(Reason, &str)>> = BTreeMap::new();
        for finding in &self.plan.findings {
            if let Subject::Gateway(key) = &finding.subject {
                let found = findings.entry(key).or_default();
                found.push((finding.reason, &finding.message));
            }
        }
        let effective = &self.plan.assigned.gateways;
        let mut written = Vec::new();
        for kind in [Kind::NetworkGatewayGroup, Kind::AnthosNetworkGateway] {
            for object in self.index.objects(kind) {
                let Some(own) = gateway_key(object.key()) else {
                    continue;
                };
                // The key in kube-system under which it is effective, if it is.
                let place = effective.gateways.iter().find(|(key, gateway)| {
                    let from = gateway.mirror_of.as_ref().unwrap_or(&key.namespace);
                    **key == own
                        || (key.kind == own.kind && key.name == own.name && *from == own.namespace)
                });
                let place = place.map(|(key, _)| key);
                let mut facts = self.gateway_facts(place);
                let told = place.into_iter().chain([&own]).collect::<BTreeSet<_>>();
                let told = told.into_iter().filter_map(|key| findings.get(key));
                facts.findings = told.flatten().copied().collect();
                let owned = facts.owned.iter();
                let granted = owned.filter_map(|ip| self.grants.get_key_value(ip));
                let (holders, grants) = grants_status(granted);
                let mut status = fields(json!({ "nodes": nodes, "floatingIPs": holders }));
                let is_effective = place == Some(&own);
                if is_effective {
                    status.insert("grants".to_owned(), grants);
                }
                let conditions = gateway_conditions(&facts);
                let mut wanted = self.differing(object, status, &conditions, &reason::OF_GATEWAYS);
                // A grant goes over what it was decided on, and nothing else.
                if let (true, Some(wanted), Some(version)) =
                    (is_effective, &mut wanted, object.resource_version())
                {
                    wanted.value_mut()["metadata"]["resourceVersion"] = json!(version);
                }
                written.extend(wanted);
            }
            for (object, error) in self.index.invalid(kind) {
                let message = format!("{}: {}", error.field, error.message);
                let facts = GatewayFacts {
                    invalid: Some(message.clone()),
                    ..GatewayFacts::default()
                };
                let status = json!({ "nodes": nodes, "floatingIPs": {} });
                let conditions = gateway_conditions(&facts);
                written.extend(self.differing(
                    object,
                    fields(status),
                    &conditions,
                    &reason::OF_GATEWAYS,
                ));
                let key = object.key();
                let fact = fact(key, Severity::Warning, reason::INVALID, message);
                self.wanted.facts.push(fact);
            }
        }
        self.wanted.gateways = written;
    }

    fn gateway_facts(&self, place: Option<&GatewayKey>) -> GatewayFacts<'_> {
        let assigned = &self.plan.assigned;
        let mut facts = GatewayFacts::default();
        let owners = assigned.gateways.owners.iter();
        for (address, _) in owners.filter(|(_, owner)| Some(*owner) == place) {
            facts.owned.push(*address);
            if let Some(node) = assigned.assignment.nodes.get(address) {
                let report = self.sources.report(node);
                let is_there = report.is_some_and(|report| report.floating_ips.contains(address));
                facts.holders.insert(*address, node);
                facts.is_programmed.insert(*address, is_there);
            }
        }
        facts
    }

    /// One object per node with its health and its floating IPs (E2), of the older kind too where that is in use.
    fn nodes(&mut self) {
        let assigned = &self.plan.assigned;
        let mut written = Vec::new();
        for name in self.index.gateway_nodes() {
            let Some(node) = self.snapshot.nodes.get(&name) else {
                continue;
            };
            let held = assigned.assignment.held_by(&name);
            let held: BTreeSet<String> = held.map(|address| address.to_string()).collect();
            let status = json!({ "health": node.health.to_string(), "floatingIPs": held });
            let anthos = uses_anthos(assigned).then_some(Kind::AnthosNetworkGatewayNode);
            for kind in anthos.into_iter().chain([Kind::NetworkGatewayNode]) {
                let known = self.index.object(&node_key(kind, &name));
                let wanted =
                    known.and_then(|known| self.differing(known, fields(status.clone()), &[], &[]));
                written.extend(wanted);
            }
        }
        self.wanted.nodes = written;
    }

    fn policies(&mut self, confirmations: &Confirmations) {
        let mut findings: BTreeMap<&PolicyName, Vec<(Reason, &str)>> = BTreeMap::new();
        for finding in &self.plan.findings {
            if let Subject::Policy(name) = &finding.subject {
                let found = findings.entry(name).or_default();
                found.push((finding.reason, &finding.message));
            }
        }
        let invalid = self.index.invalid(Kind::EgressNatPolicy);
        let invalid = invalid.map(|(object, error)| {
            let message = format!("{}: {}", error.field, error.message);
            (object, Some(message))
        });
        let valid = self.index.objects(Kind::EgressNatPolicy);
        let objects = valid.map(|object| (object, None)).chain(invalid);
        let mut written = Vec::new();
        let mut facts = Vec::new();
        for (object, invalid) in objects {
            let Ok(name) = object.parse_name::<PolicyName>() else {
                continue;
            };
            let policy = self.snapshot.policies.get(&name);
            let about = PolicyFacts {
                name: object.name(),
                uid: object.uid().unwrap_or_default(),
                invalid,
                resolved: self.plan.policies.get(&name).copied(),
                findings: findings.get(&name).cloned().unwrap_or_default(),
                version: confirmations.policy(&name),
                is_for_all_pods: policy.is_some_and(|policy| policy.is_for_all_pods()),
            };
            let holders = &self.plan.assigned.assignment.nodes;
            let status = policy_status(&about, holders, &self.sources);
            let mut told = fields(json!({ "selectedPods": status.selected_pods }));
            if !status.egress_ips.is_empty() {
                told.insert("egressIPs".to_owned(), json!(status.egress_ips));
            }
            if !status.nodes.is_empty() {
                let nodes: Vec<&str> = status.nodes.iter().map(NodeName::as_str).collect();
                told.insert("nodes".to_owned(), json!(nodes));
            }
            for (severity, reason, message) in status.told {
                facts.push(fact(object.key(), severity, reason, message));
            }
            written.extend(self.differing(object, told, &status.conditions, &reason::OF_POLICIES));
        }
        self.wanted.policies = written;
        self.wanted.facts.extend(facts);
    }

    /// What agents tell of their nodes as such.
    fn node_problems(&mut self) {
        let mut facts = Vec::new();
        for name in self.index.gateway_nodes() {
            let Some(report) = self.sources.report(&name) else {
                continue;
            };
            let problems = report.problems.iter();
            for problem in problems.filter(|problem| problem.reason == reason::PLAN_TOO_LARGE) {
                let node = ObjectKey::cluster(Kind::Node, name.as_str());
                let message = problem.message.clone();
                facts.push(fact(
                    &node,
                    Severity::Warning,
                    reason::PLAN_TOO_LARGE,
                    message,
                ));
            }
        }
        self.wanted.facts.extend(facts);
    }
}

/// What is told once, however its message changes while it holds.
fn fact(about: &ObjectKey, severity: Severity, reason: &'static str, message: String) -> Fact {
    Fact {
        about: about.clone(),
        uid: None,
        severity,
        reason,
        message,
        sameness: Sameness::Reason,
    }
}

#[cfg(test)]
mod tests;
