//! Objects as tables, the way kubectl shows them.

use egressnat_kube::{Kind, Object};
use serde_json::Value;

/// A table of objects of one kind.
pub fn table(kind: Kind, objects: &[Object]) -> String {
    let mut rows: Vec<Vec<String>> = vec![
        columns(kind)
            .iter()
            .map(|(title, _)| (*title).to_owned())
            .collect(),
    ];
    rows.extend(
        objects
            .iter()
            .map(|object| columns(kind).iter().map(|(_, cell)| cell(object)).collect()),
    );
    if kind.is_namespaced() {
        rows[0].insert(0, "NAMESPACE".to_owned());
        for (row, object) in rows.iter_mut().skip(1).zip(objects) {
            row.insert(0, object.namespace().unwrap_or_default().to_owned());
        }
    }
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    rows.iter()
        .map(|row| {
            let cells = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join("   ").trim_end().to_owned() + "\n"
        })
        .collect()
}

type Column = (&'static str, fn(&Object) -> String);

const NAME: Column = ("NAME", |object| object.name().to_owned());

fn columns(kind: Kind) -> &'static [Column] {
    match kind {
        Kind::Node => &[
            NAME,
            ("ADDRESS", |object| {
                let addresses = object
                    .at("/status/addresses")
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                let internal = addresses
                    .iter()
                    .find(|address| address["type"] == "InternalIP");
                internal
                    .map(|address| text(&address["address"]))
                    .unwrap_or_default()
            }),
            ("PODS", |object| text(object.at("/spec/podCIDR"))),
        ],
        Kind::Namespace => &[
            NAME,
            ("LABELS", |object| pairs(object.at("/metadata/labels"))),
        ],
        Kind::Pod => &[
            NAME,
            ("STATUS", |object| text(object.at("/status/phase"))),
            ("IP", |object| text(object.at("/status/podIP"))),
            ("NODE", |object| text(object.at("/spec/nodeName"))),
            ("LABELS", |object| pairs(object.at("/metadata/labels"))),
        ],
        Kind::NetworkGatewayGroup | Kind::AnthosNetworkGateway => &[
            NAME,
            ("FLOATING-IPS", |object| {
                list(object.at("/spec/floatingIPs"))
            }),
            ("ASSIGNED", |object| pairs(object.at("/status/floatingIPs"))),
            ("NODES", |object| pairs(object.at("/status/nodes"))),
        ],
        Kind::NetworkGatewayNode | Kind::AnthosNetworkGatewayNode => &[
            NAME,
            ("HEALTH", |object| text(object.at("/status/health"))),
            ("FLOATING-IPS", |object| {
                list(object.at("/status/floatingIPs"))
            }),
            ("SUBNETS", |object| list(object.at("/spec/subnets"))),
        ],
        Kind::EgressNatPolicy => &[
            NAME,
            ("ACTION", |object| match object.at("/spec/action") {
                Value::Null => "SNAT".to_owned(),
                action => text(action),
            }),
            ("EGRESS", |object| {
                let reference = object.at("/spec/gatewayRef");
                match object.at("/spec/egressSourceIP") {
                    Value::Null if reference.is_null() => String::new(),
                    Value::Null => format!(
                        "{}/{}",
                        text(&reference["namespace"]),
                        text(&reference["name"])
                    ),
                    address => text(address),
                }
            }),
            ("EGRESS-IP", |object| list(object.at("/status/egressIPs"))),
            ("NODE", |object| list(object.at("/status/nodes"))),
            ("PROGRAMMED", |object| {
                let conditions = object.at("/status/conditions").as_array();
                let mut conditions = conditions.into_iter().flatten();
                let programmed = conditions.find(|one| one["type"] == "Programmed");
                programmed
                    .map(|one| text(&one["status"]))
                    .unwrap_or_default()
            }),
        ],
        Kind::Lease => &[
            NAME,
            ("HOLDER", |object| text(object.at("/spec/holderIdentity"))),
            ("RENEWED", |object| text(object.at("/spec/renewTime"))),
        ],
        Kind::Event => &[
            ("LAST-SEEN", |object| text(object.at("/lastTimestamp"))),
            ("COUNT", |object| text(object.at("/count"))),
            ("TYPE", |object| text(object.at("/type"))),
            ("REASON", |object| text(object.at("/reason"))),
            ("OBJECT", |object| {
                format!(
                    "{}/{}",
                    text(object.at("/involvedObject/kind")),
                    text(object.at("/involvedObject/name"))
                )
            }),
            ("MESSAGE", |object| text(object.at("/message"))),
        ],
        Kind::Cluster => &[NAME],
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn list(value: &Value) -> String {
    value
        .as_array()
        .into_iter()
        .flatten()
        .map(text)
        .collect::<Vec<_>>()
        .join(",")
}

fn pairs(value: &Value) -> String {
    let pairs = value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", text(value)));
    pairs.collect::<Vec<_>>().join(",")
}
