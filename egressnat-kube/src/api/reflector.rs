//! Follows the objects of one kind, through everything that an API server does.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::pin::pin;
use std::time::{Duration, Instant};

use egressnat_core::model::NodeName;
use futures::TryStreamExt;
use kube::Client;
use kube::core::WatchEvent as Told;
use kube::core::params::{ListParams, WatchParams};
use serde_json::Value;
use thiserror::Error;

use super::REQUEST;
use super::joined::Joined;
use super::page::Page;
use super::path::{definition, of_kind};
use super::slim::slim;
use crate::kind::Kind;
use crate::lease::lease_node;
use crate::object::{Object, ObjectKey};
use crate::store::WatchEvent;

/// Objects per page of a list. A page is in memory as text, three times over for a moment, and a pod or a node may be 20 kB of it.
const PAGE: u32 = 100;

/// A watch that is silent for longer may have been lost on the way. The API server sends a bookmark every minute, but not of a kind of
/// which nothing has happened since it started, unless etcd tells it how far it is (3.5 and later).
const SILENCE: Duration = Duration::from_secs(90);

/// How long to wait before the second attempt.
const RETRY: Duration = Duration::from_millis(100);

/// How long to wait at most between attempts.
const RETRY_AT_MOST: Duration = Duration::from_secs(5);

/// A watch that lasted this long was none that fails at once.
const LASTING: Duration = Duration::from_secs(10);

#[derive(Debug, Error)]
enum Failure {
    /// The history since the last event is gone: everything has to be listed again.
    #[error("the API server has forgotten what happened since")]
    Gone,
    #[error(
        "the cluster does not know {kind}: install the definition {definition}, by kubectl apply -f deploy/crds"
    )]
    NotDefined { kind: Kind, definition: String },
    #[error(
        "{kind} may not be watched: kubectl apply -f deploy/rbac.yaml, and run as one of its service accounts: {message}"
    )]
    Forbidden { kind: Kind, message: String },
    #[error("no answer within {REQUEST:?}")]
    Timeout,
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Request(#[from] kube::core::request::Error),
}

impl Failure {
    fn of(kind: Kind, error: kube::Error) -> Self {
        let kube::Error::Api(status) = error else {
            return Failure::Api(error);
        };
        match (status.code, definition(kind)) {
            (410, _) => Failure::Gone,
            (404, Some(definition)) => Failure::NotDefined { kind, definition },
            (403, _) => Failure::Forbidden {
                kind,
                message: status.message,
            },
            _ => Failure::Api(kube::Error::Api(status)),
        }
    }
}

/// Follows one kind for ever.
pub(super) struct Reflector {
    client: Client,
    kind: Kind,
    /// What of the kind is followed; all of it if there is none.
    fields: Option<String>,
    joined: Joined,
    /// Where to go on; none if everything has to be listed.
    version: Option<String>,
    /// The objects that were told, and the fingerprint of each.
    known: HashMap<ObjectKey, u64>,
    /// What is told about a failure, until it is over.
    failing: Option<String>,
}

impl Reflector {
    /// `node` is the only one whose objects are followed, of kinds that are of nodes.
    pub(super) fn new(client: Client, kind: Kind, node: Option<&NodeName>, joined: Joined) -> Self {
        Self {
            client,
            kind,
            fields: node.and_then(|node| field_selector(kind, node)),
            joined,
            version: None,
            known: HashMap::new(),
            failing: None,
        }
    }

    pub(super) async fn run(mut self) {
        let mut wait = RETRY;
        loop {
            let start = Instant::now();
            if let Err(failure) = self.follow().await {
                self.failed(&failure);
            }
            wait = if start.elapsed() >= LASTING {
                RETRY
            } else {
                wait
            };
            tokio::time::sleep(jittered(wait)).await;
            wait = (wait * 2).min(RETRY_AT_MOST);
        }
    }

    fn failed(&mut self, failure: &Failure) {
        if let Failure::Gone = failure {
            self.version = None;
            return;
        }
        let message = match failure {
            Failure::Api(kube::Error::Api(status)) => status.message.clone(),
            failure => chain(failure),
        };
        // The first failure and the last word on it, not every attempt: the wording of a failure may change with each.
        let is_news = self.failing.is_none();
        let is_plain = matches!(
            failure,
            Failure::NotDefined { .. } | Failure::Forbidden { .. }
        );
        if is_news || (is_plain && self.failing.as_ref() != Some(&message)) {
            tracing::error!(kind = %self.kind, message, "cannot be followed; trying again until it can");
            self.failing = Some(message);
        }
        // A kind that is not defined any more has no objects: nothing is missed of it.
        if !matches!(failure, Failure::NotDefined { .. }) {
            self.joined.broke(self.kind);
        }
    }

    fn succeeded(&mut self) {
        if self.failing.take().is_some() {
            tracing::info!(kind = %self.kind, "followed again");
        }
        self.joined.mended(self.kind);
    }

