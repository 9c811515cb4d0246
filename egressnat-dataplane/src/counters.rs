//! What was counted in the path, read without stopping traffic.

use std::collections::BTreeMap;
use std::net::IpAddr;

use thiserror::Error;

use crate::dataplane::Dataplane;
use crate::family::Family;
use crate::maps::{EgressTraffic, KEEP, Reason, Traffic};
use crate::nft::{Counter, NftError, Ruleset};
use crate::programs::ProgramsError;

/// The counters cannot be read.
#[derive(Debug, Error)]
pub enum CountersError {
    /// Those of eBPF.
    #[error("could not read the counters of the eBPF programs")]
    Programs(#[from] ProgramsError),
    /// Those of nftables.
    #[error("could not read the counters of nftables")]
    Nft(#[from] NftError),
}

/// What one node's packet path counted. Numbers only grow, until an object that counts is made anew: then they begin at 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// For each egress IP that this node steers to or holds.
    pub egress: BTreeMap<IpAddr, EgressCounters>,
    /// Of this node's pods, where a policy keeps their address (E5).
    pub kept: Traffic,
    /// Packets that did not leave.
    pub blocked: Blocked,
}

impl Counters {
    /// What policies decided about packets of this node's pods, over all egress IPs and what is kept.
    pub fn steered(&self) -> Traffic {
        let mut sum = self.kept;
        for counted in self.egress.values() {
            sum += counted.steered;
        }
        sum
    }

    /// What came out of the tunnel, over all egress IPs.
    pub fn received(&self) -> Traffic {
        let mut sum = Traffic::default();
        for counted in self.egress.values() {
            sum += counted.received;
        }
        sum
    }
}

/// What was counted for one egress IP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EgressCounters {
    /// From pods of this node, to leave with the egress IP wherever it is.
    pub steered: Traffic,
    /// From pods of other nodes, to leave here.
    pub received: Traffic,
    /// New connections that were translated here, since the address came to this node.
    pub connections: u64,
}

/// Packets that did not leave, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Blocked {
    /// From a pod that is not known, to a destination of a strict policy (E43).
    pub undecided: u64,
    /// From a pod that a strict policy selects, while there is no egress IP for it (E43).
    pub dropped: u64,
    /// From a selected pod to a Service that leads to a destination of a strict policy (E43).
    pub redirected: u64,
    /// Steered while there was no tunnel (E43).
    pub no_tunnel: u64,
    /// At the tunnel device: no egress IP for the mark.
    pub no_egress: u64,
    /// On the gateway node: the sender is no node of the cluster (E47).
    pub unknown_peer: u64,
    /// On the gateway node: it does not translate to that egress IP.
    pub unknown_egress_id: u64,
    /// On the gateway node: the egress IP left it while the packet was on its way.
    pub not_held: u64,
    /// To a floating IP, of no connection that is known (E47).
    pub inbound: u64,
    /// From or to a floating IP whose deadline had come (E33).
    pub expired: u64,
}

impl Dataplane {
    /// What was counted until now: a few map look-ups for each egress IP.
    ///
    /// # Errors
    ///
    /// A map, or a table, cannot be read.
    pub fn counters(&self) -> Result<Counters, CountersError> {
        let maps = self.maps();
        let mut counters = Counters {
            kept: maps.traffic(KEEP)?.steered,
            ..Counters::default()
        };
        let mut connections = BTreeMap::new();
        for family in self.families() {
            connections.extend(Ruleset::connections(*family)?);
        }
        for (address, index) in self.egress().indices() {
            let EgressTraffic { steered, received } = maps.traffic(index)?;
            let counted = EgressCounters {
                steered,
                received,
                connections: connections.get(&address).copied().unwrap_or_default(),
            };
            counters.egress.insert(address, counted);
        }
        let packets = |counter: Counter| -> Result<u64, NftError> {
            let of_family = |family: &Family| Ruleset::packets(*family, counter);
            self.families().iter().map(of_family).sum()
        };
        counters.blocked = Blocked {
            dropped: maps.blocked(Reason::Dropped)?,
            no_egress: maps.blocked(Reason::NoEgress)?,
            unknown_peer: maps.blocked(Reason::UnknownPeer)?,
            unknown_egress_id: maps.blocked(Reason::UnknownVni)?,
            undecided: packets(Counter::Undecided)?,
            redirected: packets(Counter::Redirected)?,
            no_tunnel: packets(Counter::NoTunnel)?,
            not_held: packets(Counter::NotHeld)?,
            inbound: packets(Counter::Inbound)?,
            expired: packets(Counter::Expired)?,
        };
        Ok(counters)
    }
}
