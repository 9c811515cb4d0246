use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use egressnat_kube::{Applied, Kind, Object, ObjectKey};
use http::{Method, Request};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

/// As whom the lab writes.
const MANAGER: &str = "egressnat-lab";

/// What the API server or a controller fills in, and nobody may apply.
const FILLED_IN: [&str; 5] = [
    "creationTimestamp",
    "generation",
    "managedFields",
    "resourceVersion",
    "uid",
];

/// The objects of an API server, whole and by blocking calls. Not the store of the loops: that one keeps what they use.
#[derive(Clone)]
pub(crate) struct ApiObjects {
    client: Client,
    runtime: Arc<Runtime>,
}

impl ApiObjects {
    /// As a kubeconfig says. Nothing is sent yet.
    pub(crate) fn open(kubeconfig: &Path) -> Result<Self> {
        // The client keeps tasks that have to go on between our calls.
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let config = Kubeconfig::read_from(kubeconfig)?;
        let client = runtime.block_on(async {
            let config =
                Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
            anyhow::Ok(Client::try_from(config)?)
        })?;
        Ok(Self {
            client,
            runtime: Arc::new(runtime),
        })
    }

    /// Whether the API server says that it is ready.
    pub(crate) fn is_ready(&self) -> bool {
        let request = Request::get("/readyz").body(Vec::new());
        let Ok(request) = request else { return false };
        self.runtime
            .block_on(self.client.request_text(request))
            .is_ok()
    }

    pub(crate) fn list(&self, kind: Kind) -> Result<Vec<Object>> {
        let version = kind.api_versions()[0];
        let path = path(version, kind, None, None);
        let list = self.ask(Method::GET, &path, "", &Value::Null)?;
        let items = list["items"].as_array().into_iter().flatten();
        items
            .map(|item| {
                let mut item = item.clone();
                item["apiVersion"] = json!(version);
                item["kind"] = json!(kind.as_str());
                Ok(Object::from_value(item)?)
            })
            .collect()
    }

    pub(crate) fn get(&self, key: &ObjectKey) -> Result<Option<Object>> {
        let found = missing_is_none(self.ask(Method::GET, &path_of(key), "", &Value::Null))?;
        Ok(found.map(Object::from_value).transpose()?)
    }

    pub(crate) fn apply(&self, mut object: Object) -> Result<Applied> {
        let key = object.key().clone();
        let version = object.at("/apiVersion").as_str().unwrap_or_default();
        let path = path(version, key.kind, key.namespace.as_deref(), Some(&key.name));
        let before = self.get(&key)?;
        if let Some(document) = object.value_mut().as_object_mut() {
            document.remove("status");
        }
        if let Some(metadata) = object.value_mut()["metadata"].as_object_mut() {
            metadata.retain(|field, _| !FILLED_IN.contains(&field.as_str()));
        }
        let path = format!("{path}?fieldManager={MANAGER}&force=true&fieldValidation=Strict");
        let after = self.ask(Method::PATCH, &path, "apply-patch+yaml", object.value())?;
        Ok(match before {
            None => Applied::Created,
            Some(before)
                if before.at("/metadata/resourceVersion")
                    == &after["metadata"]["resourceVersion"] =>
            {
                Applied::Unchanged
            }
            Some(_) => Applied::Changed,
        })
    }

    pub(crate) fn delete(&self, key: &ObjectKey) -> Result<bool> {
        let path = path_of(key);
        // No kubelet ends a pod here.
        let now = json!({ "gracePeriodSeconds": 0 });
        let deleted = missing_is_none(self.ask(Method::DELETE, &path, "json", &now))?;
        if key.kind == Kind::Namespace && deleted.is_some() {
            self.finish_namespace(key)?;
        }
        Ok(deleted.is_some())
    }

