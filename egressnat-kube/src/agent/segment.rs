//! What the segment says of the node while the store does not answer.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use egressnat_core::model::NodeName;
use egressnat_core::ownership::SEGMENT_HOLD;
use ipnet::IpNet;

use super::ownership::Ownership;
use super::view::View;
use super::{AgentConfig, StoreOutage, Uplink};

/// How often the segment is asked: an answer that is lost does no harm.
const PERIOD: Duration = Duration::from_millis(SEGMENT_HOLD.as_millis() as u64 / 4);

/// Asks the other gateway nodes whether they are there, as long as the lease is about to run out.
pub(super) struct Segment<U> {
    ownership: Ownership<U>,
    outage: StoreOutage,
    /// When it is time to ask: so long before the lease runs out.
    soon: Duration,
    voters: Voters,
}

/// The addresses of the other gateway nodes on the segment, as the store told them last. Clones are of one thing.
#[derive(Clone)]
pub(super) struct Voters {
    subnets: Arc<BTreeSet<IpNet>>,
    addresses: Arc<Mutex<BTreeSet<IpAddr>>>,
}

impl<U: Uplink> Segment<U> {
    pub(super) fn new(
        ownership: Ownership<U>,
        config: &AgentConfig,
        subnets: BTreeSet<IpNet>,
    ) -> Self {
        Self {
            ownership,
            outage: config.outage,
            soon: Duration::from_secs(1).min(config.lease_duration / 2),
            voters: Voters {
                subnets: Arc::new(subnets),
                addresses: Arc::default(),
            },
        }
    }

    pub(super) fn voters(&self) -> Voters {
        self.voters.clone()
    }

    /// Watches for ever. A task of its own, for a renewal may hang.
    pub(super) async fn watch(self) {
        if self.outage == StoreOutage::Release {
            return;
        }
        let mut is_told = false;
        let mut period = tokio::time::interval(PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            period.tick().await;
            let is_running_out = self.ownership.is_running_out(self.soon);
            if is_running_out && !is_told {
                tracing::warn!(
                    "the lease runs out as the store does not answer: floating IPs are held while most of the segment's gateway \
                     nodes answer"
                );
            }
            is_told = is_running_out;
            if is_running_out {
                let voters = self.voters.addresses();
                self.ownership.ask_segment(&voters).await;
            }
        }
    }
}

impl Voters {
    fn addresses(&self) -> BTreeSet<IpAddr> {
        let addresses = self.addresses.lock();
        addresses.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The gateway nodes but this one that are up, as the gateways' status tells, and that are on the same segment.
    pub(super) fn tell(&self, view: &View, own: &NodeName) {
        let is_near = |address: &IpAddr| self.subnets.iter().any(|net| net.contains(address));
        let others = view.nodes_up().filter(|(name, _)| *name != own);
        // One of a node's addresses is enough to hear of it.
        let near = others
            .filter_map(|(_, node)| node.addresses.iter().copied().find(is_near))
            .collect();
        *self
            .addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = near;
    }
}
