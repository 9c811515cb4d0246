//! The tunnel's MTU follows the uplink's, whenever that changes: larger, and what does not fit the uplink is lost without a word;
//! smaller, and pods are told to send small packets for nothing.

use std::collections::BTreeSet;

use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::LinkUnspec;

use super::{Network, NetworkError, Uplink, failed, sysctl};
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
        // The device's own fits IPv4, and takes IPv6's with it.
        if families.contains(&Family::Ipv6) {
            is_set |= sysctl::set(&ipv6_setting(config), &ipv6_mtu(uplink.mtu))?;
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

/// What fits inside of an outer packet of the uplink's MTU, which is of the inner one's family: outer Ethernet, IP, UDP and VXLAN
/// headers, less the inner Ethernet header that the MTU does not count.
pub(super) fn tunnel_mtu(uplink: u32, family: Family) -> u32 {
    uplink.saturating_sub(match family {
        Family::Ipv4 => 50,
        Family::Ipv6 => 70,
    })
}

/// The MTU that forwarded packets of IPv6 are measured by.
pub(super) fn ipv6_setting(config: &Config) -> String {
    format!("/proc/sys/net/ipv6/conf/{}/mtu", config.tunnel_device)
}

/// Its value.
pub(super) fn ipv6_mtu(uplink: u32) -> String {
    let mtu = tunnel_mtu(uplink, Family::Ipv6);
    mtu.max(IPV6_MIN_MTU).to_string()
}

/// The MTU of a link, in bytes.
fn mtu_of(link: &LinkMessage) -> Option<u32> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        })
}
