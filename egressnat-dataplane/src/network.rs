//! Links, addresses, routes and rules of this namespace, over rtnetlink.

mod mtu;
mod neighbor;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStreamExt};
use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressMessage, AddressProtocol, AddressScope,
};
use netlink_packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, IpVersion, LinkVxlan, MulticastGroup, RouteMessageBuilder};
use thiserror::Error;
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::handover;

/// `IFA_PROTO` of our addresses: by it we know them again. The kernel names 1 to 3; the others are free to use.
const ADDRESS_PROTOCOL: u8 = 119;

/// The tunnel device's own address, which never leaves the node: without one, the kernel drops what comes in, whatever
/// `rp_filter` says.
const TUNNEL_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 119, 119);

/// Outer Ethernet, IPv4, UDP and VXLAN headers, less the inner Ethernet header that the MTU does not count.
const ENCAPSULATION: u32 = 50;

/// A link, address, route or rule could not be read or written.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// No rtnetlink socket.
    #[error("could not open an rtnetlink socket")]
    Socket(#[source] io::Error),
    /// An operation failed.
    #[error("could not {operation}")]
    Netlink {
        /// Verb and object: `add address 192.168.1.100/32 to eth0`.
        operation: String,
        /// What the kernel said.
        #[source]
        source: Box<rtnetlink::Error>,
    },
    /// No uplink was given and none found.
    #[error(
        "there is no default route to tell the uplink by: name the interface that floating IPs go on"
    )]
    NoUplink,
    /// The named interface is missing.
    #[error("there is no interface {0}: name one that exists")]
    NoInterface(String),
    /// The tunnel device's name belongs to somebody else.
    #[error(
        "{0} exists and is no VXLAN device of ours: remove it, or configure another name for the tunnel device"
    )]
    ForeignDevice(String),
    /// A floating IP is on the uplink already, put there by somebody else.
    #[error(
        "{address} is on {interface} and was put there by somebody else: remove it there, or from the gateway group"
    )]
    ForeignAddress {
        /// The address.
        address: Ipv4Addr,
        /// The uplink.
        interface: String,
    },
    /// A sysctl could not be written.
    #[error("could not set {path} to {value}")]
    Sysctl {
        /// Its path.
        path: String,
        /// The value.
        value: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

pub(crate) fn failed(
    operation: impl Into<String>,
) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let operation = operation.into();
    |source| NetworkError::Netlink {
        operation,
        source: Box::new(source),
    }
}

/// The interface that floating IPs go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its link-layer address.
    pub mac: [u8; 6],
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its own addresses with their subnets, floating IPs left out.
    pub addresses: Vec<IpNet>,
}

type Messages = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// rtnetlink in the namespace it was opened in.
pub(crate) struct Network {
    handle: Handle,
    connection: JoinHandle<()>,
    changes: Messages,
    watcher: JoinHandle<()>,
}

impl Drop for Network {
    fn drop(&mut self) {
        self.connection.abort();
        self.watcher.abort();
    }
}

