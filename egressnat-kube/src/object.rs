//! One object as a JSON document, with access to what every object has.

mod invalid;

pub use invalid::InvalidObject;

use std::fmt;

use egressnat_core::model::{Labels, Name, NamespaceName, Timestamp};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::kind::Kind;

/// Kind, namespace and name of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; `None` for cluster-scoped kinds.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl ObjectKey {
    /// The key of an object in a namespace.
    pub fn namespaced(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            kind,
            namespace: Some(namespace.into()),
            name: name.into(),
        }
    }

    /// The key of a cluster-scoped object.
    pub fn cluster(kind: Kind, name: impl Into<String>) -> Self {
        Self {
            kind,
            namespace: None,
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// One object: a JSON document whose kind, apiVersion, name and namespace are known to be good.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    key: ObjectKey,
    value: Value,
}

/// The namespace of an object that names none, as with `kubectl`.
const DEFAULT_NAMESPACE: &str = "default";

impl Object {
    /// Takes a document whose identity is sound. Its spec is checked by [`validate`](crate::validate).
    ///
    /// Objects of namespaced kinds without a namespace go to `default`; a namespace on a cluster-scoped object is dropped.
    ///
    /// # Errors
    ///
    /// The document is no mapping, its kind is unknown, its apiVersion is not one of the kind's, or name or namespace is
    /// missing or no valid name.
    pub fn from_value(mut value: Value) -> Result<Self, InvalidObject> {
        let Value::Object(document) = &mut value else {
            return Err(InvalidObject::NoMapping {
                found: invalid::describe(&value),
            });
        };
        let kind = match document.get("kind") {
            Some(Value::String(text)) => {
                Kind::from_manifest(text).ok_or_else(|| InvalidObject::UnknownKind {
                    value: text.clone(),
                })?
            }
            _ => return Err(InvalidObject::NoKind),
        };
        let api_version = document.get("apiVersion").and_then(Value::as_str);
        if !api_version.is_some_and(|given| kind.api_versions().iter().any(|v| v == given)) {
            return Err(InvalidObject::WrongApiVersion {
                kind,
                value: api_version.unwrap_or_default().to_owned(),
                expected: kind.api_versions().join(" or "),
            });
        }
        let Some(Value::Object(metadata)) = document.get_mut("metadata") else {
            return Err(InvalidObject::field(kind, "", "metadata.name", "is missing: give the object a name"));
        };
        let name = match metadata.get("name") {
            Some(Value::String(name)) => name.clone(),
            Some(other) => {
                let problem = format!("{} is no string: put it in quotes", invalid::describe(other));
                return Err(InvalidObject::field(kind, "", "metadata.name", problem));
            }
            None => {
                return Err(InvalidObject::field(kind, "", "metadata.name", "is missing: give the object a name"));
            }
        };
        if let Err(error) = name.parse::<Name>() {
            return Err(InvalidObject::field(kind, &name, "metadata.name", error.to_string()));
        }
        let namespace = if kind.is_namespaced() {
            let namespace = match metadata.get("namespace") {
                Some(Value::String(namespace)) if !namespace.is_empty() => namespace.clone(),
                None | Some(Value::Null | Value::String(_)) => DEFAULT_NAMESPACE.to_owned(),
                Some(other) => {
                    let problem =
                        format!("{} is no string: put it in quotes", invalid::describe(other));
                    return Err(InvalidObject::field(kind, &name, "metadata.namespace", problem));
                }
            };
            if let Err(error) = namespace.parse::<NamespaceName>() {
                return Err(InvalidObject::field(kind, &name, "metadata.namespace", error.to_string()));
            }
            metadata.insert("namespace".into(), Value::String(namespace.clone()));
            Some(namespace)
        } else {
            metadata.remove("namespace");
            None
        };
        let key = ObjectKey {
            kind,
            namespace,
            name,
        };
        Ok(Self { key, value })
    }

    /// An object without spec, in the preferred version of its kind.
    ///
    /// # Errors
    ///
    /// The key's name or namespace is no valid name.
    pub fn new(key: &ObjectKey) -> Result<Self, InvalidObject> {
        let mut metadata = Map::new();
        metadata.insert("name".into(), key.name.clone().into());
        if let Some(namespace) = &key.namespace {
            metadata.insert("namespace".into(), namespace.clone().into());
        }
        let mut document = Map::new();
        document.insert("apiVersion".into(), key.kind.api_version().into());
        document.insert("kind".into(), key.kind.as_str().into());
        document.insert("metadata".into(), Value::Object(metadata));
        Self::from_value(Value::Object(document))
    }

    /// The same object with `field` (`spec`, `status`, …) set to `value`.
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.value[field] = value.into();
        self
    }

    /// Kind, namespace and name.
    pub fn key(&self) -> ObjectKey {
        self.key.clone()
    }

    /// Kind, namespace and name, borrowed.
    pub(crate) fn key_ref(&self) -> &ObjectKey {
        &self.key
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        self.key.kind
    }

    /// The namespace; `None` for cluster-scoped kinds.
    pub fn namespace(&self) -> Option<&str> {
        self.key.namespace.as_deref()
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.key.name
    }

    /// `metadata.labels`.
    pub fn labels(&self) -> Labels {
        self.strings("labels")
    }

    /// `metadata.annotations`.
    pub fn annotations(&self) -> Labels {
        self.strings("annotations")
    }

    /// One annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata("annotations")?.get(key)?.as_str()
    }

    /// `metadata.resourceVersion`: set by the store; opaque, to be compared for equality only.
    pub fn resource_version(&self) -> Option<&str> {
        self.metadata("resourceVersion")?.as_str()
    }

    /// `metadata.uid`: set by the store; differs between an object and its successor of the same name.
    pub fn uid(&self) -> Option<&str> {
        self.metadata("uid")?.as_str()
    }

    /// `metadata.creationTimestamp` in seconds. The epoch where it is missing, so that objects that no store created are
    /// of one age and their names decide.
    pub fn created(&self) -> Timestamp {
        let seconds = self
            .metadata("creationTimestamp")
            .and_then(Value::as_str)
            .and_then(|text| text.parse::<jiff::Timestamp>().ok())
            .map_or(0, jiff::Timestamp::as_second);
        Timestamp(seconds)
    }

    /// The document.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The document, to change its fields. Kind, namespace and name must stay as they are.
    pub fn value_mut(&mut self) -> &mut Value {
        &mut self.value
    }

    /// The document alone.
    pub fn into_value(self) -> Value {
        self.value
    }

    /// `status`, null where there is none.
    pub fn status(&self) -> &Value {
        &self.value["status"]
    }

    /// Reads the document as `T`.
    ///
    /// # Errors
    ///
    /// Names the path of the first field that does not fit.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, InvalidObject> {
        serde_path_to_error::deserialize(&self.value)
            .map_err(|error| InvalidObject::from_serde(&self.key, &error))
    }

    fn metadata(&self, field: &str) -> Option<&Value> {
        self.value.get("metadata")?.get(field)
    }

    fn strings(&self, field: &str) -> Labels {
        let Some(Value::Object(map)) = self.metadata(field) else {
            return Labels::new();
        };
        map.iter()
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"x": "y"}}})
    }

    #[test]
    fn a_namespaced_object_without_namespace_is_in_default() {
        let object = Object::from_value(pod()).unwrap();
        assert_eq!(object.key().to_string(), "Pod default/a");
        assert_eq!(object.value()["metadata"]["namespace"], "default");
        assert_eq!(object.labels()["x"], "y");
    }

    #[test]
    fn unsound_identities_are_refused_with_value_and_fix() {
        struct Case {
            name: &'static str,
            value: Value,
            want: &'static str,
        }
        let cases = [
            Case {
                name: "no mapping",
                value: json!(["x"]),
                want: "a manifest is a mapping with apiVersion, kind and metadata, not a list",
            },
            Case {
                name: "no kind",
                value: json!({"apiVersion": "v1"}),
                want: "kind: is missing",
            },
            Case {
                name: "unknown kind",
                value: json!({"apiVersion": "v1", "kind": "EgressNatPolicy", "metadata": {"name": "a"}}),
                want: "kind: \"EgressNatPolicy\" is unknown: write EgressNATPolicy",
            },
            Case {
                name: "wrong version",
                value: json!({"apiVersion": "networking.gke.io/v2", "kind": "EgressNATPolicy", "metadata": {"name": "a"}}),
                want: "EgressNATPolicy: apiVersion: \"networking.gke.io/v2\" is not served: write networking.gke.io/v1 or \
                       networking.gke.io/v1alpha1",
            },
            Case {
                name: "no name",
                value: json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}}),
                want: "Pod: metadata.name: is missing",
            },
            Case {
                name: "bad name",
                value: json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "../x"}}),
                want: "Pod ../x: metadata.name: \"../x\" is not a valid object name",
            },
            Case {
                name: "bad namespace",
                value: json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": "A"}}),
                want: "Pod x: metadata.namespace: \"A\" is not a valid",
            },
        ];
        for case in cases {
            let error = Object::from_value(case.value).unwrap_err().to_string();
            assert!(error.starts_with(case.want), "{}: {error}", case.name);
        }
    }
}
