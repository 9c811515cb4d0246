//! Validation rules in CEL, as the schema extension that the API server evaluates.

use kube::core::{Reason, Rule};
use serde_json::{Value, json};

/// A rule on a value. The API server puts field and value before the message; computing a message would count as cost.
pub(super) fn rule(expression: &str, message: &str) -> Rule {
    Rule::new(expression).message(message)
}

/// A rule that asks for a field of the object it stands at.
pub(super) fn required(expression: &str, field: &str, fix: &str) -> Rule {
    Rule::new(expression)
        .message(fix)
        .reason(Reason::FieldValueRequired)
        .field_path(format!(".{field}"))
}

/// A rule that asks for at least one entry.
pub(super) fn not_empty() -> Rule {
    rule("size(self) > 0", "empty: at least one entry is required")
}

/// The value of `x-kubernetes-validations`.
pub(super) fn validations(rules: impl IntoIterator<Item = Rule>) -> Value {
    rules.into_iter().map(|rule| json!(rule)).collect()
}