impl Network {
    pub(crate) fn open() -> Result<Self, NetworkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Socket)?;
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Tc,
        ];
        let (watcher, _, changes) =
            rtnetlink::new_multicast_connection(&groups).map_err(NetworkError::Socket)?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
            changes,
            watcher: tokio::spawn(watcher),
        })
    }

    /// Waits for the next change of links, addresses, routes, rules or filters, and takes all that are told already.
    pub(crate) async fn changed(&mut self) {
        if self.changes.next().await.is_none() {
            // The socket is gone; the agent's slow audit remains.
            std::future::pending::<()>().await;
        }
        while self.changes.try_recv().is_ok() {}
    }

    async fn link(&self, name: &str) -> Result<Option<LinkMessage>, NetworkError> {
        match self
            .handle
            .link()
            .get()
            .match_name(name.to_owned())
            .execute()
            .try_next()
            .await
        {
            Ok(link) => Ok(link),
            Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -libc::ENODEV => {
                Ok(None)
            }
            Err(error) => Err(failed(format!("read interface {name}"))(error)),
        }
    }

    /// Names of all interfaces by index.
    pub(crate) async fn interfaces(&self) -> Result<BTreeMap<u32, String>, NetworkError> {
        let mut links = self.handle.link().get().execute();
        let mut names = BTreeMap::new();
        while let Some(link) = links.try_next().await.map_err(failed("list interfaces"))? {
            names.extend(link_name(&link).map(|name| (link.header.index, name)));
        }
        Ok(names)
    }

    /// Reads the uplink: the one that the configuration names, or the one of the default route.
    pub(crate) async fn uplink(&self, config: &Config) -> Result<Uplink, NetworkError> {
        let name = match &config.uplink {
            Some(name) => name.clone(),
            None => self.default_interface().await?,
        };
        let link = self
            .link(&name)
            .await?
            .ok_or_else(|| NetworkError::NoInterface(name.clone()))?;
        let mut uplink = Uplink {
            name,
            index: link.header.index,
            mac: [0; 6],
            mtu: 1500,
            addresses: Vec::new(),
        };
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::Address(bytes) => uplink.mac = bytes.try_into().unwrap_or_default(),
                LinkAttribute::Mtu(mtu) => uplink.mtu = mtu,
                _ => {}
            }
        }
        for message in self.addresses(uplink.index).await? {
            if !is_ours(&message) && message.header.scope == AddressScope::Universe {
                uplink.addresses.extend(network_of(&message));
            }
        }
        uplink.addresses.sort();
        Ok(uplink)
    }

    async fn default_interface(&self) -> Result<String, NetworkError> {
        let mut default: Option<(u32, u32)> = None;
        for route in self.routes().await? {
            let is_default =
                route.header.destination_prefix_length == 0 && table_of(&route) == MAIN_TABLE;
            let metric = route
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Priority(metric) => Some(*metric),
                    _ => None,
                });
            if let (true, Some(interface)) = (is_default, interface_of(&route)) {
                let candidate = (metric.unwrap_or(0), interface);
                default = Some(default.map_or(candidate, |best| best.min(candidate)));
            }
        }
        let (_, index) = default.ok_or(NetworkError::NoUplink)?;
        self.interfaces()
            .await?
            .remove(&index)
            .ok_or(NetworkError::NoUplink)
    }

    async fn routes(&self) -> Result<Vec<RouteMessage>, NetworkError> {
        let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
        self.handle
            .route()
            .get(all)
            .execute()
            .try_collect()
            .await
            .map_err(failed("list routes"))
    }

    /// The host-side interfaces of pods: for each address with a route of its own in the main table, its interface.
    pub(crate) async fn host_routes(&self) -> Result<BTreeMap<Ipv4Addr, u32>, NetworkError> {
        let mut interfaces = BTreeMap::new();
        for route in self.routes().await? {
            if route.header.destination_prefix_length != 32 || table_of(&route) != MAIN_TABLE {
                continue;
            }
            let destination = route
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
                    _ => None,
                });
            if let (Some(address), Some(interface)) = (destination, interface_of(&route)) {
                interfaces.insert(address, interface);
            }
        }
        Ok(interfaces)
    }

    async fn addresses(&self, ifindex: u32) -> Result<Vec<AddressMessage>, NetworkError> {
        let get = self.handle.address().get().set_link_index_filter(ifindex);
        get.execute()
            .try_collect()
            .await
            .map_err(failed("list addresses"))
    }

    /// The floating IPs that are on an interface.
    pub(crate) async fn floating_ips(&self, ifindex: u32) -> Result<Vec<Ipv4Addr>, NetworkError> {
        let ours = self.addresses(ifindex).await?.into_iter().filter(is_ours);
        Ok(ours
            .filter_map(|message| match network_of(&message)? {
                IpNet::V4(network) => Some(network.addr()),
                IpNet::V6(_) => None,
            })
            .collect())
    }

    /// Puts a floating IP on the uplink, marked as ours. One that somebody else put there is not taken over.
    pub(crate) async fn add_floating_ip(
        &self,
        uplink: &Uplink,
        address: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        if self.floating_ips(uplink.index).await?.contains(&address) {
            return Ok(());
        }
        let mut add = self
            .handle
            .address()
            .add(uplink.index, IpAddr::V4(address), 32);
        let protocol = AddressAttribute::Protocol(AddressProtocol::from(ADDRESS_PROTOCOL));
        add.message_mut().attributes.push(protocol);
        match add.execute().await {
            Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -libc::EEXIST => {
                Err(NetworkError::ForeignAddress {
                    address,
                    interface: uplink.name.clone(),
                })
            }
            added => added.map_err(failed(format!(
                "add address {address}/32 to {}",
                uplink.name
            ))),
        }
    }

    /// Takes a floating IP off an interface.
    pub(crate) async fn remove_floating_ip(
        &self,
        ifindex: u32,
        address: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        for message in self.addresses(ifindex).await?.into_iter().filter(is_ours) {
            if network_of(&message) == Some(IpNet::V4(Ipv4Net::from(address))) {
                let removed = self.handle.address().del(message).execute().await;
                removed.map_err(failed(format!("remove address {address}/32")))?;
            }
        }
        Ok(())
    }

    /// Makes the tunnel device with its address, rule and route, as far as they are not there. Returns its index and how
    /// many objects were written.
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
        changes += set_sysctl(&format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "2")?;

        let in_our_table = |route: &RouteMessage| table_of(route) == config.route_table;
        if !self.routes().await?.iter().any(in_our_table) {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
                .output_interface(index)
                .scope(netlink_packet_route::route::RouteScope::Link)
                .table_id(config.route_table)
                .build();
            let added = self.handle.route().add(route).execute().await;
            added.map_err(failed(format!(
                "add the default route of table {}",
                config.route_table
            )))?;
            changes += 1;
        }
        if self.our_rules(config).await?.is_empty() {
            let mark = config.mark.tunnel();
            let mut rule = self
                .handle
                .rule()
                .add()
                .v4()
                .fw_mark(mark)
                .table_id(config.route_table)
                .priority(config.rule_priority)
                .action(RuleAction::ToTable);
            rule.message_mut()
                .attributes
                .push(RuleAttribute::FwMask(mark));
            let added = rule.execute().await;
            added.map_err(failed(format!(
                "add the ip rule to table {}",
                config.route_table
            )))?;
            changes += 1;
        }
        Ok((index, changes))
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
            .mtu(mtu::tunnel_mtu(uplink.mtu))
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

    async fn our_rules(&self, config: &Config) -> Result<Vec<RuleMessage>, NetworkError> {
        let rules: Vec<RuleMessage> = self
            .handle
            .rule()
            .get(IpVersion::V4)
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

    /// Removes rule, route, device and floating IPs. Returns how many objects there were.
    pub(crate) async fn remove_all(&self, config: &Config) -> Result<usize, NetworkError> {
        let mut changes = 0;
        for rule in self.our_rules(config).await? {
            self.handle
                .rule()
                .del(rule)
                .execute()
                .await
                .map_err(failed("remove our ip rule"))?;
            changes += 1;
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
        // The route goes with its device.
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

const MAIN_TABLE: u32 = RouteHeader::RT_TABLE_MAIN as u32;

fn table_of(route: &RouteMessage) -> u32 {
    let attribute = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        });
    attribute.unwrap_or_else(|| u32::from(route.header.table))
}

fn interface_of(route: &RouteMessage) -> Option<u32> {
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        })
}