    /// Lists if needed, then watches until the watch ends.
    async fn follow(&mut self) -> Result<(), Failure> {
        let version = match self.version.clone() {
            Some(version) => version,
            None => self.list().await?,
        };
        let params = WatchParams {
            field_selector: self.fields.clone(),
            bookmarks: true,
            ..WatchParams::default()
        };
        let request = of_kind(self.kind).watch(&params, &version)?;
        let kind = self.kind;
        let stream = tokio::time::timeout(REQUEST, self.client.request_events::<Value>(request))
            .await
            .map_err(|_| Failure::Timeout)?
            .map_err(|error| Failure::of(kind, error))?;
        self.succeeded();
        let mut stream = pin!(stream);
        loop {
            let Ok(told) = tokio::time::timeout(SILENCE, stream.try_next()).await else {
                // The next one shows whether there is nothing to tell or nobody to do so.
                return Ok(());
            };
            let told = match told {
                Ok(told) => told,
                Err(error @ kube::Error::Api(_)) => return Err(Failure::of(kind, error)),
                // The connection has gone. Whether that is worth a word shows when there is no other.
                Err(_) => return Ok(()),
            };
            match told {
                None => return Ok(()),
                Some(Told::Added(value) | Told::Modified(value)) => {
                    self.version = version_of(&value).or(self.version.take());
                    if let Some(object) = self.object(slim(kind, value)) {
                        self.saw(object);
                    }
                }
                Some(Told::Deleted(value)) => {
                    self.version = version_of(&value).or(self.version.take());
                    if let Some(object) = self.object(slim(kind, value))
                        && self.known.remove(object.key()).is_some()
                    {
                        self.joined.told(WatchEvent::Deleted(object.key().clone()));
                    }
                }
                Some(Told::Bookmark(bookmark)) => {
                    self.version = Some(bookmark.metadata.resource_version);
                }
                Some(Told::Error(status)) => {
                    return Err(Failure::of(kind, kube::Error::Api(status)));
                }
            }
        }
    }

    /// Lists everything, and tells it page by page: all of it the first time, afterwards what differs.
    async fn list(&mut self) -> Result<String, Failure> {
        let mut gone: HashSet<ObjectKey> = self.known.keys().cloned().collect();
        let mut params = ListParams {
            field_selector: self.fields.clone(),
            limit: Some(PAGE),
            ..ListParams::default()
        };
        let version = loop {
            let page = self.page(&params).await?;
            for item in page.items {
                if let Some(object) = self.object(item) {
                    gone.remove(object.key());
                    self.saw(object);
                }
            }
            if page.metadata.r#continue.is_empty() {
                break page.metadata.resource_version;
            }
            params.continue_token = Some(page.metadata.r#continue);
        };
        for key in gone {
            self.known.remove(&key);
            self.joined.told(WatchEvent::Deleted(key));
        }
        self.joined.listed(self.kind);
        self.version = Some(version.clone());
        Ok(version)
    }

    async fn page(&self, params: &ListParams) -> Result<Page, Failure> {
        let request = of_kind(self.kind).list(params)?;
        let text = tokio::time::timeout(REQUEST, self.client.request_text(request))
            .await
            .map_err(|_| Failure::Timeout)?
            .map_err(|error| Failure::of(self.kind, error))?;
        Page::read(self.kind, &text).map_err(|error| Failure::Api(kube::Error::SerdeError(error)))
    }

    /// The object that a slim document is, if it concerns us.
    fn object(&self, value: Value) -> Option<Object> {
        match Object::from_value(value) {
            // Other programs have leases there, too.
            Ok(object) if self.kind == Kind::Lease => {
                lease_node(object.key()).is_some().then_some(object)
            }
            Ok(object) => Some(object),
            Err(error) => {
                tracing::warn!(%error, "an object of the cluster does not make sense and has no effect");
                None
            }
        }
    }

    /// Tells an object unless it was told just so before.
    fn saw(&mut self, object: Object) {
        let fingerprint = object.fingerprint();
        let known = self.known.insert(object.key().clone(), fingerprint);
        if known != Some(fingerprint) {
            self.joined.told(WatchEvent::Applied(object));
        }
    }
}

/// Which objects of a kind are a node's; none for a kind whose objects are no node's.
fn field_selector(kind: Kind, node: &NodeName) -> Option<String> {
    match kind {
        Kind::Pod => Some(format!("spec.nodeName={node}")),
        Kind::NetworkGatewayNode | Kind::AnthosNetworkGatewayNode => {
            Some(format!("metadata.name={node}"))
        }
        _ => None,
    }
}

fn version_of(value: &Value) -> Option<String> {
    let version = value.pointer("/metadata/resourceVersion")?.as_str()?;
    Some(version.to_owned())
}

/// An error with its causes, each once: some of kube's repeat theirs.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}

/// Between half and all of it, so that the agents of a cluster do not come back all at once.
fn jittered(wait: Duration) -> Duration {
    let part = RandomState::new().build_hasher().finish() % 1_000;
    wait / 2 + wait / 2 * u32::try_from(part).unwrap_or(0) / 1_000
}
