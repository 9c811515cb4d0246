use std::fmt;
use std::str::FromStr;

use egressnat_core::model::{Name, NamespaceName};
use egressnat_core::ownership::Version;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::kind::{Kind, UnknownKind};

/// An object that cannot be used, with the field and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{object}: {field}: {message}")]
pub struct InvalidObject {
    /// Kind and name, as far as they are known.
    pub object: String,
    /// Path of the field: `spec.floatingIPs[1]`.
    pub field: String,
    /// The value and the fix.
    pub message: String,
}

/// A value that cannot be used, before it is known which object it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InvalidField {
    pub(crate) field: String,
    pub(crate) message: String,
}

impl InvalidField {
    pub(crate) fn new(field: impl Into<String>, message: impl fmt::Display) -> Self {
        Self {
            field: field.into(),
            message: message.to_string(),
        }
    }
}

/// Kind, namespace and name of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; none for cluster-scoped kinds.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl ObjectKey {
    /// The key of an object of a namespaced kind.
    pub fn namespaced(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            kind,
            namespace: Some(namespace.into()),
            name: name.into(),
        }
    }

    /// The key of an object of a cluster-scoped kind.
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

/// FNV-1a, 64 bits: where processes of any release must come to the same number.
pub(crate) fn fnv1a64(bytes: impl Iterator<Item = u8>) -> u64 {
    let mut hash = Fnv1a64::default();
    bytes.for_each(|byte| hash.take(byte));
    hash.0
}

struct Fnv1a64(u64);

impl Default for Fnv1a64 {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv1a64 {
    fn take(&mut self, byte: u8) {
        self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
}

impl std::io::Write for Fnv1a64 {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        bytes.iter().for_each(|byte| self.take(*byte));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A hash of a whole value: what it says is kept in eight bytes, to know it again.
pub(crate) fn fingerprint(value: &Value) -> u64 {
    let mut hash = Fnv1a64::default();
    serde_json::to_writer(&mut hash, value).expect("a hash takes every byte");
    hash.0
}

/// An object of a known kind, as the JSON document it was written as: nothing that we do not know is lost.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    key: ObjectKey,
    value: Value,
}

impl Object {
    /// Takes a document for an object: known kind and version, a name, and a namespace where the kind has one.
    ///
    /// # Errors
    ///
    /// The first of `apiVersion`, `kind`, `metadata.name` that is missing or unknown.
    pub fn from_value(mut value: Value) -> Result<Self, InvalidObject> {
        let text = |value: &Value, pointer: &str| {
            value
                .pointer(pointer)
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        let name = text(&value, "/metadata/name");
        let kind_text = text(&value, "/kind");
        let object = match (&kind_text, &name) {
            (Some(kind), Some(name)) => format!("{kind} {name}"),
            (Some(kind), None) => kind.clone(),
            _ => "document".to_owned(),
        };
        let invalid = |field: &str, message: String| InvalidObject {
            object: object.clone(),
            field: field.to_owned(),
            message,
        };
        let kind_text = kind_text.ok_or_else(|| {
            invalid(
                "kind",
                "missing: say what kind of object this is".to_owned(),
            )
        })?;
        let kind: Kind = kind_text
            .parse()
            .map_err(|error: UnknownKind| invalid("kind", error.to_string()))?;
        let versions = kind.api_versions();
        let version = text(&value, "/apiVersion").unwrap_or_default();
        if !versions.contains(&version.as_str()) {
            let message = format!(
                "{version:?} is no version of {kind}: use {}",
                versions.join(" or ")
            );
            return Err(invalid("apiVersion", message));
        }
        let name = name.ok_or_else(|| {
            invalid(
                "metadata.name",
                "missing: give the object a name".to_owned(),
            )
        })?;
        if let Err(error) = name.parse::<Name>() {
            return Err(invalid("metadata.name", error.to_string()));
        }
        let namespace = if kind.is_namespaced() {
            let namespace =
                text(&value, "/metadata/namespace").unwrap_or_else(|| "default".to_owned());
            if let Err(error) = namespace.parse::<NamespaceName>() {
                return Err(invalid("metadata.namespace", error.to_string()));
            }
            value["metadata"]["namespace"] = json!(namespace);
            Some(namespace)
        } else {
            None
        };
        Ok(Self {
            key: ObjectKey {
                kind,
                namespace,
                name,
            },
            value,
        })
    }

    /// A new object with this content besides `apiVersion`, `kind` and `metadata`.
    pub fn new(key: &ObjectKey, content: Value) -> Self {
        let mut value = match content {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        value.insert("apiVersion".to_owned(), json!(key.kind.api_versions()[0]));
        value.insert("kind".to_owned(), json!(key.kind.as_str()));
        let mut metadata = json!({ "name": key.name });
        if let Some(namespace) = &key.namespace {
            metadata["namespace"] = json!(namespace);
        }
        value.insert("metadata".to_owned(), metadata);
        Self {
            key: key.clone(),
            value: Value::Object(value),
        }
    }

    /// Its key.
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.key.kind
    }

    /// Its namespace, if its kind has one.
    pub fn namespace(&self) -> Option<&str> {
        self.key.namespace.as_deref()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.key.name
    }

    /// The whole document.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The whole document, to change it. Kind, namespace and name stay what [`key`](Self::key) says.
    pub fn value_mut(&mut self) -> &mut Value {
        &mut self.value
    }

    /// A part of the document by JSON pointer (RFC 6901), `null` if it is missing.
    pub fn at(&self, pointer: &str) -> &Value {
        // `Value::pointer` copies every step twice, for the sake of two characters that have to be written otherwise there.
        let found = if pointer.starts_with('/') && !pointer.contains('~') {
            let mut steps = pointer.split('/').skip(1);
            steps.try_fold(&self.value, |value, step| match value {
                Value::Array(values) => values.get(step.parse::<usize>().ok()?),
                fields => fields.get(step),
            })
        } else {
            self.value.pointer(pointer)
        };
        found.unwrap_or(&Value::Null)
    }

    /// An annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.at("/metadata/annotations")
            .get(key)
            .and_then(Value::as_str)
    }

