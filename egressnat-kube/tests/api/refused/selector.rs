use serde_json::{Value, json};

use super::{api_server, assert_refused, both, remove};

/// A policy with one rule.
fn policy(rule: &Value) -> Value {
    json!({
        "apiVersion": "networking.gke.io/v1",
        "kind": "EgressNATPolicy",
        "metadata": {"name": "refused"},
        "spec": {
            "sources": [rule],
            "action": "SNAT",
            "destinations": [{"cidr": "8.8.8.0/24"}],
            "gatewayRef": {"name": "default", "namespace": "kube-system"},
        },
    })
}

fn labels() -> Value {
    policy(&json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"role": "frontend"}}}))
}

fn expression() -> Value {
    policy(&json!({
        "namespaceSelector": {"matchExpressions": [{"key": "user", "operator": "In", "values": ["alice"]}]},
        "podSelector": {},
    }))
}

fn rule(policy: &mut Value) -> &mut Value {
    &mut policy["spec"]["sources"][0]
}

fn requirement(policy: &mut Value) -> &mut Value {
    &mut policy["spec"]["sources"][0]["namespaceSelector"]["matchExpressions"][0]
}

#[test]
#[rustfmt::skip]
fn rules_and_labels_are_refused_with_field_and_fix_e10() {
    assert_refused(&[
        both(labels, |p| remove(rule(p), "namespaceSelector"), "spec.sources[0].namespaceSelector", "write {} to select all"),
        both(labels, |p| remove(rule(p), "podSelector"), "spec.sources[0].podSelector", "write {} to select all"),
        both(labels, |p| rule(p)["podSelector"] = json!("frontend"), "spec.sources[0].podSelector", "must be of type object"),
        both(labels, |p| rule(p)["podSelector"] = json!({"matchLabels": ["frontend"]}), "spec.sources[0].podSelector.matchLabels", "must be of type object"),
        both(labels, |p| rule(p)["podSelector"] = json!({"matchLabels": {"my role": "x"}}), "spec.sources[0].podSelector.matchLabels", "no label key: write one such as role or example.com/role"),
        both(labels, |p| rule(p)["podSelector"] = json!({"matchLabels": {"role": "front end"}}), "spec.sources[0].podSelector.matchLabels[role]", "no label value: use letters, digits"),
        both(labels, |p| rule(p)["podSelector"] = json!({"matchLabels": {"role": 1}}), "spec.sources[0].podSelector.matchLabels.role", "must be of type string"),
        api_server(labels, |p| rule(p)["podselector"] = json!({}), "spec.sources[0].podselector", "unknown field"),
        api_server(labels, |p| rule(p)["podSelector"] = json!({"matchLabel": {}}), "spec.sources[0].podSelector.matchLabel", "unknown field"),
        api_server(labels, |p| p["spec"]["sources"] = vec![rule(p).clone(); 65].into(), "spec.sources", "must have at most 64 items"),
    ]);
}

#[test]
#[rustfmt::skip]
fn requirements_are_refused_with_field_and_fix_e10() {
    assert_refused(&[
        both(expression, |p| remove(requirement(p), "key"), "spec.sources[0].namespaceSelector.matchExpressions[0].key", "Required value"),
        both(expression, |p| requirement(p)["key"] = json!("a b"), "spec.sources[0].namespaceSelector.matchExpressions[0].key", "no label key: write one such as role or example.com/role"),
        both(expression, |p| requirement(p)["key"] = json!(""), "spec.sources[0].namespaceSelector.matchExpressions[0].key", "no label key"),
        both(expression, |p| remove(requirement(p), "operator"), "spec.sources[0].namespaceSelector.matchExpressions[0].operator", "Required value"),
        both(expression, |p| requirement(p)["operator"] = json!("Within"), "spec.sources[0].namespaceSelector.matchExpressions[0].operator", "supported values: \"In\", \"NotIn\", \"Exists\", \"DoesNotExist\""),
        both(expression, |p| remove(requirement(p), "values"), "spec.sources[0].namespaceSelector.matchExpressions[0].values", "In and NotIn need values: add at least one"),
        both(expression, |p| requirement(p)["values"] = json!([]), "spec.sources[0].namespaceSelector.matchExpressions[0].values", "add at least one"),
        both(expression, |p| *requirement(p) = json!({"key": "user", "operator": "NotIn"}), "spec.sources[0].namespaceSelector.matchExpressions[0].values", "In and NotIn need values: add at least one"),
        both(expression, |p| requirement(p)["operator"] = json!("Exists"), "spec.sources[0].namespaceSelector.matchExpressions[0].values", "Exists and DoesNotExist take no values: remove them"),
        both(expression, |p| requirement(p)["operator"] = json!("DoesNotExist"), "spec.sources[0].namespaceSelector.matchExpressions[0].values", "remove them"),
        both(expression, |p| requirement(p)["values"] = json!("alice"), "spec.sources[0].namespaceSelector.matchExpressions[0].values", "must be of type array"),
        both(expression, |p| requirement(p)["values"][0] = json!("al ice"), "spec.sources[0].namespaceSelector.matchExpressions[0].values[0]", "should match '^(([A-Za-z0-9]"),
        both(expression, |p| requirement(p)["values"][0] = json!("a".repeat(64)), "spec.sources[0].namespaceSelector.matchExpressions[0].values[0]", "may not be more than 63"),
    ]);
}
