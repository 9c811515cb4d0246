//! Neighbors: forgetting them, and asking for them.

use std::net::IpAddr;

use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use rtnetlink::Handle;

use super::floating::at_once;
use super::{Network, NetworkError, failed};

impl Network {
    /// Forgets who had addresses when this node had not. Believed, they would get what now belongs to the next holder: if that
    /// sends it back, for the same reason, packets go around until their hops are used up.
    pub(crate) async fn forget_neighbors(
        &self,
        ifindex: u32,
        addresses: &[IpAddr],
    ) -> Vec<(IpAddr, Result<(), NetworkError>)> {
        at_once(addresses, |address| self.forget_neighbor(ifindex, address)).await
    }

    async fn forget_neighbor(&self, ifindex: u32, address: IpAddr) -> Result<(), NetworkError> {
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

/// The kernel's neighbors on one interface. Clones are of one thing.
#[derive(Clone)]
pub(crate) struct Neighbors {
    handle: Handle,
    ifindex: u32,
}

impl Network {
    pub(crate) fn neighbors(&self, ifindex: u32) -> Neighbors {
        Neighbors::new(self.handle.clone(), ifindex)
    }
}

impl Neighbors {
    pub(crate) fn new(handle: Handle, ifindex: u32) -> Self {
        Self { handle, ifindex }
    }

    /// Has the kernel ask who has an address. What it knew of it is no answer.
    pub(crate) async fn ask(&self, address: IpAddr) {
        let add = self.handle.neighbours().add(self.ifindex, address);
        let ask = add.state(NeighbourState::None).flags(NeighbourFlags::Use);
        if let Err(error) = ask.replace().execute().await {
            tracing::debug!(%address, %error, "the kernel does not ask who has the address");
        }
    }

    /// Whether somebody has answered.
    pub(crate) async fn has_answered(&self, address: IpAddr) -> bool {
        let entries = self.handle.neighbours().get().execute();
        let entries: Vec<NeighbourMessage> = entries.try_collect().await.unwrap_or_default();
        let is_it = |message: &NeighbourMessage| {
            neighbor_of(message) == Some(address)
                && message.header.ifindex == self.ifindex
                && message.header.state == NeighbourState::Reachable
        };
        entries.iter().any(is_it)
    }
}

/// Whose entry it is.
pub(crate) fn neighbor_of(message: &NeighbourMessage) -> Option<IpAddr> {
    let mut attributes = message.attributes.iter();
    attributes.find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
            Some(IpAddr::V4(*address))
        }
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
            Some(IpAddr::V6(*address))
        }
        _ => None,
    })
}
