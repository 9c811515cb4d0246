//! The tunnel's MTU follows the uplink's, whenever that changes: larger, and what does not fit the uplink is lost without a word;
//! smaller, and pods are told to send small packets for nothing.

use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::LinkUnspec;

use super::{ENCAPSULATION, Network, NetworkError, Uplink, failed};
use crate::config::Config;

impl Network {
    /// Gives the tunnel device what the uplink's MTU leaves for it. Returns whether it had another.
    pub(crate) async fn follow_mtu(
        &self,
        config: &Config,
        uplink: &mut Uplink,
    ) -> Result<bool, NetworkError> {
        let link = self.existing_link(&uplink.name).await?;
        uplink.mtu = mtu_of(&link).unwrap_or(uplink.mtu);
        let wanted = tunnel_mtu(uplink.mtu);
        let name = config.tunnel_device.as_str();
        let tunnel = self.existing_link(name).await?;
        if mtu_of(&tunnel) == Some(wanted) {
            return Ok(false);
        }
        let message = LinkUnspec::new_with_index(tunnel.header.index)
            .mtu(wanted)
            .build();
        let set = self.handle.link().set(message).execute().await;
        set.map_err(failed(format!("set the MTU of {name} to {wanted}")))?;
        Ok(true)
    }

    async fn existing_link(&self, name: &str) -> Result<LinkMessage, NetworkError> {
        let link = self.link(name).await?;
        link.ok_or_else(|| NetworkError::NoInterface(name.to_owned()))
    }
}

/// What fits inside of an outer packet of the uplink's MTU.
pub(super) fn tunnel_mtu(uplink: u32) -> u32 {
    uplink.saturating_sub(ENCAPSULATION)
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