fn link_name(link: &LinkMessage) -> Option<String> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        })
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

fn is_ours(message: &AddressMessage) -> bool {
    message
        .attributes
        .contains(&AddressAttribute::Protocol(AddressProtocol::from(
            ADDRESS_PROTOCOL,
        )))
}

pub(crate) fn network_of(message: &AddressMessage) -> Option<IpNet> {
    // The local address; on point-to-point links `Address` is the peer's.
    let local = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
    let address = local.or_else(|| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
    });
    IpNet::new(address?, message.header.prefix_len).ok()
}

/// The tunnel device's MAC: one of its own on each node, for a device drops what seems to come from itself. The uplink's,
/// with the bit for "locally administered" turned over.
fn tunnel_mac(uplink: [u8; 6]) -> [u8; 6] {
    let mut mac = uplink;
    mac[0] = (mac[0] ^ 0x02) & !0x01;
    mac
}

/// Whether the host forwards IPv4 packets at all.
pub(crate) fn is_forwarding() -> bool {
    fs::read_to_string("/proc/sys/net/ipv4/ip_forward").is_ok_and(|value| value.trim() == "1")
}

fn set_sysctl(path: &str, value: &'static str) -> Result<usize, NetworkError> {
    if fs::read_to_string(path).is_ok_and(|now| now.trim() == value) {
        return Ok(0);
    }
    fs::write(path, value).map_err(|source| NetworkError::Sysctl {
        path: path.to_owned(),
        value,
        source,
    })?;
    Ok(1)
}
