use egressnat_core::model::{ClusterKey, Event, PodKey};

use super::{cluster_of, gateway_key, gateway_of, namespace_of, node_of, pod_of, policy_of};
use crate::kind::Kind;
use crate::object::{InvalidObject, Object, ObjectKey};

/// What an object says to the planner; none for a kind that it knows nothing of.
///
/// A node is up, and without subnets: its own object tells neither.
///
/// # Errors
///
/// It does not make sense, and so counts as gone: [`gone`].
pub(crate) fn event_of(object: &Object) -> Result<Option<Event>, InvalidObject> {
    let event = match object.kind() {
        Kind::Node => Event::Node(object.parse_name()?, Some(node_of(object)?)),
        Kind::Namespace => Event::Namespace(object.parse_name()?, Some(namespace_of(object)?)),
        Kind::Pod => {
            let key = PodKey::new(object.parse_namespace()?, object.parse_name()?);
            Event::Pod(key, pod_of(object)?)
        }
        Kind::Cluster => {
            let key = ClusterKey {
                namespace: object.parse_namespace()?,
                name: object.parse_name()?,
            };
            Event::Cluster(key, Some(cluster_of(object)?))
        }
        Kind::NetworkGatewayGroup | Kind::AnthosNetworkGateway => match gateway_key(object.key()) {
            Some(key) => Event::Gateway(key, Some(gateway_of(object)?)),
            None => return Ok(None),
        },
        Kind::EgressNatPolicy => Event::Policy(object.parse_name()?, Some(policy_of(object)?)),
        Kind::NetworkGatewayNode | Kind::AnthosNetworkGatewayNode | Kind::Lease | Kind::Event => {
            return Ok(None);
        }
    };
    Ok(Some(event))
}

/// What the planner is told of an object that is not there, or makes no sense; nothing for a kind that it knows nothing of.
pub(crate) fn gone(key: &ObjectKey) -> Option<Event> {
    let namespace = || key.namespace.as_ref()?.parse().ok();
    let event = match key.kind {
        Kind::Node => Event::Node(key.name.parse().ok()?, None),
        Kind::Namespace => Event::Namespace(key.name.parse().ok()?, None),
        Kind::Pod => Event::Pod(PodKey::new(namespace()?, key.name.parse().ok()?), None),
        Kind::Cluster => {
            let cluster = ClusterKey {
                namespace: namespace()?,
                name: key.name.parse().ok()?,
            };
            Event::Cluster(cluster, None)
        }
        Kind::NetworkGatewayGroup | Kind::AnthosNetworkGateway => {
            Event::Gateway(gateway_key(key)?, None)
        }
        Kind::EgressNatPolicy => Event::Policy(key.name.parse().ok()?, None),
        Kind::NetworkGatewayNode | Kind::AnthosNetworkGatewayNode | Kind::Lease | Kind::Event => {
            return None;
        }
    };
    Some(event)
}
