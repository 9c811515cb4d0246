//! What the controller writes: copies of gateways, status. Only what differs.

use egressnat_core::Assigned;
use egressnat_core::gateway::SYSTEM_NAMESPACE;
use egressnat_core::model::{GatewayKind, NodeName};
use serde_json::{Value, json};

use super::Controller;
use crate::event::{Fact, Sameness, Severity};
use crate::field_manager::{FieldManager, StatusApplied};
use crate::kind::Kind;
use crate::object::{Object, ObjectKey};
use crate::resource::{MIRROR_OF, gateway_key, object_key};
use crate::status::reason;
use crate::store::{ObjectStore, StoreError};

/// On a copy: of which generation of its original it was made. A copy that differs although this is current was edited.
const MIRROR_GENERATION: &str = "egressnat.io/mirror-generation";

fn copy_overwritten(copy: &ObjectKey, original: &ObjectKey) -> Fact {
    Fact {
        about: copy.clone(),
        uid: None,
        severity: Severity::Warning,
        reason: reason::COPY_OVERWRITTEN,
        message: format!(
            "this is a copy of {original}, and somebody had edited it: edit {original} instead"
        ),
        sameness: Sameness::Reason,
    }
}

/// Told of an object of which others had written the status.
fn overwritten(about: ObjectKey, whose: &str) -> Fact {
    Fact {
        about,
        uid: None,
        severity: Severity::Warning,
        reason: reason::STATUS_OVERWRITTEN,
        message: format!(
            "somebody else had written a part of the status, which was taken back; write the spec instead: {whose}"
        ),
        sameness: Sameness::Reason,
    }
}

impl<S: ObjectStore> Controller<S> {
    /// Gateways of cluster namespaces are effective as copies in `kube-system` (E7). Returns which of them somebody had edited.
    ///
    /// No finalizer holds an original back until its copy is gone: a copy without an original is removed whenever that is seen,
    /// by the next controller too.
    pub(super) async fn write_copies(
        &mut self,
        assigned: &Assigned,
    ) -> Result<Vec<Fact>, StoreError> {
        let gateways = &assigned.gateways.gateways;
        let orphans: Vec<ObjectKey> = [Kind::NetworkGatewayGroup, Kind::AnthosNetworkGateway]
            .into_iter()
            .flat_map(|kind| self.index.objects(kind))
            .filter(|object| object.annotation(MIRROR_OF).is_some())
            .filter(|object| {
                let key = gateway_key(object.key());
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
        let mut edited = Vec::new();
        for (key, gateway) in gateways {
            let Some(namespace) = &gateway.mirror_of else {
                continue;
            };
            let key = object_key(key);
            let original = ObjectKey {
                namespace: Some(namespace.to_string()),
                ..key.clone()
            };
            let generation = self
                .index
                .object(&original)
                .map_or(0, Object::generation)
                .to_string();
            let spec = json!({ "floatingIPs": gateway.floating_ips });
            let is_edited = |copy: &Object| {
                copy.annotation(MIRROR_GENERATION) == Some(&generation) && copy.at("/spec") != &spec
            };
            if self.index.known(&key).is_some_and(is_edited) {
                edited.push(copy_overwritten(&key, &original));
            }
            let annotations =
                json!({ MIRROR_OF: namespace.as_str(), MIRROR_GENERATION: generation });
            self.ensure(&key, spec, Some(annotations)).await?;
        }
        Ok(edited)
    }

    /// Makes an object's spec what it should be, and some annotations; others are not ours.
    async fn ensure(
        &mut self,
        key: &ObjectKey,
        spec: Value,
        annotations: Option<Value>,
    ) -> Result<(), StoreError> {
        let known = self.index.known(key);
        let mut object = match known {
            Some(known) => known.clone(),
            None => Object::new(key, json!({})),
        };
        object.value_mut()["spec"] = spec;
        for (name, value) in annotations.iter().filter_map(Value::as_object).flatten() {
            object.value_mut()["metadata"]["annotations"][name] = value.clone();
        }
        let written = match known {
            None => self.store.create(object).await,
            Some(known) if *known == object => return Ok(()),
            Some(_) => self.store.update(object).await,
        };
        self.settle(written)
    }

    /// Writes statuses. Returns what was taken back from others.
    pub(super) async fn write_status(
        &mut self,
        wanted: Vec<Object>,
    ) -> Result<Vec<Fact>, StoreError> {
        let mut taken_back = Vec::new();
        for object in wanted {
            let about = object.key().clone();
            let applied = self
                .store
                .apply_status(object, FieldManager::Controller)
                .await;
            let written = match applied {
                // It went meanwhile, which the watch will tell.
                Err(StoreError::NotFound(_)) => continue,
                Err(error) => Err(error),
                Ok(StatusApplied {
                    object,
                    taken_back: whose,
                }) => {
                    taken_back.extend(whose.map(|whose| overwritten(about, &whose)));
                    Ok(object)
                }
            };
            self.settle(written)?;
        }
        Ok(taken_back)
    }

    /// A write that is refused keeps no other from being done: it is told once, and repeated ever more slowly.
    pub(super) fn settle(&mut self, written: Result<Object, StoreError>) -> Result<(), StoreError> {
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
    pub(super) fn remember(&mut self, object: Object) {
        if let Err(error) = self.index.apply(object) {
            tracing::error!(%error, "an object of our own does not make sense");
        }
    }

    /// Nodes of the older kind, where that is in use: what they say is what the newer ones say.
    pub(super) async fn write_anthos_nodes(
        &mut self,
        assigned: &Assigned,
    ) -> Result<(), StoreError> {
        if !uses_anthos(assigned) {
            return Ok(());
        }
        for name in self.index.gateway_nodes() {
            let spec = self
                .index
                .object(&node_key(Kind::NetworkGatewayNode, &name))
                .map(|object| object.at("/spec").clone())
                .filter(|spec| !spec.is_null())
                .unwrap_or_else(|| json!({}));
            let key = node_key(Kind::AnthosNetworkGatewayNode, &name);
            self.ensure(&key, spec, None).await?;
        }
        Ok(())
    }
}

/// Whether a gateway of the older kind is effective.
pub(super) fn uses_anthos(assigned: &Assigned) -> bool {
    let mut gateways = assigned.gateways.gateways.keys();
    gateways.any(|key| key.kind == GatewayKind::AnthosNetworkGateway)
}

/// The key of a node's object.
pub(super) fn node_key(kind: Kind, name: &NodeName) -> ObjectKey {
    ObjectKey::namespaced(kind, SYSTEM_NAMESPACE, name.as_str())
}