    /// `metadata.uid`: which of the objects that had this key one after another it is.
    pub fn uid(&self) -> Option<&str> {
        self.at("/metadata/uid").as_str()
    }

    /// `metadata.generation`, which changes with every edit but of metadata and status; 0 where the store does not count.
    pub fn generation(&self) -> i64 {
        self.at("/metadata/generation").as_i64().unwrap_or_default()
    }

    /// `metadata.resourceVersion`, which changes with every write.
    pub fn resource_version(&self) -> Option<&str> {
        self.at("/metadata/resourceVersion").as_str()
    }

    /// Its `resourceVersion` as core's ownership compares it, for being equal only, so that a hash does.
    pub(crate) fn version(&self) -> Version {
        self.resource_version()
            .map_or(Version::ABSENT, |text| Version(fnv1a64(text.bytes())))
    }

    /// The [`fingerprint`] of the whole document.
    pub(crate) fn fingerprint(&self) -> u64 {
        fingerprint(&self.value)
    }

    /// Takes fields out of the document, each by its pointer.
    pub(crate) fn forget(&mut self, fields: &[&str]) {
        for field in fields {
            if let Some((parent, name)) = field.rsplit_once('/')
                && let Some(Value::Object(parent)) = self.value.pointer_mut(parent)
            {
                parent.remove(name);
            }
        }
    }

    /// The document as a Rust type.
    ///
    /// # Errors
    ///
    /// A field is missing or of another type; the error names its path.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, InvalidObject> {
        serde_path_to_error::deserialize(&self.value).map_err(|error| {
            let path = error.path().to_string();
            let field = if path == "." {
                "document".to_owned()
            } else {
                path
            };
            self.invalid(InvalidField::new(field, error.into_inner()))
        })
    }

    /// The name as one of the planner's names.
    pub(crate) fn parse_name<T: FromStr<Err: fmt::Display>>(&self) -> Result<T, InvalidObject> {
        let name = self.key.name.parse();
        name.map_err(|error| self.invalid(InvalidField::new("metadata.name", error)))
    }

    /// The namespace as the planner's name.
    pub(crate) fn parse_namespace(&self) -> Result<NamespaceName, InvalidObject> {
        let namespace = self.namespace().unwrap_or_default().parse();
        namespace.map_err(|error| self.invalid(InvalidField::new("metadata.namespace", error)))
    }

    pub(crate) fn invalid(&self, error: InvalidField) -> InvalidObject {
        InvalidObject {
            object: self.key.to_string(),
            field: error.field,
            message: error.message,
        }
    }
}
