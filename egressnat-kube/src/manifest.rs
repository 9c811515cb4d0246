//! Reading objects from YAML and JSON files.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use crate::object::{InvalidObject, Object};
use crate::resource;

/// A file, or a document in it, that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ManifestError {
    /// The file cannot be read.
    #[error("{path}: {message}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        message: String,
    },
    /// A document is no YAML.
    #[error("{path}: document {document}: not YAML: {message}")]
    Yaml {
        /// The file.
        path: PathBuf,
        /// Which document of the file, from 1.
        document: usize,
        /// What is wrong and where.
        message: String,
    },
    /// A document is no valid object.
    #[error("{path}: document {document}: {error}")]
    Object {
        /// The file.
        path: PathBuf,
        /// Which document of the file, from 1.
        document: usize,
        /// Field and fix.
        error: InvalidObject,
    },
}

/// What was read: all that is valid, and an error for each document that is not.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Manifests {
    /// Valid objects, in the order of files and documents.
    pub objects: Vec<Object>,
    /// One for each document or file that cannot be used.
    pub errors: Vec<ManifestError>,
}

/// Reads a file, or all `*.yaml`, `*.yml` and `*.json` files below a directory, hidden ones left out.
pub fn read_manifests(path: &Path) -> Manifests {
    let mut manifests = Manifests::default();
    let files = if path.is_dir() {
        manifest_files(path)
    } else {
        vec![path.to_owned()]
    };
    for file in files {
        read_file(&file, &mut manifests);
    }
    manifests
}

/// The manifest files below a directory, sorted.
pub(crate) fn manifest_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else {
        return files;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if hidden {
            continue;
        }
        if path.is_dir() {
            files.extend(manifest_files(&path));
        } else if path
            .extension()
            .is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
        {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn read_file(path: &Path, manifests: &mut Manifests) {
    match fs::read_to_string(path) {
        Ok(text) => parse_manifests(path, &text, manifests),
        Err(error) => manifests.errors.push(ManifestError::File {
            path: path.to_owned(),
            message: error.to_string(),
        }),
    }
}

/// Parses the documents of one file. `path` is for the errors only.
pub(crate) fn parse_manifests(path: &Path, text: &str, manifests: &mut Manifests) {
    for (number, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let number = number + 1;
        let value = match Value::deserialize(document) {
            Ok(Value::Null) => continue,
            Ok(value) => value,
            Err(error) => {
                manifests.errors.push(ManifestError::Yaml {
                    path: path.to_owned(),
                    document: number,
                    message: error.to_string(),
                });
                // The parser cannot tell where the next document starts.
                return;
            }
        };
        let object = Object::from_value(value)
            .and_then(|object| resource::validate(&object).map(|()| object));
        match object {
            Ok(object) => manifests.objects.push(object),
            Err(error) => {
                manifests.errors.push(ManifestError::Object {
                    path: path.to_owned(),
                    document: number,
                    error,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Manifests {
        let mut manifests = Manifests::default();
        parse_manifests(Path::new("a.yaml"), text, &mut manifests);
        manifests
    }

    #[test]
    fn one_bad_document_does_not_stop_the_others() {
        let manifests = parse(
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n\
             apiVersion: networking.gke.io/v1\nkind: NetworkGatewayGroup\nmetadata: {name: b}\n\
             spec: {floatingIPs: [192.168.1.100, 192.168.1.300]}\n---\n\
             apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: c}\n---\n\
             apiVersion: v1\nkind: Namespace\nmetadata: {name: d}\n",
        );
        let names: Vec<_> = manifests.objects.iter().map(Object::name).collect();
        assert_eq!(names, ["a", "d"]);
        let errors: Vec<_> = manifests.errors.iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), 2, "{errors:?}");
        for part in [
            "a.yaml",
            "document 2",
            "spec.floatingIPs[1]",
            "192.168.1.300",
        ] {
            assert!(errors[0].contains(part), "{part:?} in {}", errors[0]);
        }
        assert!(
            errors[1].contains("document 3") && errors[1].contains("Deployment"),
            "{}",
            errors[1]
        );
    }

    #[test]
    fn garbage_is_told_with_its_place() {
        let manifests = parse("a: [1,\nb: }");
        assert_eq!(manifests.objects, []);
        assert!(
            manifests.errors[0].to_string().contains("line"),
            "{}",
            manifests.errors[0]
        );
    }
}
