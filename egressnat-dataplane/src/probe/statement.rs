//! What hosts on the segment say about addresses, in either family's words.

use std::net::IpAddr;

use super::Mac;
use super::arp::Arp;
use crate::neighbor_discovery::{self as nd, Message};

/// How somebody speaks of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Asks before it takes it: it does not say that it has it.
    Probe,
    /// Has it, as what it sends tells.
    Claim,
    /// Says to all that it has it.
    Announcement,
}

/// Who says what about which address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) by: Mac,
    pub(super) address: IpAddr,
    pub(super) kind: Kind,
    /// An agent of ours says it about an address that it has, or just gave up.
    pub(super) is_of_cluster: bool,
}

impl From<Arp> for Statement {
    fn from(packet: Arp) -> Self {
        let (address, kind) = match packet.sender {
            sender if sender.is_unspecified() => (packet.target, Kind::Probe),
            sender if sender == packet.target => (sender, Kind::Announcement),
            sender => (sender, Kind::Claim),
        };
        Self {
            by: packet.sender_mac,
            address: address.into(),
            kind,
            is_of_cluster: packet.is_of_cluster,
        }
    }
}

impl From<Message> for Statement {
    fn from(message: Message) -> Self {
        let (address, kind) = match message.kind {
            // A question before the address is taken is answered to all, too.
            nd::Kind::Advertisement => (message.target, Kind::Announcement),
            nd::Kind::Solicitation if message.source.is_unspecified() => {
                (message.target, Kind::Probe)
            }
            nd::Kind::Solicitation => (message.source, Kind::Claim),
        };
        Self {
            by: Mac(message.mac),
            address: address.into(),
            kind,
            is_of_cluster: message.is_tagged,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const SOMEBODY: Mac = Mac([2, 0, 0, 0, 0, 1]);

    #[test]
    fn who_asks_before_it_takes_an_address_claims_nothing_and_all_others_do() {
        let (own, none) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::UNSPECIFIED);
        let other = Ipv4Addr::new(10, 0, 0, 2);
        for (sender, target, want) in [
            (none, own, (own, Kind::Probe)),
            (own, own, (own, Kind::Announcement)),
            (own, other, (own, Kind::Claim)),
        ] {
            let packet = Arp {
                sender_mac: SOMEBODY,
                sender,
                target,
                is_of_cluster: false,
            };
            let said = Statement::from(packet);
            assert_eq!((said.address, said.kind), (IpAddr::V4(want.0), want.1));
        }

        let [own, other] = [1, 2].map(|last| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last));
        for (kind, source, target, want) in [
            (
                nd::Kind::Solicitation,
                Ipv6Addr::UNSPECIFIED,
                own,
                (own, Kind::Probe),
            ),
            (nd::Kind::Solicitation, own, other, (own, Kind::Claim)),
            (nd::Kind::Advertisement, own, own, (own, Kind::Announcement)),
            // Some answer from another address of theirs.
            (
                nd::Kind::Advertisement,
                other,
                own,
                (own, Kind::Announcement),
            ),
        ] {
            let message = Message {
                kind,
                source,
                target,
                mac: SOMEBODY.0,
                nonce: None,
                is_tagged: false,
            };
            let said = Statement::from(message);
            assert_eq!((said.address, said.kind), (IpAddr::V6(want.0), want.1));
        }
    }
}
