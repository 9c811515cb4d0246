//! Which nodes are alive, told by the leases that their agents renew: pure, with time as an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use egressnat_core::model::{Health, NodeName};

/// Judges nodes by when it *saw* their leases change, on its own monotonic clock.
///
/// The times in a lease are only compared for being different: clocks of different machines need not agree.
///
/// # Guarantees
///
/// A node is down no earlier than one lease duration and a tenth after its last renewal was seen. As the agent counts
/// from before it sent the renewal, it has stopped by then if its clock runs less than a tenth slower than this one.
///
/// The first sight of a lease counts as a renewal: an observer that starts anew takes nobody for dead at once.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    nodes: BTreeMap<NodeName, Sighting>,
}

#[derive(Debug, Clone)]
struct Sighting {
    renewal: String,
    duration: Duration,
    expires: Instant,
}

impl Sighting {
    fn renew(&mut self, now: Instant) {
        self.expires = now + self.duration + self.duration / MARGIN;
    }
}

/// The clocks' rate error that is allowed for, as a part of the lease duration.
const MARGIN: u32 = 10;

impl Liveness {
    /// A lease was seen. `renewal` is whatever changes with each renewal.
    pub(crate) fn seen(
        &mut self,
        node: &NodeName,
        renewal: &str,
        duration: Duration,
        now: Instant,
    ) {
        let is_news = |known: &Sighting| known.renewal != renewal || known.duration != duration;
        if self.nodes.get(node).is_none_or(is_news) {
            let expires = now + duration + duration / MARGIN;
            self.nodes.insert(
                node.clone(),
                Sighting {
                    renewal: renewal.to_owned(),
                    duration,
                    expires,
                },
            );
        }
    }

    /// A lease was given up, or removed.
    pub(crate) fn gone(&mut self, node: &NodeName) {
        self.nodes.remove(node);
    }

    /// Nobody could be seen from `since` until now: who was alive then has not been heard because of that, and counts as seen now.
    pub(crate) fn resume(&mut self, since: Instant, now: Instant) {
        let was_alive = |sighting: &&mut Sighting| sighting.expires > since;
        for sighting in self.nodes.values_mut().filter(was_alive) {
            sighting.renew(now);
        }
    }

    /// A node whose lease is known counts as seen now.
    pub(crate) fn revive(&mut self, node: &NodeName, now: Instant) {
        if let Some(sighting) = self.nodes.get_mut(node) {
            sighting.renew(now);
        }
    }

    /// Whether the node may be trusted now.
    pub(crate) fn health(&self, node: &NodeName, now: Instant) -> Health {
        match self.nodes.get(node) {
            Some(sighting) if now < sighting.expires => Health::Up,
            _ => Health::Down,
        }
    }

    /// The nodes that may be trusted now.
    pub(crate) fn alive(&self, now: Instant) -> BTreeSet<NodeName> {
        let alive = self.nodes.iter().filter(|(_, seen)| now < seen.expires);
        alive.map(|(node, _)| node.clone()).collect()
    }

    /// When the next node that is up will be down, unless it renews.
    pub(crate) fn next_expiry(&self, now: Instant) -> Option<Instant> {
        self.nodes
            .values()
            .map(|sighting| sighting.expires)
            .filter(|expires| *expires > now)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn node() -> NodeName {
        "worker1".parse().unwrap()
    }

    #[test]
    fn a_node_lives_as_long_as_its_renewals_change() {
        let (mut liveness, start) = (Liveness::default(), Instant::now());
        assert_eq!(liveness.health(&node(), start), Health::Down, "never seen");
        liveness.seen(&node(), "1", 10 * SECOND, start);
        assert_eq!(liveness.next_expiry(start), Some(start + 11 * SECOND));
        liveness.seen(&node(), "1", 10 * SECOND, start + 5 * SECOND);
        assert_eq!(liveness.health(&node(), start + 10 * SECOND), Health::Up);
        assert_eq!(
            liveness.health(&node(), start + 11 * SECOND),
            Health::Down,
            "the same renewal is no news"
        );
        liveness.seen(&node(), "2", 10 * SECOND, start + 12 * SECOND);
        assert_eq!(
            liveness.health(&node(), start + 12 * SECOND),
            Health::Up,
            "it came back"
        );
        liveness.gone(&node());
        assert_eq!(liveness.health(&node(), start + 12 * SECOND), Health::Down);
    }

    #[test]
    fn an_outage_of_the_store_kills_nobody_and_raises_nobody_from_the_dead() {
        let (mut liveness, start) = (Liveness::default(), Instant::now());
        let dead: NodeName = "worker2".parse().unwrap();
        liveness.seen(&dead, "1", SECOND, start);
        liveness.seen(&node(), "1", 10 * SECOND, start);
        liveness.resume(start + 5 * SECOND, start + 60 * SECOND);
        assert_eq!(liveness.health(&node(), start + 70 * SECOND), Health::Up);
        assert_eq!(liveness.health(&node(), start + 71 * SECOND), Health::Down);
        assert_eq!(liveness.health(&dead, start + 60 * SECOND), Health::Down);
    }

    #[test]
    fn an_observer_that_starts_anew_takes_nobody_for_dead_at_once() {
        let (mut liveness, start) = (Liveness::default(), Instant::now());
        liveness.seen(&node(), "written long ago", SECOND, start);
        assert_eq!(liveness.health(&node(), start + SECOND), Health::Up);
    }
}
