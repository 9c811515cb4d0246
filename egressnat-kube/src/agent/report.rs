//! What the agent tells of its node's kernel: made from a plan and what applying it came to, written when it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use egressnat_core::model::{NodeName, PolicyName};
use egressnat_core::{Digest, Failure, Planned, PolicyMeaning, Reason, Report, Subject};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::description::{Seen, gateway_node_key};
use crate::field_manager::FieldManager;
use crate::object::{Object, ObjectKey, fingerprint};
use crate::status::reason;
use crate::status::{Mark, NodeReport, POLICIES_AT_MOST, PolicyReport, Problem};
use crate::store::{ObjectStore, StoreError};

/// A pod that starts has an address before it has an interface: so long its failure is not one of its policies.
const STARTING: Duration = Duration::from_secs(5);

/// Two reports are written at least this far apart: pods come in bursts.
const PACE: Duration = Duration::from_secs(1);

/// A report, and the policies that it was planned with.
#[derive(Debug, Clone, PartialEq)]
struct Told {
    report: NodeReport,
    policies: Digest,
}

/// The two ends of what is told, and the mark that follows it: what has been written for all to see. `seen` is the node's
/// description, which the report is a part of.
pub(super) fn channel<S: ObjectStore>(
    store: S,
    node: &NodeName,
    seen: watch::Receiver<Option<Seen>>,
) -> (Reporter, ReportWriter<S>, watch::Receiver<Option<Mark>>) {
    let (sender, receiver) = watch::channel(None);
    let (written, mark) = watch::channel(None);
    let reporter = Reporter {
        sender,
        failing: BTreeMap::new(),
    };
    let writer = ReportWriter {
        store,
        key: gateway_node_key(node),
        told: receiver,
        seen,
        written,
        is_failing: false,
    };
    (reporter, writer, mark)
}

/// Makes reports.
pub(super) struct Reporter {
    sender: watch::Sender<Option<Told>>,
    /// Since when each object has been failing.
    failing: BTreeMap<String, Instant>,
}

impl Reporter {
    /// Tells what a plan has come to. `meanings` are the policies that it was made with.
    pub(super) fn tell(
        &mut self,
        planned: &Planned,
        report: &Report,
        meanings: &BTreeMap<&PolicyName, PolicyMeaning<'_>>,
    ) {
        let now = Instant::now();
        let failures = &report.failures;
        let is_failing = |object: &String| failures.iter().any(|one| one.object == *object);
        self.failing.retain(|object, _| is_failing(object));
        for failure in failures {
            self.failing.entry(failure.object.clone()).or_insert(now);
        }
        let lasts = |failure: &&Failure| {
            let since = self.failing.get(&failure.object);
            pod_of(failure).is_none() || since.is_some_and(|since| now - *since >= STARTING)
        };
        let lasting: Vec<&Failure> = failures.iter().filter(lasts).collect();
        let told = Told {
            report: node_report(planned, &report.floating_ips, &lasting, meanings),
            policies: Digest::of_all(meanings.values().copied()),
        };
        self.sender.send_if_modified(|last| {
            let is_news = last.as_ref() != Some(&told);
            if is_news {
                *last = Some(told);
            }
            is_news
        });
    }
}

/// The pod address that a failure is about, if it is about one.
fn pod_of(failure: &Failure) -> Option<IpAddr> {
    failure.object.strip_prefix("pod ")?.parse().ok()
}

/// Whether a failure is about a floating IP: that the node does not have it is told by its not being listed.
fn is_of_gateway(failure: &Failure) -> bool {
    let objects = ["floating IP ", "address ", "snat to "];
    let object = failure.object.trim_start_matches(['+', '-', ' ']);
    objects
        .iter()
        .any(|of_gateway| object.starts_with(of_gateway))
}

