//! Floating IPs that other hosts have or claim.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use egressnat_core::{Failure, Report};

use super::{Dataplane, fail};
use crate::probe::Mac;

impl Dataplane {
    /// Asks the network for the IPv4 addresses that are about to be taken, all at once, and gives those that another host has.
    /// Addresses of IPv6 are taken without asking.
    pub(super) async fn ask_for(
        &mut self,
        addresses: &[IpAddr],
        report: &mut Report,
        findings: &mut Vec<Failure>,
    ) -> BTreeSet<IpAddr> {
        // One that is on the uplink already is only to be announced.
        let is_new = |address: &IpAddr| !self.kept.addresses.contains(address);
        let wanted = only_ipv4(addresses.iter().copied().filter(is_new));
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
        let peers = self.kept.plan.peers.iter();
        let nodes: BTreeSet<Mac> = peers
            .filter_map(|peer| neighbors.get(peer))
            .copied()
            .collect();
        let settings = self.config.probes;
        let last_holder = |address: Ipv4Addr| neighbors.get(&IpAddr::V4(address)).copied();
        let is_node = |mac: Mac| nodes.contains(&mac);
        let taken = self.prober.probe(&wanted, settings, last_holder, is_node);
        let taken = taken.await;
        findings.extend(taken.iter().map(|(address, mac)| Failure {
            object: format!("floating IP {address}"),
            message: format!(
                "{mac} has it on {}: it is taken once that host lets go of it, or remove it from the gateway group",
                self.uplink.name
            ),
        }));
        taken.into_keys().map(IpAddr::V4).collect()
    }

    /// Listens for the addresses that count now, and tells who claims one that is held here. It is not given up for that, nor
    /// defended: who may have it is the cluster's decision.
    pub(super) fn tell_claims(
        &mut self,
        held: &BTreeSet<IpAddr>,
        needed: BTreeSet<IpAddr>,
    ) -> Vec<Failure> {
        let held = only_ipv4(held.iter().copied());
        self.prober.listen_for(held, only_ipv4(needed));
        let claims = self.prober.claims().into_iter();
        let told = claims.map(|(address, mac)| Failure {
            object: format!("floating IP {address}"),
            message: format!(
                "{mac} on {} says that it has it too: remove the address from that host, or from the gateway group",
                self.uplink.name
            ),
        });
        told.collect()
    }
}

fn only_ipv4(addresses: impl IntoIterator<Item = IpAddr>) -> BTreeSet<Ipv4Addr> {
    let ipv4 = addresses.into_iter().filter_map(|address| match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    });
    ipv4.collect()
}
