use serde_json::Value;

use super::ObjectKey;
use crate::kind::Kind;

/// Why a document is no object that egressnat understands. The message names the field, its value and the fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidObject {
    /// The document is a scalar or a list.
    #[error("a manifest is a mapping with apiVersion, kind and metadata, not {found}")]
    NoMapping {
        /// What it is.
        found: String,
    },
    /// No kind.
    #[error("kind: is missing: every object needs apiVersion, kind and metadata.name")]
    NoKind,
    /// A kind that is not one of [`Kind::ALL`].
    #[error("kind: {value:?} is unknown: {}", kind_fix(.value))]
    UnknownKind {
        /// As written.
        value: String,
    },
    /// An apiVersion in which the kind is not served.
    #[error("{kind}: apiVersion: {value:?} is not served: write {expected}")]
    WrongApiVersion {
        /// The kind.
        kind: Kind,
        /// As written.
        value: String,
        /// What it may be.
        expected: String,
    },
    /// A field that is missing or has a value it cannot have.
    #[error("{object}: {field}: {problem}")]
    Field {
        /// The object.
        object: String,
        /// The path of the field.
        field: String,
        /// Its value, what is wrong with it, and the fix.
        problem: String,
    },
}

impl InvalidObject {
    pub(crate) fn field(
        kind: Kind,
        name: &str,
        field: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        let object = match name {
            "" => kind.to_string(),
            name => format!("{kind} {name}"),
        };
        InvalidObject::Field {
            object,
            field: field.into(),
            problem: problem.into(),
        }
    }

    pub(crate) fn of(
        key: &ObjectKey,
        field: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        InvalidObject::Field {
            object: key.to_string(),
            field: field.into(),
            problem: problem.into(),
        }
    }

    pub(crate) fn from_serde(
        key: &ObjectKey,
        error: &serde_path_to_error::Error<serde_json::Error>,
    ) -> Self {
        let path = error.path().to_string();
        let message = error.inner().to_string();
        // serde tells the parent of a missing field; a person looks for the field itself.
        let missing = message
            .strip_prefix("missing field `")
            .and_then(|rest| rest.strip_suffix('`'));
        match missing {
            Some(field) if path == "." => Self::of(key, field, "is missing: add it"),
            Some(field) => Self::of(key, format!("{path}.{field}"), "is missing: add it"),
            None => Self::of(key, path, message),
        }
    }
}

fn kind_fix(value: &str) -> String {
    match Kind::ALL
        .into_iter()
        .find(|kind| kind.as_str().eq_ignore_ascii_case(value))
    {
        Some(kind) => format!("write {kind}"),
        None => format!("use one of {}", Kind::ALL.map(Kind::as_str).join(", ")),
    }
}

/// A value in words short enough for a message.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Bool(value) => format!("the boolean {value}"),
        Value::Number(value) => format!("the number {value}"),
        Value::String(value) => format!("the string {value:?}"),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a mapping".into(),
    }
}
