//! What the directory holds now, with each file parsed only when it has changed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{STATUS, relative};
use crate::manifest::{ManifestError, Manifests, manifest_files, parse_manifests};
use crate::object::{Object, ObjectKey};

/// What tells one content of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(Stamp {
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    })
}

/// The parsed files of a directory.
#[derive(Debug, Default)]
pub(super) struct Scan {
    files: BTreeMap<PathBuf, (Stamp, Manifests)>,
    statuses: BTreeMap<PathBuf, (Stamp, Value)>,
}

impl Scan {
    /// Looks at every file, and reads those that have changed.
    pub(super) fn refresh(&mut self, directory: &Path) {
        refresh(&mut self.files, manifest_files(directory), |path, old| {
            let mut manifests = Manifests::default();
            // A file that was removed meanwhile holds nothing.
            match fs::read_to_string(path) {
                Ok(text) => parse_manifests(path, &text, &mut manifests),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    let message = error.to_string();
                    manifests.errors.push(ManifestError::File {
                        path: path.to_owned(),
                        message,
                    });
                }
            }
            // While a file is broken, what it held before stays in force: a slip of the pen takes nothing away.
            if let (Some(old), false) = (old, manifests.errors.is_empty()) {
                let is_missing = |object: &&Object| {
                    manifests
                        .objects
                        .iter()
                        .all(|new| new.key() != object.key())
                };
                let kept: Vec<Object> = old.objects.iter().filter(is_missing).cloned().collect();
                manifests.objects.extend(kept);
            }
            manifests
        });
        let root = directory.join(STATUS);
        let mut statuses = BTreeMap::new();
        std::mem::swap(&mut statuses, &mut self.statuses);
        let mut by_path: BTreeMap<PathBuf, (Stamp, Value)> = statuses
            .into_iter()
            .map(|(path, entry)| (root.join(path), entry))
            .collect();
        refresh(&mut by_path, manifest_files(&root), |path, _| {
            let text = fs::read_to_string(path).unwrap_or_default();
            serde_yaml_ng::from_str(&text).unwrap_or(Value::Null)
        });
        self.statuses = by_path
            .into_iter()
            .filter_map(|(path, entry)| Some((path.strip_prefix(&root).ok()?.to_owned(), entry)))
            .collect();
    }

    /// Every valid object with its status. Of two files with one object the first by path counts.
    pub(super) fn objects(&self) -> BTreeMap<ObjectKey, Object> {
        let mut objects = BTreeMap::new();
        for object in self
            .files
            .values()
            .flat_map(|(_, manifests)| &manifests.objects)
        {
            if objects.contains_key(object.key()) {
                continue;
            }
            objects.insert(object.key().clone(), self.with_status(object.clone()));
        }
        objects
    }

    fn with_status(&self, mut object: Object) -> Object {
        let document = self
            .statuses
            .get(&relative(object.key()))
            .map(|(_, document)| document);
        let status_version = document
            .and_then(|document| document["resourceVersion"].as_u64())
            .unwrap_or(0);
        let version = object.resource_version().unwrap_or("0").to_owned();
        if let Some(status) = document.and_then(|document| document.get("status")) {
            object.value_mut()["status"] = status.clone();
        }
        object.value_mut()["metadata"]["resourceVersion"] =
            json!(format!("{version}.{status_version}"));
        object
    }

    /// Everything that cannot be used.
    pub(super) fn errors(&self) -> Vec<ManifestError> {
        self.files
            .values()
            .flat_map(|(_, manifests)| manifests.errors.clone())
            .collect()
    }

    /// The file that an object is written in.
    pub(super) fn file_of(&self, key: &ObjectKey) -> Option<&Path> {
        let holds =
            |manifests: &Manifests| manifests.objects.iter().any(|object| object.key() == key);
        self.files
            .iter()
            .find(|(_, (_, manifests))| holds(manifests))
            .map(|(path, _)| path.as_path())
    }
}

/// Makes `known` what is there, reading only what has changed.
fn refresh<T>(
    known: &mut BTreeMap<PathBuf, (Stamp, T)>,
    paths: Vec<PathBuf>,
    read: impl Fn(&Path, Option<&T>) -> T,
) {
    let mut old = std::mem::take(known);
    for path in paths {
        let Some(stamp) = stamp(&path) else { continue };
        let entry = match old.remove(&path) {
            Some(entry) if entry.0 == stamp => entry,
            old => (stamp, read(&path, old.as_ref().map(|(_, content)| content))),
        };
        known.insert(path, entry);
    }
}