fn node_report(
    planned: &Planned,
    floating_ips: &BTreeSet<IpAddr>,
    failures: &[&Failure],
    meanings: &BTreeMap<&PolicyName, PolicyMeaning<'_>>,
) -> NodeReport {
    let mut problems: BTreeMap<&PolicyName, Vec<Problem>> = planned
        .selected
        .keys()
        .chain(&planned.refused)
        .map(|name| (name, Vec::new()))
        .collect();
    let mut report = NodeReport {
        floating_ips: floating_ips.clone(),
        ..NodeReport::default()
    };
    for finding in &planned.findings {
        let problem = Problem {
            reason: finding.reason.as_str().to_owned(),
            message: finding.message.clone(),
        };
        match &finding.subject {
            Subject::Policy(name) => problems.entry(name).or_default().push(problem),
            Subject::Node(_) => report.problems.push(problem),
            Subject::Gateway(_) | Subject::Pod(_) => {}
        }
    }
    for name in &planned.refused {
        problems.entry(name).or_default().push(Problem {
            reason: Reason::PlanTooLarge.as_str().to_owned(),
            message: "its destinations do not fit in the node's packet path beside those of the other policies: merge CIDRs"
                .to_owned(),
        });
    }
    for failure in failures.iter().filter(|failure| !is_of_gateway(failure)) {
        let concerned: Vec<&PolicyName> = match pod_of(failure) {
            Some(pod) => {
                let set = planned.plan.pods.get(&pod);
                let policies = set.and_then(|set| planned.policies.get(set));
                policies.into_iter().flatten().collect()
            }
            None => planned.selected.keys().collect(),
        };
        for name in concerned {
            let told = problems.entry(name).or_default();
            // One is enough to say that it is not so, and the agent's log has all.
            if told
                .iter()
                .any(|problem| problem.reason == reason::NODE_FAILED)
            {
                continue;
            }
            told.push(Problem {
                reason: reason::NODE_FAILED.to_owned(),
                message: format!("{}: {}", failure.object, failure.message),
            });
        }
    }
    let count = problems.len();
    report.omitted = count.saturating_sub(POLICIES_AT_MOST);
    let policies = problems.into_iter().filter_map(|(name, problems)| {
        let meaning = meanings.get(name)?;
        let fatal = [reason::NODE_FAILED, reason::PLAN_TOO_LARGE];
        let is_fatal = |problem: &Problem| fatal.contains(&problem.reason.as_str());
        Some(PolicyReport {
            name: name.to_string(),
            uid: meaning.uid.to_owned(),
            generation: meaning.generation,
            digest: meaning.digest().to_string(),
            pods: planned.selected.get(name).copied().unwrap_or_default(),
            programmed: !problems.iter().any(is_fatal),
            problems,
        })
    });
    report.policies = policies.take(POLICIES_AT_MOST).collect();
    report.seal()
}

/// Writes reports, in a task of its own: a slow store does not hold the next plan up.
pub(super) struct ReportWriter<S> {
    store: S,
    key: ObjectKey,
    told: watch::Receiver<Option<Told>>,
    seen: watch::Receiver<Option<Seen>>,
    written: watch::Sender<Option<Mark>>,
    is_failing: bool,
}

impl<S: ObjectStore> ReportWriter<S> {
    /// Writes for ever what is told, the newest only, and again what somebody altered or removed.
    pub(super) async fn write(mut self) {
        loop {
            let changed = tokio::select! {
                changed = self.told.changed() => changed,
                changed = self.seen.changed() => changed,
            };
            // The agent ends.
            if changed.is_err() {
                return;
            }
            let Some((mark, report)) = self.wanted() else {
                continue;
            };
            if self.is_seen(&report) {
                self.written.send_replace(Some(mark));
                continue;
            }
            match self.write_once(report).await {
                // After the report, so that whoever sees the mark can know whether it has seen the report.
                Ok(()) => {
                    self.recovered();
                    self.written.send_replace(Some(mark));
                }
                Err(error) => {
                    self.failed(&error);
                    self.told.mark_changed();
                }
            }
            tokio::time::sleep(PACE).await;
        }
    }

    /// What is to be written, and the mark that goes with it.
    fn wanted(&mut self) -> Option<(Mark, Value)> {
        let told = self.told.borrow_and_update();
        let Told { report, policies } = told.as_ref()?;
        let mark = Mark {
            policies: *policies,
            revision: report.revision.clone(),
        };
        Some((mark, json!(report)))
    }

    /// Whether the node's description has this report.
    fn is_seen(&mut self, report: &Value) -> bool {
        let seen = self.seen.borrow_and_update();
        let seen = seen.as_ref();
        seen.is_some_and(|seen| seen.report == fingerprint(report))
    }

    async fn write_once(&self, report: Value) -> Result<(), StoreError> {
        let mut object = Object::new(&self.key, json!({ "status": {} }));
        object.value_mut()["status"]["report"] = report;
        let applied = self.store.apply_status(object, FieldManager::Agent).await?;
        if let Some(whose) = applied.taken_back {
            tracing::warn!(whose, "somebody else had written this node's report");
        }
        Ok(())
    }

    fn recovered(&mut self) {
        if std::mem::take(&mut self.is_failing) {
            tracing::info!("the node's report is written again");
        }
    }

    fn failed(&mut self, error: &StoreError) {
        // The description of the node, which it is a part of, comes with the first renewal.
        if matches!(error, StoreError::NotFound(_)) || self.is_failing {
            return;
        }
        self.is_failing = true;
        let error = error as &dyn std::error::Error;
        tracing::error!(
            error,
            "the node's report cannot be written, without which its policies do not count as programmed; trying again"
        );
    }
}

#[cfg(test)]
mod tests;
