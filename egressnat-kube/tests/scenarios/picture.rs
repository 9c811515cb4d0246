//! What a step comes to, as text.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

use egressnat_core::model::{NodeName, Pod, PodPhase, PolicyName, Protocol, Snapshot};
use egressnat_core::{
    Change, NodePlan, PolicySetId, ResolvedPolicy, explain, explain_address, what_if,
};

use crate::cluster::Outcome;
use crate::order::Question;
use crate::replay::replay;

/// What a scenario has told so far; what is as before is not told again.
#[derive(Debug, Default)]
pub(crate) struct Picture {
    pub(crate) text: String,
    sections: BTreeMap<&'static str, String>,
    /// The policy sets that there were, by id.
    sets: BTreeMap<PolicySetId, String>,
    plans: BTreeMap<NodeName, NodePlan>,
}

impl Picture {
    pub(crate) fn step(
        &mut self,
        heading: &str,
        refused: &[String],
        snapshot: &Snapshot,
        outcome: &Outcome,
    ) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.line(0, format!("== {heading}"));
        if !refused.is_empty() {
            self.section("refused", refused.iter().map(String::as_str));
            self.sections.remove("refused");
        }
        let gateways = &outcome.cluster.assigned.gateways.gateways;
        let in_force = gateways.iter().map(|(key, gateway)| {
            let addresses = list(&gateway.floating_ips);
            match &gateway.mirror_of {
                None => format!("{key}: {addresses}"),
                Some(namespace) => format!("{key}, from {namespace}: {addresses}"),
            }
        });
        self.section("gateway groups in force", in_force);
        let policies = outcome.cluster.policies.iter();
        let applied = policies.map(|(name, resolved)| match resolved {
            ResolvedPolicy::Keep => format!("{name}: keeps the pod IP"),
            ResolvedPolicy::Snat(ips) => {
                format!("{name}: {}", list(&ips.iter().collect::<Vec<_>>()))
            }
        });
        self.section("policies applied", applied);
        self.assignment(outcome);
        let of_nodes = outcome.nodes.iter().flat_map(|(name, planned)| {
            let findings = planned.findings.iter();
            findings.map(move |finding| format!("on {name}: {finding}"))
        });
        let of_cluster = outcome.cluster.findings.iter().map(ToString::to_string);
        self.section("findings", of_cluster.chain(of_nodes));
        self.learn_sets(snapshot);
        self.nodes(snapshot, outcome);
    }

    fn line(&mut self, indent: usize, line: impl Display) {
        let _ = writeln!(self.text, "{:indent$}{line}", "");
    }

    fn section(&mut self, title: &'static str, lines: impl Iterator<Item = impl Display>) {
        let mut text = String::new();
        for line in lines {
            let _ = writeln!(text, "  {line}");
        }
        let before = self.sections.insert(title, text.clone());
        match before {
            Some(before) if before == text => {}
            None if text.is_empty() => {}
            _ if text.is_empty() => self.line(0, format!("{title}: none any more")),
            _ => {
                self.line(0, format!("{title}:"));
                self.text += &text;
            }
        }
    }

    fn assignment(&mut self, outcome: &Outcome) {
        let assigned = &outcome.cluster.assigned;
        let owned = assigned.gateways.owners.keys();
        let lines = owned.map(|address| {
            match (
                assigned.assignment.nodes.get(address),
                assigned.stuck.get(address),
            ) {
                (Some(node), None) => format!("{address} -> {node}"),
                (Some(node), Some(stuck)) => format!("{address} -> {node}, stuck: {stuck:?}"),
                (None, _) => format!("{address} unassigned: {:?}", assigned.unassigned[address]),
            }
        });
        self.section("floating IPs", lines);
    }

    /// The id of a policy set comes from the names of its policies, in order.
    fn learn_sets(&mut self, snapshot: &Snapshot) {
        let names: Vec<&PolicyName> = snapshot.policies.keys().collect();
        assert!(names.len() <= 12, "too many policies to try all sets");
        for chosen in 1u32..1 << names.len() {
            let of_set = (0..names.len()).filter(|index| chosen & (1 << index) != 0);
            let set: Vec<&str> = of_set.map(|index| names[index].as_str()).collect();
            let id = PolicySetId(fnv1a32(set.iter().flat_map(|name| name.bytes().chain([0]))));
            self.sets.insert(id, set.join(" "));
        }
        self.sets.insert(PolicySetId::EMPTY, String::new());
    }

    fn nodes(&mut self, snapshot: &Snapshot, outcome: &Outcome) {
        let before = std::mem::take(&mut self.plans);
        let mut same = Vec::new();
        for (name, planned) in &outcome.nodes {
            let plan = &planned.plan;
            let observed = before.get(name).cloned().unwrap_or_default();
            let changes = replay(name, &observed, plan);
            if changes.is_empty() {
                same.push(name.as_str());
            } else {
                self.line(0, format!("node {name}:"));
                for line in self.lines(snapshot, &changes) {
                    self.line(2, line);
                }
            }
            self.plans.insert(name.clone(), plan.clone());
        }
        for name in before
            .keys()
            .filter(|name| !outcome.nodes.contains_key(*name))
        {
            self.line(0, format!("node {name} is gone"));
        }
        if !same.is_empty() {
            self.line(0, format!("nothing to change on {}", same.join(", ")));
        }
    }

    /// One line for changes that differ in the last word only.
    fn lines(&self, snapshot: &Snapshot, changes: &[Change]) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        let mut start = String::new();
        for change in changes {
            let text = self.change(snapshot, change);
            let (words, last) = text.rsplit_once(' ').unwrap_or(("", &text));
            let is_range = words.ends_with("range") || words.ends_with("peer");
            match lines.last_mut() {
                Some(line) if is_range && start == words => {
                    let _ = write!(line, ", {last}");
                }
                _ => {
                    words.clone_into(&mut start);
                    lines.push(text);
                }
            }
        }
        lines
    }

    /// With the policies of a set for its id, and the pod of an address.
    fn change(&self, snapshot: &Snapshot, change: &Change) -> String {
        let named = |set: &PolicySetId| match self.sets.get(set) {
            Some(names) => format!("{{{names}}}"),
            None => format!("{{{set}}}"),
        };
        match change {
            Change::SetPod(ip, set) => {
                let is_it = |pod: &Pod| pod.ips.contains(ip) && pod.phase == PodPhase::Active;
                let pod = snapshot.pods.iter().find(|(_, pod)| is_it(pod));
                let key = pod.map(|(key, _)| key.to_string()).unwrap_or_default();
                format!("+ pod {ip} {key}: {}", named(set))
            }
            Change::SetDestination(set, prefix, steering) => {
                format!("+ {} to {prefix}: {steering}", named(set))
            }
            Change::RemoveDestination(set, prefix) => format!("- {} to {prefix}", named(set)),
            other => other.to_string(),
        }
    }

    /// The answer to a question, from what is in force now.
    pub(crate) fn answer(&mut self, snapshot: &Snapshot, outcome: &Outcome, question: &Question) {
        let assignment = &outcome.cluster.assigned.assignment;
        let (asked, answer) = match question {
            Question::Explain(pod, destination, protocol) => {
                let answer = explain(snapshot, assignment, pod, *destination, *protocol);
                if let Some(decision) = answer.decision {
                    let pod = &snapshot.pods[pod];
                    let is_of_family =
                        |ip: &&std::net::IpAddr| ip.is_ipv4() == destination.is_ipv4();
                    let source = pod.ips.iter().find(is_of_family).unwrap();
                    let plan = &outcome.nodes[&pod.node].plan;
                    assert_eq!(decision, plan.decide(*source, *destination, *protocol));
                }
                let of = words_of(protocol);
                (
                    format!("explain {pod} {destination}{of}"),
                    answer.to_string(),
                )
            }
            Question::Decide {
                node,
                source,
                destination,
                protocol,
            } => {
                let plan = &outcome.nodes[node].plan;
                let of = words_of(protocol);
                (
                    format!("decide {node} {source} {destination}{of}"),
                    format!("=> {}", plan.decide(*source, *destination, *protocol)),
                )
            }
            Question::Why(address) => (
                format!("why {address}"),
                explain_address(snapshot, *address).to_string(),
            ),
            Question::WhatIf { lost, drained } => {
                let of = |what: &str, nodes: &[NodeName]| -> String {
                    nodes.iter().map(|node| format!(" {what} {node}")).collect()
                };
                let moves = what_if(snapshot, lost, drained);
                let mut answer: String = moves.iter().map(|it| format!("{it}\n")).collect();
                if moves.is_empty() {
                    answer.push_str("nothing moves\n");
                }
                (
                    format!("what-if{}{}", of("lose", lost), of("drain", drained)),
                    answer,
                )
            }
        };
        self.line(0, format!("? {asked}"));
        for line in answer.lines() {
            self.line(2, line);
        }
    }
}

fn words_of(protocol: &Option<Protocol>) -> String {
    let word = protocol.map(|protocol| format!(" {protocol}"));
    word.unwrap_or_default()
}

fn list(items: &[impl Display]) -> String {
    let texts: Vec<String> = items.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

fn fnv1a32(bytes: impl Iterator<Item = u8>) -> u32 {
    bytes.fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}
