use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::rule::{rule, validations};

/// A label selector: every label and every requirement must match. The empty selector matches everything.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct LabelSelector {
    /// These labels with these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(
        with = "BTreeMap<String, LabelValue>",
        extend("maxProperties" = 64, "x-kubernetes-validations" = label_rules())
    )]
    pub match_labels: BTreeMap<String, String>,
    /// Requirements on labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub match_expressions: Vec<LabelSelectorRequirement>,
}

/// A requirement on one label.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = requirement_rules()))]
pub struct LabelSelectorRequirement {
    /// The key of the label.
    #[schemars(with = "LabelKey")]
    pub key: String,
    /// What is asked of the label.
    pub operator: LabelSelectorOperator,
    /// The values that In and NotIn look for; none for Exists and DoesNotExist.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(with = "Vec<ListedLabelValue>", length(max = 64))]
    pub values: BTreeSet<String>,
}

/// What is asked of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum LabelSelectorOperator {
    /// It is there and has one of the values.
    In,
    /// It is missing or has none of the values.
    NotIn,
    /// It is there.
    Exists,
    /// It is missing.
    DoesNotExist,
}

/// The key of a label: an optional prefix, a slash, a name.
#[derive(JsonSchema)]
#[schemars(
    inline,
    transparent,
    extend("maxLength" = 317, "x-kubernetes-validations" = key_rules())
)]
#[expect(dead_code, reason = "a schema only")]
struct LabelKey(String);

/// The value of a label.
#[derive(JsonSchema)]
#[schemars(
    inline,
    transparent,
    extend("maxLength" = 63, "x-kubernetes-validations" = value_rules())
)]
#[expect(dead_code, reason = "a schema only")]
struct LabelValue(String);

/// The value of a label in a list. A rule on so many of them would cost more than the API server allows; a pattern is free.
#[derive(JsonSchema)]
#[schemars(
    inline,
    transparent,
    extend(
        "maxLength" = 63,
        "pattern" = "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"
    )
)]
#[expect(dead_code, reason = "a schema only")]
struct ListedLabelValue(String);

const KEY_FIX: &str = "no label key: write one such as role or example.com/role";

fn label_rules() -> Value {
    validations([rule(
        "self.all(key, !format.qualifiedName().validate(key).hasValue())",
        KEY_FIX,
    )])
}

fn key_rules() -> Value {
    validations([rule(
        "!format.qualifiedName().validate(self).hasValue()",
        KEY_FIX,
    )])
}

fn value_rules() -> Value {
    validations([rule(
        "!format.labelValue().validate(self).hasValue()",
        "no label value: use letters, digits, -, _ and ., with a letter or digit at both ends",
    )])
}

fn requirement_rules() -> Value {
    validations([
        rule(
            "!(self.operator in ['In', 'NotIn']) || (has(self.values) && size(self.values) > 0)",
            "In and NotIn need values: add at least one",
        )
        .field_path(".values"),
        rule(
            "!(self.operator in ['Exists', 'DoesNotExist']) || !has(self.values) || size(self.values) == 0",
            "Exists and DoesNotExist take no values: remove them",
        )
        .field_path(".values"),
    ])
}
