//! What others altered about the tunnel device, undone.

use egressnat_core::{Resource, Restored};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use super::tunnel::{is_tunnel, tunnel_mac};
use super::{Network, NetworkError, Uplink, failed, link_name, mtu};
use crate::config::Config;
use crate::family::Family;

/// No bridge or bond that an interface is a port of.
const NO_CONTROLLER: u32 = 0;

impl Network {
    /// Gives the tunnel device the settings that it was made with, as far as it has others. Returns what it had.
    pub(super) async fn mend(
        &self,
        name: &str,
        link: &LinkMessage,
        uplink: &Uplink,
    ) -> Result<Vec<Restored>, NetworkError> {
        let mut altered = Vec::new();
        let mut message = LinkMessageBuilder::<LinkUnspec>::default().index(link.header.index);
        if !link.header.flags.contains(LinkFlags::Up) {
            message = message.up();
            altered.push("was down");
        }
        // Nobody answers in the tunnel.
        if !link.header.flags.contains(LinkFlags::Noarp) {
            message = message.arp(false);
            altered.push("asked for neighbors");
        }
        let mac = tunnel_mac(uplink.mac).to_vec();
        if !link
            .attributes
            .contains(&LinkAttribute::Address(mac.clone()))
        {
            message = message.address(mac);
            altered.push("had another MAC address");
        }
        let wanted = mtu::tunnel_mtu(uplink.mtu, Family::Ipv4);
        if mtu::mtu_of(link) != Some(wanted) {
            message = message.mtu(wanted);
            altered.push("had another MTU");
        }
        let is_controlled = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::Controller(index) if *index != NO_CONTROLLER);
        if link.attributes.iter().any(is_controlled) {
            message = message.controller(NO_CONTROLLER);
            altered.push("was a port of another interface");
        }
        if altered.is_empty() {
            return Ok(Vec::new());
        }
        let set = self.handle.link().set(message.build()).execute().await;
        set.map_err(failed(format!("set {name} as it was")))?;
        let restored = altered.into_iter().map(|what| Restored {
            resource: Resource::Device,
            object: format!("{name}, which {what}"),
        });
        Ok(restored.collect())
    }

    /// Gives the tunnel device its name again, if it has another: with that, no second one can be made. Returns it as it was, with the
    /// name that it had.
    pub(super) async fn rename_back(
        &self,
        config: &Config,
        uplink: &Uplink,
    ) -> Result<Option<(LinkMessage, String)>, NetworkError> {
        let own = LinkAttribute::Address(tunnel_mac(uplink.mac).to_vec());
        let links = self.links().await?;
        // By its MAC address it is known from one of somebody else at the same port.
        let is_ours = |link: &LinkMessage| {
            is_tunnel(link, config.tunnel_port) && link.attributes.contains(&own)
        };
        let Some(mut link) = links.into_iter().find(is_ours) else {
            return Ok(None);
        };
        let had = link_name(&link).unwrap_or_default();
        let name = config.tunnel_device.as_str();
        let message = || LinkMessageBuilder::<LinkUnspec>::default().index(link.header.index);
        // Before Linux 6.2 nothing that is up gets another name.
        for message in [message().down(), message().name(name.to_owned())] {
            let set = self.handle.link().set(message.build()).execute().await;
            set.map_err(failed(format!("rename {had} to {name}")))?;
        }
        link.header.flags.remove(LinkFlags::Up);
        Ok(Some((link, had)))
    }
}
