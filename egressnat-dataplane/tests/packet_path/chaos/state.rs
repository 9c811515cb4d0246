//! What is to be, for a while: policies, and who holds what.

use egressnat_core::NodePlan;
use egressnat_core::model::{EgressSource, Enforcement, Gateway, GatewayKey, Policy, Source};
use egressnat_core::selector::Selector;
use fastrand::Rng;
use ipnet::IpNet;

use super::{Addresses, NODES, ROLES, address};
use crate::network::planned;

/// What there is for a while.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct State {
    /// Which floating IP a role has to a server, by index, and what is to be where nobody holds it.
    pub(super) egress: [[Option<(usize, Enforcement)>; 2]; ROLES.len()],
    /// Which node has a floating IP, by index.
    pub(super) holders: [Option<usize>; 2],
}

impl State {
    /// One thing less, one more, or another.
    pub(super) fn change(&mut self, rng: &mut Rng) {
        let before = self.clone();
        while *self == before {
            let any = [None, Some(0), Some(1)][rng.usize(..3)];
            if rng.bool() {
                let enforcement = [Enforcement::Strict, Enforcement::BestEffort][rng.usize(..2)];
                self.egress[rng.usize(..ROLES.len())][rng.usize(..2)] =
                    any.map(|floating| (floating, enforcement));
            } else {
                self.holders[rng.usize(..2)] = any;
            }
        }
    }

    /// What the planner makes of it.
    pub(super) fn plans(&self, addresses: &Addresses) -> [NodePlan; 2] {
        let mut snapshot = (addresses.snapshot)();
        snapshot.policies.clear();
        let keys = ["default", "other"]
            .map(|name| GatewayKey::group("kube-system".parse().unwrap(), name.parse().unwrap()));
        for (key, floating) in keys.iter().zip(addresses.floating_ips) {
            let gateway = Gateway::new([address(floating)]);
            snapshot.gateways.insert(key.clone(), gateway);
        }
        for (role, by_server) in ROLES.into_iter().zip(self.egress) {
            for (index, egress) in by_server.into_iter().enumerate() {
                let Some((egress, enforcement)) = egress else {
                    continue;
                };
                let mut source = Source::everything();
                source.pods = Selector::from_labels([("role", role)]);
                let destination = IpNet::from(address(addresses.servers[index]));
                let mut policy =
                    Policy::snat([source], [destination], EgressSource::from(&keys[egress]));
                policy.enforcement = enforcement;
                let name = format!("{role}-{index}").parse().unwrap();
                snapshot.policies.insert(name, policy);
            }
        }
        let holders = addresses.floating_ips.into_iter().zip(self.holders);
        let holders = holders.filter_map(|(floating, node)| Some((floating, NODES[node?])));
        let holders: Vec<_> = holders.collect();
        NODES.map(|node| planned(&snapshot, node, &holders))
    }
}
