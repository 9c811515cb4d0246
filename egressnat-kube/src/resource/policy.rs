use std::collections::BTreeSet;
use std::net::IpAddr;

use egressnat_core::model::{Action, EgressSource, Enforcement, Labels, Policy, Source};
use egressnat_core::selector::{Operator, Requirement, Selector};
use ipnet::IpNet;
use serde::Deserialize;

use super::{created, parse_at, parse_range};
use crate::object::{InvalidField, InvalidObject, Object};

/// `EgressNATPolicy` in either version (E3, E4): one type, as one CRD serves both.
#[derive(Deserialize)]
struct PolicyDocument {
    spec: PolicySpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PolicySpec {
    // v1
    sources: Option<Vec<Rule>>,
    action: Option<String>,
    destinations: Option<Vec<Destination>>,
    gateway_ref: Option<GatewayRef>,
    // v1alpha1
    egress: Option<Vec<Rule>>,
    #[serde(rename = "destinationCIDRs")]
    destination_cidrs: Option<Vec<String>>,
    #[serde(rename = "egressSourceIP")]
    egress_source_ip: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    namespace_selector: Option<SelectorDocument>,
    pod_selector: Option<SelectorDocument>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SelectorDocument {
    #[serde(default)]
    match_labels: Labels,
    #[serde(default)]
    match_expressions: Vec<Expression>,
}

#[derive(Deserialize)]
struct Expression {
    key: String,
    operator: String,
    #[serde(default)]
    values: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Destination {
    cidr: String,
}

#[derive(Deserialize)]
struct GatewayRef {
    name: String,
    namespace: String,
}

/// What happens to selected traffic that cannot leave with the egress IP: `Strict` (the default) or `BestEffort`.
const ENFORCEMENT: &str = "egressnat.io/enforcement";

fn enforcement(object: &Object) -> Result<Enforcement, InvalidObject> {
    match object.annotation(ENFORCEMENT) {
        None | Some("Strict") => Ok(Enforcement::Strict),
        Some("BestEffort") => Ok(Enforcement::BestEffort),
        Some(other) => {
            let field = format!("metadata.annotations[{ENFORCEMENT}]");
            let message = format!("{other:?} is no enforcement: write Strict or BestEffort");
            Err(object.invalid(InvalidField::new(field, message)))
        }
    }
}

/// The planner's view of a policy.
///
/// The fields tell the form, not `apiVersion`: whichever version a client reads or writes, the object is the same (E6).
pub(crate) fn policy_of(object: &Object) -> Result<Policy, InvalidObject> {
    let PolicyDocument { spec } = object.parse()?;
    let is_v1alpha1 = spec.egress.is_some()
        || spec.destination_cidrs.is_some()
        || spec.egress_source_ip.is_some();
    if is_v1alpha1 {
        v1alpha1(object, spec)
    } else {
        v1(object, spec)
    }
}

fn v1(object: &Object, spec: PolicySpec) -> Result<Policy, InvalidObject> {
    let destinations = present(object, "spec.destinations", spec.destinations)?;
    let cidrs = destinations
        .iter()
        .map(|destination| destination.cidr.as_str());
    let destinations = ranges(object, cidrs, |index| {
        format!("spec.destinations[{index}].cidr")
    })?;
    let (sources, action) = match spec.action.as_deref() {
        // E5: NoSNAT needs destinations only.
        Some("NoSNAT") => (spec.sources.unwrap_or_default(), Action::NoSnat),
        Some("SNAT") => {
            let gateway = spec
                .gateway_ref
                .ok_or_else(|| missing(object, "spec.gatewayRef"))?;
            let namespace = parse_at(
                object,
                "spec.gatewayRef.namespace",
                &gateway.namespace,
                "namespace name: use lower case letters, digits and '-'",
            )?;
            let name = parse_at(
                object,
                "spec.gatewayRef.name",
                &gateway.name,
                "object name: use lower case letters, digits, '-' and '.'",
            )?;
            let sources = present(object, "spec.sources", spec.sources)?;
            (
                sources,
                Action::Snat(EgressSource::Gateway { namespace, name }),
            )
        }
        Some(other) => {
            let message = format!("{other:?} is no action: use SNAT or NoSNAT");
            return Err(object.invalid(InvalidField::new("spec.action", message)));
        }
        None => return Err(missing(object, "spec.action")),
    };
    Ok(Policy {
        created: created(object)?,
        sources: rules(object, "spec.sources", &sources)?,
        destinations,
        action,
        enforcement: enforcement(object)?,
    })
}

fn v1alpha1(object: &Object, spec: PolicySpec) -> Result<Policy, InvalidObject> {
    let egress = present(object, "spec.egress", spec.egress)?;
    let cidrs = present(object, "spec.destinationCIDRs", spec.destination_cidrs)?;
    let cidrs = cidrs.iter().map(String::as_str);
    let destinations = ranges(object, cidrs, |index| {
        format!("spec.destinationCIDRs[{index}]")
    })?;
    let text = spec
        .egress_source_ip
        .ok_or_else(|| missing(object, "spec.egressSourceIP"))?;
    let address: IpAddr = parse_at(
        object,
        "spec.egressSourceIP",
        &text,
        "IP address: write one of a gateway's floatingIPs",
    )?;
    Ok(Policy {
        created: created(object)?,
        sources: rules(object, "spec.egress", &egress)?,
        destinations,
        action: Action::Snat(EgressSource::Address(address)),
        enforcement: enforcement(object)?,
    })
}

fn missing(object: &Object, field: &str) -> InvalidObject {
    object.invalid(InvalidField::new(field, "required and missing: add it"))
}

/// A list that must be there and have an entry.
fn present<T>(object: &Object, field: &str, list: Option<Vec<T>>) -> Result<Vec<T>, InvalidObject> {
    match list {
        None => Err(missing(object, field)),
        Some(list) if list.is_empty() => Err(object.invalid(InvalidField::new(
            field,
            "empty: at least one entry is required",
        ))),
        Some(list) => Ok(list),
    }
}

fn ranges<'a>(
    object: &Object,
    cidrs: impl Iterator<Item = &'a str>,
    field: impl Fn(usize) -> String,
) -> Result<BTreeSet<IpNet>, InvalidObject> {
    cidrs
        .enumerate()
        .map(|(index, cidr)| parse_range(object, &field(index), cidr))
        .collect()
}

fn rules(object: &Object, field: &str, rules: &[Rule]) -> Result<Vec<Source>, InvalidObject> {
    let mut sources = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        let side = |name: &str, document: &Option<SelectorDocument>| {
            let field = format!("{field}[{index}].{name}");
            match document {
                Some(document) => selector(object, &field, document),
                None => Err(object.invalid(InvalidField::new(
                    field,
                    "required and missing: write {} to select all",
                ))),
            }
        };
        sources.push(Source {
            namespaces: side("namespaceSelector", &rule.namespace_selector)?,
            pods: side("podSelector", &rule.pod_selector)?,
        });
    }
    Ok(sources)
}

fn selector(
    object: &Object,
    field: &str,
    document: &SelectorDocument,
) -> Result<Selector, InvalidObject> {
    let mut selector = Selector {
        match_labels: document.match_labels.clone(),
        match_expressions: Vec::new(),
    };
    for (index, expression) in document.match_expressions.iter().enumerate() {
        let field = format!("{field}.matchExpressions[{index}]");
        let operator = match (expression.operator.as_str(), expression.values.is_empty()) {
            ("In", _) => Operator::In(expression.values.clone()),
            ("NotIn", _) => Operator::NotIn(expression.values.clone()),
            ("Exists", true) => Operator::Exists,
            ("DoesNotExist", true) => Operator::DoesNotExist,
            ("Exists" | "DoesNotExist", false) => {
                let message = format!("{} takes no values: remove them", expression.operator);
                return Err(object.invalid(InvalidField::new(format!("{field}.values"), message)));
            }
            (other, _) => {
                let message =
                    format!("{other:?} is no operator: use In, NotIn, Exists or DoesNotExist");
                return Err(object.invalid(InvalidField::new(format!("{field}.operator"), message)));
            }
        };
        selector.match_expressions.push(Requirement {
            key: expression.key.clone(),
            operator,
        });
    }
    selector
        .validate()
        .map_err(|error| object.invalid(InvalidField::new(field, error)))?;
    Ok(selector)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn object(version: &str, spec: Value) -> Object {
        Object::from_value(json!({
            "apiVersion": format!("networking.gke.io/{version}"),
            "kind": "EgressNATPolicy",
            "metadata": {"name": "egress"},
            "spec": spec,
        }))
        .unwrap()
    }

    fn v1_spec() -> Value {
        json!({
            "sources": [{
                "namespaceSelector": {"matchLabels": {"user": "alice"}},
                "podSelector": {"matchExpressions": [{"key": "role", "operator": "In", "values": ["frontend"]}]},
            }],
            "action": "SNAT",
            "destinations": [{"cidr": "8.8.8.0/24"}],
            "gatewayRef": {"name": "default", "namespace": "kube-system"},
        })
    }

    fn v1alpha1_spec() -> Value {
        json!({
            "egress": [{"namespaceSelector": {}, "podSelector": {}}],
            "destinationCIDRs": ["8.8.8.0/24"],
            "egressSourceIP": "192.168.1.100",
        })
    }

    #[test]
    fn both_forms_are_read_whichever_version_carries_them_e3_e4_e6() {
        for version in ["v1", "v1alpha1"] {
            let policy = policy_of(&object(version, v1_spec())).unwrap();
            assert!(matches!(
                policy.action,
                Action::Snat(EgressSource::Gateway { .. })
            ));
            assert_eq!(
                policy.sources[0].namespaces,
                Selector::from_labels([("user", "alice")])
            );
            let policy = policy_of(&object(version, v1alpha1_spec())).unwrap();
            assert!(matches!(
                policy.action,
                Action::Snat(EgressSource::Address(_))
            ));
        }
    }

    #[test]
    fn enforcement_is_an_annotation_as_the_published_api_has_no_field_for_it_e43() {
        for (value, want) in [
            (None, Some(Enforcement::Strict)),
            (Some("Strict"), Some(Enforcement::Strict)),
            (Some("BestEffort"), Some(Enforcement::BestEffort)),
            (Some("strict"), None),
        ] {
            let mut object = object("v1", v1_spec());
            if let Some(value) = value {
                object.value_mut()["metadata"]["annotations"] = json!({ ENFORCEMENT: value });
            }
            let policy = policy_of(&object);
            assert_eq!(
                policy.ok().map(|policy| policy.enforcement),
                want,
                "{value:?}"
            );
        }
    }

    #[test]
    fn no_snat_needs_destinations_only_e5() {
        let policy = policy_of(&object(
            "v1",
            json!({"action": "NoSNAT", "destinations": [{"cidr": "10.0.0.0/8"}]}),
        ));
        assert_eq!(policy.unwrap().action, Action::NoSnat);
    }

    #[test]
    fn what_is_wrong_is_told_with_field_value_and_fix() {
        struct Case {
            change: fn(&mut Value),
            spec: fn() -> Value,
            field: &'static str,
            message: &'static str,
        }
        let cases = [
            Case {
                change: |s| s["action"] = json!("Snat"),
                spec: v1_spec,
                field: "spec.action",
                message: "SNAT or NoSNAT",
            },
            Case {
                change: |s| s["sources"] = json!([]),
                spec: v1_spec,
                field: "spec.sources",
                message: "at least one",
            },
            Case {
                change: |s| s["gatewayRef"] = json!(null),
                spec: v1_spec,
                field: "spec.gatewayRef",
                message: "missing",
            },
            Case {
                change: |s| s["destinations"][0]["cidr"] = json!("8.8.8.8/24"),
                spec: v1_spec,
                field: "spec.destinations[0].cidr",
                message: "write 8.8.8.0/24",
            },
            Case {
                change: |s| s["destinations"][0]["cidr"] = json!("8.8.8.8"),
                spec: v1_spec,
                field: "spec.destinations[0].cidr",
                message: "no CIDR",
            },
            Case {
                change: |s| {
                    s["sources"][0]["podSelector"]["matchExpressions"][0]["operator"] =
                        json!("Within")
                },
                spec: v1_spec,
                field: "spec.sources[0].podSelector.matchExpressions[0].operator",
                message: "DoesNotExist",
            },
            Case {
                change: |s| s["sources"][0]["podSelector"] = json!(null),
                spec: v1_spec,
                field: "spec.sources[0].podSelector",
                message: "missing",
            },
            Case {
                change: |s| {
                    s["sources"][0]["namespaceSelector"]["matchLabels"] = json!({"us er": "x"})
                },
                spec: v1_spec,
                field: "spec.sources[0].namespaceSelector",
                message: "label key",
            },
            Case {
                change: |s| s["sources"] = json!("all"),
                spec: v1_spec,
                field: "spec.sources",
                message: "invalid type",
            },
            Case {
                change: |s| s["egressSourceIP"] = json!("192.168.1.256"),
                spec: v1alpha1_spec,
                field: "spec.egressSourceIP",
                message: "192.168.1.256",
            },
            Case {
                change: |s| s["destinationCIDRs"] = json!(null),
                spec: v1alpha1_spec,
                field: "spec.destinationCIDRs",
                message: "missing",
            },
        ];
        for case in cases {
            let mut spec = (case.spec)();
            (case.change)(&mut spec);
            let error = policy_of(&object("v1", spec)).unwrap_err();
            assert_eq!(error.field, case.field);
            assert!(error.message.contains(case.message), "{error}");
        }
    }
}
