//! When packets for a new address stay on this node.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use netlink_packet_route::route::{RouteMessage, RouteType};
use rtnetlink::RouteMessageBuilder;

use super::Network;

/// Far more than the kernel takes, which is less than a millisecond where it has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(1);
/// The shortest that there is.
const PAUSE: Duration = Duration::from_millis(1);

impl Network {
    /// Waits until the kernel keeps packets for an address of IPv6 that was added. It makes the local route later, from a queue of work,
    /// also where it detects no duplicates: until then it forwards them to whom it takes for the holder, and that one, once it hears of the
    /// new holder, sends them back, until their hops are used up.
    pub(super) async fn until_local(&self, address: Ipv6Addr) {
        let start = Instant::now();
        while !self.is_local(address).await {
            if start.elapsed() > PATIENCE {
                tracing::warn!(%address, "the kernel has no local route to it yet: packets may be lost");
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Whether packets for an address stay here. Where the kernel does not say so, they do not.
    async fn is_local(&self, address: Ipv6Addr) -> bool {
        let asked = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(address, 128)
            .build();
        let routes = self.handle.route().get(asked).execute();
        let routes: Vec<RouteMessage> = routes.try_collect().await.unwrap_or_default();
        let is_local = |route: &RouteMessage| route.header.kind == RouteType::Local;
        routes.iter().any(is_local)
    }
}
