//! Floating IPs that other hosts have or claim.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_core::{Failure, Report};

use super::{Dataplane, fail};
use crate::probe::Mac;

impl Dataplane {
    /// Asks the network for the addresses that are about to be taken, all at once, and gives those that another host has.
    pub(super) async fn ask_for(
        &mut self,
        addresses: &[IpAddr],
        report: &mut Report,
        findings: &mut Vec<Failure>,
    ) -> BTreeSet<IpAddr> {
        // One that is on the uplink already is only to be announced.
        let is_new = |address: &IpAddr| !self.kept.is_here(*address);
        let wanted: BTreeSet<IpAddr> = addresses.iter().copied().filter(is_new).collect();
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
        let last_holder = |address: IpAddr| neighbors.get(&address).copied();
        let is_node = |mac: Mac| nodes.contains(&mac);
        let taken = self.prober.probe(&wanted, settings, last_holder, is_node);
        let taken = taken.await;
        self.tell_taken(taken, findings)
    }

    /// Gives those of `addresses` that another host was about to take since they were asked for.
    pub(super) fn contested(
        &mut self,
        addresses: &[IpAddr],
        findings: &mut Vec<Failure>,
    ) -> BTreeSet<IpAddr> {
        let contested = self.prober.contested(addresses);
        self.tell_taken(contested, findings)
    }

    fn tell_taken(
        &self,
        taken: BTreeMap<IpAddr, Mac>,
        findings: &mut Vec<Failure>,
    ) -> BTreeSet<IpAddr> {
        findings.extend(taken.iter().map(|(address, mac)| Failure {
            object: format!("floating IP {address}"),
            message: format!(
                "{mac} has it on {}: it is taken once that host lets go of it, or remove it from the gateway group",
                self.uplink.name
            ),
        }));
        taken.into_keys().collect()
    }

    /// Listens for the addresses that are held here, of which these are counted anew, and others that count now, and tells who claims one that
    /// is held. It is not given up for that, nor defended: who may have it is the cluster's decision.
    pub(super) fn tell_claims(
        &mut self,
        counted: Vec<(IpAddr, bool)>,
        others: BTreeSet<IpAddr>,
    ) -> Vec<Failure> {
        self.prober.listen_for(counted, others);
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
