//! The tunnel device, and what leads to it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteMessage, RouteScope};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{IpVersion, LinkVxlan, RouteMessageBuilder};

use super::{Network, NetworkError, Uplink, failed, is_ours, mtu, network_of, sysctl, table_of};
use crate::config::Config;
use crate::family::Family;
use crate::handover;

/// The tunnel device's own address, which never leaves the node: without one, the kernel drops what comes in, whatever
/// `rp_filter` says.
const TUNNEL_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 119, 119);

impl Network {
    /// Makes the tunnel device with its address, and IPv4's rule and route, as far as they are not there. Returns the
    /// device's index and how many objects were written.
    pub(crate) async fn ensure_tunnel(
        &self,
        config: &Config,
        uplink: &Uplink,
    ) -> Result<(u32, usize), NetworkError> {
        let name = config.tunnel_device.as_str();
        let mut changes = 0;
        let index = match self.link(name).await? {
            Some(link) if is_tunnel(&link, config.tunnel_port) => link.header.index,
            Some(_) => return Err(NetworkError::ForeignDevice(name.to_owned())),
            None => {
                changes += 1;
                self.add_tunnel_device(config, uplink).await?
            }
        };
        let own = IpNet::V4(Ipv4Net::from(TUNNEL_ADDRESS));
        let has_own = self
            .addresses(index)
            .await?
            .iter()
            .any(|message| network_of(message) == Some(own));
        if !has_own {
            let add = self
                .handle
                .address()
                .add(index, IpAddr::V4(TUNNEL_ADDRESS), 32);
            add.execute()
                .await
                .map_err(failed(format!("add address {TUNNEL_ADDRESS}/32 to {name}")))?;
            changes += 1;
        }
        // What comes out of the tunnel has a source that routes elsewhere.
        let setting = format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
        changes += usize::from(sysctl::set(&setting, "2")?);
        changes += self.ensure_way(config, Family::Ipv4, index).await?;
        Ok((index, changes))
    }

    /// Gets the tunnel device ready for IPv6, with rule and route, as far as it is not. Returns how many objects were written.
    pub(crate) async fn ensure_ipv6(
        &self,
        config: &Config,
        tunnel: u32,
    ) -> Result<usize, NetworkError> {
        let name = &config.tunnel_device;
        let setting = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
        let set = usize::from(sysctl::set(&setting, "0")?);
        Ok(set + self.ensure_way(config, Family::Ipv6, tunnel).await?)
    }

    /// A route into the tunnel, and the rule that leads to it.
    async fn ensure_way(
        &self,
        config: &Config,
        family: Family,
        tunnel: u32,
    ) -> Result<usize, NetworkError> {
        let route = self.ensure_route(config, family, tunnel).await?;
        Ok(route + self.ensure_rule(config, family).await?)
    }

    async fn ensure_route(
        &self,
        config: &Config,
        family: Family,
        tunnel: u32,
    ) -> Result<usize, NetworkError> {
        let in_our_table = |route: &RouteMessage| table_of(route) == config.route_table;
        if self.routes(family).await?.iter().any(in_our_table) {
            return Ok(0);
        }
        let route = match family {
            Family::Ipv4 => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
                .output_interface(tunnel)
                .scope(RouteScope::Link)
                .table_id(config.route_table)
                .build(),
            Family::Ipv6 => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(Ipv6Addr::UNSPECIFIED, 0)
                .output_interface(tunnel)
                .table_id(config.route_table)
                .build(),
        };
        let added = self.handle.route().add(route).execute().await;
        added.map_err(failed(format!(
            "add the {family} default route of table {}",
            config.route_table
        )))?;
        Ok(1)
    }

