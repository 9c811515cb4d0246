//! The pods of a node from the one who makes them: a CNI knows them before the API does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use egressnat_core::model::{Pod, PodKey, PodPhase};
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use crate::kind::Kind;
use crate::object::{Object, ObjectKey};
use crate::store::{Layer, ObjectStore, StoreError, Watch, WatchEvent, WatchRequest};

/// The pods of one node, told by the program that runs the agent's loop. Clones are the same pods.
///
/// Tell the pods that there are before the loop starts: it takes those that it does not know for gone.
#[derive(Debug, Clone, Default)]
pub struct LocalPods(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    pods: BTreeMap<ObjectKey, Object>,
    watches: Vec<UnboundedSender<WatchEvent>>,
}

impl LocalPods {
    /// A pod is new or has changed.
    pub fn put(&self, key: &PodKey, pod: &Pod) {
        let object = object_of(key, pod);
        let mut state = self.state();
        let before = state.pods.insert(object.key().clone(), object.clone());
        if before.as_ref() != Some(&object) {
            state.tell(&WatchEvent::Applied(object));
        }
    }

    /// A pod is gone. Returns whether it was there.
    pub fn remove(&self, key: &PodKey) -> bool {
        let key = object_key(key);
        let mut state = self.state();
        let is_known = state.pods.remove(&key).is_some();
        if is_known {
            state.tell(&WatchEvent::Deleted(key));
        }
        is_known
    }

    /// A store that has these pods, and everything else from `store`. Pods of `store` are not asked for.
    pub fn beside<S: ObjectStore>(&self, store: S) -> PodsBeside<S> {
        PodsBeside {
            store,
            pods: self.clone(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pods there are, and everything that happens to them from now on.
    fn watch(&self) -> UnboundedReceiver<WatchEvent> {
        let (sender, events) = unbounded_channel();
        let mut state = self.state();
        for pod in state.pods.values() {
            let _ = sender.send(WatchEvent::Applied(pod.clone()));
        }
        state.watches.push(sender);
        events
    }
}

impl State {
    fn tell(&mut self, event: &WatchEvent) {
        self.watches
            .retain(|watch| watch.send(event.clone()).is_ok());
    }
}

fn object_key(key: &PodKey) -> ObjectKey {
    ObjectKey::namespaced(Kind::Pod, key.namespace.as_str(), key.name.as_str())
}

/// The pod as the API would have it.
fn object_of(key: &PodKey, pod: &Pod) -> Object {
    let phase = match pod.phase {
        PodPhase::Active => "Running",
        PodPhase::Finished => "Succeeded",
    };
    let addresses: Vec<_> = pod.ips.iter().map(|ip| json!({ "ip": ip })).collect();
    let content = json!({
        "spec": { "nodeName": pod.node.as_str(), "hostNetwork": pod.host_network },
        "status": { "phase": phase, "podIPs": addresses },
    });
    let mut object = Object::new(&object_key(key), content);
    object.value_mut()["metadata"]["labels"] = json!(pod.labels);
    object
}

/// A store with pods of its own beside it: see [`LocalPods::beside`].
#[derive(Debug, Clone)]
pub struct PodsBeside<S> {
    store: S,
    pods: LocalPods,
}

impl<S: ObjectStore> Layer for PodsBeside<S> {
    type Inner = S;

    fn inner(&self) -> &S {
        &self.store
    }

    fn start_watch(&self, request: &WatchRequest) -> Result<Watch, StoreError> {
        if !request.kinds.contains(&Kind::Pod) {
            return self.store.watch(request);
        }
        let mut request = request.clone();
        request.kinds.retain(|kind| *kind != Kind::Pod);
        let objects = self.store.watch(&request)?;
        let (sender, events) = unbounded_channel();
        let joined = Joined {
            objects,
            pods: self.pods.watch(),
            sender,
        };
        // Ends with the watch.
        let mut task = JoinSet::new();
        task.spawn(joined.run());
        Ok(Watch::new(events, task))
    }
}

/// One watch of two sources.
struct Joined {
    objects: Watch,
    pods: UnboundedReceiver<WatchEvent>,
    sender: UnboundedSender<WatchEvent>,
}

impl Joined {
    /// Until the store goes away, or the one who watches.
    async fn run(mut self) {
        loop {
            // The pods that there are come before the store can say that all has been told.
            let event = tokio::select! {
                biased;
                Some(event) = self.pods.recv() => event,
                event = self.objects.next() => match event {
                    Some(event) => event,
                    None => return,
                },
            };
            if self.sender.send(event).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
