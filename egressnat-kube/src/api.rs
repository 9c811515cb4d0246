//! Objects in the Kubernetes API: the store that a cluster has.
//!
//! Behind the feature `api`. Objects stay JSON documents, of which a watch keeps what is used. Why it is kube's client without
//! kube's runtime: `docs/design/0011-watches-of-our-own.md`.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::params::{DeleteParams, GetParams, Patch, PatchParams, PostParams};
use kube::{Client, Config};
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::field_manager::{FieldManager, StatusApplied};
use crate::object::{Object, ObjectKey};
use crate::store::{ObjectStore, StoreError, Watch, WatchRequest};

mod connection;
mod failure;
mod joined;
mod page;
mod path;
mod reflector;
mod slim;

use failure::{refused, unreachable};
use path::of_key;
use slim::slim;

/// How long one request may take. A watch is no request in this sense.
const REQUEST: Duration = Duration::from_secs(5);

/// The API server cannot be spoken to at all.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be used.
    #[error("{path} is no kubeconfig that can be used: name another by --kubeconfig")]
    Kubeconfig {
        /// The file.
        path: String,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is no service account as in a pod.
    #[error(
        "this is no pod of a cluster: name a kubeconfig or a directory of manifests, by --kubeconfig or --manifests"
    )]
    NotInCluster {
        /// What is missing.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No client can be made of the configuration.
    #[error("no client can be made of the configuration of the API server")]
    Client {
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The objects of a Kubernetes API server.
///
/// # Guarantees
///
/// * A watch outlives the API server: it reconnects, ever more slowly up to 5 s, and goes on where it was. Where that is not possible
///   any more (410) it tells the difference. An outage makes no object disappear.
/// * A kind whose definition is missing is asked for again until it is there. What goes wrong is logged once, until it is over.
/// * Nothing waits longer than 5 s for an answer.
/// * Leases and gateway nodes are watched in `kube-system` only.
#[derive(Clone)]
pub struct ApiStore {
    client: Client,
}

impl std::fmt::Debug for ApiStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiStore").finish_non_exhaustive()
    }
}

impl From<Client> for ApiStore {
    fn from(client: Client) -> Self {
        Self { client }
    }
}

impl ApiStore {
    /// A store as a kubeconfig says, in its current context. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// The file cannot be used.
    pub async fn from_kubeconfig(path: &Path) -> Result<Self, ConnectError> {
        let failed = |source| ConnectError::Kubeconfig {
            path: path.display().to_string(),
            source: Box::new(source),
        };
        let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
        Self::from_config(config.map_err(failed)?)
    }

    /// A store as the service account of the pod says that this process runs in. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// It runs in no pod.
    pub fn in_cluster() -> Result<Self, ConnectError> {
        let config = Config::incluster().map_err(|source| ConnectError::NotInCluster {
            source: Box::new(source),
        })?;
        Self::from_config(config)
    }

    fn from_config(config: Config) -> Result<Self, ConnectError> {
        let client = connection::client(config).map_err(|source| ConnectError::Client {
            source: Box::new(source),
        })?;
        Ok(Self { client })
    }

    /// Sends a request and takes the answer for an object.
    async fn ask(
        &self,
        operation: &str,
        key: &ObjectKey,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Value, StoreError> {
        let operation = || format!("{operation} {key}");
        let request = request.map_err(|error| refused(operation(), &error))?;
        answer(operation, key, self.client.request(request)).await
    }
}

async fn answer<T>(
    operation: impl Fn() -> String,
    key: &ObjectKey,
    sent: impl Future<Output = kube::Result<T>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(REQUEST, sent).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(failure::of_key(operation(), key, error)),
        Err(elapsed) => Err(unreachable(operation(), elapsed)),
    }
}

fn body(object: &Object) -> Vec<u8> {
    object.value().to_string().into_bytes()
}

