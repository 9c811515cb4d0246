//! What the segment says of the node while the store does not answer.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use egressnat_core::model::{Node, NodeName};
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
    neighbors: Neighbors,
}

/// The other nodes on the segment, as the store told them last. Clones are of one thing.
#[derive(Clone)]
pub(super) struct Neighbors {
    subnets: Arc<BTreeSet<IpNet>>,
    addresses: Arc<Mutex<Addresses>>,
}

/// One address of each.
#[derive(Clone, Default)]
struct Addresses {
    /// Of the gateway nodes that are up, as the gateways' status tells.
    voters: BTreeSet<IpAddr>,
    /// Of all nodes.
    nodes: BTreeSet<IpAddr>,
}

impl<U: Uplink> Segment<U> {
    pub(super) fn new(ownership: Ownership<U>, config: &AgentConfig, neighbors: Neighbors) -> Self {
        Self {
            ownership,
            outage: config.outage,
            soon: Duration::from_secs(1).min(config.lease_duration / 2),
            neighbors,
        }
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
                let voters = self.neighbors.voters();
                self.ownership.ask_segment(&voters).await;
            }
        }
    }
}

impl Neighbors {
    /// Those whose addresses are in one of these subnets. None is known yet.
    pub(super) fn new(subnets: BTreeSet<IpNet>) -> Self {
        Self {
            subnets: Arc::new(subnets),
            addresses: Arc::default(),
        }
    }

    fn addresses(&self) -> MutexGuard<'_, Addresses> {
        let addresses = self.addresses.lock();
        addresses.unwrap_or_else(PoisonError::into_inner)
    }

    fn voters(&self) -> BTreeSet<IpAddr> {
        self.addresses().voters.clone()
    }

    /// Those who would be heard if they were asked, unless this node is cut off from them, or they are all dead.
    pub(super) fn nodes(&self) -> BTreeSet<IpAddr> {
        self.addresses().nodes.clone()
    }

    /// Takes what the view knows by now.
    pub(super) fn tell(&self, view: &View, own: &NodeName) {
        let is_near = |address: &IpAddr| self.subnets.iter().any(|net| net.contains(address));
        // One of a node's addresses is enough to hear of it.
        let near = |(name, node): (&NodeName, &Node)| {
            let mut addresses = node.addresses.iter().copied();
            addresses.find(is_near).filter(|_| name != own)
        };
        *self.addresses() = Addresses {
            voters: view.nodes_up().filter_map(near).collect(),
            nodes: view.nodes().filter_map(near).collect(),
        };
    }
}
