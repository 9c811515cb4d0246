//! Floating IPs as addresses of an interface, known again by their protocol number.

use std::net::IpAddr;

use futures::{StreamExt, stream};
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, CacheInfo,
};
use rtnetlink::AddressAddRequest;

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

    /// Puts floating IPs on the uplink, marked as ours, and says of each whether it is there. One that somebody else put there is
    /// not taken over.
    pub(crate) async fn add_floating_ips(
        &self,
        uplink: &Uplink,
        addresses: &[IpAddr],
    ) -> Vec<(IpAddr, Result<(), NetworkError>)> {
        at_once(addresses, |address| self.add_floating_ip(uplink, address)).await
    }

    /// Takes floating IPs off the uplink, and says of each whether it is gone.
    pub(crate) async fn remove_floating_ips(
        &self,
        uplink: &Uplink,
        addresses: &[IpAddr],
    ) -> Vec<(IpAddr, Result<(), NetworkError>)> {
        at_once(addresses, |address| {
            self.remove_floating_ip(uplink, address)
        })
        .await
    }

    /// Gives floating IPs our protocol number again that have it no more, of those that were put on the uplink here. Returns which.
    ///
    /// # Errors
    ///
    /// The kernel does not list the addresses, or takes one no other way.
    pub(crate) async fn recognize_floating_ips(
        &self,
        uplink: &Uplink,
        was_put: impl Fn(IpAddr) -> bool,
    ) -> Result<Vec<IpAddr>, NetworkError> {
        let mut recognized = Vec::new();
        for message in self.addresses(uplink.index).await? {
            let Some(host) = network_of(&message).filter(|_| !is_ours(&message)) else {
                continue;
            };
            let address = host.addr();
            if host != IpNet::from(address) || !was_put(address) {
                continue;
            }
            let replace = self.floating_ip(uplink, address).replace();
            let operation = format!("make {host} on {} ours again", uplink.name);
            replace.execute().await.map_err(failed(operation))?;
            recognized.push(address);
        }
        Ok(recognized)
    }

    async fn add_floating_ip(&self, uplink: &Uplink, address: IpAddr) -> Result<(), NetworkError> {
        let host = IpNet::from(address);
        match self.floating_ip(uplink, address).execute().await {
            Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -libc::EEXIST => {
                Err(NetworkError::ForeignAddress {
                    address,
                    interface: uplink.name.clone(),
                })
            }
            added => added.map_err(failed(format!("add address {host} to {}", uplink.name))),
        }?;
        if let IpAddr::V6(address) = address {
            self.until_local(address).await;
        }
        Ok(())
    }

    /// A floating IP as we put it on the uplink.
    fn floating_ip(&self, uplink: &Uplink, address: IpAddr) -> AddressAddRequest {
        let host = IpNet::from(address);
        let mut add = self
            .handle
            .address()
            .add(uplink.index, address, host.prefix_len());
        let attributes = &mut add.message_mut().attributes;
        let protocol = AddressProtocol::from(ADDRESS_PROTOCOL);
        attributes.push(AddressAttribute::Protocol(protocol));
        if address.is_ipv6() {
            // Usable at once: we have asked who has it, and a second without it is a second without traffic.
            // Without a host route, by which we know the interfaces of pods.
            attributes.push(AddressAttribute::Flags(
                AddressFlags::Nodad | AddressFlags::Noprefixroute,
            ));
            // Deprecated from the start: the node itself, and what is masqueraded, never choose it (RFC 6724, rule 3).
            let mut lifetime = CacheInfo::default();
            lifetime.ifa_valid = FOREVER;
            attributes.push(AddressAttribute::CacheInfo(lifetime));
        }
        add
    }

    async fn remove_floating_ip(
        &self,
        uplink: &Uplink,
        address: IpAddr,
    ) -> Result<(), NetworkError> {
        let host = IpNet::from(address);
        let mut message = AddressMessage::default();
        message.header.index = uplink.index;
        message.header.prefix_len = host.prefix_len();
        message.header.family = match address {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        message.attributes.push(AddressAttribute::Local(address));
        match self.handle.address().del(message).execute().await {
            // Somebody else was faster.
            Err(rtnetlink::Error::NetlinkError(message))
                if message.raw_code() == -libc::EADDRNOTAVAIL =>
            {
                Ok(())
            }
            removed => removed.map_err(failed(format!("remove address {host}"))),
        }
    }
}

/// So many requests are under way at a time: the socket has room for their answers.
const AT_ONCE: usize = 64;

/// Does something about each of many addresses, in their order, without waiting for one answer before the next request.
pub(super) async fn at_once<'a, E, F>(
    addresses: &'a [IpAddr],
    work: impl Fn(IpAddr) -> F + 'a,
) -> Vec<(IpAddr, Result<(), E>)>
where
    F: Future<Output = Result<(), E>> + 'a,
{
    let done = addresses.iter().map(|address| {
        let work = work(*address);
        async move { (*address, work.await) }
    });
    stream::iter(done).buffered(AT_ONCE).collect().await
}
