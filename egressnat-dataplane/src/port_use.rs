//! How many of an egress IP's ports are in use: when they run out, new connections are dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_core::Failure;
use egressnat_core::model::Protocol;
use thiserror::Error;

use crate::conntrack::{Connection, ConntrackError, connections};
use crate::family::Family;
use crate::nft::NftError;

/// The use of ports cannot be told.
#[derive(Debug, Error)]
pub enum PortUseError {
    /// Connections cannot be listed.
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
    /// A table cannot be read.
    #[error(transparent)]
    Nft(#[from] NftError),
}

/// How many source ports an address has towards one port of one destination: 1024 to 65535.
pub const PORTS: usize = 64_512;

/// From so many on it is told: 80%.
const MANY: usize = PORTS / 5 * 4;

/// The ports of an egress IP that are in use towards one port of one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortUse {
    /// The egress IP.
    pub egress: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// To which port; 0 for protocols without ports.
    pub port: u16,
    /// Over what.
    pub protocol: Option<Protocol>,
    /// How many of [`PORTS`].
    pub connections: usize,
}

impl PortUse {
    /// Whether the ports are about to run out.
    pub fn is_scarce(&self) -> bool {
        self.connections >= MANY
    }

    pub(crate) fn failure(&self) -> Failure {
        let Self {
            egress,
            destination,
            port,
            connections,
            ..
        } = self;
        Failure {
            object: format!("ports of egress IP {egress}"),
            message: format!(
                "{connections} of {PORTS} are in use towards {destination} port {port}, and without a free one no new \
                 connection is made: spread these pods over more egress IPs"
            ),
        }
    }
}

/// The use of the ports of `addresses`, the most used first.
pub(crate) fn port_use(addresses: &BTreeSet<IpAddr>) -> Result<Vec<PortUse>, ConntrackError> {
    let mut used = Vec::new();
    for family in Family::ALL {
        let addresses = addresses.iter().copied();
        let addresses: BTreeSet<IpAddr> = addresses
            .filter(|address| Family::of(*address) == family)
            .collect();
        if !addresses.is_empty() {
            used.extend(count(&addresses, connections(family)?));
        }
    }
    sort(&mut used);
    Ok(used)
}

/// What is scarce among it. Does not look where so few connections are tracked that nothing can be.
pub(crate) fn scarce(
    addresses: &BTreeSet<IpAddr>,
    tracked: u64,
) -> Result<Vec<PortUse>, ConntrackError> {
    if addresses.is_empty() || tracked < MANY as u64 {
        return Ok(Vec::new());
    }
    let mut used = port_use(addresses)?;
    used.retain(PortUse::is_scarce);
    Ok(used)
}

fn count(
    addresses: &BTreeSet<IpAddr>,
    connections: impl IntoIterator<Item = Connection>,
) -> Vec<PortUse> {
    let mut counts = BTreeMap::new();
    for connection in connections {
        if addresses.contains(&connection.seen_as) && connection.source != connection.seen_as {
            let to = (connection.answered_by, connection.answering_port);
            let key = (connection.seen_as, to, connection.protocol);
            *counts.entry(key).or_insert(0) += 1;
        }
    }
    let used =
        counts.into_iter().map(
            |((egress, (destination, port), protocol), connections)| PortUse {
                egress,
                destination,
                port,
                protocol,
                connections,
            },
        );
    let mut used: Vec<PortUse> = used.collect();
    sort(&mut used);
    used
}

fn sort(used: &mut [PortUse]) {
    used.sort_by_key(|used| std::cmp::Reverse(used.connections));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(to: u8, port: u16, seen_as: [u8; 4]) -> Connection {
        Connection {
            source: IpAddr::from([10, 10, 1, 2]),
            destination: IpAddr::from([8, 8, 8, to]),
            answered_by: IpAddr::from([8, 8, 8, to]),
            port: 0,
            seen_port: 0,
            answering_port: port,
            seen_as: IpAddr::from(seen_as),
            protocol: Some(Protocol::TCP),
            identity: Vec::new(),
        }
    }

    #[test]
    fn ports_are_counted_for_each_destination_and_told_at_80_percent() {
        const EGRESS: [u8; 4] = [192, 168, 1, 100];
        let others = [
            connection(8, 443, [192, 168, 1, 1]),
            connection(9, 443, EGRESS),
            connection(8, 80, EGRESS),
        ];
        for (many, is_scarce) in [(MANY - 1, false), (MANY, true)] {
            let connections = std::iter::repeat_n(connection(8, 443, EGRESS), many);
            let used = count(
                &[IpAddr::from(EGRESS)].into(),
                connections.chain(others.clone()),
            );
            assert_eq!(used.len(), 3);
            assert_eq!((used[0].connections, used[0].port), (many, 443));
            assert_eq!(used[0].is_scarce(), is_scarce);
            assert!(!used[1].is_scarce());
        }
    }
}
