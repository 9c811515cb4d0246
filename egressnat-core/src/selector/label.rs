//! What Kubernetes accepts as a label key and a label value.

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::fmt;

/// A selector that the API server would refuse, with the value and the rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InvalidSelector {
    /// A key that is no qualified name.
    Key(String),
    /// A value that is no label value.
    Value {
        /// The key it stands at.
        key: String,
        /// The value.
        value: String,
    },
    /// `In` or `NotIn` without values.
    NoValues {
        /// The key it stands at.
        key: String,
    },
}

impl fmt::Display for InvalidSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InvalidSelector::Key(key) => write!(
                f,
                "{key:?} is no label key: use an optional DNS prefix and '/', then at most 63 letters, digits, '-', '_' and \
                 '.', with a letter or digit at both ends"
            ),
            InvalidSelector::Value { key, value } => write!(
                f,
                "{value:?} is no label value for {key:?}: use at most 63 letters, digits, '-', '_' and '.', with a letter \
                 or digit at both ends, or nothing"
            ),
            InvalidSelector::NoValues { key } => write!(
                f,
                "In and NotIn need at least one value for {key:?}: list values, or use Exists or DoesNotExist"
            ),
        }
    }
}

impl core::error::Error for InvalidSelector {}

/// At most 63 characters, `[A-Za-z0-9]` at both ends, `[-A-Za-z0-9_.]` between (Kubernetes `IsQualifiedName`, name part).
fn is_label_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            bytes.len() <= 63
                && first.is_ascii_alphanumeric()
                && last.is_ascii_alphanumeric()
                && bytes
                    .iter()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        }
        _ => false,
    }
}

pub(super) fn check_key(key: &str) -> Result<(), InvalidSelector> {
    let is_valid = match key.split_once('/') {
        None => is_label_name(key),
        Some((prefix, name)) => crate::model::is_subdomain(prefix) && is_label_name(name),
    };
    if is_valid {
        Ok(())
    } else {
        Err(InvalidSelector::Key(key.to_owned()))
    }
}

pub(super) fn check_value(key: &str, value: &str) -> Result<(), InvalidSelector> {
    if value.is_empty() || is_label_name(value) {
        Ok(())
    } else {
        Err(InvalidSelector::Value {
            key: key.to_owned(),
            value: value.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_qualified_names() {
        let long = "a".repeat(63);
        for key in [
            "role",
            "a.b_c-d",
            "example.com/role",
            "kubernetes.io/metadata.name",
            long.as_str(),
        ] {
            assert_eq!(check_key(key), Ok(()), "{key}");
        }
        let too_long = "a".repeat(64);
        for key in [
            "",
            "-a",
            "a-",
            "/a",
            "a/",
            "a/b/c",
            "A.com/x",
            "ro le",
            too_long.as_str(),
        ] {
            assert!(check_key(key).is_err(), "{key}");
        }
    }

    #[test]
    fn values_may_be_empty() {
        for value in ["", "frontend", "A_b.c-1"] {
            assert_eq!(check_value("k", value), Ok(()), "{value}");
        }
        for value in ["a b", "-", "a/b", "ä"] {
            assert!(check_value("k", value).is_err(), "{value}");
        }
    }
}
