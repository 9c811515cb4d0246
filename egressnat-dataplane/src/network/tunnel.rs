//! The tunnel device, and what leads to it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egressnat_core::{Resource, Restored};
use futures::TryStreamExt;
use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteScope};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{IpVersion, LinkVxlan, RouteMessageBuilder};

use super::setting::{ACCEPT_LOCAL, RP_FILTER, Setting};
use super::{
    Network, NetworkError, Uplink, failed, interface_of, is_ours, link_name, mtu, network_of,
    sysctl, table_of,
};
use crate::config::Config;
use crate::family::Family;
use crate::handover;

/// The tunnel device's own address, which never leaves the node: without one, the kernel drops what comes in, whatever
/// `rp_filter` says.
const TUNNEL_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 119, 119);

impl Network {
    /// Makes the tunnel device with its address, and IPv4's way into it, as far as they are not there and right. Returns its
    /// index and what was written.
    pub(crate) async fn ensure_tunnel(
        &self,
        config: &Config,
        uplink: &Uplink,
        steers: bool,
    ) -> Result<(u32, Vec<Restored>), NetworkError> {
        let name = config.tunnel_device.as_str();
        let mut changes = Vec::new();
        let mut note = |resource, object: String| changes.push(Restored { resource, object });
        let renamed = match self.link(name).await? {
            Some(link) => Some((link, None)),
            None => {
                let renamed = self.rename_back(config, uplink).await?;
                renamed.map(|(link, had)| (link, Some(had)))
            }
        };
        let index = match renamed {
            Some((link, had)) if is_tunnel(&link, config.tunnel_port) => {
                if let Some(had) = had {
                    note(Resource::Device, format!("{name}, which was called {had}"));
                }
                for altered in self.mend(name, &link, uplink).await? {
                    note(altered.resource, altered.object);
                }
                link.header.index
            }
            Some(_) => return Err(NetworkError::ForeignDevice(name.to_owned())),
            None => {
                note(Resource::Device, name.to_owned());
                self.add_tunnel_device(config, uplink).await?
            }
        };
        if !self.has_tunnel_address(index).await? {
            let add = self
                .handle
                .address()
                .add(index, IpAddr::V4(TUNNEL_ADDRESS), 32);
            add.execute()
                .await
                .map_err(failed(format!("add address {TUNNEL_ADDRESS}/32 to {name}")))?;
            note(Resource::Address, format!("{TUNNEL_ADDRESS} on {name}"));
        }
        for (setting, value) in lenience() {
            if self.set(setting, (name, index), value).await? {
                note(Resource::Setting, setting.of(name));
            }
        }
        let way = (Family::Ipv4, steers);
        changes.extend(self.ensure_way(config, way, index, uplink).await?);
        Ok((index, changes))
    }

    /// Whether an interface has the tunnel device's own address.
    async fn has_tunnel_address(&self, index: u32) -> Result<bool, NetworkError> {
        let own = IpNet::V4(Ipv4Net::from(TUNNEL_ADDRESS));
        let addresses = self.addresses(index).await?;
        Ok(addresses.iter().any(|one| network_of(one) == Some(own)))
    }

    /// Gets the tunnel device ready for IPv6, with the way into it, as far as it is not. Returns what was written.
    pub(crate) async fn ensure_ipv6(
        &self,
        config: &Config,
        tunnel: u32,
        uplink: &Uplink,
        steers: bool,
    ) -> Result<Vec<Restored>, NetworkError> {
        let mut changes = Vec::new();
        let setting = disable_ipv6_of(config);
        if sysctl::set(&setting, "0")? {
            changes.push(Restored {
                resource: Resource::Setting,
                object: setting,
            });
        }
        let way = (Family::Ipv6, steers);
        changes.extend(self.ensure_way(config, way, tunnel, uplink).await?);
        Ok(changes)
    }

    /// A route into the tunnel, and the rule that leads to it: a rule once this node steers anything, because from then on the kernel
    /// looks up all its routes rule by rule, also when the rule is gone again.
    async fn ensure_way(
        &self,
        config: &Config,
        (family, steers): (Family, bool),
        tunnel: u32,
        uplink: &Uplink,
    ) -> Result<Vec<Restored>, NetworkError> {
        let mut changes = self.ensure_route(config, family, tunnel, uplink).await?;
        let rules = self.our_rules(config, family).await?;
        let needs_rule = steers || !rules.is_empty();
        if needs_rule && !rules.iter().any(|rule| is_right(rule, config)) {
            self.add_rule(config, family).await?;
            changes.push(Restored {
                resource: Resource::RoutingRule,
                object: format!("of {family} to table {}", config.route_table),
            });
        }
        Ok(changes)
    }

    /// The only route of our table.
    pub(super) async fn ensure_route(
        &self,
        config: &Config,
        family: Family,
        tunnel: u32,
        uplink: &Uplink,
    ) -> Result<Vec<Restored>, NetworkError> {
        let mut changes = Vec::new();
        let mut note = |object| {
            changes.push(Restored {
                resource: Resource::Route,
                object,
            });
        };
        let table = config.route_table;
        let metrics = mtu::route_metrics(uplink.mtu, family);
        // The table is ours: a route of somebody else would lead packets past the tunnel.
        let mut has_route = false;
        for route in self.routes(family).await? {
            if table_of(&route) != table {
                continue;
            }
            let is_default = route.header.destination_prefix_length == 0;
            if is_default && interface_of(&route) == Some(tunnel) && !has_gateway(&route) {
                // With another MTU it is ours of before, and replaced.
                has_route |= mtu::has_metrics(&route, &metrics);
                continue;
            }
            let removed = self.handle.route().del(route).execute().await;
            removed.map_err(failed(format!("remove a foreign route of table {table}")))?;
            note(format!("table {table}, which had a foreign route"));
        }
        if !has_route {
            let mut route = match family {
                Family::Ipv4 => RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
                    .output_interface(tunnel)
                    .scope(RouteScope::Link)
                    .table_id(table)
                    .build(),
                Family::Ipv6 => RouteMessageBuilder::<Ipv6Addr>::new()
                    .destination_prefix(Ipv6Addr::UNSPECIFIED, 0)
                    .output_interface(tunnel)
                    .table_id(table)
                    .build(),
            };
            if !metrics.is_empty() {
                route.attributes.push(RouteAttribute::Metrics(metrics));
            }
            let added = self.handle.route().add(route).replace().execute().await;
            added.map_err(failed(format!(
                "add the {family} default route of table {table}"
            )))?;
            note(format!("the {family} default of table {table}"));
        }
        Ok(changes)
    }

