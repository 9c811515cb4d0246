//! The tunnel's MTU follows the uplink's, whenever that changes: larger, and what does not fit the uplink is lost without a word;
//! smaller, and pods are told to send small packets for nothing.

use std::collections::BTreeSet;

use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteMetric};
use rtnetlink::LinkUnspec;

use super::{Network, NetworkError, Uplink, failed};
use crate::config::Config;
use crate::family::Family;

impl Network {
    /// Gives the tunnel device what the uplink's MTU leaves for it, in each of the families. Returns whether it had another.
    pub(crate) async fn follow_mtu(
        &self,
        config: &Config,
        uplink: &mut Uplink,
        families: &BTreeSet<Family>,
    ) -> Result<bool, NetworkError> {
        let link = self.existing_link(&uplink.name).await?;
        uplink.mtu = mtu_of(&link).unwrap_or(uplink.mtu);
        let wanted = tunnel_mtu(uplink.mtu, Family::Ipv4);
        let name = config.tunnel_device.as_str();
        let tunnel = self.existing_link(name).await?;
        let mut is_set = false;
        if mtu_of(&tunnel) != Some(wanted) {
            let message = LinkUnspec::new_with_index(tunnel.header.index)
                .mtu(wanted)
                .build();
            let set = self.handle.link().set(message).execute().await;
            set.map_err(failed(format!("set the MTU of {name} to {wanted}")))?;
            is_set = true;
        }
        if families.contains(&Family::Ipv6) {
            let index = tunnel.header.index;
            let route = self.ensure_route(config, Family::Ipv6, index, uplink);
            is_set |= !route.await?.is_empty();
        }
        Ok(is_set)
    }

    async fn existing_link(&self, name: &str) -> Result<LinkMessage, NetworkError> {
        let link = self.link(name).await?;
        link.ok_or_else(|| NetworkError::NoInterface(name.to_owned()))
    }
}

/// The smallest MTU of IPv6 (RFC 8200, section 5).
const IPV6_MIN_MTU: u32 = 1280;

/// The number of the metric (`linux/rtnetlink.h`), by which a route locks it.
const RTAX_MTU: u32 = 2;

/// What fits inside of an outer packet of the uplink's MTU, which is of the inner one's family: outer Ethernet, IP, UDP and VXLAN
/// headers, less the inner Ethernet header that the MTU does not count.
pub(super) fn tunnel_mtu(uplink: u32, family: Family) -> u32 {
    uplink.saturating_sub(match family {
        Family::Ipv4 => 50,
        Family::Ipv6 => 70,
    })
}

/// What the route into the tunnel says of the MTU. The device's own fits IPv4. That of IPv6 is smaller, and forwarded packets go by
/// the route's only if it is locked (`ip6_dst_mtu_maybe_forward`).
pub(super) fn route_metrics(uplink: u32, family: Family) -> Vec<RouteMetric> {
    match family {
        Family::Ipv4 => Vec::new(),
        Family::Ipv6 => vec![
            RouteMetric::Lock(1 << RTAX_MTU),
            RouteMetric::Mtu(tunnel_mtu(uplink, family).max(IPV6_MIN_MTU)),
        ],
    }
}

/// Whether a route says the same, whatever else it says.
pub(super) fn has_metrics(route: &RouteMessage, metrics: &[RouteMetric]) -> bool {
    let has = |metric: &RouteMetric| {
        route.attributes.iter().any(|attribute| {
            matches!(attribute, RouteAttribute::Metrics(metrics) if metrics.contains(metric))
        })
    };
    metrics.iter().all(has)
}

/// The MTU of a link, in bytes.
pub(super) fn mtu_of(link: &LinkMessage) -> Option<u32> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        })
}
