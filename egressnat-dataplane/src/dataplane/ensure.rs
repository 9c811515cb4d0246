//! What is there whatever the plan says: made, and brought back when others removed it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use egressnat_core::{Failure, NodePlan, PolicySetId, Report, Resource, Restored};

use super::applicable::{asks_for, missed};
use super::doubt::Doubts;
use super::{Dataplane, fail};
use crate::family::Family;
use crate::network::ipv6;
use crate::nft::{Fence, Ruleset};
use crate::ports::PodInterfaces;
use crate::programs::Hook;

impl Dataplane {
    /// Brings back what others removed: the tables, the tunnel device, its rules and routes, as far as they are in doubt. Makes what is
    /// of IPv6 once a plan asks for it.
    pub(super) async fn ensure(
        &mut self,
        plan: &NodePlan,
        doubts: &mut Doubts,
        report: &mut Report,
        findings: &mut Vec<Failure>,
    ) {
        if doubts.tables {
            match self.ruleset(Family::Ipv4).ensure(&mut self.nft.lock()) {
                Ok(made) => wrote(report, made, Resource::Table, "ip egressnat"),
                Err(error) => fail(report, Ruleset::name(Family::Ipv4), &error),
            }
        }
        let had_ipv6 = self.families.contains(&Family::Ipv6);
        self.ensure_ipv6_table(plan, *doubts, report, findings);
        if had_ipv6 != self.families.contains(&Family::Ipv6) {
            *doubts = Doubts::ALL;
        }
        if doubts.tables {
            match Fence::repair(&mut self.nft.lock()) {
                Ok(made) => wrote(report, made, Resource::Table, "arp egressnat"),
                Err(error) => fail(report, "table arp egressnat", &error),
            }
        }
        if doubts.addresses {
            self.recognize_floating_ips(report).await;
        }
        let steered = self.begins_to_steer(plan);
        if doubts.links || !steered.is_empty() {
            // First, as programs are pinned beside the maps.
            match self.programs.restore_pins(&self.config.bpffs) {
                Ok(maps) => maps
                    .iter()
                    .for_each(|map| wrote(report, true, Resource::Map, map)),
                Err(error) => fail(report, "pinned eBPF maps", &error),
            }
            match self.programs.restore_departures() {
                Ok(programs) => programs
                    .iter()
                    .for_each(|program| wrote(report, true, Resource::Program, program)),
                Err(error) => fail(report, "what counts where packets leave", &error),
            }
            self.follow_uplink(doubts, report).await;
            let before = report.restored.len();
            self.ensure_tunnel(had_ipv6, report).await;
            // Made for the first time, it is not restored.
            let made = report.restored.split_off(before);
            let is_new =
                |made: &Restored| made.resource == Resource::RoutingRule && !steered.is_empty();
            report
                .restored
                .extend(made.into_iter().filter(|made| !is_new(made)));
        }
    }

    /// Takes floating IPs for ours that somebody gave another protocol number, after they were put on the uplink here.
    async fn recognize_floating_ips(&mut self, report: &mut Report) {
        let was_put = |address| self.kept.is_here(address);
        let recognized = self.network.recognize_floating_ips(&self.uplink, was_put);
        match recognized.await {
            Ok(addresses) => addresses.iter().for_each(|address| {
                let object = format!("{address}, which had another protocol number");
                wrote(report, true, Resource::Address, &object);
            }),
            Err(error) => fail(report, "floating IPs that others altered", &error),
        }
    }

    /// The families that a plan steers something of, and that none before did.
    fn begins_to_steer(&mut self, plan: &NodePlan) -> BTreeSet<Family> {
        let steered = Family::of_all(&plan.egress_ips());
        let new = &steered - &self.steers;
        self.steers.extend(&new);
        new
    }

    /// The tunnel device with its programs, and the ways into it.
    async fn ensure_tunnel(&mut self, had_ipv6: bool, report: &mut Report) {
        let steers = self.steers.contains(&Family::Ipv4);
        let tunnel = self
            .network
            .ensure_tunnel(&self.config, &self.uplink, steers);
        match tunnel.await {
            Ok((index, changes)) => {
                self.tunnel = index;
                let is_right = changes.is_empty();
                report.changes += changes.len();
                report.restored.extend(changes);
                if self.families.contains(&Family::Ipv6) {
                    self.ensure_ipv6_way(had_ipv6, report).await;
                }
                let name = &self.config.tunnel_device;
                for hook in [Hook::Encap, Hook::Decap] {
                    if is_right && self.programs.is_attached(hook, index) {
                        continue;
                    }
                    match self.programs.attach(hook, name, index) {
                        Ok(made) => {
                            wrote(
                                report,
                                made,
                                Resource::Program,
                                &format!("{hook} on {name}"),
                            );
                        }
                        Err(error) => fail(report, name, &error),
                    }
                }
            }
            Err(error) => fail(report, &self.config.tunnel_device, &error),
        }
        let followed = self
            .network
            .follow_mtu(&self.config, &mut self.uplink, &self.families)
            .await;
        match followed {
            Ok(set) => report.changes += usize::from(set),
            Err(error) => fail(report, "the tunnel's MTU", &error),
        }
    }

