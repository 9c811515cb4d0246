//! Floating IPs that come and go: however many there are at once, what is done for them is one thing of each kind.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use egressnat_core::gateway::EgressId;
use egressnat_core::{Change, Failure, NodePlan, Report};

use super::kept::Parts;
use super::{Dataplane, ObserveError, expecting, fail};
use crate::config::FloatingIpUse;
use crate::family::Family;
use crate::maps::map_error;
use crate::network::NetworkError;
use crate::nft::{Elements, Fence, NftError, Ruleset, SetName, all_but_refused};
use crate::ports::PodInterfaces;
use crate::redecide::affected_pods;

/// What is done for floating IPs, with what went wrong.
struct Work<'a> {
    change: fn(IpAddr) -> Change,
    report: &'a mut Report,
    undone: BTreeSet<Change>,
}

impl<'a> Work<'a> {
    fn new(change: fn(IpAddr) -> Change, report: &'a mut Report) -> Self {
        Self {
            change,
            report,
            undone: BTreeSet::new(),
        }
    }

    fn fail(&mut self, address: IpAddr, error: &dyn std::error::Error) {
        let change = (self.change)(address);
        fail(self.report, &change.to_string(), error);
        self.undone.insert(change);
    }

    fn fail_all(&mut self, addresses: &[IpAddr], error: &dyn std::error::Error) {
        for address in addresses {
            self.fail(*address, error);
        }
    }

    /// Notes what failed of something that was done for each, and gives the others.
    fn take(&mut self, done: Vec<(IpAddr, Result<(), NetworkError>)>) -> Vec<IpAddr> {
        let mut right = Vec::new();
        for (address, outcome) in done {
            match outcome {
                Ok(()) => right.push(address),
                Err(error) => self.fail(address, &error),
            }
        }
        right
    }
}

impl Dataplane {
    /// Translates to floating IPs: all mappings are one batch. Returns what could not be done.
    pub(super) fn add_snat(
        &mut self,
        addresses: &[IpAddr],
        report: &mut Report,
    ) -> BTreeSet<Change> {
        let mut work = Work::new(Change::AddSnat, report);
        let mut marked = Vec::new();
        for address in addresses.iter().copied() {
            match self.egress.mark(address) {
                Some(mark) => marked.push((mark, address)),
                None => work.fail(address, &ObserveError::NoEgressIndex(address)),
            }
        }
        let refused = all_but_refused(&marked, &mut |part| self.write_mappings(part));
        let refused_ones: BTreeSet<IpAddr> = refused.iter().map(|((_, ip), _)| *ip).collect();
        for ((_, address), error) in refused {
            work.fail(address, &error);
        }
        marked.retain(|(_, address)| !refused_ones.contains(address));
        for (mark, address) in marked {
            self.kept.note_mapping(&self.egress, mark, address);
            let index = self.egress.index(address).unwrap_or_default();
            let vni = EgressId::of(address).vni();
            let numbered = self.maps.vnis.insert(vni, index, 0);
            let numbered = numbered.map_err(map_error("vnis"));
            self.kept.note_parts(&self.egress, address, |parts| {
                parts.is_guarded = true;
                parts.is_numbered = numbered.is_ok();
            });
            match numbered {
                Ok(()) => work.report.changes += 1,
                Err(error) => work.fail(address, &error),
            }
        }
        work.undone
    }

    /// Puts mappings in the place of those that their marks have.
    fn write_mappings(&self, mappings: &[(u32, IpAddr)]) -> Result<(), NftError> {
        let (mut removed, mut added) = (Vec::new(), Vec::new());
        for family in Family::ALL {
            let is_of = |(_, address): &&(u32, IpAddr)| Family::of(*address) == family;
            let of_family = || mappings.iter().filter(is_of).copied();
            let before = |(mark, _)| self.kept.mapped(family, mark);
            removed.push(Elements::mapped(family, of_family().filter_map(before)));
            let before = |(mark, _)| self.kept.translated_with(mark);
            removed.push(Elements::translated(family, of_family().flat_map(before)));
            added.push(Elements::mapped(family, of_family()));
            added.push(Elements::translated(family, of_family()));
            let addresses = of_family().map(|(_, address)| address);
            let guarded = Elements::of(family, SetName::FloatingIps);
            added.push(addresses.fold(guarded, Elements::address));
        }
        let what = match mappings {
            [(_, address)] => format!("snat to {address}"),
            mappings => format!("snat to {} floating IPs", mappings.len()),
        };
        Ruleset::change(&self.nft.lock(), &removed, &added, &what)
    }

