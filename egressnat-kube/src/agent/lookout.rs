//! Looking whether somebody answers for a floating IP, before it is taken from one who fell silent.
//!
//! Its last holder may be cut off from the store alone and go on by the word of its segment. Who answers is heard, unless this node is cut
//! off itself for a moment: what is not heard then says nothing. So the other nodes are asked at the same time, and only what they are heard
//! in counts.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use egressnat_core::ownership::{Probe, SEGMENT_HOLD};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{AbortOnDrop, Uplink};

/// How long nobody may have answered while others were heard: longer than a kernel goes on by what its segment says.
const LOOK: Duration = SEGMENT_HOLD.saturating_add(Duration::from_millis(100));

/// How long an answer is waited for.
const GLANCE: Duration = Duration::from_millis(100);

/// How many nodes are asked at most: one that answers is enough.
const WITNESSES: usize = 15;

/// Asks the other nodes on the segment as long as it lives. Clones are of one thing.
#[derive(Clone)]
pub(super) struct Lookout<U> {
    uplink: U,
    /// When nobody was heard the last time.
    deaf: watch::Receiver<Option<Instant>>,
    /// Who is cut off from everybody for longer holds nothing any more.
    lease_duration: Duration,
    _asking: std::sync::Arc<AbortOnDrop>,
}

impl<U: Uplink> Lookout<U> {
    /// `nodes` are those who would be heard. Where there are none, nobody else could have an address.
    pub(super) fn new(uplink: U, nodes: BTreeSet<IpAddr>, lease_duration: Duration) -> Self {
        let (tell, deaf) = watch::channel(None);
        let asking = {
            let uplink = uplink.clone();
            tokio::spawn(async move {
                while !nodes.is_empty() {
                    let asked = Instant::now();
                    if !is_anybody_there(&uplink, &nodes).await {
                        tell.send_replace(Some(Instant::now()));
                    }
                    tokio::time::sleep(GLANCE.saturating_sub(asked.elapsed())).await;
                }
            })
        };
        Self {
            uplink,
            deaf,
            lease_duration,
            _asking: std::sync::Arc::new(AbortOnDrop(asking)),
        }
    }

    /// Whether nobody answers for `address`. Where no other node is heard, it takes as long as a lease besides.
    pub(super) async fn look(&self, address: IpAddr) -> Probe {
        // In glances, not by the clock: a process that was stopped has not looked.
        let (mut looked, mut silent) = (Duration::ZERO, Duration::ZERO);
        while silent < LOOK && looked < LOOK + self.lease_duration {
            let asked = Instant::now();
            if self.uplink.answers(address, GLANCE).await {
                return Probe::Conflict;
            }
            looked += GLANCE;
            silent += GLANCE;
            if self.deaf.borrow().is_some_and(|deaf| deaf >= asked) {
                silent = Duration::ZERO;
            }
        }
        Probe::Free
    }
}

/// Whether one of these nodes answers.
async fn is_anybody_there(uplink: &impl Uplink, nodes: &BTreeSet<IpAddr>) -> bool {
    let mut asked: JoinSet<bool> = nodes
        .iter()
        .take(WITNESSES)
        .map(|node| {
            let (uplink, node) = (uplink.clone(), *node);
            async move { uplink.answers(node, GLANCE).await }
        })
        .collect();
    while let Some(answered) = asked.join_next().await {
        if answered.is_ok_and(|is_there| is_there) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use egressnat_core::Failure;

    /// Who answers now.
    #[derive(Clone, Default)]
    struct Answering(Arc<Mutex<BTreeSet<IpAddr>>>);

    impl Uplink for Answering {
        fn hold_until(&self, _: &[IpAddr], _: Instant) -> Result<(), Failure> {
            Ok(())
        }

        async fn answers(&self, address: IpAddr, patience: Duration) -> bool {
            let end = tokio::time::Instant::now() + patience;
            while tokio::time::Instant::now() < end {
                if self.0.lock().unwrap().contains(&address) {
                    return true;
                }
                tokio::time::sleep(patience / 10).await;
            }
            false
        }
    }

    const LEASE: Duration = Duration::from_secs(1);

    fn addresses() -> [IpAddr; 2] {
        [IpAddr::from([192, 168, 1, 100]), [192, 168, 1, 2].into()]
    }

    #[tokio::test]
    async fn what_is_not_heard_while_nobody_is_heard_does_not_count_e33() {
        let [floating, node] = addresses();
        let uplink = Answering::default();
        // Cut off for longer than it takes to look, and then heard again with the one who has the address.
        let healing = {
            let uplink = uplink.clone();
            tokio::spawn(async move {
                tokio::time::sleep(LOOK + Duration::from_millis(300)).await;
                uplink.0.lock().unwrap().extend([floating, node]);
            })
        };
        let lookout = Lookout::new(uplink, [node].into(), LEASE);
        assert_eq!(lookout.look(floating).await, Probe::Conflict);
        healing.await.unwrap();
    }

    #[tokio::test]
    async fn an_address_is_free_where_others_are_heard_and_where_nobody_is_left_e31() {
        let [floating, node] = addresses();
        let uplink = Answering::default();
        for (others, heard, least) in [
            (BTreeSet::from([node]), true, LOOK),
            (BTreeSet::new(), false, LOOK),
            (BTreeSet::from([node]), false, LOOK + LEASE),
        ] {
            let answering = others.iter().copied().filter(|_| heard).collect();
            *uplink.0.lock().unwrap() = answering;
            let start = Instant::now();
            let lookout = Lookout::new(uplink.clone(), others, LEASE);
            assert_eq!(lookout.look(floating).await, Probe::Free);
            assert!(start.elapsed() >= least, "{:?}", start.elapsed());
        }
    }
}
