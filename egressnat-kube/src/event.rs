//! Kubernetes events: one object per fact, counted up when the fact comes back.

use std::collections::BTreeSet;

use egressnat_core::{Finding, Subject};
use serde_json::json;

use crate::kind::Kind;
use crate::object::{Object, ObjectKey, fnv1a64};
use crate::resource::object_key;
use crate::store::{ObjectStore, StoreError};

/// Who writes them, in `source.component`.
const COMPONENT: &str = "egressnat-controller";

/// Something worth an event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fact {
    pub(crate) about: ObjectKey,
    /// Which of the objects that had this key one after another; `kubectl describe` asks for it.
    pub(crate) uid: Option<String>,
    pub(crate) severity: Severity,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) sameness: Sameness,
}

/// What makes two facts about one object the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sameness {
    /// Reason and message.
    Message,
    /// The reason alone: the message names what comes and goes while the fact stays, such as pods.
    Reason,
}

/// What tells facts apart.
type Identity = (ObjectKey, Option<String>, &'static str, Option<String>);

/// The types of Kubernetes events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    Normal,
    Warning,
}

impl From<&Finding> for Fact {
    fn from(finding: &Finding) -> Self {
        let about = match &finding.subject {
            Subject::Gateway(key) => object_key(key),
            Subject::Policy(name) => ObjectKey::cluster(Kind::EgressNatPolicy, name.as_str()),
            Subject::Node(name) => ObjectKey::cluster(Kind::Node, name.as_str()),
            Subject::Pod(key) => {
                ObjectKey::namespaced(Kind::Pod, key.namespace.as_str(), key.name.as_str())
            }
        };
        Self {
            about,
            uid: None,
            severity: Severity::Warning,
            reason: finding.reason.as_str(),
            message: finding.message.clone(),
            sameness: Sameness::Message,
        }
    }
}

impl Fact {
    fn identity(&self) -> Identity {
        let message = (self.sameness == Sameness::Message).then(|| self.message.clone());
        (self.about.clone(), self.uid.clone(), self.reason, message)
    }

    /// Named after the fact, so that a controller that starts anew finds the event it wrote before.
    fn key(&self) -> ObjectKey {
        let message = match self.sameness {
            Sameness::Message => self.message.as_str(),
            Sameness::Reason => "",
        };
        let parts = [self.reason, self.about.kind.as_str(), message];
        let hash = fnv1a64(parts.into_iter().flat_map(str::bytes));
        let namespace = self
            .about
            .namespace
            .clone()
            .unwrap_or_else(|| "default".to_owned());
        ObjectKey::namespaced(
            Kind::Event,
            namespace,
            format!("{}.{hash:016x}", self.about.name),
        )
    }

    fn event(&self) -> Object {
        let now = jiff::Timestamp::now()
            .round(jiff::Unit::Second)
            .unwrap_or_default()
            .to_string();
        Object::new(
            &self.key(),
            json!({
                "involvedObject": {
                    "apiVersion": self.about.kind.api_versions()[0],
                    "kind": self.about.kind.as_str(),
                    "namespace": self.about.namespace,
                    "name": self.about.name,
                    "uid": self.uid,
                },
                "type": match self.severity { Severity::Normal => "Normal", Severity::Warning => "Warning" },
                "reason": self.reason,
                "message": self.message,
                "source": { "component": COMPONENT },
                "count": 1,
                "firstTimestamp": now,
                "lastTimestamp": now,
            }),
        )
    }
}

/// The facts that hold now, so that each is told once when it begins.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    holding: BTreeSet<Identity>,
    is_started: bool,
}

impl Recorder {
    /// Tells the facts that began since the last time.
    pub(crate) async fn holding<S: ObjectStore>(
        &mut self,
        store: &S,
        facts: BTreeSet<Fact>,
    ) -> Result<(), StoreError> {
        let now: BTreeSet<Identity> = facts.iter().map(Fact::identity).collect();
        self.holding.retain(|fact| now.contains(fact));
        for fact in facts {
            let identity = fact.identity();
            if self.holding.contains(&identity) {
                continue;
            }
            // What holds at the start may have been told by a controller before us.
            let if_known = if self.is_started {
                IfKnown::CountUp
            } else {
                IfKnown::Leave
            };
            record(store, &fact, if_known).await?;
            self.holding.insert(identity);
        }
        self.is_started = true;
        Ok(())
    }

    /// Tells something that happened.
    pub(crate) async fn happened<S: ObjectStore>(
        &self,
        store: &S,
        fact: &Fact,
    ) -> Result<(), StoreError> {
        record(store, fact, IfKnown::CountUp).await
    }
}

#[derive(Clone, Copy)]
enum IfKnown {
    CountUp,
    Leave,
}

async fn record<S: ObjectStore>(
    store: &S,
    fact: &Fact,
    if_known: IfKnown,
) -> Result<(), StoreError> {
    match write(store, fact, if_known).await {
        // In a namespace that is on its way out, say. It would be refused the next time, too.
        Err(error @ StoreError::Refused { .. }) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(
                error,
                reason = fact.reason,
                message = fact.message,
                "an event is not told"
            );
            Ok(())
        }
        written => written,
    }
}

async fn write<S: ObjectStore>(
    store: &S,
    fact: &Fact,
    if_known: IfKnown,
) -> Result<(), StoreError> {
    let event = fact.event();
    match (store.read(event.key()).await?, if_known) {
        (None, _) => {
            tracing::info!(object = %fact.about, reason = fact.reason, message = fact.message, "event");
            store.create(event).await.map(drop)
        }
        (Some(_), IfKnown::Leave) => Ok(()),
        (Some(mut known), IfKnown::CountUp) => {
            tracing::info!(object = %fact.about, reason = fact.reason, message = fact.message, "event again");
            let count = known.at("/count").as_u64().unwrap_or(1) + 1;
            let last = event.at("/lastTimestamp").clone();
            known.value_mut()["count"] = json!(count);
            known.value_mut()["lastTimestamp"] = last;
            known.value_mut()["message"] = event.at("/message").clone();
            known.value_mut()["involvedObject"] = event.at("/involvedObject").clone();
            store.update(known).await.map(drop)
        }
    }
}