    /// Translates to floating IPs no more. Returns what could not be done.
    pub(super) fn remove_snat(
        &mut self,
        addresses: &[IpAddr],
        report: &mut Report,
    ) -> BTreeSet<Change> {
        let mut work = Work::new(Change::RemoveSnat, report);
        for address in addresses {
            // No error when it is not there: the map may have been made anew.
            let _ = self.maps.vnis.remove(&EgressId::of(*address).vni());
            let unnumber = |parts: &mut Parts| parts.is_numbered = false;
            self.kept.note_parts(&self.egress, *address, unnumber);
        }
        let refused = all_but_refused(addresses, &mut |part| self.remove_mappings(part));
        let refused_ones: BTreeSet<IpAddr> = refused.iter().map(|(ip, _)| *ip).collect();
        for (address, error) in refused {
            work.fail(address, &error);
        }
        let is_gone = |address: &IpAddr| !refused_ones.contains(address);
        let gone: Vec<IpAddr> = addresses.iter().copied().filter(is_gone).collect();
        for address in &gone {
            self.kept.note_no_mapping(&self.egress, *address);
            let unguard = |parts: &mut Parts| parts.is_guarded = false;
            self.kept.note_parts(&self.egress, *address, unguard);
        }
        work.report.changes += gone.len();
        if let Err(error) = Fence::release(&mut self.nft.lock(), &gone) {
            work.fail_all(&gone, &error);
        }
        work.undone
    }

    fn remove_mappings(&self, addresses: &[IpAddr]) -> Result<(), NftError> {
        let mut removed = Vec::new();
        for family in Family::ALL {
            let of_family = || {
                let addresses = addresses.iter().copied();
                addresses.filter(move |address| Family::of(*address) == family)
            };
            let mapped = of_family().flat_map(|address| self.kept.mappings_to(address));
            removed.push(Elements::mapped(family, mapped));
            let translated = of_family().flat_map(|address| self.kept.translated_to(address));
            removed.push(Elements::translated(family, translated));
            let guarded = of_family().filter(|address| self.kept.is_guarded(*address));
            let none = Elements::of(family, SetName::FloatingIps);
            removed.push(guarded.fold(none, Elements::address));
        }
        let what = match addresses {
            [address] => format!("the end of snat to {address}"),
            addresses => format!("the end of snat to {} floating IPs", addresses.len()),
        };
        Ruleset::change(&self.nft.lock(), &removed, &[], &what)
    }

    /// Takes and announces floating IPs that are translated to. Returns what could not be done.
    pub(super) async fn add_addresses(
        &mut self,
        addresses: &[IpAddr],
        desired: &NodePlan,
        report: &mut Report,
        findings: &mut Vec<Failure>,
    ) -> BTreeSet<Change> {
        let mut work = Work::new(Change::AddAddress, report);
        let is_translated = |address: &IpAddr| self.kept.is_translated(&self.egress, *address);
        let (ready, early): (Vec<IpAddr>, Vec<IpAddr>) =
            addresses.iter().copied().partition(is_translated);
        for address in early {
            work.fail(address, &ObserveError::NotTranslated(address));
        }
        if ready.is_empty() {
            return work.undone;
        }
        let is_pod = |source: &IpAddr| desired.pods.contains_key(source);
        let expect = expecting(&self.nft, &self.config);
        if let Err(error) = self.leftovers.forget_old(&ready, is_pod, expect) {
            work.fail_all(&ready, &error);
            return work.undone;
        }
        if let Err(error) = self.fence(&ready) {
            work.fail_all(&ready, &error);
            return work.undone;
        }
        self.handover.take().await;
        // What this node's own pods send goes on to wait where the address was until it is here, and comes back then. Would they leave
        // with it before, answers would go to who had it.
        let moved: Vec<Change> = ready.iter().copied().map(Change::AddAddress).collect();
        let own = affected_pods(&moved, &self.kept.plan, desired);
        if !own.is_empty() {
            match self.begin_anew(&ready, &own, desired) {
                Ok(forgotten) => work.report.changes += forgotten,
                Err(error) => work.fail_all(&ready, &error),
            }
        }
        let is_there = |address: &IpAddr| self.kept.is_here(*address);
        let (there, mut missing): (Vec<IpAddr>, Vec<IpAddr>) =
            ready.into_iter().partition(is_there);
        let contested = self.contested(&missing, findings);
        missing.retain(|address| !contested.contains(address));
        let contested = contested.into_iter();
        work.undone.extend(contested.map(Change::AddAddress));
        // Steered to an address of IPv6 that is here, packets come to this very node and are lost: these leave a moment before.
        for address in missing.iter().filter(|address| address.is_ipv6()) {
            if let Err(error) = self.egress.set_local(&mut self.maps, *address, true) {
                work.fail(*address, &error);
            }
        }
        let added = self.network.add_floating_ips(&self.uplink, &missing).await;
        let added = work.take(added);
        for address in missing {
            if work.undone.contains(&Change::AddAddress(address))
                && let Err(error) = self.egress.set_local(&mut self.maps, address, false)
            {
                work.fail(address, &error);
            }
        }
        for address in &added {
            let here = |parts: &mut Parts| parts.is_here = true;
            self.kept.note_parts(&self.egress, *address, here);
        }
        let here: Vec<IpAddr> = there.into_iter().chain(added).collect();
        for address in &here {
            self.prober.hold(*address);
            self.announcer.announce(*address);
        }
        for address in &here {
            match self.egress.set_local(&mut self.maps, *address, true) {
                Ok(()) => work.report.changes += 1,
                Err(error) => work.fail(*address, &error),
            }
        }
        if !own.is_empty()
            && let Err(error) = self.leave_untracked(&[])
        {
            work.fail_all(&here, &error);
        }
        work.undone
    }

