//! What Kubernetes accepts as a label key and a label value, and how it says what it does not.

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::fmt;

/// A selector that the API server would refuse, with the value and the rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InvalidSelector {
    /// A key that is no qualified name.
    Key {
        /// The key.
        key: String,
        /// The rule that it breaks.
        rule: KeyRule,
    },
    /// A value that is no label value.
    Value {
        /// The key it stands at.
        key: String,
        /// The value.
        value: String,
        /// The rule that it breaks.
        rule: ValueRule,
    },
    /// `In` or `NotIn` without values.
    NoValues {
        /// The key it stands at.
        key: String,
    },
}

/// The rules for label keys, as `IsQualifiedName` of Kubernetes' validation has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyRule {
    /// Nothing stands before the slash.
    PrefixEmpty,
    /// What stands before the slash is no DNS subdomain.
    PrefixInvalid,
    /// Nothing stands behind it.
    NameEmpty,
    /// The name has more than 63 bytes.
    NameTooLong,
    /// The name has characters that a name may not have, or not there.
    NameInvalid,
    /// There is more than one slash.
    TooManyParts,
}

/// The rules for label values, as `IsValidLabelValue` of Kubernetes' validation has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ValueRule {
    /// It has more than 63 bytes.
    TooLong,
    /// It has characters that a value may not have, or not there.
    Invalid,
}

impl fmt::Display for KeyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KeyRule::PrefixEmpty => "prefix part must be non-empty",
            KeyRule::PrefixInvalid => {
                "prefix part must be a lowercase RFC 1123 subdomain of at most 253 characters, such as 'example.com'"
            }
            KeyRule::NameEmpty => "name part must be non-empty",
            KeyRule::NameTooLong => "name part must be no more than 63 bytes",
            KeyRule::NameInvalid => {
                "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                 alphanumeric character"
            }
            KeyRule::TooManyParts => {
                "a qualified name is a name with an optional DNS subdomain prefix and one '/', such as 'example.com/MyName'"
            }
        })
    }
}

impl fmt::Display for ValueRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ValueRule::TooLong => "must be no more than 63 bytes",
            ValueRule::Invalid => {
                "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start \
                 and end with an alphanumeric character"
            }
        })
    }
}

impl fmt::Display for InvalidSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InvalidSelector::Key { key, rule } => write!(f, "{key:?} is no label key: {rule}"),
            InvalidSelector::Value { key, value, rule } => {
                write!(f, "{value:?} is no label value for {key:?}: {rule}")
            }
            InvalidSelector::NoValues { key } => write!(
                f,
                "values for {key:?} must be specified when operator is 'In' or 'NotIn': list at least one, or use Exists or \
                 DoesNotExist"
            ),
        }
    }
}

impl core::error::Error for InvalidSelector {}

/// The longest name or value.
const LONGEST: usize = 63;

/// `[A-Za-z0-9]` at both ends, `[-A-Za-z0-9_.]` between.
fn is_label_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            first.is_ascii_alphanumeric()
                && last.is_ascii_alphanumeric()
                && bytes
                    .iter()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        }
        _ => false,
    }
}

fn key_rule(key: &str) -> Result<(), KeyRule> {
    let mut parts = key.split('/');
    let (prefix, name) = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, None) => (None, name),
        (Some(prefix), Some(name), None) => (Some(prefix), name),
        _ => return Err(KeyRule::TooManyParts),
    };
    match prefix {
        Some("") => return Err(KeyRule::PrefixEmpty),
        Some(prefix) if !crate::model::is_subdomain(prefix) => return Err(KeyRule::PrefixInvalid),
        Some(_) | None => {}
    }
    if name.is_empty() {
        Err(KeyRule::NameEmpty)
    } else if name.len() > LONGEST {
        Err(KeyRule::NameTooLong)
    } else if !is_label_name(name) {
        Err(KeyRule::NameInvalid)
    } else {
        Ok(())
    }
}

pub(super) fn check_key(key: &str) -> Result<(), InvalidSelector> {
    key_rule(key).map_err(|rule| InvalidSelector::Key {
        key: key.to_owned(),
        rule,
    })
}

pub(super) fn check_value(key: &str, value: &str) -> Result<(), InvalidSelector> {
    let rule = if value.is_empty() {
        return Ok(());
    } else if value.len() > LONGEST {
        ValueRule::TooLong
    } else if !is_label_name(value) {
        ValueRule::Invalid
    } else {
        return Ok(());
    };
    Err(InvalidSelector::Value {
        key: key.to_owned(),
        value: value.to_owned(),
        rule,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_qualified_names() {
        let (longest, too_long) = ("a".repeat(63), "a".repeat(64));
        for key in [
            "role",
            "a.b_c-d",
            "example.com/role",
            "kubernetes.io/metadata.name",
            longest.as_str(),
        ] {
            assert_eq!(check_key(key), Ok(()), "{key}");
        }
        for (key, rule) in [
            ("", KeyRule::NameEmpty),
            ("-a", KeyRule::NameInvalid),
            ("a-", KeyRule::NameInvalid),
            ("ro le", KeyRule::NameInvalid),
            ("/a", KeyRule::PrefixEmpty),
            ("a/", KeyRule::NameEmpty),
            ("a/b/c", KeyRule::TooManyParts),
            ("A.com/x", KeyRule::PrefixInvalid),
            (too_long.as_str(), KeyRule::NameTooLong),
        ] {
            assert_eq!(key_rule(key), Err(rule), "{key}");
        }
    }

    #[test]
    fn values_may_be_empty() {
        for value in ["", "frontend", "A_b.c-1"] {
            assert_eq!(check_value("k", value), Ok(()), "{value}");
        }
        for value in ["a b", "-", "a/b", "ä", "a".repeat(64).as_str()] {
            assert!(check_value("k", value).is_err(), "{value}");
        }
    }

    #[test]
    fn messages_have_the_value_and_the_rule_in_the_words_of_kubernetes() {
        let text = |error: Result<(), InvalidSelector>| error.unwrap_err().to_string();
        assert_eq!(
            text(check_key("ro le")),
            "\"ro le\" is no label key: name part must consist of alphanumeric characters, '-', '_' or '.', and must start and \
             end with an alphanumeric character"
        );
        assert_eq!(
            text(check_value("role", &"x".repeat(64))),
            format!(
                "{:?} is no label value for \"role\": must be no more than 63 bytes",
                "x".repeat(64)
            )
        );
    }
}