/// What a manager applies: its fields, of the object with this uid, and with this version if it has one.
fn applied(mut object: Object, manager: FieldManager) -> Object {
    let mut document = Object::new(object.key(), json!({}));
    for field in ["uid", "resourceVersion"] {
        if let Some(value) = object.at("/metadata").get(field) {
            document.value_mut()["metadata"][field] = value.clone();
        }
    }
    let fields = manager.status_fields(object.kind()).iter();
    // Moved, not copied: the report of a node with many policies is large.
    let status: Map<String, Value> = fields
        .filter_map(|field| {
            let value = object.value_mut().get_mut("status")?.get_mut(*field)?;
            Some(((*field).to_owned(), value.take()))
        })
        .collect();
    document.value_mut()["status"] = Value::Object(status);
    document
}

/// Whether somebody else owns a field and has another value there.
fn is_field_conflict(status: &kube::core::Status) -> bool {
    let details = status.details.as_ref();
    let mut causes = details.into_iter().flat_map(|details| &details.causes);
    status.code == 409 && causes.any(|cause| cause.reason == "FieldManagerConflict")
}

/// The answer as an object in its slim form.
fn taken(key: &ObjectKey, value: Value) -> Result<Object, StoreError> {
    Ok(Object::from_value(slim(key.kind, value))?)
}

impl ObjectStore for ApiStore {
    fn watch(&self, request: &WatchRequest) -> Result<Watch, StoreError> {
        Ok(joined::start(&self.client, request))
    }

    async fn read(&self, key: &ObjectKey) -> Result<Option<Object>, StoreError> {
        let request = of_key(key).get(&key.name, &GetParams::default());
        match self.ask("read", key, request).await {
            Ok(value) => taken(key, value).map(Some),
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn create(&self, object: Object) -> Result<Object, StoreError> {
        let key = object.key();
        let request = of_key(key).create(&PostParams::default(), body(&object));
        match self.ask("create", key, request).await {
            Ok(value) => taken(key, value),
            // What is missing is not the object.
            Err(StoreError::NotFound(_)) => Err(refused(
                format!("create {key}"),
                &"the cluster does not know the kind, or has no such namespace: kubectl apply -f deploy/crds",
            )),
            Err(error) => Err(error),
        }
    }

    async fn update(&self, object: Object) -> Result<Object, StoreError> {
        let key = object.key();
        let request = of_key(key).replace(&key.name, &PostParams::default(), body(&object));
        taken(key, self.ask("change", key, request).await?)
    }

    async fn update_status(&self, object: Object) -> Result<Object, StoreError> {
        let key = object.key();
        let request = of_key(key).replace_subresource(
            "status",
            &key.name,
            &PostParams::default(),
            body(&object),
        );
        taken(key, self.ask("change the status of", key, request).await?)
    }

    async fn apply_status(
        &self,
        object: Object,
        manager: FieldManager,
    ) -> Result<StatusApplied, StoreError> {
        let key = &object.key().clone();
        // A tenth of the document, which so is not in memory beside the answer.
        let text = body(&applied(object, manager));
        let operation = || format!("change the status of {key}");
        let patch = async |parameters: PatchParams| {
            let request = of_key(key)
                .patch_subresource("status", &key.name, &parameters, &Patch::Apply(()))
                .map_err(|error| refused(operation(), &error))?
                .map(|_| text.clone());
            let sent = self.client.request::<Value>(request);
            match tokio::time::timeout(REQUEST, sent).await {
                Ok(Ok(value)) => Ok(Ok(value)),
                Ok(Err(kube::Error::Api(status))) if is_field_conflict(&status) => {
                    Ok(Err(status.message.clone()))
                }
                Ok(Err(error)) => Err(failure::of_key(operation(), key, error)),
                Err(elapsed) => Err(unreachable(operation(), elapsed)),
            }
        };
        let parameters = PatchParams::apply(manager.as_str());
        // Not by force at once, for the sake of what the server then says.
        let (value, taken_back) = match patch(parameters.clone()).await? {
            Ok(value) => (value, None),
            Err(whose) => match patch(parameters.force()).await? {
                Ok(value) => (value, Some(whose)),
                Err(_) => return Err(StoreError::Conflict(key.clone())),
            },
        };
        Ok(StatusApplied {
            object: taken(key, value)?,
            taken_back,
        })
    }

    async fn remove(&self, key: &ObjectKey) -> Result<bool, StoreError> {
        let request = of_key(key).delete(&key.name, &DeleteParams::default());
        match self.ask("remove", key, request).await {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
