//! One watch over several kinds, each of which is followed by a task of its own.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::Client;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::reflector::Reflector;
use crate::kind::Kind;
use crate::store::{Watch, WatchEvent, WatchRequest};

/// Starts a watch. Its tasks end when it is dropped.
pub(super) fn start(client: &Client, request: &WatchRequest) -> Watch {
    let (events, receiver) = mpsc::unbounded_channel();
    let joined = Joined(Arc::new(Mutex::new(State {
        events,
        missing: request.kinds.iter().copied().collect(),
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
/// What the lists hold is told as they come in, so that no more than a page of it is in memory at once. That it is all there is, is
/// told when every kind has been listed once.
#[derive(Clone)]
pub(super) struct Joined(Arc<Mutex<State>>);

struct State {
    events: mpsc::UnboundedSender<WatchEvent>,
    /// Kinds that have not been listed.
    missing: BTreeSet<Kind>,
    /// Kinds that cannot be followed now.
    broken: BTreeSet<Kind>,
    is_interrupted: bool,
}

impl Joined {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A kind was listed for the first time, and all its objects told.
    pub(super) fn listed(&self, kind: Kind) {
        let mut state = self.state();
        let is_last = state.missing.remove(&kind) && state.missing.is_empty();
        if is_last {
            state.send(WatchEvent::Synced);
            state.tell_interruption();
        }
    }

    /// Something happened to an object.
    pub(super) fn told(&self, event: WatchEvent) {
        self.state().send(event);
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
    use crate::object::{Object, ObjectKey};
    use serde_json::json;

    fn joined(kinds: &[Kind]) -> (Joined, mpsc::UnboundedReceiver<WatchEvent>) {
        let (events, receiver) = mpsc::unbounded_channel();
        let state = State {
            events,
            missing: kinds.iter().copied().collect(),
            broken: BTreeSet::new(),
            is_interrupted: false,
        };
        (Joined(Arc::new(Mutex::new(state))), receiver)
    }

    #[test]
    fn that_all_was_told_is_told_once_when_every_kind_was_listed() {
        let (joined, mut receiver) = joined(&[Kind::Node, Kind::Pod]);
        let node = Object::new(&ObjectKey::cluster(Kind::Node, "worker1"), json!({}));
        let applied = WatchEvent::Applied(node);
        joined.told(applied.clone());
        joined.listed(Kind::Node);
        joined.broke(Kind::Node);
        assert_eq!(receiver.try_recv(), Ok(applied));
        assert!(receiver.try_recv().is_err());
        for kind in [Kind::Pod, Kind::Node] {
            joined.listed(kind);
        }
        let told: Vec<WatchEvent> = std::iter::from_fn(|| receiver.try_recv().ok()).collect();
        assert_eq!(told, [WatchEvent::Synced, WatchEvent::Interrupted]);
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
