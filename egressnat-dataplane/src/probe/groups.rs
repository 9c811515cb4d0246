//! Membership in the groups that questions about IPv6 addresses go to.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr, UdpSocket};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::neighbor_discovery::solicited_nodes;

/// A socket has room for so many in the least that kernels give it (`net.core.optmem_max`, 20,480 bytes; 56 for each).
const MOST: usize = 256;

/// Membership until it is dropped. It has switches and the interface itself let questions of others through, who are about to take
/// the same addresses (RFC 4862, section 5.4.2); answers go to all.
pub(super) struct Groups {
    _sockets: Vec<UdpSocket>,
}

impl Groups {
    /// Joins the groups of those of `addresses` that are of IPv6. Probes go out without, so what fails is logged only.
    pub(super) fn join(ifindex: u32, addresses: &BTreeSet<IpAddr>) -> Self {
        let groups = addresses.iter().filter_map(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(solicited_nodes(*address)),
        });
        let groups: Vec<Ipv6Addr> = BTreeSet::from_iter(groups).into_iter().collect();
        let joined = groups.chunks(MOST).map(|groups| join(ifindex, groups));
        let sockets = joined.collect::<io::Result<_>>();
        if let Err(error) = &sockets {
            tracing::debug!(%error, "who else asks for an address may not be heard");
        }
        Self {
            _sockets: sockets.unwrap_or_default(),
        }
    }
}

/// A socket that is a member of groups, and of no other use.
fn join(ifindex: u32, groups: &[Ipv6Addr]) -> io::Result<UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet6, SockType::Datagram, flags, None)?;
    let socket = UdpSocket::from(socket);
    for group in groups {
        socket.join_multicast_v6(group, ifindex)?;
    }
    Ok(socket)
}