    async fn add_rule(&self, config: &Config, family: Family) -> Result<(), NetworkError> {
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
        )))
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
        added.map_err(|error| not_made(name, error))?;
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
            changes += handover::restore(&self.handover_settings(&name, index)).await;
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
        // The routes go with their device. Whatever it is called now, it is known by its address from one of somebody else at the same port.
        for link in self.links().await? {
            let (index, name) = (link.header.index, link_name(&link).unwrap_or_default());
            let is_ours = is_tunnel(&link, config.tunnel_port)
                && (name == config.tunnel_device || self.has_tunnel_address(index).await?);
            if is_ours {
                let removed = self.handle.link().del(index).execute().await;
                removed.map_err(failed(format!("remove {name}")))?;
                changes += 1;
            }
        }
        Ok(changes)
    }
}

/// Why there is no tunnel device.
fn not_made(name: &str, error: rtnetlink::Error) -> NetworkError {
    match &error {
        // Of a kind of devices that the kernel does not have.
        rtnetlink::Error::NetlinkError(message) if message.raw_code() == -libc::EOPNOTSUPP => {
            NetworkError::NoVxlan {
                device: name.to_owned(),
                source: Box::new(error),
            }
        }
        _ => failed(format!("add VXLAN device {name}"))(error),
    }
}

fn has_gateway(route: &RouteMessage) -> bool {
    let is_gateway = |attribute: &RouteAttribute| {
        matches!(
            attribute,
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_)
        )
    };
    route.attributes.iter().any(is_gateway)
}

/// Whether a rule leads all packets with our mark, and no others, to our table.
fn is_right(rule: &RuleMessage, config: &Config) -> bool {
    let mark = config.mark.tunnel();
    let has = |attribute: RuleAttribute| rule.attributes.contains(&attribute);
    let narrows = |attribute: &RuleAttribute| {
        matches!(
            attribute,
            RuleAttribute::Source(_)
                | RuleAttribute::Destination(_)
                | RuleAttribute::Iifname(_)
                | RuleAttribute::Oifname(_)
                | RuleAttribute::IpProtocol(_)
                | RuleAttribute::SourcePortRange(_)
                | RuleAttribute::DestinationPortRange(_)
                | RuleAttribute::UidRange(_)
        )
    };
    rule.header.action == RuleAction::ToTable
        && has(RuleAttribute::FwMark(mark))
        && has(RuleAttribute::FwMask(mark))
        && has(RuleAttribute::Priority(config.rule_priority))
        && !rule.attributes.iter().any(narrows)
}

pub(super) fn is_tunnel(link: &LinkMessage, tunnel_port: u16) -> bool {
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
pub(super) fn tunnel_mac(uplink: [u8; 6]) -> [u8; 6] {
    let mut mac = uplink;
    mac[0] = (mac[0] ^ 0x02) & !0x01;
    mac
}

/// What lets packets in whose source routes elsewhere. The kernel takes the larger `rp_filter` of the device and of `all`. Where that one
/// checks nothing, neither does the device: together with `accept_local` that saves the look-up of a route for each packet. Who may send
/// them is known already (E47).
fn lenience() -> [(Setting, u32); 2] {
    let is_any_checked = RP_FILTER.read("all") != Some(0);
    let rp_filter = if is_any_checked { 2 } else { 0 };
    [(RP_FILTER, rp_filter), (ACCEPT_LOCAL, 1)]
}

fn disable_ipv6_of(config: &Config) -> String {
    format!(
        "/proc/sys/net/ipv6/conf/{}/disable_ipv6",
        config.tunnel_device
    )
}

/// Whether the tunnel device has the settings of a family that it was given. Nobody tells when they change.
pub(crate) fn is_tunnel_set(config: &Config, family: Family) -> bool {
    let device = &config.tunnel_device;
    match family {
        Family::Ipv4 => lenience()
            .iter()
            .all(|(setting, value)| setting.read(device) == Some(*value)),
        Family::Ipv6 => sysctl::is(&disable_ipv6_of(config), "0"),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroI32;

    use rtnetlink::packet_core::ErrorMessage;

    use super::*;

    #[test]
    fn a_kernel_without_vxlan_is_told_by_the_name_of_the_module() {
        let told = |code: i32| {
            let mut message = ErrorMessage::default();
            message.code = NonZeroI32::new(-code);
            not_made("egressnat0", rtnetlink::Error::NetlinkError(message)).to_string()
        };
        let text = told(libc::EOPNOTSUPP);
        assert!(
            text.contains("egressnat0") && text.contains("module vxlan"),
            "{text}"
        );
        assert!(text.contains("Linux 5.18"), "{text}");
        assert_eq!(told(libc::EEXIST), "could not add VXLAN device egressnat0");
    }
}
