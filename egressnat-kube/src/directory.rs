//! Objects in a directory of YAML files: the store that needs no cluster.
//!
//! The store writes each object to a file of its own, `<plural>/<namespace>/<name>.yaml`, and its status beside it below
//! `.status/`, so that who writes the one never collides with who writes the other. Files that people put there, of any
//! name and with any number of documents, are objects too; the store never changes those.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::fcntl::{Flock, FlockArg};
use serde_json::{Map, Value, json};

use crate::field_manager::{FieldManager, StatusApplied};
use crate::kind::Kind;
use crate::manifest::ManifestError;
use crate::object::{Object, ObjectKey, fnv1a64};
use crate::resource;
use crate::store::{ObjectStore, StoreError, Watch, WatchRequest};

mod scan;
mod watch;

use scan::Scan;

/// What [`DirectoryStore::apply`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The object is new.
    Created,
    /// The object has changed.
    Changed,
    /// The object was like that already.
    Unchanged,
}

/// A directory of objects, shared by any number of processes.
///
/// # Guarantees
///
/// Writes are atomic (a rename) and one at a time (a lock file that the kernel releases when its process dies), so that
/// a writer may be killed at any moment.
#[derive(Debug, Clone)]
pub struct DirectoryStore {
    directory: PathBuf,
    scan: Arc<Mutex<Scan>>,
}

/// Kinds whose status is a part of the object like any other.
fn has_status(kind: Kind) -> bool {
    !matches!(kind, Kind::Lease | Kind::Event | Kind::Namespace)
}

fn failed(operation: impl Into<String>) -> impl FnOnce(io::Error) -> StoreError {
    let operation = operation.into();
    |source| StoreError::Io { operation, source }
}

