//! Asking who is there, beside what a plan needs.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::network::Neighbors;
use crate::probe::Ears;

/// How long one question is waited for before the next: a lost one does no harm.
const PAUSE: Duration = Duration::from_millis(50);

/// The other hosts on the uplink's segment. Clones are of one thing.
#[derive(Clone)]
pub struct Segment {
    uplink: Arc<Mutex<(Ears, Neighbors)>>,
}

impl Segment {
    pub(crate) fn new(ears: Ears, neighbors: Neighbors) -> Self {
        Self {
            uplink: Arc::new(Mutex::new((ears, neighbors))),
        }
    }

    /// Asks by another interface from now on, in all clones.
    pub(crate) fn follow(&self, ears: Ears, neighbors: Neighbors) {
        *self.uplink.lock().unwrap_or_else(PoisonError::into_inner) = (ears, neighbors);
    }

    fn uplink(&self) -> (Ears, Neighbors) {
        let uplink = self.uplink.lock().unwrap_or_else(PoisonError::into_inner);
        uplink.clone()
    }

    /// Whether another host answers for `address`: for IPv4 it is asked without a claim to any address (RFC 5227, section 2.1.1),
    /// for IPv6 by the kernel's neighbor solicitations. Takes `patience` if nobody does. An address that is on this node is
    /// not asked for, and nobody answers.
    pub async fn answers(&self, address: IpAddr, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let (ears, neighbors) = self.uplink();
        loop {
            let asked = Instant::now();
            match address {
                IpAddr::V4(address) => ears.ask(address),
                IpAddr::V6(_) => neighbors.ask(address).await,
            }
            tokio::time::sleep(PAUSE.min(end.saturating_duration_since(asked))).await;
            let is_heard = match address {
                IpAddr::V4(address) => ears.have_heard(address, asked),
                IpAddr::V6(_) => neighbors.has_answered(address).await,
            };
            if is_heard || Instant::now() >= end {
                return is_heard;
            }
        }
    }
}
