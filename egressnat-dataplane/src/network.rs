//! Links, addresses, routes and rules of this namespace, over rtnetlink.

mod device;
mod events;
mod floating;
mod local_route;
mod mtu;
mod neighbor;
mod setting;
mod sysctl;
mod tunnel;
mod uplink;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::address::{
    AddressAttribute, AddressMessage, AddressProtocol, AddressScope,
};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use rtnetlink::{Handle, RouteMessageBuilder};
use thiserror::Error;
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::family::Family;
use events::Events;

pub(crate) use events::Event;
pub(crate) use neighbor::{Neighbors, neighbor_of};
pub(crate) use setting::HandoverSettings;
pub(crate) use sysctl::{forwarding, ipv6};
pub(crate) use tunnel::is_tunnel_set;
pub(crate) use uplink::UplinkChange;

/// `IFA_PROTO` of our addresses: by it we know them again. The kernel names 1 to 3; the others are free to use.
const ADDRESS_PROTOCOL: u8 = 119;

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
    /// The kernel has no VXLAN devices.
    #[error(
        "the kernel cannot make the VXLAN device {device}: load the module vxlan, or take a kernel that has it (CONFIG_VXLAN, of Linux 5.18 or later)"
    )]
    NoVxlan {
        /// The device.
        device: String,
        /// What the kernel said.
        #[source]
        source: Box<rtnetlink::Error>,
    },
    /// A floating IP is on the uplink already, put there by somebody else.
    #[error(
        "{address} is on {interface} and was put there by somebody else: remove it there, or from the gateway group"
    )]
    ForeignAddress {
        /// The address.
        address: IpAddr,
        /// The uplink.
        interface: String,
    },
    /// A setting that only `/proc/sys` has could not be written.
    #[error("could not set {setting} to {value}: run 'sysctl -w {setting}={value}' on the node")]
    Sysctl {
        /// Its name, as `sysctl` takes it.
        setting: String,
        /// The value.
        value: String,
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
    /// How often it has gained its carrier.
    pub(crate) carriers: Option<u32>,
}

/// rtnetlink in the namespace it was opened in.
pub(crate) struct Network {
    handle: Handle,
    connection: JoinHandle<()>,
    events: Events,
}

impl Drop for Network {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Network {
    pub(crate) fn open(config: &Config) -> Result<Self, NetworkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Socket)?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
            events: Events::open(config.route_table).map_err(NetworkError::Socket)?,
        })
    }

    /// Waits until the kernel tells something, and gives what of it may matter: perhaps nothing. Cancel safe.
    pub(crate) async fn told(&self) -> Vec<Event> {
        self.events.told().await
    }

    /// What the kernel has told until now and may matter.
    pub(crate) fn take_events(&self) -> Vec<Event> {
        self.events.take_all()
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
        let links = self.links().await?;
        let name = |link: &LinkMessage| Some((link.header.index, link_name(link)?));
        Ok(links.iter().filter_map(name).collect())
    }

    async fn links(&self) -> Result<Vec<LinkMessage>, NetworkError> {
        let links = self.handle.link().get().execute().try_collect();
        links.await.map_err(failed("list interfaces"))
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
            carriers: uplink::carriers_of(&link),
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

    /// The interface of the default route: that of IPv4, or of IPv6 where IPv4 has none.
    async fn default_interface(&self) -> Result<String, NetworkError> {
        for family in Family::ALL {
            if let Some(index) = self.default_of(family).await? {
                let name = self.interfaces().await?.remove(&index);
                return name.ok_or(NetworkError::NoUplink);
            }
        }
        Err(NetworkError::NoUplink)
    }

    async fn default_of(&self, family: Family) -> Result<Option<u32>, NetworkError> {
        let mut default: Option<(u32, u32)> = None;
        for route in self.routes(family).await? {
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
        Ok(default.map(|(_, index)| index))
    }

    /// The routes of a family: none, where the kernel does not have it.
    async fn routes(&self, family: Family) -> Result<Vec<RouteMessage>, NetworkError> {
        let all = match family {
            Family::Ipv4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            Family::Ipv6 if !sysctl::is_known(family) => return Ok(Vec::new()),
            Family::Ipv6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        self.handle
            .route()
            .get(all)
            .execute()
            .try_collect()
            .await
            .map_err(failed("list routes"))
    }

    /// The host-side interfaces of pods: for each address with a route of its own in the main table, its interface.
    pub(crate) async fn host_routes(&self) -> Result<BTreeMap<IpAddr, u32>, NetworkError> {
        let mut interfaces = BTreeMap::new();
        for family in Family::ALL {
            for route in self.routes(family).await? {
                let is_host = route.header.destination_prefix_length == family.width();
                if is_host
                    && table_of(&route) == MAIN_TABLE
                    && let Some(address) = destination_of(&route)
                    && let Some(interface) = interface_of(&route)
                {
                    interfaces.insert(address, interface);
                }
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

fn destination_of(route: &RouteMessage) -> Option<IpAddr> {
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => Some((*address).into()),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some((*address).into()),
            _ => None,
        })
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
