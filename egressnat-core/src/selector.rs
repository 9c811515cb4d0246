//! Kubernetes label selectors (E10).

mod label;

pub use label::{InvalidSelector, KeyRule, ValueRule};

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::finding::some_of;
use crate::model::Labels;

/// A label selector: every label and every requirement must match. The empty selector matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Selector {
    /// `matchLabels`: these labels with these values.
    pub match_labels: Labels,
    /// `matchExpressions`.
    pub match_expressions: Vec<Requirement>,
}

/// One entry of `matchExpressions`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Requirement {
    /// The label key it looks at.
    pub key: String,
    /// How it looks at it.
    pub operator: Operator,
}

/// The operators of Kubernetes label selectors.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Operator {
    /// The label is there and has one of the values.
    In(BTreeSet<String>),
    /// The label is missing or has none of the values.
    NotIn(BTreeSet<String>),
    /// The label is there.
    Exists,
    /// The label is missing.
    DoesNotExist,
}

impl Selector {
    /// A selector with `matchLabels` only.
    pub fn from_labels<K: Into<String>, V: Into<String>>(
        labels: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        Self {
            match_labels: labels
                .into_iter()
                .map(|(key, value)| (key.into(), value.into()))
                .collect(),
            match_expressions: Vec::new(),
        }
    }

    /// Checks keys and values by Kubernetes' own rules.
    ///
    /// # Errors
    ///
    /// The first key, value or empty value list that the API server would refuse.
    pub fn validate(&self) -> Result<(), InvalidSelector> {
        for (key, value) in &self.match_labels {
            label::check_key(key)?;
            label::check_value(key, value)?;
        }
        for requirement in &self.match_expressions {
            let key = &requirement.key;
            label::check_key(key)?;
            if let Operator::In(values) | Operator::NotIn(values) = &requirement.operator {
                if values.is_empty() {
                    return Err(InvalidSelector::NoValues { key: key.clone() });
                }
                for value in values {
                    label::check_value(key, value)?;
                }
            }
        }
        Ok(())
    }

    /// The first thing that these labels do not meet, if any.
    pub fn mismatch(&self, labels: &Labels) -> Option<Mismatch> {
        let wanted = self.match_labels.iter().map(|(key, value)| Requirement {
            key: key.clone(),
            operator: Operator::In([value.clone()].into()),
        });
        let mut wanted = wanted.chain(self.match_expressions.iter().cloned());
        let missed = wanted.find(|requirement| !requirement.matches(labels))?;
        Some(Mismatch {
            found: labels.get(&missed.key).cloned(),
            wanted: missed,
        })
    }

    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.match_labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && self
                .match_expressions
                .iter()
                .all(|requirement| requirement.matches(labels))
    }
}

impl Requirement {
    /// Whether an object with these labels meets the requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.contains(value)),
            Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// Why a selector does not match: what it wants of a label, and what the label is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// What is not met.
    pub wanted: Requirement,
    /// The label's value, if it is there.
    pub found: Option<String>,
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        let list = |values: &BTreeSet<String>| some_of(values.iter());
        match &self.operator {
            Operator::In(values) if values.len() == 1 => write!(f, "{key}={}", list(values)),
            Operator::In(values) => write!(f, "{key} in ({})", list(values)),
            Operator::NotIn(values) => write!(f, "{key} not in ({})", list(values)),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.wanted.key;
        match &self.found {
            Some(value) => write!(f, "wants {}, and {key} is {value:?}", self.wanted),
            None => write!(f, "wants {}, and there is no label {key}", self.wanted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect()
    }

    fn expression(key: &str, operator: Operator) -> Selector {
        Selector {
            match_labels: Labels::new(),
            match_expressions: vec![Requirement {
                key: key.into(),
                operator,
            }],
        }
    }

    #[test]
    fn selectors_that_the_api_server_refuses_are_refused() {
        assert_eq!(
            Selector::from_labels([("role", "frontend")]).validate(),
            Ok(())
        );
        assert!(Selector::from_labels([("ro le", "x")]).validate().is_err());
        assert!(Selector::from_labels([("role", "x y")]).validate().is_err());
        let empty = expression("role", Operator::In(BTreeSet::new()));
        assert_eq!(
            empty.validate(),
            Err(InvalidSelector::NoValues { key: "role".into() })
        );
        assert_eq!(expression("role", Operator::Exists).validate(), Ok(()));
    }

    #[test]
    fn selectors_match_as_in_kubernetes_e10() {
        struct Case {
            name: &'static str,
            selector: Selector,
            labels: Labels,
            want: bool,
        }
        let values = |v: &[&str]| v.iter().map(|s| (*s).into()).collect::<BTreeSet<String>>();
        let cases = [
            Case {
                name: "empty selects everything",
                selector: Selector::default(),
                labels: labels(&[]),
                want: true,
            },
            Case {
                name: "label with its value",
                selector: Selector::from_labels([("role", "frontend")]),
                labels: labels(&[("role", "frontend"), ("x", "y")]),
                want: true,
            },
            Case {
                name: "label with another value",
                selector: Selector::from_labels([("role", "frontend")]),
                labels: labels(&[("role", "backend")]),
                want: false,
            },
            Case {
                name: "all labels must match",
                selector: Selector::from_labels([("a", "1"), ("b", "2")]),
                labels: labels(&[("a", "1")]),
                want: false,
            },
            Case {
                name: "In, value listed",
                selector: expression("a", Operator::In(values(&["1", "2"]))),
                labels: labels(&[("a", "2")]),
                want: true,
            },
            Case {
                name: "In, label missing",
                selector: expression("a", Operator::In(values(&["1"]))),
                labels: labels(&[]),
                want: false,
            },
            Case {
                name: "NotIn, label missing",
                selector: expression("a", Operator::NotIn(values(&["1"]))),
                labels: labels(&[]),
                want: true,
            },
            Case {
                name: "NotIn, value listed",
                selector: expression("a", Operator::NotIn(values(&["1"]))),
                labels: labels(&[("a", "1")]),
                want: false,
            },
            Case {
                name: "Exists",
                selector: expression("a", Operator::Exists),
                labels: labels(&[("a", "")]),
                want: true,
            },
            Case {
                name: "DoesNotExist",
                selector: expression("a", Operator::DoesNotExist),
                labels: labels(&[("a", "")]),
                want: false,
            },
        ];
        for case in cases {
            assert_eq!(
                case.selector.matches(&case.labels),
                case.want,
                "{}",
                case.name
            );
        }
    }
}
