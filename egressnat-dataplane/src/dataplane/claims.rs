//! Floating IPs that other hosts have or claim.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use egressnat_core::{Change, Failure, Report};

use super::{Dataplane, ObserveError, fail};
use crate::probe::Mac;

impl Dataplane {
    /// Asks the network for the IPv4 addresses that are about to be taken, and gives the changes that another host stands
    /// against. Addresses of IPv6 are taken without asking.
    pub(super) async fn ask_for(
        &mut self,
        changes: &[Change],
        report: &mut Report,
    ) -> BTreeSet<Change> {
        let address = |change: &Change| match change {
            Change::AddAddress(IpAddr::V4(address)) => Some(*address),
            _ => None,
        };
        // One that is on the uplink already is only to be announced.
        let here = self.network.floating_ips(self.uplink.index).await;
        let here = here.unwrap_or_default();
        let wanted = changes.iter().filter_map(address);
        let wanted: BTreeSet<Ipv4Addr> = wanted
            .filter(|address| !here.contains(&IpAddr::V4(*address)))
            .collect();
        if wanted.is_empty() {
            return BTreeSet::new();
        }
        let neighbors = match self.ports.macs(self.uplink.index).await {
            Ok(neighbors) => neighbors,
            Err(error) => {
                fail(report, "neighbors on the uplink", &error);
                Default::default()
            }
        };
        let nodes: BTreeSet<Mac> = match self.maps.peers() {
            Ok(peers) => {
                let macs = peers.iter().filter_map(|peer| neighbors.get(peer));
                macs.copied().collect()
            }
            Err(error) => {
                fail(report, "nodes of the cluster", &error);
                BTreeSet::new()
            }
        };
        let settings = self.config.probes;
        let last_holder = |address: Ipv4Addr| neighbors.get(&IpAddr::V4(address)).copied();
        let is_node = |mac: Mac| nodes.contains(&mac);
        let taken = self.prober.probe(&wanted, settings, last_holder, is_node);
        let taken = taken.await;
        for (address, mac) in &taken {
            let claimed = ObserveError::Claimed {
                mac: *mac,
                interface: self.uplink.name.clone(),
            };
            fail(report, &format!("floating IP {address}"), &claimed);
        }
        let contested = taken.keys().map(|ip| Change::AddAddress(IpAddr::V4(*ip)));
        contested.collect()
    }

    /// Listens for the addresses that count now, and tells who claims one that is held here. It is not given up for that, nor
    /// defended: who may have it is the cluster's decision.
    pub(super) async fn tell_claims(&mut self, needed: BTreeSet<IpAddr>, report: &mut Report) {
        let held = only_ipv4(&report.floating_ips);
        self.prober.listen_for(held, only_ipv4(&needed));
        for (address, mac) in self.prober.claims() {
            report.failures.push(Failure {
                object: format!("floating IP {address}"),
                message: format!(
                    "{mac} on {} says that it has it too: remove the address from that host, or from the gateway group",
                    self.uplink.name
                ),
            });
        }
    }
}

fn only_ipv4(addresses: &BTreeSet<IpAddr>) -> BTreeSet<Ipv4Addr> {
    let ipv4 = addresses.iter().filter_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    });
    ipv4.collect()
}
