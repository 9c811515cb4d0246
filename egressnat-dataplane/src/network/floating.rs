//! Floating IPs as addresses of an interface, known again by their protocol number.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressProtocol, CacheInfo};

use super::{ADDRESS_PROTOCOL, Network, NetworkError, Uplink, failed, is_ours, network_of};

/// A lifetime without an end.
const FOREVER: u32 = u32::MAX;

impl Network {
    /// The floating IPs that are on an interface.
    pub(crate) async fn floating_ips(&self, ifindex: u32) -> Result<Vec<IpAddr>, NetworkError> {
        let ours = self.addresses(ifindex).await?.into_iter().filter(is_ours);
        Ok(ours
            .filter_map(|message| Some(network_of(&message)?.addr()))
            .collect())
    }

    /// Puts a floating IP on the uplink, marked as ours. One that somebody else put there is not taken over.
    pub(crate) async fn add_floating_ip(
        &self,
        uplink: &Uplink,
        address: IpAddr,
    ) -> Result<(), NetworkError> {
        if self.floating_ips(uplink.index).await?.contains(&address) {
            return Ok(());
        }
        let host = IpNet::from(address);
        let mut add = self
            .handle
            .address()
            .add(uplink.index, address, host.prefix_len());
        let attributes = &mut add.message_mut().attributes;
        let protocol = AddressProtocol::from(ADDRESS_PROTOCOL);
        attributes.push(AddressAttribute::Protocol(protocol));
        if address.is_ipv6() {
            // Usable at once: who had it before has given it away, and a second without it is a second without traffic.
            // Without a host route, by which we know the interfaces of pods.
            attributes.push(AddressAttribute::Flags(
                AddressFlags::Nodad | AddressFlags::Noprefixroute,
            ));
            // Deprecated from the start: the node itself, and what is masqueraded, never choose it (RFC 6724, rule 3).
            let mut lifetime = CacheInfo::default();
            lifetime.ifa_valid = FOREVER;
            attributes.push(AddressAttribute::CacheInfo(lifetime));
        }
        match add.execute().await {
            Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -libc::EEXIST => {
                Err(NetworkError::ForeignAddress {
                    address,
                    interface: uplink.name.clone(),
                })
            }
            added => added.map_err(failed(format!("add address {host} to {}", uplink.name))),
        }
    }

    /// Takes a floating IP off an interface.
    pub(crate) async fn remove_floating_ip(
        &self,
        ifindex: u32,
        address: IpAddr,
    ) -> Result<(), NetworkError> {
        let host = IpNet::from(address);
        for message in self.addresses(ifindex).await?.into_iter().filter(is_ours) {
            if network_of(&message) == Some(host) {
                let removed = self.handle.address().del(message).execute().await;
                removed.map_err(failed(format!("remove address {host}")))?;
            }
        }
        Ok(())
    }
}
