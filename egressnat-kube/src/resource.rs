//! The resources as Rust types, slim: only the fields that are used, and what they mean to the planner.

mod event;
mod gateway;
mod network;
mod policy;

pub(crate) use event::{event_of, gone};
pub(crate) use gateway::{MIRROR_OF, cluster_of, gateway_key, gateway_of, object_key};
pub(crate) use network::{GatewayNodeSpec, gateway_node_spec, namespace_of, node_of, pod_of};
pub(crate) use policy::policy_of;

use egressnat_core::model::Timestamp;

use crate::kind::Kind;
use crate::object::{InvalidField, InvalidObject, Object};

/// Checks that an object means something to the planner.
///
/// # Errors
///
/// The first field that does not, with its value and what to write instead.
pub fn validate(object: &Object) -> Result<(), InvalidObject> {
    match object.kind() {
        Kind::Node => node_of(object).map(drop),
        Kind::Namespace => namespace_of(object).map(drop),
        Kind::Pod => pod_of(object).map(drop),
        Kind::Cluster => cluster_of(object).map(drop),
        Kind::NetworkGatewayGroup | Kind::AnthosNetworkGateway => gateway_of(object).map(drop),
        Kind::NetworkGatewayNode | Kind::AnthosNetworkGatewayNode => {
            gateway_node_spec(object).map(drop)
        }
        Kind::EgressNatPolicy => policy_of(object).map(drop),
        Kind::Lease | Kind::Event => Ok(()),
    }
}

/// When an object was created; the epoch for one without the field, which makes it the oldest.
fn created(object: &Object) -> Result<Timestamp, InvalidObject> {
    let Some(text) = object.at("/metadata/creationTimestamp").as_str() else {
        return Ok(Timestamp::default());
    };
    match text.parse::<jiff::Timestamp>() {
        Ok(time) => Ok(Timestamp(time.as_second())),
        Err(_) => {
            let message =
                format!("{text:?} is no time: write it as 2024-01-31T12:00:00Z, or leave it out");
            Err(object.invalid(InvalidField::new("metadata.creationTimestamp", message)))
        }
    }
}

/// Parses a value, with the field it stands in.
fn parse_at<T>(object: &Object, field: &str, text: &str, want: &str) -> Result<T, InvalidObject>
where
    T: std::str::FromStr,
{
    text.parse()
        .map_err(|_| object.invalid(InvalidField::new(field, format!("{text:?} is no {want}"))))
}

/// Parses a CIDR and insists on its canonical form, as Kubernetes does for new API fields.
fn parse_range(object: &Object, field: &str, text: &str) -> Result<ipnet::IpNet, InvalidObject> {
    let range: ipnet::IpNet = parse_at(
        object,
        field,
        text,
        "CIDR: write address/length, such as 8.8.8.0/24",
    )?;
    if range.addr() != range.network() {
        let message = format!("{text} has host bits set: write {}", range.trunc());
        return Err(object.invalid(InvalidField::new(field, message)));
    }
    Ok(range)
}