impl DirectoryStore {
    /// Opens a directory, and makes it if it is not there.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let directory = directory.into();
        fs::create_dir_all(&directory).map_err(failed(format!("make {}", directory.display())))?;
        Ok(Self {
            directory,
            scan: Arc::default(),
        })
    }

    /// Where the objects are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// All valid objects of a kind, by namespace and name.
    ///
    /// # Errors
    ///
    /// The directory cannot be read.
    pub fn list(&self, kind: Kind) -> Result<Vec<Object>, StoreError> {
        let objects = self.objects();
        Ok(objects
            .into_values()
            .filter(|object| object.kind() == kind)
            .collect())
    }

    /// One object.
    ///
    /// # Errors
    ///
    /// The directory cannot be read.
    pub fn get(&self, key: &ObjectKey) -> Result<Option<Object>, StoreError> {
        Ok(self.objects().remove(key))
    }

    /// Files and documents that cannot be used now.
    pub fn errors(&self) -> Vec<ManifestError> {
        self.scan().errors()
    }

    /// What the directory holds now. A scan that panicked holds files that were parsed whole, and looks again.
    fn scan(&self) -> MutexGuard<'_, Scan> {
        let mut scan = self.scan.lock().unwrap_or_else(PoisonError::into_inner);
        scan.refresh(&self.directory);
        scan
    }

    fn objects(&self) -> BTreeMap<ObjectKey, Object> {
        self.scan().objects()
    }

    /// Makes an object what its manifest says, as `kubectl apply` does: `status` in the manifest is ignored, what others
    /// wrote there stays.
    ///
    /// # Errors
    ///
    /// The object does not make sense, or is written by hand in another file.
    pub fn apply(&self, object: Object) -> Result<Applied, StoreError> {
        match self.get(object.key())? {
            None => self.create_now(object).map(|_| Applied::Created),
            Some(old) if same_content(&old, &object) => Ok(Applied::Unchanged),
            Some(old) => {
                let mut object = object;
                object.value_mut()["metadata"]["resourceVersion"] =
                    old.at("/metadata/resourceVersion").clone();
                self.update_now(object).map(|_| Applied::Changed)
            }
        }
    }

    /// Deletes an object with its status. Returns whether there was one.
    ///
    /// # Errors
    ///
    /// The object is written by hand, or the file cannot be removed.
    pub fn delete(&self, key: &ObjectKey) -> Result<bool, StoreError> {
        let _lock = self.lock(key)?;
        let Some(object) = self.get(key)? else {
            return Ok(false);
        };
        self.check_ours(&object)?;
        fs::remove_file(self.path(key)).map_err(failed(format!("delete {key}")))?;
        let _ = fs::remove_file(self.status_path(key));
        self.wake()?;
        Ok(true)
    }

    fn create_now(&self, mut object: Object) -> Result<Object, StoreError> {
        resource::validate(&object)?;
        let _lock = self.lock(object.key())?;
        if self.get(object.key())?.is_some() {
            return Err(StoreError::Exists(object.key().clone()));
        }
        // A status that a deleted object of this name left behind is not this one's.
        let _ = fs::remove_file(self.status_path(object.key()));
        let metadata = &mut object.value_mut()["metadata"];
        metadata["creationTimestamp"] = json!(now());
        metadata["generation"] = json!(1);
        metadata["resourceVersion"] = json!("1");
        self.write_object(object)
    }

    fn update_now(&self, mut object: Object) -> Result<Object, StoreError> {
        resource::validate(&object)?;
        let _lock = self.lock(object.key())?;
        let old = self
            .get(object.key())?
            .ok_or_else(|| StoreError::NotFound(object.key().clone()))?;
        self.check_ours(&old)?;
        check_version(&old, &object, Part::Object)?;
        let generation = old.at("/metadata/generation").as_u64().unwrap_or(1);
        let generation = if old.at("/spec") == object.at("/spec") {
            generation
        } else {
            generation + 1
        };
        let metadata = &mut object.value_mut()["metadata"];
        metadata["creationTimestamp"] = old.at("/metadata/creationTimestamp").clone();
        metadata["generation"] = json!(generation);
        metadata["resourceVersion"] = json!((versions(&old).0 + 1).to_string());
        self.write_object(object)
    }

    fn write_object(&self, mut object: Object) -> Result<Object, StoreError> {
        if has_status(object.kind())
            && let Some(document) = object.value_mut().as_object_mut()
        {
            document.remove("status");
        }
        self.write(&self.path(object.key()), object.value(), object.key())?;
        let key = object.key().clone();
        self.get(&key)?.ok_or(StoreError::NotFound(key))
    }

    /// Replaces an object's status, as [`ObjectStore::update_status`] does.
    ///
    /// # Errors
    ///
    /// There is no such object, or somebody else wrote its status meanwhile.
    pub fn set_status(&self, object: Object) -> Result<Object, StoreError> {
        let key = object.key().clone();
        let _lock = self.lock(&key)?;
        let old = self
            .get(&key)?
            .ok_or_else(|| StoreError::NotFound(key.clone()))?;
        check_version(&old, &object, Part::Status)?;
        self.write_status(old, object.at("/status"))
    }

    /// Replaces a manager's fields of an object's status, as [`ObjectStore::apply_status`] does. Nobody's fields are taken
    /// back here that anybody could be told of: a file does not say who wrote what.
    fn set_status_fields(
        &self,
        object: &Object,
        manager: FieldManager,
    ) -> Result<Object, StoreError> {
        let key = object.key();
        let _lock = self.lock(key)?;
        let old = self
            .get(key)?
            .ok_or_else(|| StoreError::NotFound(key.clone()))?;
        check_version(&old, object, Part::Status)?;
        let mut status: Map<String, Value> =
            old.at("/status").as_object().cloned().unwrap_or_default();
        for field in manager.status_fields(key.kind) {
            match object.at("/status").get(*field) {
                Some(value) => status.insert((*field).to_owned(), value.clone()),
                None => status.remove(*field),
            };
        }
        self.write_status(old, &Value::Object(status))
    }

    /// With the lock held.
    fn write_status(&self, old: Object, status: &Value) -> Result<Object, StoreError> {
        if old.at("/status") == status {
            return Ok(old);
        }
        let key = old.key();
        let document = json!({ "resourceVersion": versions(&old).1 + 1, "status": status });
        self.write(&self.status_path(key), &document, key)?;
        self.get(key)?
            .ok_or_else(|| StoreError::NotFound(key.clone()))
    }

    /// Writes a file whole or not at all.
    fn write(&self, path: &Path, document: &Value, key: &ObjectKey) -> Result<(), StoreError> {
        let io_error = || failed(format!("write {key}"));
        let text = serde_yaml_ng::to_string(document)
            .map_err(io::Error::other)
            .map_err(io_error())?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(io_error())?;
        }
        // Hidden, so that nobody reads it as an object; one name, so that a killed writer leaves one file at most.
        let temporary = path.with_file_name(format!(".{}.writing", key.name));
        fs::write(&temporary, text).map_err(io_error())?;
        fs::rename(&temporary, path).map_err(io_error())?;
        self.wake()
    }

    fn check_ours(&self, object: &Object) -> Result<(), StoreError> {
        let path = self.path(object.key());
        if path.exists() {
            return Ok(());
        }
        let path = self
            .scan()
            .file_of(object.key())
            .map(|path| path.display().to_string())
            .unwrap_or_default();
        Err(StoreError::HandWritten {
            key: object.key().clone(),
            path,
        })
    }

    fn path(&self, key: &ObjectKey) -> PathBuf {
        self.directory.join(relative(key))
    }

    fn status_path(&self, key: &ObjectKey) -> PathBuf {
        self.directory.join(STATUS).join(relative(key))
    }

    /// Keeps other writers of an object out. A writer that is stopped in the middle keeps out only those of the few objects
    /// that share its lock.
    fn lock(&self, key: &ObjectKey) -> Result<Flock<fs::File>, StoreError> {
        let directory = self.directory.join(".locks");
        let path = directory.join((fnv1a64(key.to_string().bytes()) % LOCKS).to_string());
        let operation = || failed(format!("lock {}", path.display()));
        fs::create_dir_all(&directory).map_err(operation())?;
        let file = fs::File::create(&path).map_err(operation())?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| operation()(io::Error::from(errno)))
    }

    /// Wakes the watches: a watch may miss the first file of a directory that is new, but never this one.
    fn wake(&self) -> Result<(), StoreError> {
        fs::write(self.directory.join(".changed"), "").map_err(failed("tell the watches"))
    }
}

