//! What the kernel knows of links, bridges, and the namespaces behind their ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup};
use tokio::task::JoinHandle;

use super::place::{Peer, Port};
use crate::network::{Neighbors, NetworkError, failed, neighbor_of, network_of};
use crate::probe::Mac;

/// The links of this namespace.
#[derive(Default)]
pub(super) struct Links {
    pub(super) names: BTreeMap<u32, String>,
    pub(super) bridges: BTreeSet<u32>,
    /// Ports of bridges by index, their other end not looked at yet.
    pub(super) ports: BTreeMap<u32, Port>,
}

/// rtnetlink with strict checks: only so may one ask for addresses of another namespace.
pub(super) struct Kernel {
    handle: Handle,
    connection: JoinHandle<()>,
    neighbors: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    watcher: JoinHandle<()>,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.connection.abort();
        self.watcher.abort();
    }
}

impl Kernel {
    pub(super) fn open() -> Result<Self, NetworkError> {
        let (connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().map_err(NetworkError::Socket)?;
        let (watcher, _, neighbors) = rtnetlink::new_multicast_connection(&[MulticastGroup::Neigh])
            .map_err(NetworkError::Socket)?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
            neighbors,
            watcher: tokio::spawn(watcher),
        })
    }

    /// Waits for news of the neighbor entry of one of `addresses`; what is told of others is nothing new.
    pub(super) async fn heard_of(&mut self, addresses: &BTreeSet<IpAddr>) {
        while let Some((message, _)) = self.neighbors.next().await {
            // Lost messages are told like this: whatever they were about.
            let is_loss = matches!(message.payload, NetlinkPayload::Overrun(_));
            let is_near = match &message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(neighbor)) => {
                    entry(neighbor).is_some_and(|(address, mac)| {
                        // An entry without one only says that the kernel asks.
                        mac.is_some() && addresses.contains(&address)
                    })
                }
                _ => false,
            };
            if is_loss || is_near {
                return;
            }
        }
        std::future::pending::<()>().await;
    }

    pub(super) async fn links(&self) -> Result<Links, NetworkError> {
        let mut messages = self.handle.link().get().execute();
        let mut links = Links::default();
        while let Some(link) = messages.try_next().await.map_err(failed("list links"))? {
            take_link(&mut links, &link);
        }
        links
            .ports
            .retain(|_, port| links.bridges.contains(&port.bridge));
        Ok(links)
    }

    /// The addresses of this namespace with their subnets.
    pub(super) async fn addresses(&self) -> Result<Vec<(u32, IpNet)>, NetworkError> {
        let get = self.handle.address().get();
        let messages = get.execute().map_ok(|message| {
            let network = network_of(&message)?;
            Some((message.header.index, network))
        });
        let addresses: Vec<_> = messages
            .try_collect()
            .await
            .map_err(failed("list addresses"))?;
        Ok(addresses.into_iter().flatten().collect())
    }

    /// Reads the addresses at the other ends of ports. One that cannot be looked at, because it vanishes meanwhile or the
    /// kernel does not let us, has none.
    pub(super) async fn look_into(&self, ports: &mut BTreeMap<u32, Port>) {
        for port in ports.values_mut() {
            if let Some(peer) = port.peer {
                port.addresses = self.addresses_behind(peer).await.ok();
            }
        }
    }

    async fn addresses_behind(&self, peer: Peer) -> Result<BTreeSet<IpAddr>, rtnetlink::Error> {
        let mut get = self.handle.address().get();
        let message = get.message_mut();
        message.header.index = peer.ifindex;
        let namespace = AddressAttribute::TargetNetNsId(peer.namespace);
        message.attributes.push(namespace);
        let messages: Vec<_> = get.execute().try_collect().await?;
        let on_peer = messages
            .iter()
            .filter(|message| message.header.index == peer.ifindex);
        Ok(on_peer
            .filter_map(|message| Some(network_of(message)?.addr()))
            .filter(|address| !is_of_link(address))
            .collect())
    }

    /// The ports that the neighbors of the ports' bridges were learned at.
    pub(super) async fn neighbors(
        &self,
        ports: &BTreeMap<u32, Port>,
    ) -> Result<BTreeMap<IpAddr, u32>, NetworkError> {
        let get = self.handle.neighbours().get();
        let learned = get.set_address_family(AddressFamily::Bridge).execute();
        let learned: Vec<NeighbourMessage> = learned
            .try_collect()
            .await
            .map_err(failed("list the link-layer addresses of bridges"))?;
        let mut port_of: BTreeMap<(u32, &[u8]), u32> = BTreeMap::new();
        for message in &learned {
            // What is permanent is a port's own.
            if message.header.state == NeighbourState::Permanent {
                continue;
            }
            if let (Some(port), Some(mac)) = (ports.get(&message.header.ifindex), mac_of(message)) {
                port_of.insert((port.bridge, mac), message.header.ifindex);
            }
        }
        let entries = self.entries().await?;
        let place = |message: &NeighbourMessage| {
            let (address, mac) = entry(message)?;
            let port = port_of.get(&(message.header.ifindex, mac?))?;
            Some((address, *port))
        };
        Ok(entries.iter().filter_map(place).collect())
    }

    /// The link-layer addresses of the neighbors on an interface.
    pub(super) async fn macs(&self, ifindex: u32) -> Result<BTreeMap<IpAddr, Mac>, NetworkError> {
        let entries = self.entries().await?;
        let on_it = entries
            .iter()
            .filter(|message| message.header.ifindex == ifindex);
        Ok(on_it
            .filter_map(|message| {
                let (address, mac) = entry(message)?;
                Some((address, Mac(mac?.try_into().ok()?)))
            })
            .collect())
    }

    async fn entries(&self) -> Result<Vec<NeighbourMessage>, NetworkError> {
        let entries = self.handle.neighbours().get().execute();
        entries
            .try_collect()
            .await
            .map_err(failed("list neighbors"))
    }

    /// Has the kernel ask who has an address, so that a bridge learns where it is.
    pub(super) async fn ask_for(&self, address: IpAddr, bridge: u32) {
        let neighbors = Neighbors::new(self.handle.clone(), bridge);
        neighbors.ask(address).await;
    }
}