    /// Deletes what a namespace holds and lets it go.
    fn finish_namespace(&self, key: &ObjectKey) -> Result<()> {
        for kind in Kind::ALL.into_iter().filter(|kind| kind.is_namespaced()) {
            for object in self.list(kind)? {
                if object.namespace() == Some(&key.name) {
                    self.delete(object.key())?;
                }
            }
        }
        let empty = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": key.name }, "spec": {} });
        let path = format!("{}/finalize", path_of(key));
        missing_is_none(self.ask(Method::PUT, &path, "json", &empty)).map(drop)
    }

    pub(crate) fn finish_deletions(&self) -> Result<()> {
        for kind in [Kind::Pod, Kind::Namespace] {
            for object in self.list(kind)? {
                if object.at("/metadata/deletionTimestamp").is_string() {
                    self.delete(object.key())?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn set_status(&self, key: &ObjectKey, status: &Value) -> Result<()> {
        let path = format!("{}/status?fieldManager={MANAGER}", path_of(key));
        let patch = json!({ "status": status });
        self.ask(Method::PATCH, &path, "merge-patch+json", &patch)
            .map(drop)
    }

    pub(crate) fn set_pod_range(&self, key: &ObjectKey, range: &str) -> Result<()> {
        let path = format!("{}?fieldManager={MANAGER}", path_of(key));
        let patch = json!({ "spec": { "podCIDR": range, "podCIDRs": [range] } });
        self.ask(Method::PATCH, &path, "merge-patch+json", &patch)
            .map(drop)
    }

    pub(crate) fn bind(&self, pod: &ObjectKey, node: &str) -> Result<()> {
        let path = format!("{}/binding", path_of(pod));
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": { "name": pod.name },
            "target": { "apiVersion": "v1", "kind": "Node", "name": node },
        });
        self.ask(Method::POST, &path, "json", &binding).map(drop)
    }

    /// A token of a service account in `kube-system`, bound to a node as that of a pod on it is, or to nothing.
    pub(crate) fn token(&self, account: &str, node: Option<&Object>) -> Result<String> {
        let path = format!("/api/v1/namespaces/kube-system/serviceaccounts/{account}/token");
        let mut spec = json!({ "audiences": [], "expirationSeconds": 30 * 24 * 3600 });
        if let Some(node) = node {
            spec["boundObjectRef"] = json!({
                "apiVersion": "v1", "kind": "Node", "name": node.name(), "uid": node.at("/metadata/uid"),
            });
        }
        let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec });
        let answer = self.ask(Method::POST, &path, "json", &request)?;
        let token = answer["status"]["token"].as_str();
        Ok(token.context("the answer holds no token")?.to_owned())
    }

    /// Sends a request whose body is of the type `application/FORMAT`.
    fn ask(&self, method: Method, path: &str, format: &str, body: &Value) -> Result<Value> {
        let mut request = Request::builder().method(method.clone()).uri(path);
        let mut bytes = Vec::new();
        if !body.is_null() {
            request = request.header("Content-Type", format!("application/{format}"));
            bytes = serde_json::to_vec(body)?;
        }
        let asked = self.client.request(request.body(bytes)?);
        self.runtime
            .block_on(asked)
            .with_context(|| format!("{method} {path}"))
    }
}

fn missing_is_none(answer: Result<Value>) -> Result<Option<Value>> {
    let is_missing = |error: &anyhow::Error| matches!(error.downcast_ref(), Some(kube::Error::Api(status)) if status.code == 404);
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(anyhow!(error)),
    }
}

fn path_of(key: &ObjectKey) -> String {
    let version = key.kind.api_versions()[0];
    path(version, key.kind, key.namespace.as_deref(), Some(&key.name))
}

fn path(version: &str, kind: Kind, namespace: Option<&str>, name: Option<&str>) -> String {
    let root = if version.contains('/') { "apis" } else { "api" };
    let mut path = format!("/{root}/{version}");
    if let Some(namespace) = namespace {
        path += &format!("/namespaces/{namespace}");
    }
    path += &format!("/{}", kind.plural());
    if let Some(name) = name {
        path += &format!("/{name}");
    }
    path
}