/// How many lock files there are.
const LOCKS: u64 = 64;

/// Where status is kept, below the directory.
const STATUS: &str = ".status";

/// `<plural>/<namespace or _>/<name>.yaml`; no namespace is called `_`.
fn relative(key: &ObjectKey) -> PathBuf {
    let namespace = key.namespace.as_deref().unwrap_or("_");
    Path::new(key.kind.plural())
        .join(namespace)
        .join(format!("{}.yaml", key.name))
}

fn now() -> String {
    jiff::Timestamp::now()
        .round(jiff::Unit::Second)
        .unwrap_or_default()
        .to_string()
}

/// The two counters behind a `resourceVersion` `object.status`.
fn versions(object: &Object) -> (u64, u64) {
    let text = object.resource_version().unwrap_or_default();
    let (first, second) = text.split_once('.').unwrap_or((text, "0"));
    (first.parse().unwrap_or(0), second.parse().unwrap_or(0))
}

#[derive(Clone, Copy)]
enum Part {
    Object,
    Status,
}

/// A write without a version is not checked.
fn check_version(old: &Object, new: &Object, part: Part) -> Result<(), StoreError> {
    if new.resource_version().is_none() {
        return Ok(());
    }
    let of = |object| match part {
        Part::Object => versions(object).0,
        Part::Status => versions(object).1,
    };
    if of(old) == of(new) {
        Ok(())
    } else {
        Err(StoreError::Conflict(old.key().clone()))
    }
}

/// Whether a manifest says what the object is already.
fn same_content(old: &Object, new: &Object) -> bool {
    let content = |object: &Object| {
        let mut value = object.value().clone();
        if let Some(document) = value.as_object_mut() {
            if has_status(object.kind()) {
                document.remove("status");
            }
            if let Some(Value::Object(metadata)) = document.get_mut("metadata") {
                for ours in ["resourceVersion", "generation", "creationTimestamp"] {
                    metadata.remove(ours);
                }
            }
        }
        value
    };
    content(old) == content(new)
}

impl ObjectStore for DirectoryStore {
    fn watch(&self, request: &WatchRequest) -> Result<Watch, StoreError> {
        watch::start(&self.directory, request)
    }

    async fn read(&self, key: &ObjectKey) -> Result<Option<Object>, StoreError> {
        self.get(key)
    }

    async fn create(&self, object: Object) -> Result<Object, StoreError> {
        self.create_now(object)
    }

    async fn update(&self, object: Object) -> Result<Object, StoreError> {
        self.update_now(object)
    }

    async fn update_status(&self, object: Object) -> Result<Object, StoreError> {
        self.set_status(object)
    }

    async fn apply_status(
        &self,
        object: Object,
        manager: FieldManager,
    ) -> Result<StatusApplied, StoreError> {
        let object = self.set_status_fields(&object, manager)?;
        Ok(StatusApplied {
            object,
            taken_back: None,
        })
    }

    async fn remove(&self, key: &ObjectKey) -> Result<bool, StoreError> {
        self.delete(key)
    }
}

#[cfg(test)]
mod tests;
