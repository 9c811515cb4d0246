//! Settings of interfaces, written over rtnetlink: there CAP_NET_ADMIN does, while `/proc/sys` is read-only in a container without
//! privileges.

use futures::StreamExt;
use netlink_packet_route::link::{AfSpecInet, AfSpecUnspec, LinkAttribute};
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

/// `IFLA_INET_CONF` (`linux/if_link.h`).
const SETTINGS: u16 = 1;

/// A setting of IPv4 of an interface.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    name: &'static str,
    /// In `linux/ip.h`.
    number: u16,
}

/// How sources of packets are checked: 0 not, 1 whether answers go back there, 2 whether they go anywhere.
pub(super) const RP_FILTER: Setting = Setting {
    name: "rp_filter",
    number: 8,
};

/// Whether packets may come in from an address of this node.
pub(super) const ACCEPT_LOCAL: Setting = Setting {
    name: "accept_local",
    number: 23,
};

impl Setting {
    /// Where it can be read.
    pub(super) fn of(self, interface: &str) -> String {
        format!("/proc/sys/net/ipv4/conf/{interface}/{}", self.name)
    }

    /// What it is, where it can be read.
    pub(super) fn read(self, interface: &str) -> Option<u32> {
        sysctl::read(&self.of(interface))
    }

    async fn write(
        self,
        handle: &Handle,
        (name, index): (&str, u32),
        value: u32,
    ) -> Result<(), NetworkError> {
        let setting = DefaultNla::new(self.number, value.to_ne_bytes().to_vec());
        let mut bytes = vec![0; setting.buffer_len()];
        setting.emit(&mut bytes);
        // The one of the crate leaves out what is 0.
        let settings = AfSpecInet::Other(DefaultNla::new(SETTINGS | NLA_F_NESTED, bytes));
        let mut message = LinkUnspec::new_with_index(index).build();
        let settings = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![settings])]);
        message.attributes.push(settings);
        let set = handle.link().set(message).execute().await;
        set.map_err(failed(format!("set {} to {value}", self.of(name))))
    }
}

impl Network {
    /// Sets a setting of an interface. Returns whether it had another value.
    pub(super) async fn set(
        &self,
        setting: Setting,
        (name, index): (&str, u32),
        value: u32,
    ) -> Result<bool, NetworkError> {
        if setting.read(name) == Some(value) {
            return Ok(false);
        }
        setting.write(&self.handle, (name, index), value).await?;
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
        ACCEPT_LOCAL.read(&self.name)
    }

    /// Sets whether packets from an address of this node may come in.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(crate) async fn set_accept_own(&self, value: u32) -> Result<(), NetworkError> {
        let interface = (self.name.as_str(), self.index);
        ACCEPT_LOCAL.write(&self.handle, interface, value).await
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

fn unres_qlen_of(interface: &str, family: Family) -> String {
    let family = match family {
        Family::Ipv4 => "ipv4",
        Family::Ipv6 => "ipv6",
    };
    format!("/proc/sys/net/{family}/neigh/{interface}/unres_qlen_bytes")
}
