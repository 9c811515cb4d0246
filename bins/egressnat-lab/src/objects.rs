//! The objects of a lab: in a directory, or in an API server.

use anyhow::{Context, Result};
use egressnat_kube::{Applied, DirectoryStore, Kind, Object, ObjectKey};
use serde_json::{Value, json};

mod api;

pub(crate) use api::ApiObjects;

/// The objects of a lab, wherever they are, for who may do everything with them.
#[derive(Clone)]
pub struct Objects(Place);

#[derive(Clone)]
enum Place {
    Directory(DirectoryStore),
    Api(ApiObjects),
}

impl From<DirectoryStore> for Objects {
    fn from(store: DirectoryStore) -> Self {
        Self(Place::Directory(store))
    }
}

impl From<ApiObjects> for Objects {
    fn from(api: ApiObjects) -> Self {
        Self(Place::Api(api))
    }
}

impl Objects {
    /// All objects of a kind, by namespace and name.
    ///
    /// # Errors
    ///
    /// They cannot be read.
    pub fn list(&self, kind: Kind) -> Result<Vec<Object>> {
        match &self.0 {
            Place::Directory(store) => Ok(store.list(kind)?),
            Place::Api(api) => api.list(kind),
        }
    }

    /// One object.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn get(&self, key: &ObjectKey) -> Result<Option<Object>> {
        match &self.0 {
            Place::Directory(store) => Ok(store.get(key)?),
            Place::Api(api) => api.get(key),
        }
    }

    /// Deletes an object; a namespace with what is in it. Returns whether there was one.
    ///
    /// # Errors
    ///
    /// It cannot be deleted.
    pub fn delete(&self, key: &ObjectKey) -> Result<bool> {
        match &self.0 {
            Place::Directory(store) => Ok(store.delete(key)?),
            Place::Api(api) => api.delete(key),
        }
    }

    /// Makes an object what its manifest says, but for its status.
    pub(crate) fn apply(&self, object: Object) -> Result<Applied> {
        match &self.0 {
            Place::Directory(store) => Ok(store.apply(object)?),
            Place::Api(api) => api.apply(object),
        }
    }

    /// Sets fields of an object's status.
    pub(crate) fn set_status(&self, key: &ObjectKey, status: &Value) -> Result<()> {
        match &self.0 {
            Place::Directory(store) => {
                let mut object = existing(store, key)?;
                // As somebody who just read the object: nobody else writes it.
                if let Some(metadata) = object.value_mut()["metadata"].as_object_mut() {
                    metadata.remove("resourceVersion");
                }
                for (field, value) in status.as_object().into_iter().flatten() {
                    object.value_mut()["status"][field] = value.clone();
                }
                store.set_status(object)?;
                Ok(())
            }
            Place::Api(api) => api.set_status(key, status),
        }
    }

    /// Gives a node its pod range.
    pub(crate) fn set_pod_range(&self, key: &ObjectKey, range: &str) -> Result<()> {
        match &self.0 {
            Place::Directory(store) => {
                let mut object = existing(store, key)?;
                object.value_mut()["spec"]["podCIDR"] = json!(range);
                store.apply(object)?;
                Ok(())
            }
            Place::Api(api) => api.set_pod_range(key, range),
        }
    }

    /// Puts a pod on a node, as a scheduler does.
    pub(crate) fn bind(&self, pod: &ObjectKey, node: &str) -> Result<()> {
        match &self.0 {
            Place::Directory(store) => {
                let mut object = existing(store, pod)?;
                object.value_mut()["spec"]["nodeName"] = json!(node);
                store.apply(object)?;
                Ok(())
            }
            Place::Api(api) => api.bind(pod, node),
        }
    }

    /// Does what kubelets and controllers do when somebody deleted a pod or a namespace, and of which there are none here.
    pub(crate) fn finish_deletions(&self) -> Result<()> {
        match &self.0 {
            // Gone at once.
            Place::Directory(_) => Ok(()),
            Place::Api(api) => api.finish_deletions(),
        }
    }
}

fn existing(store: &DirectoryStore, key: &ObjectKey) -> Result<Object> {
    store
        .get(key)?
        .with_context(|| format!("{key} is gone again"))
}