    /// The table of IPv6, on nodes that speak it: with it, the family is applied. Nodes that do not speak it carry IPv4 all the
    /// same.
    fn ensure_ipv6_table(
        &mut self,
        plan: &NodePlan,
        doubts: Doubts,
        report: &mut Report,
        findings: &mut Vec<Failure>,
    ) {
        let was_there = self.families.contains(&Family::Ipv6);
        if !was_there && !asks_for(plan, Family::Ipv6) {
            return;
        }
        if let Err(reason) = ipv6() {
            self.families.remove(&Family::Ipv6);
            findings.extend(missed(plan, Family::Ipv6).map(|missed| Failure {
                object: Family::Ipv6.to_string(),
                message: format!("{reason}; until then, {missed}"),
            }));
            return;
        }
        if was_there && !doubts.tables {
            return;
        }
        match self.ruleset(Family::Ipv6).ensure(&mut self.nft.lock()) {
            // Made for the first time, it is not restored.
            Ok(made) if was_there => wrote(report, made, Resource::Table, "ip6 egressnat"),
            Ok(made) => report.changes += usize::from(made),
            Err(error) => {
                self.families.remove(&Family::Ipv6);
                return fail(report, Ruleset::name(Family::Ipv6), &error);
            }
        }
        self.families.insert(Family::Ipv6);
    }

    /// The tunnel's way for IPv6. Made for the first time, it is not restored.
    async fn ensure_ipv6_way(&mut self, was_there: bool, report: &mut Report) {
        let steers = self.steers.contains(&Family::Ipv6);
        let made = self
            .network
            .ensure_ipv6(&self.config, self.tunnel, &self.uplink, steers);
        match made.await {
            Ok(changes) => {
                report.changes += changes.len();
                if was_there {
                    report.restored.extend(changes);
                }
            }
            Err(error) => fail(report, "the tunnel's way for IPv6", &error),
        }
    }

    /// Programs go on the interfaces of known pods and the ports of their bridges, back on where somebody took them off, and
    /// off all others.
    pub(super) async fn attach_steering(
        &mut self,
        desired: &NodePlan,
        interfaces: &PodInterfaces,
        doubts: Doubts,
        report: &mut Report,
    ) {
        let interface = |address: &IpAddr| interfaces.by_address.get(address).copied();
        let of_pods = desired.pods.keys().filter_map(interface);
        let wanted: BTreeSet<u32> = of_pods.chain(interfaces.ports.iter().copied()).collect();
        if wanted == self.steered && !doubts.links {
            return;
        }
        for ifindex in self.steered.clone().difference(&wanted) {
            match self.programs.detach_steer(*ifindex) {
                Ok(()) => report.changes += 1,
                Err(error) => fail(report, &format!("steering on interface {ifindex}"), &error),
            }
            self.steered.remove(ifindex);
        }
        // Pods that something selects first: without a program, they wait for it.
        let is_selected = |(_, set): &(&IpAddr, &PolicySetId)| **set != PolicySetId::EMPTY;
        let selected = desired.pods.iter().filter(is_selected);
        let selected: BTreeSet<u32> = selected.filter_map(|(ip, _)| interface(ip)).collect();
        let others = wanted.difference(&selected);
        for ifindex in selected.iter().chain(others).copied() {
            // An interface that vanished meanwhile: its route goes too, and we are told.
            let Some(name) = interfaces.names.get(&ifindex) else {
                continue;
            };
            let was_steered = self.steered.contains(&ifindex);
            let is_right =
                was_steered && (!doubts.links || self.programs.is_attached(Hook::Steer, ifindex));
            if is_right {
                continue;
            }
            match self.programs.attach(Hook::Steer, name, ifindex) {
                Ok(made) if was_steered => {
                    let object = format!("{} on {name}", Hook::Steer);
                    wrote(report, made, Resource::Program, &object);
                }
                Ok(made) => {
                    report.changes += usize::from(made);
                    self.steered.insert(ifindex);
                }
                Err(error) => fail(report, &format!("steering on {name}"), &error),
            }
            // A node's first plan attaches many: whoever shares this thread, such as a lease, has its turn in between.
            tokio::task::yield_now().await;
        }
    }
}

/// Notes what is always there, and had to be made anew.
pub(super) fn wrote(report: &mut Report, made: bool, resource: Resource, object: &str) {
    if made {
        let object = object.to_owned();
        report.changes += 1;
        report.restored.push(Restored { resource, object });
    }
}