fn take_link(links: &mut Links, link: &LinkMessage) {
    let index = link.header.index;
    let (mut bridge, mut namespace, mut peer) = (None, None, None);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => {
                links.names.insert(index, name.clone());
            }
            LinkAttribute::Controller(controller) => bridge = Some(*controller),
            LinkAttribute::LinkNetNsId(id) => namespace = Some(*id),
            LinkAttribute::Link(ifindex) => peer = Some(*ifindex),
            LinkAttribute::LinkInfo(infos) if infos.contains(&LinkInfo::Kind(InfoKind::Bridge)) => {
                links.bridges.insert(index);
            }
            _ => {}
        }
    }
    if let Some(bridge) = bridge {
        let peer = namespace.zip(peer);
        let port = Port {
            name: links.names.get(&index).cloned().unwrap_or_default(),
            bridge,
            peer: peer.map(|(namespace, ifindex)| Peer { namespace, ifindex }),
            addresses: None,
        };
        links.ports.insert(index, port);
    }
}

/// Every interface has such an address by itself: it tells nothing about who is there.
fn is_of_link(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// The address of a neighbor entry, and its link-layer address if that is known.
fn entry(message: &NeighbourMessage) -> Option<(IpAddr, Option<&[u8]>)> {
    let is_known = message.header.state != NeighbourState::Failed;
    Some((neighbor_of(message)?, mac_of(message).filter(|_| is_known)))
}

fn mac_of(message: &NeighbourMessage) -> Option<&[u8]> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(mac) => Some(mac.as_slice()),
            _ => None,
        })
}
