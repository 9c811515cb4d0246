//! Neighbors that are known no more.

use std::net::IpAddr;

use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, neighbour::NeighbourAddress};

use super::{Network, NetworkError, failed};

impl Network {
    /// Forgets who had an address when this node had not. Believed, it would get what now belongs to the next holder: if that
    /// sends it back, for the same reason, packets go around until their hops are used up.
    pub(crate) async fn forget_neighbor(
        &self,
        ifindex: u32,
        address: IpAddr,
    ) -> Result<(), NetworkError> {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = ifindex;
        message.header.kind = RouteType::Unicast;
        let (family, destination) = match address {
            IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
            IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
        };
        message.header.family = family;
        message
            .attributes
            .push(NeighbourAttribute::Destination(destination));
        match self.handle.neighbours().del(message).execute().await {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENOENT => {
                Ok(())
            }
            forgotten => forgotten.map_err(failed(format!("forget neighbor {address}"))),
        }
    }
}
