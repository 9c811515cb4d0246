//! What the controller writes: copies of gateways, status. Only what differs.

use std::collections::{BTreeMap, BTreeSet};

use egressnat_core::Assigned;
use egressnat_core::gateway::SYSTEM_NAMESPACE;
use egressnat_core::model::{GatewayKey, Snapshot};
use serde_json::{Value, json};

use super::Controller;
use crate::kind::Kind;
use crate::object::{Object, ObjectKey};
use crate::resource::{MIRROR_OF, gateway_key, object_key};
use crate::store::{ObjectStore, StoreError};

impl<S: ObjectStore> Controller<S> {
    /// Gateways of cluster namespaces are effective as copies in `kube-system` (E7).
    pub(super) async fn write_copies(&mut self, assigned: &Assigned) -> Result<(), StoreError> {
        let gateways = &assigned.gateways.gateways;
        let orphans: Vec<ObjectKey> = [Kind::NetworkGatewayGroup, Kind::AnthosNetworkGateway]
            .into_iter()
            .flat_map(|kind| self.index.objects(kind))
            .filter(|object| object.annotation(MIRROR_OF).is_some())
            .filter(|object| {
                let key = gateway_key(object);
                key.is_none_or(|key| {
                    gateways
                        .get(&key)
                        .is_none_or(|gateway| gateway.mirror_of.is_none())
                })
            })
            .map(|object| object.key().clone())
            .collect();
        for key in orphans {
            self.store.remove(&key).await?;
            self.index.delete(&key);
        }
        for (key, gateway) in gateways {
            let Some(namespace) = &gateway.mirror_of else {
                continue;
            };
            let spec = json!({ "floatingIPs": gateway.floating_ips });
            let annotation = Some((MIRROR_OF, namespace.as_str()));
            self.ensure(&object_key(key), spec, annotation).await?;
        }
        Ok(())
    }

    /// Makes an object's spec what it should be, and one annotation; others are not ours.
    async fn ensure(
        &mut self,
        key: &ObjectKey,
        spec: Value,
        annotation: Option<(&str, &str)>,
    ) -> Result<(), StoreError> {
        let known = self.index.object(key);
        let mut object = match known {
            Some(known) => known.clone(),
            None => Object::new(key, json!({})),
        };
        object.value_mut()["spec"] = spec;
        if let Some((name, value)) = annotation {
            object.value_mut()["metadata"]["annotations"][name] = json!(value);
        }
        let written = match known {
            None => self.store.create(object).await,
            Some(known) if *known == object => return Ok(()),
            Some(_) => self.store.update(object).await,
        };
        self.settle(written)
    }

    /// Makes an object's status what it should be. An object that is not there (yet) is left.
    async fn ensure_status(&mut self, key: &ObjectKey, status: Value) -> Result<(), StoreError> {
        let Some(known) = self
            .index
            .object(key)
            .filter(|known| known.at("/status") != &status)
        else {
            return Ok(());
        };
        let mut object = known.clone();
        object.value_mut()["status"] = status;
        let written = self.store.update_status(object).await;
        self.settle(written)
    }

    /// A write that is refused keeps no other from being done: it is told once, and repeated ever more slowly.
    fn settle(&mut self, written: Result<Object, StoreError>) -> Result<(), StoreError> {
        match written {
            Ok(object) => self.remember(object),
            Err(error @ StoreError::Refused { .. }) => {
                if self.refused.insert(error.to_string()) {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "a write is refused and will be repeated");
                }
                self.refused_now = Some(error);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// What we wrote ourselves counts at once, not only when the watch tells it.
    fn remember(&mut self, object: Object) {
        if let Err(error) = self.index.apply(object) {
            tracing::error!(%error, "an object of our own does not make sense");
        }
    }

    /// The seeds' own shape: `nodes: {node: Up|Down}`, `floatingIPs: {ip: node}`.
    pub(super) async fn write_gateway_status(
        &mut self,
        snapshot: &Snapshot,
        assigned: &Assigned,
    ) -> Result<(), StoreError> {
        let nodes: BTreeMap<String, String> = self
            .index
            .gateway_nodes()
            .iter()
            .filter_map(|name| {
                Some((
                    name.to_string(),
                    snapshot.nodes.get(name)?.health.to_string(),
                ))
            })
            .collect();
        for key in assigned.gateways.gateways.keys() {
            let holders: BTreeMap<String, &str> = assigned
                .assignment
                .nodes
                .iter()
                .filter(|(address, _)| assigned.gateways.owners.get(*address) == Some(key))
                .map(|(address, node)| (address.to_string(), node.as_str()))
                .collect();
            let status = json!({ "nodes": nodes, "floatingIPs": holders });
            self.ensure_status(&object_key(key), status).await?;
        }
        Ok(())
    }

    /// One object per node with its health and its floating IPs (E2), of the older kind too where that is in use.
    pub(super) async fn write_nodes(
        &mut self,
        snapshot: &Snapshot,
        assigned: &Assigned,
    ) -> Result<(), StoreError> {
        let is_anthos =
            |key: &GatewayKey| key.kind == egressnat_core::model::GatewayKind::AnthosNetworkGateway;
        let has_anthos = assigned.gateways.gateways.keys().any(is_anthos);
        for name in self.index.gateway_nodes() {
            let Some(node) = snapshot.nodes.get(&name) else {
                continue;
            };
            let held: BTreeSet<String> = assigned
                .assignment
                .held_by(&name)
                .map(|address| address.to_string())
                .collect();
            let status = json!({ "health": node.health.to_string(), "floatingIPs": held });
            let key =
                ObjectKey::namespaced(Kind::NetworkGatewayNode, SYSTEM_NAMESPACE, name.as_str());
            let anthos = ObjectKey {
                kind: Kind::AnthosNetworkGatewayNode,
                ..key.clone()
            };
            if has_anthos {
                let spec = self
                    .index
                    .object(&key)
                    .map(|object| object.at("/spec").clone())
                    .filter(|spec| !spec.is_null())
                    .unwrap_or_else(|| json!({}));
                self.ensure(&anthos, spec, None).await?;
                self.ensure_status(&anthos, status.clone()).await?;
            }
            self.ensure_status(&key, status).await?;
        }
        Ok(())
    }
}
