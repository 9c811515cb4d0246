//! Flows that are bound as it was decided, which outlast tables and programs.
//!
//! A binding is made by a flow's first packet and stays. Left behind, it would have what runs leave with a floating IP that is somebody
//! else's by now, or with the pod's address although others would translate it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::Config;
use crate::conntrack::{Connection, ConntrackError, connections, forget};
use crate::family::Family;
use crate::maps::Maps;
use crate::nft::{Ruleset, SetName};

/// Whose flows are bound.
#[derive(Default)]
pub(super) struct BoundFlows {
    /// Pods that policies select.
    pods: BTreeSet<IpAddr>,
    /// What this node translates to.
    floating_ips: BTreeSet<IpAddr>,
    /// Where nothing is egress.
    internal: BTreeSet<IpNet>,
}

impl BoundFlows {
    /// Reads it from maps and tables, while they are there. What cannot be read is nobody's: a part of it may be gone.
    pub(super) fn read(config: &Config) -> Self {
        let maps = Maps::from_pins(&config.pins());
        let pods = maps.and_then(|maps| maps.pods()).unwrap_or_default();
        let selected = pods.into_iter().filter(|pod| pod.set != 0);
        let mut bound = Self {
            pods: selected.map(|pod| pod.address).collect(),
            ..Self::default()
        };
        for family in Family::ALL {
            let floating_ips = Ruleset::addresses(family, SetName::FloatingIps);
            bound.floating_ips.extend(floating_ips.unwrap_or_default());
            let internal = Ruleset::ranges(family, SetName::InternalRanges);
            bound.internal.extend(internal.unwrap_or_default());
        }
        bound
    }

    /// Makes the kernel forget them: their next packets are taken for first ones. Returns how many there were.
    pub(super) fn forget(&self) -> Result<usize, ConntrackError> {
        let mut forgotten = 0;
        for family in Family::of_all(self.pods.iter().chain(&self.floating_ips)) {
            for connection in connections(family)? {
                if self.is_bound(&connection) {
                    forget(&connection)?;
                    forgotten += 1;
                }
            }
        }
        Ok(forgotten)
    }

    /// Not what a Service has led elsewhere: forgotten, it would not find back there.
    fn is_bound(&self, connection: &Connection) -> bool {
        let is_kept = || {
            connection.seen_as == connection.source
                && connection.answered_by == connection.destination
                && self.pods.contains(&connection.source)
                && !self.is_inside(connection.destination)
        };
        self.floating_ips.contains(&connection.seen_as) || is_kept()
    }

    fn is_inside(&self, address: IpAddr) -> bool {
        self.internal.iter().any(|range| range.contains(&address))
    }
}
