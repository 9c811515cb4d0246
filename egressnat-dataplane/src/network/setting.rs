//! Settings of interfaces, written over rtnetlink: there CAP_NET_ADMIN does, while `/proc/sys` is read-only in a container without
//! privileges.

use futures::StreamExt;
use netlink_packet_route::link::{AfSpecInet, AfSpecUnspec, InetDevConf, LinkAttribute};
use netlink_packet_route::neighbour_table::{
    NeighbourTableAttribute, NeighbourTableMessage, NeighbourTableParameter,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{
    DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::{Handle, LinkUnspec};

use super::{Network, NetworkError, failed, sysctl};
use crate::family::Family;

impl Network {
    /// Sets `rp_filter` of an interface. Returns whether it had another value.
    pub(super) async fn set_rp_filter(
        &self,
        name: &str,
        index: u32,
        value: u8,
    ) -> Result<bool, NetworkError> {
        if sysctl::is(&rp_filter_of(name), &value.to_string()) {
            return Ok(false);
        }
        let mut settings = InetDevConf::default();
        settings.rp_filter = i32::from(value);
        let settings = AfSpecInet::DevConfRequest(settings);
        let set = configure(&self.handle, index, settings).await;
        set.map_err(failed(format!("set rp_filter of {name} to {value}")))?;
        Ok(true)
    }

    /// What a handover sets on an interface.
    pub(crate) fn handover_settings(&self, name: &str, index: u32) -> HandoverSettings {
        HandoverSettings {
            handle: self.handle.clone(),
            name: name.to_owned(),
            index,
        }
    }
}

/// `IFLA_INET_CONF` (`linux/if_link.h`) and one of what it has (`linux/ip.h`).
const SETTINGS: u16 = 1;
const ACCEPT_LOCAL: u16 = 23;

/// Changes settings of IPv4 of an interface.
async fn configure(
    handle: &Handle,
    index: u32,
    settings: AfSpecInet,
) -> Result<(), rtnetlink::Error> {
    let settings = AfSpecUnspec::Inet(vec![settings]);
    let mut message = LinkUnspec::new_with_index(index).build();
    message
        .attributes
        .push(LinkAttribute::AfSpecUnspec(vec![settings]));
    handle.link().set(message).execute().await
}

/// Where `rp_filter` of an interface can be read.
pub(super) fn rp_filter_of(interface: &str) -> String {
    format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter")
}

/// The settings of an interface that a handover changes: the queues for packets whose neighbor is being asked for, one for each
/// family, and whether packets may come in that this node has sent itself.
#[derive(Clone)]
pub(crate) struct HandoverSettings {
    handle: Handle,
    name: String,
    index: u32,
}

impl HandoverSettings {
    /// How much one neighbor's packets may take, in bytes; none where the kernel does not have the family.
    pub(crate) fn length(&self, family: Family) -> Option<u32> {
        sysctl::read(&unres_qlen_of(&self.name, family))
    }

    /// The length that new interfaces get; where the namespace has no such setting, as only the first one has, the one that its
    /// loopback interface got.
    pub(crate) fn usual(family: Family) -> Option<u32> {
        let mut from = ["default", "lo"].into_iter();
        from.find_map(|interface| sysctl::read(&unres_qlen_of(interface, family)))
    }

    /// Whether packets from an address of this node may come in: no, or how somebody wrote yes. None where it cannot be read.
    pub(crate) fn accept_own(&self) -> Option<u32> {
        sysctl::read(&accept_local_of(&self.name))
    }

    /// Sets whether packets from an address of this node may come in.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(crate) async fn set_accept_own(&self, value: u32) -> Result<(), NetworkError> {
        let own = DefaultNla::new(ACCEPT_LOCAL, value.to_ne_bytes().to_vec());
        let mut bytes = vec![0; own.buffer_len()];
        own.emit(&mut bytes);
        // The one of the crate leaves out what is 0.
        let settings = AfSpecInet::Other(DefaultNla::new(SETTINGS | NLA_F_NESTED, bytes));
        let set = configure(&self.handle, self.index, settings).await;
        let operation = format!("set {} to {value}", accept_local_of(&self.name));
        set.map_err(failed(operation))
    }

    /// Sets the length.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(crate) async fn set_length(&self, family: Family, bytes: u32) -> Result<(), NetworkError> {
        let operation = format!("set {} to {bytes}", unres_qlen_of(&self.name, family));
        let (table, family) = match family {
            Family::Ipv4 => ("arp_cache", AddressFamily::Inet),
            Family::Ipv6 => ("ndisc_cache", AddressFamily::Inet6),
        };
        let mut message = NeighbourTableMessage::default();
        message.header.family = family;
        message.attributes = vec![
            NeighbourTableAttribute::Name(table.to_owned()),
            NeighbourTableAttribute::Parms(vec![
                NeighbourTableParameter::Ifindex(self.index),
                NeighbourTableParameter::QueueLenbytes(bytes),
            ]),
        ];
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::SetNeighbourTable(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
        let refused = failed(operation);
        let mut answers = match self.handle.clone().request(request) {
            Ok(answers) => answers,
            Err(error) => return Err(refused(error)),
        };
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(refused(rtnetlink::Error::NetlinkError(error)));
            }
        }
        Ok(())
    }
}

fn accept_local_of(interface: &str) -> String {
    format!("/proc/sys/net/ipv4/conf/{interface}/accept_local")
}

fn unres_qlen_of(interface: &str, family: Family) -> String {
    let family = match family {
        Family::Ipv4 => "ipv4",
        Family::Ipv6 => "ipv6",
    };
    format!("/proc/sys/net/{family}/neigh/{interface}/unres_qlen_bytes")
}