    /// Forgets the flows of pods that are steered to these addresses elsewhere, and keeps them from beginning before the addresses are
    /// this node's. Returns how many there were.
    fn begin_anew(
        &mut self,
        addresses: &[IpAddr],
        pods: &BTreeSet<IpAddr>,
        desired: &NodePlan,
    ) -> Result<usize, ObserveError> {
        // Each takes a rule, so it is for those that pods are steered to.
        let steered = desired.egress_ips();
        let of_pods = addresses.iter().filter(|address| steered.contains(address));
        let of_pods: Vec<IpAddr> = of_pods.copied().collect();
        self.leave_untracked(&of_pods)?;
        self.forget(pods, desired)
    }

    fn leave_untracked(&self, addresses: &[IpAddr]) -> Result<(), NftError> {
        let owner = self.nft.lock();
        for family in &self.families {
            let of_family = addresses.iter().filter(|ip| Family::of(**ip) == *family);
            let marks: Vec<u32> = of_family.filter_map(|ip| self.egress.mark(*ip)).collect();
            self.ruleset(*family).leave_untracked(&owner, &marks)?;
        }
        Ok(())
    }

    /// Keeps addresses silent that have no deadline yet, where they need one.
    fn fence(&self, addresses: &[IpAddr]) -> Result<(), NftError> {
        if self.config.floating_ip_use == FloatingIpUse::Unlimited {
            return Ok(());
        }
        let mut owner = self.nft.lock();
        let is_open = |address: &IpAddr| !Fence::is_fenced(&owner, *address);
        let open: Vec<IpAddr> = addresses.iter().copied().filter(is_open).collect();
        match open.is_empty() {
            true => Ok(()),
            false => Fence::hold(&mut owner, &open, Instant::now()),
        }
    }

    /// Gives floating IPs away. Returns what could not be done.
    pub(super) async fn remove_addresses(
        &mut self,
        addresses: &[IpAddr],
        interfaces: &PodInterfaces,
        report: &mut Report,
    ) -> BTreeSet<Change> {
        let mut work = Work::new(Change::RemoveAddress, report);
        self.handover.give().await;
        for address in addresses {
            self.announcer.withdraw(*address);
        }
        let uplink = &self.uplink;
        let forgotten = self.network.forget_neighbors(uplink.index, addresses).await;
        work.take(forgotten);
        let is_there = |address: &IpAddr| self.kept.is_here(*address);
        let there: Vec<IpAddr> = addresses.iter().copied().filter(is_there).collect();
        let removed = self.network.remove_floating_ips(uplink, &there).await;
        for address in work.take(removed) {
            let gone = |parts: &mut Parts| parts.is_here = false;
            self.kept.note_parts(&self.egress, address, gone);
        }
        // The node's own pods go through the tunnel from here on: before, it would have led to this very node.
        for address in addresses {
            if let Err(error) = self.egress.set_local(&mut self.maps, *address, false) {
                work.fail(*address, &error);
            }
        }
        // And not as who they were here. What was translated for other nodes stays known: answers to it are on their way.
        let is_pod = |source: &IpAddr| interfaces.by_address.contains_key(source);
        let expect = expecting(&self.nft, &self.config);
        if let Err(error) = self.leftovers.forget_pods(addresses, is_pod, expect) {
            work.fail_all(addresses, &error);
        }
        let gone = addresses.iter();
        for address in gone.filter(|address| !self.kept.is_here(**address)) {
            self.prober.let_go(*address);
        }
        work.report.changes += addresses.len() - work.undone.len();
        work.undone
    }
}