    async fn ensure_rule(&self, config: &Config, family: Family) -> Result<usize, NetworkError> {
        if !self.our_rules(config, family).await?.is_empty() {
            return Ok(0);
        }
        let mark = config.mark.tunnel();
        let mut rule = self
            .handle
            .rule()
            .add()
            .fw_mark(mark)
            .table_id(config.route_table)
            .priority(config.rule_priority)
            .action(RuleAction::ToTable);
        let message = rule.message_mut();
        message.header.family = match family {
            Family::Ipv4 => AddressFamily::Inet,
            Family::Ipv6 => AddressFamily::Inet6,
        };
        message.attributes.push(RuleAttribute::FwMask(mark));
        let added = rule.execute().await;
        added.map_err(failed(format!(
            "add the {family} rule to table {}",
            config.route_table
        )))?;
        Ok(1)
    }

    async fn add_tunnel_device(
        &self,
        config: &Config,
        uplink: &Uplink,
    ) -> Result<u32, NetworkError> {
        let name = config.tunnel_device.as_str();
        let message = LinkVxlan::new(name, 0)
            .collect_metadata(true)
            .learning(false)
            .port(config.tunnel_port)
            .udp_csum(false)
            .address(tunnel_mac(uplink.mac).to_vec())
            .mtu(mtu::tunnel_mtu(uplink.mtu, Family::Ipv4))
            .arp(false)
            .up()
            .build();
        let added = self.handle.link().add(message).execute().await;
        added.map_err(failed(format!("add VXLAN device {name}")))?;
        let link = self
            .link(name)
            .await?
            .ok_or_else(|| NetworkError::NoInterface(name.to_owned()))?;
        Ok(link.header.index)
    }

    /// The rules of a family to our table: none, where the kernel does not have it.
    async fn our_rules(
        &self,
        config: &Config,
        family: Family,
    ) -> Result<Vec<RuleMessage>, NetworkError> {
        let version = match family {
            Family::Ipv4 => IpVersion::V4,
            Family::Ipv6 if !sysctl::is_known(family) => return Ok(Vec::new()),
            Family::Ipv6 => IpVersion::V6,
        };
        let rules: Vec<RuleMessage> = self
            .handle
            .rule()
            .get(version)
            .execute()
            .try_collect()
            .await
            .map_err(failed("list ip rules"))?;
        let is_ours = |rule: &RuleMessage| {
            rule.attributes
                .contains(&RuleAttribute::Table(config.route_table))
        };
        Ok(rules.into_iter().filter(is_ours).collect())
    }

    /// Removes rules, routes, device and floating IPs. Returns how many objects there were.
    pub(crate) async fn remove_all(&self, config: &Config) -> Result<usize, NetworkError> {
        let mut changes = 0;
        for family in Family::ALL {
            for rule in self.our_rules(config, family).await? {
                self.handle
                    .rule()
                    .del(rule)
                    .execute()
                    .await
                    .map_err(failed("remove our ip rule"))?;
                changes += 1;
            }
        }
        for (index, name) in self.interfaces().await? {
            changes += handover::narrow(&name);
            for message in self.addresses(index).await?.into_iter().filter(is_ours) {
                self.handle
                    .address()
                    .del(message)
                    .execute()
                    .await
                    .map_err(failed("remove a floating IP"))?;
                changes += 1;
            }
        }
        // The routes go with their device.
        if let Some(link) = self
            .link(&config.tunnel_device)
            .await?
            .filter(|link| is_tunnel(link, config.tunnel_port))
        {
            let removed = self.handle.link().del(link.header.index).execute().await;
            removed.map_err(failed(format!("remove {}", config.tunnel_device)))?;
            changes += 1;
        }
        Ok(changes)
    }
}

fn is_tunnel(link: &LinkMessage, tunnel_port: u16) -> bool {
    let infos = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        });
    infos.into_iter().flatten().any(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(vxlan)) => {
            vxlan.contains(&InfoVxlan::CollectMetadata(true))
                && vxlan.contains(&InfoVxlan::Port(tunnel_port))
        }
        _ => false,
    })
}

/// The tunnel device's MAC: one of its own on each node, for a device drops what seems to come from itself. The uplink's,
/// with the bit for "locally administered" turned over.
fn tunnel_mac(uplink: [u8; 6]) -> [u8; 6] {
    let mut mac = uplink;
    mac[0] = (mac[0] ^ 0x02) & !0x01;
    mac
}
