//! What becomes of the uplink, which others have in their hands.

use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use super::tunnel::tunnel_mac;
use super::{Network, NetworkError, Uplink, failed};
use crate::config::Config;

/// What became of the uplink since it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UplinkChange {
    /// It is as it was.
    Same,
    /// It has another MAC address.
    OtherMac,
    /// Its carrier was away, perhaps for a moment only, and is back.
    CarrierBack,
    /// It is another interface with the same name: to be read as a whole.
    MadeAnew,
}

impl Network {
    /// Reads the uplink's carrier and link-layer address again, which a bond changes with its port, or somebody else; the tunnel device's follows it.
    ///
    /// # Errors
    ///
    /// There is no uplink now, or the kernel does not tell.
    pub(crate) async fn follow(
        &self,
        config: &Config,
        uplink: &mut Uplink,
    ) -> Result<UplinkChange, NetworkError> {
        let link = self.link(&uplink.name).await?;
        let link = link.ok_or_else(|| NetworkError::NoInterface(uplink.name.clone()))?;
        if link.header.index != uplink.index {
            return Ok(UplinkChange::MadeAnew);
        }
        // By the count also one that was away and back between two looks is seen.
        let gained = carriers_of(&link);
        let has_carrier = link.header.flags.contains(LinkFlags::LowerUp);
        let is_back = has_carrier && gained != uplink.carriers;
        if is_back {
            uplink.carriers = gained;
        }
        let mac = mac_of(&link).unwrap_or(uplink.mac);
        if uplink.mac == mac {
            return Ok(match is_back {
                true => UplinkChange::CarrierBack,
                false => UplinkChange::Same,
            });
        }
        let name = &config.tunnel_device;
        if let Some(tunnel) = self.link(name).await? {
            let message = LinkMessageBuilder::<LinkUnspec>::default()
                .index(tunnel.header.index)
                .address(tunnel_mac(mac).to_vec());
            let set = self.handle.link().set(message.build()).execute().await;
            set.map_err(failed(format!("set the MAC address of {name}")))?;
        }
        // Last: what fails is tried again.
        uplink.mac = mac;
        Ok(UplinkChange::OtherMac)
    }
}

fn mac_of(link: &LinkMessage) -> Option<[u8; 6]> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => bytes.as_slice().try_into().ok(),
            _ => None,
        })
}

/// How often a link has gained its carrier.
pub(super) fn carriers_of(link: &LinkMessage) -> Option<u32> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::CarrierUpCount(count) => Some(*count),
            _ => None,
        })
}
