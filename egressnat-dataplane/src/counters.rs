//! What was counted in the path, read without stopping traffic.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use egressnat_core::model::PolicyName;
use thiserror::Error;

use crate::config::Config;
use crate::dataplane::Dataplane;
use crate::family::Family;
use crate::maps::{EgressTraffic, KEEP, Maps, Reason, Traffic};
use crate::nft::{Counter, NftError, Ruleset};
use crate::programs::{CountedAt, ProgramsError};

/// The counters cannot be read.
#[derive(Debug, Error)]
pub enum CountersError {
    /// There are none.
    #[error("nothing of egressnat is in {0}: no agent has run on this node since it was started")]
    NothingThere(PathBuf),
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
    /// For each policy that decides, or decided, about packets of this node's pods. One that is gone is here until another one
    /// needs its place, or the packet path is cleaned up.
    pub policies: BTreeMap<PolicyName, PolicyCounters>,
    /// For each egress IP that this node steers to or holds.
    pub egress: BTreeMap<IpAddr, EgressCounters>,
    /// Of this node's pods, where a policy keeps their address (E5).
    pub kept: Traffic,
    /// Packets that did not leave.
    pub blocked: Blocked,
    /// Where packets are counted that leave with an egress IP of this node or with their pod's address.
    pub counted_at: CountedAt,
}

impl Counters {
    /// Reads what the packet path of this node counted, beside an agent or without one. It waits for nobody and writes nothing.
    ///
    /// # Errors
    ///
    /// No agent has run here, or a map or a table cannot be read.
    pub fn read(config: &Config) -> Result<Self, CountersError> {
        let pins = config.pins();
        if !pins.exists() {
            return Err(CountersError::NothingThere(pins));
        }
        let maps = Maps::from_pins(&pins)?;
        let indices = maps.egress_ips()?.into_iter();
        let mut families = BTreeSet::new();
        for family in Family::ALL {
            if Ruleset::is_present(family)? {
                families.insert(family);
            }
        }
        counters(
            &maps,
            indices.map(|entry| (entry.address, entry.index)),
            &families,
            CountedAt::read(&pins),
        )
    }

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

/// What was counted for one policy: where its packets go into the tunnel, or where they are [counted](Counters::counted_at) if this node
/// translates them itself or they keep their address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PolicyCounters {
    /// To leave with its egress IP, or with the pod's address.
    pub sent: Traffic,
    /// New connections among them: of TCP packets with SYN and without ACK, of SCTP those with INIT, each as often as it is sent; of UDP
    /// and echo requests the first packet of a flow, and the first behind two minutes of silence. What else there is has none.
    pub connections: u64,
    /// Packets that did not leave, as the policy is strict and has no egress IP of their family (E43).
    pub blocked: u64,
}

/// What was counted for one egress IP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EgressCounters {
    /// From pods of this node: into the tunnel to the node that has the egress IP, or to leave [here](Counters::counted_at).
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

impl Blocked {
    /// Each reason by its name, which is that of the field, with its packets.
    pub fn by_reason(&self) -> [(&'static str, u64); 10] {
        [
            ("undecided", self.undecided),
            ("dropped", self.dropped),
            ("redirected", self.redirected),
            ("no_tunnel", self.no_tunnel),
            ("no_egress", self.no_egress),
            ("unknown_peer", self.unknown_peer),
            ("unknown_egress_id", self.unknown_egress_id),
            ("not_held", self.not_held),
            ("inbound", self.inbound),
            ("expired", self.expired),
        ]
    }
}

impl Dataplane {
    /// What was counted until now: a few map look-ups for each policy and each egress IP.
    ///
    /// # Errors
    ///
    /// A map, or a table, cannot be read.
    pub fn counters(&self) -> Result<Counters, CountersError> {
        counters(
            self.maps(),
            self.egress().indices(),
            self.families(),
            self.counted_at(),
        )
    }
}

/// Reads the counters of these maps and of the tables of these families.
fn counters(
    maps: &Maps,
    indices: impl Iterator<Item = (IpAddr, u32)>,
    families: &BTreeSet<Family>,
    counted_at: CountedAt,
) -> Result<Counters, CountersError> {
    let mut counters = Counters {
        kept: maps.traffic(u32::from(KEEP))?.steered,
        counted_at,
        ..Counters::default()
    };
    for (index, name) in maps.policies.names()? {
        let counted = maps.policies.traffic(index)?;
        let counted = PolicyCounters {
            sent: counted.sent,
            connections: counted.connections,
            blocked: counted.blocked,
        };
        counters.policies.insert(name, counted);
    }
    let mut connections = BTreeMap::new();
    for family in families {
        connections.extend(Ruleset::connections(*family)?);
    }
    for (address, index) in indices {
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
        families.iter().map(of_family).sum()
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
