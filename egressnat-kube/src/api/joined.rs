//! One watch over several kinds, each of which is followed by a task of its own.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::Client;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::reflector::Reflector;
use crate::kind::Kind;
use crate::object::Object;
use crate::store::{Watch, WatchEvent, WatchRequest};

/// Starts a watch. Its tasks end when it is dropped.
pub(super) fn start(client: &Client, request: &WatchRequest) -> Watch {
    let (events, receiver) = mpsc::unbounded_channel();
    let joined = Joined(Arc::new(Mutex::new(State {
        events,
        missing: request.kinds.iter().copied().collect(),
        first: Vec::new(),
        later: Vec::new(),
        broken: BTreeSet::new(),
        is_interrupted: false,
    })));
    let mut tasks = JoinSet::new();
    for kind in request.kinds.iter().copied().collect::<BTreeSet<_>>() {
        let node = request.node.as_ref();
        let reflector = Reflector::new(client.clone(), kind, node, joined.clone());
        tasks.spawn(reflector.run());
    }
    Watch::new(receiver, tasks)
}

/// Where the followers of all kinds tell what they saw.
///
/// Nothing is told before every kind has been listed once: a part of the objects would look like the rest had been deleted.
#[derive(Clone)]
pub(super) struct Joined(Arc<Mutex<State>>);

struct State {
    events: mpsc::UnboundedSender<WatchEvent>,
    /// Kinds that have not been listed.
    missing: BTreeSet<Kind>,
    /// What the lists held, and what happened since, until nothing is missing.
    first: Vec<Object>,
    later: Vec<WatchEvent>,
    /// Kinds that cannot be followed now.
    broken: BTreeSet<Kind>,
    is_interrupted: bool,
}

impl Joined {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A kind was listed for the first time.
    pub(super) fn listed(&self, kind: Kind, objects: Vec<Object>) {
        let mut state = self.state();
        state.first.extend(objects);
        state.missing.remove(&kind);
        if state.missing.is_empty() {
            let first = std::mem::take(&mut state.first);
            let later = std::mem::take(&mut state.later);
            state.send(WatchEvent::Restarted(first));
            later.into_iter().for_each(|event| state.send(event));
            state.tell_interruption();
        }
    }

    /// Something happened to an object.
    pub(super) fn told(&self, event: WatchEvent) {
        let mut state = self.state();
        if state.missing.is_empty() {
            state.send(event);
        } else {
            state.later.push(event);
        }
    }

    /// A kind cannot be followed now.
    pub(super) fn broke(&self, kind: Kind) {
        let mut state = self.state();
        state.broken.insert(kind);
        state.tell_interruption();
    }

    /// A kind is followed again.
    pub(super) fn mended(&self, kind: Kind) {
        let mut state = self.state();
        state.broken.remove(&kind);
        state.tell_interruption();
    }
}

impl State {
    /// Nobody listening means that the watch is being dropped.
    fn send(&self, event: WatchEvent) {
        let _ = self.events.send(event);
    }

    fn tell_interruption(&mut self) {
        let is_interrupted = !self.broken.is_empty();
        if self.missing.is_empty() && is_interrupted != self.is_interrupted {
            self.is_interrupted = is_interrupted;
            self.send(if is_interrupted {
                WatchEvent::Interrupted
            } else {
                WatchEvent::Resumed
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ObjectKey;
    use serde_json::json;

    fn joined(kinds: &[Kind]) -> (Joined, mpsc::UnboundedReceiver<WatchEvent>) {
        let (events, receiver) = mpsc::unbounded_channel();
        let state = State {
            events,
            missing: kinds.iter().copied().collect(),
            first: Vec::new(),
            later: Vec::new(),
            broken: BTreeSet::new(),
            is_interrupted: false,
        };
        (Joined(Arc::new(Mutex::new(state))), receiver)
    }

    #[test]
    fn nothing_is_told_before_every_kind_was_listed_and_nothing_is_lost() {
        let (joined, mut receiver) = joined(&[Kind::Node, Kind::Pod]);
        let key = ObjectKey::cluster(Kind::Node, "worker1");
        let node = Object::new(&key, json!({}));
        joined.listed(Kind::Node, vec![node.clone()]);
        joined.told(WatchEvent::Deleted(key.clone()));
        joined.broke(Kind::Node);
        assert!(receiver.try_recv().is_err());
        joined.listed(Kind::Pod, vec![]);
        let told: Vec<WatchEvent> = std::iter::from_fn(|| receiver.try_recv().ok()).collect();
        let want = [
            WatchEvent::Restarted(vec![node]),
            WatchEvent::Deleted(key),
            WatchEvent::Interrupted,
        ];
        assert_eq!(told, want);
    }

    #[test]
    fn an_interruption_lasts_until_every_kind_is_followed_again() {
        let (joined, mut receiver) = joined(&[]);
        joined.broke(Kind::Node);
        joined.broke(Kind::Pod);
        joined.mended(Kind::Node);
        assert_eq!(receiver.try_recv(), Ok(WatchEvent::Interrupted));
        assert!(receiver.try_recv().is_err());
        joined.mended(Kind::Pod);
        joined.mended(Kind::Pod);
        assert_eq!(receiver.try_recv(), Ok(WatchEvent::Resumed));
        assert!(receiver.try_recv().is_err());
    }
}
