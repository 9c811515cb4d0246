//! What happens to links, addresses, routes, rules and filters of this namespace, told by rtnetlink.
//!
//! A socket of our own and no task behind it: what the kernel has told by the time somebody asks is known then, not when a task
//! had its turn.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::route::RouteMessage;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::io::unix::AsyncFd;

use super::{MAIN_TABLE, destination_of, is_ours, network_of, table_of};
use crate::family::Family;

/// Bytes that may wait to be read: a thousand floating IPs that come at once are told in two thousand messages.
static BUFFER: libc::c_int = 8 << 20;

/// Something that was told and may matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// An address is on an interface now, or no more.
    Address {
        ifindex: u32,
        address: IpAddr,
        /// Whether it has the protocol number of floating IPs.
        is_floating: bool,
        /// Whether it is there now.
        is_there: bool,
    },
    /// A link, a route, a rule, a filter, or more than the socket takes.
    Other,
}

/// Notifications of rtnetlink in the namespace they were opened in.
pub(super) struct Events {
    socket: AsyncFd<Socket>,
    /// Ours: what happens to its routes matters.
    route_table: u32,
}

impl Events {
    pub(super) fn open(route_table: u32) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        // SAFETY: a plain integer option on a socket that lives; a failure leaves a buffer that overflows sooner, which is told.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                (&raw const BUFFER).cast(),
                size_of_val(&BUFFER) as libc::socklen_t,
            );
        }
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv6Rule,
            MulticastGroup::Tc,
        ] {
            socket.add_membership(group as u32)?;
        }
        // SAFETY: a socket keeps its descriptor, open, until it is dropped, which is after its registration.
        let socket = unsafe { AsyncFd::register(socket) }?;
        Ok(Self {
            socket,
            route_table,
        })
    }

    /// Waits until something is told, and gives what of it may matter: perhaps nothing.
    ///
    /// Cancel safe.
    pub(super) async fn told(&self) -> Vec<Event> {
        let Ok(mut ready) = self.socket.readable().await else {
            // No more events; the audit remains.
            return std::future::pending().await;
        };
        let mut events = Vec::new();
        while let Ok(told) = ready.try_io(|socket| receive(socket.get_ref())) {
            if self.take(told, &mut events) == Rest::Unknown {
                break;
            }
        }
        events
    }

    /// What was told until now.
    pub(super) fn take_all(&self) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            match receive(self.socket.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return events,
                told => {
                    if self.take(told, &mut events) == Rest::Unknown {
                        return events;
                    }
                }
            }
        }
    }

    fn take(&self, told: io::Result<Vec<u8>>, events: &mut Vec<Event>) -> Rest {
        let bytes = match told {
            Ok(bytes) => bytes,
            // Lost messages are told like this: whatever they were about.
            Err(error) => {
                events.push(Event::Other);
                return match error.raw_os_error() {
                    Some(libc::ENOBUFS) => Rest::MayCome,
                    _ => Rest::Unknown,
                };
            }
        };
        let event = match NetlinkMessage::deserialize(&bytes).map(|message| message.payload) {
            Ok(NetlinkPayload::InnerMessage(message)) => event_of(&message, self.route_table),
            _ => Some(Event::Other),
        };
        events.extend(event);
        Rest::MayCome
    }
}

/// Whether there may be more behind what was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    MayCome,
    /// The socket does not work: asked again at once, it would say so again.
    Unknown,
}

fn receive(socket: &Socket) -> io::Result<Vec<u8>> {
    socket.recv_from_full().map(|(bytes, _)| bytes)
}

/// What a notification is about, if it may matter.
fn event_of(message: &RouteNetlinkMessage, route_table: u32) -> Option<Event> {
    match message {
        RouteNetlinkMessage::NewAddress(message) => Some(address_event(message, true)),
        RouteNetlinkMessage::DelAddress(message) => Some(address_event(message, false)),
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            matters(route, route_table).then_some(Event::Other)
        }
        _ => Some(Event::Other),
    }
}

fn address_event(message: &AddressMessage, is_there: bool) -> Event {
    match network_of(message) {
        Some(network) => Event::Address {
            ifindex: message.header.index,
            address: network.addr(),
            is_floating: is_ours(message),
            is_there,
        },
        None => Event::Other,
    }
}

/// Whether a route may lead to a pod or into the tunnel: routes of addresses themselves, which each floating IP has, do not.
fn matters(route: &RouteMessage, route_table: u32) -> bool {
    let table = table_of(route);
    let is_host = || {
        let width = destination_of(route).map(|address| Family::of(address).width());
        width == Some(route.header.destination_prefix_length)
    };
    table == route_table || (table == MAIN_TABLE && is_host())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rtnetlink::RouteMessageBuilder;

    use super::*;

    #[test]
    fn of_routes_those_of_pods_and_of_our_table_matter() {
        const OURS: u32 = 1190;
        const LOCAL: u32 = 255;
        for (length, table, want) in [
            (32, MAIN_TABLE, true),
            (24, MAIN_TABLE, false),
            (32, LOCAL, false),
            (0, OURS, true),
            (0, MAIN_TABLE, false),
        ] {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(Ipv4Addr::new(10, 10, 1, 0), length)
                .table_id(table)
                .build();
            let event = event_of(&RouteNetlinkMessage::NewRoute(route), OURS);
            assert_eq!(event.is_some(), want, "/{length} in table {table}");
        }
    }
}
