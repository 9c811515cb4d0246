//! Floating IPs that are kept: which parts the kernel has of each, and which have them all.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use super::Kept;
use crate::egress::EgressTable;
use crate::family::Family;

/// What there is of a floating IP. An agent may have been killed, or a write refused, in between.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::dataplane) struct Parts {
    /// It is on the uplink.
    pub(in crate::dataplane) is_here: bool,
    /// It takes no new connections.
    pub(in crate::dataplane) is_guarded: bool,
    /// Its VNI leads to its index.
    pub(in crate::dataplane) is_numbered: bool,
    /// The marks that are mapped to it: one, unless others wrote.
    marks: Vec<u32>,
    /// The marks that may leave with it: the same, unless others wrote.
    translated: Vec<u32>,
}

impl Kept {
    /// Whether a floating IP is on the uplink.
    pub(in crate::dataplane) fn is_here(&self, address: IpAddr) -> bool {
        self.parts.get(&address).is_some_and(|parts| parts.is_here)
    }

    /// Whether packets of other nodes are led to a floating IP.
    pub(super) fn is_numbered(&self, address: IpAddr) -> bool {
        let parts = self.parts.get(&address);
        parts.is_some_and(|parts| parts.is_numbered)
    }

    /// The floating IPs that packets of other nodes are led to.
    pub(in crate::dataplane) fn numbered(&self) -> impl Iterator<Item = IpAddr> {
        let parts = self.parts.iter();
        let parts = parts.filter(|(_, parts)| parts.is_numbered);
        parts.map(|(address, _)| *address)
    }

    /// Whether a floating IP takes no new connections.
    pub(in crate::dataplane) fn is_guarded(&self, address: IpAddr) -> bool {
        let parts = self.parts.get(&address);
        parts.is_some_and(|parts| parts.is_guarded)
    }

    /// The marks that are mapped to an address, with it.
    pub(in crate::dataplane) fn mappings_to(
        &self,
        address: IpAddr,
    ) -> impl Iterator<Item = (u32, IpAddr)> {
        let parts = self.parts.get(&address).into_iter();
        parts.flat_map(move |parts| parts.marks.iter().map(move |mark| (*mark, address)))
    }

    /// The marks that may leave with an address, with it.
    pub(in crate::dataplane) fn translated_to(
        &self,
        address: IpAddr,
    ) -> impl Iterator<Item = (u32, IpAddr)> {
        let parts = self.parts.get(&address).into_iter();
        parts.flat_map(move |parts| parts.translated.iter().map(move |mark| (*mark, address)))
    }

    /// A mark with the egress IP that it is mapped to.
    pub(in crate::dataplane) fn mapped(&self, family: Family, mark: u32) -> Option<(u32, IpAddr)> {
        let address = self.mappings.get(&(family, mark));
        address.map(|address| (mark, *address))
    }

    /// A mark with the egress IPs that what has it may leave with.
    pub(in crate::dataplane) fn translated_with(
        &self,
        mark: u32,
    ) -> impl Iterator<Item = (u32, IpAddr)> {
        const FIRST: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        self.translated
            .range((mark, FIRST)..(mark + 1, FIRST))
            .copied()
    }

    /// Whether everything is in place for a floating IP but the address itself.
    pub(in crate::dataplane) fn is_translated(
        &self,
        egress: &EgressTable,
        address: IpAddr,
    ) -> bool {
        let parts = self.parts.get(&address);
        parts.is_some_and(|parts| is_translated(parts, egress.mark(address)))
    }

    /// Floating IPs of which something is missing.
    pub(in crate::dataplane) fn halves(&self) -> &BTreeSet<IpAddr> {
        &self.halves
    }

    /// Whether everything is in place for a floating IP.
    pub(in crate::dataplane) fn is_whole(&self, address: IpAddr) -> bool {
        self.plan.floating_ips.contains(&address) && !self.halves.contains(&address)
    }

    /// The floating IPs that were counted anew since the last time, all others are as they were.
    pub(in crate::dataplane) fn take_counted(&mut self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.counted)
    }

    /// Replaces the floating IPs that are on the uplink. To be counted then.
    pub(in crate::dataplane) fn replace_addresses(
        &mut self,
        addresses: impl Iterator<Item = IpAddr>,
    ) {
        for parts in self.parts.values_mut() {
            parts.is_here = false;
        }
        for address in addresses {
            self.parts.entry(address).or_default().is_here = true;
        }
    }

    /// Forgets what the tables have. To be counted when they were read.
    pub(super) fn clear_tables(&mut self) {
        self.mappings.clear();
        self.translated.clear();
        for parts in self.parts.values_mut() {
            parts.is_guarded = false;
            parts.marks.clear();
            parts.translated.clear();
        }
    }

    pub(super) fn insert_guarded(&mut self, address: IpAddr) {
        self.parts.entry(address).or_default().is_guarded = true;
    }

    pub(super) fn insert_mapping(&mut self, mark: u32, address: IpAddr) {
        let before = self.mappings.insert((Family::of(address), mark), address);
        if let Some(parts) = before.and_then(|before| self.parts.get_mut(&before)) {
            parts.marks.retain(|of| *of != mark);
        }
        self.parts.entry(address).or_default().marks.push(mark);
    }

    pub(super) fn insert_translated(&mut self, mark: u32, address: IpAddr) {
        if self.translated.insert((mark, address)) {
            let parts = self.parts.entry(address).or_default();
            parts.translated.push(mark);
        }
    }

    /// Notes which of the mapped egress IPs packets of other nodes are led to. To be counted then.
    pub(super) fn replace_numbers(&mut self, is_numbered: impl Fn(IpAddr) -> bool) {
        for (address, parts) in &mut self.parts {
            parts.is_numbered = !parts.marks.is_empty() && is_numbered(*address);
        }
    }

    /// Counts all floating IPs anew.
    pub(in crate::dataplane) fn count_floating_ips(&mut self, egress: &EgressTable) {
        self.counted.extend(self.parts.keys());
        self.parts.retain(|_, parts| *parts != Parts::default());
        let is_whole = |(address, parts): &(&IpAddr, &Parts)| {
            parts.is_here && is_translated(parts, egress.mark(**address))
        };
        let (whole, halves): (Vec<_>, Vec<_>) = self.parts.iter().partition(is_whole);
        self.plan.floating_ips = whole.into_iter().map(|(address, _)| *address).collect();
        self.halves = halves.into_iter().map(|(address, _)| *address).collect();
    }

    /// Counts half a floating IP as none when it is wanted, and as one when it is not.
    pub(in crate::dataplane) fn count_halves(&mut self, wanted: &BTreeSet<IpAddr>) {
        for half in &self.halves {
            match wanted.contains(half) {
                true => self.plan.floating_ips.remove(half),
                false => self.plan.floating_ips.insert(*half),
            };
        }
    }

    /// Notes what was written of a floating IP.
    pub(in crate::dataplane) fn note_parts(
        &mut self,
        egress: &EgressTable,
        address: IpAddr,
        write: impl FnOnce(&mut Parts),
    ) {
        write(self.parts.entry(address).or_default());
        self.count(egress, address);
    }

    /// Notes that a mark is mapped to a floating IP from now on, and leaves with no other.
    pub(in crate::dataplane) fn note_mapping(
        &mut self,
        egress: &EgressTable,
        mark: u32,
        address: IpAddr,
    ) {
        let mapped = self.mapped(Family::of(address), mark);
        let before: Vec<(u32, IpAddr)> = self.translated_with(mark).chain(mapped).collect();
        for (_, before) in &before {
            self.translated.remove(&(mark, *before));
            if let Some(parts) = self.parts.get_mut(before) {
                parts.translated.retain(|of| *of != mark);
            }
        }
        self.insert_mapping(mark, address);
        self.insert_translated(mark, address);
        for (_, address) in before.into_iter().chain([(mark, address)]) {
            self.count(egress, address);
        }
    }

    /// Notes that no mark is mapped to a floating IP any more, and none leaves with it.
    pub(in crate::dataplane) fn note_no_mapping(&mut self, egress: &EgressTable, address: IpAddr) {
        let family = Family::of(address);
        if let Some(parts) = self.parts.get_mut(&address) {
            for mark in std::mem::take(&mut parts.marks) {
                self.mappings.remove(&(family, mark));
            }
            for mark in std::mem::take(&mut parts.translated) {
                self.translated.remove(&(mark, address));
            }
        }
        self.count(egress, address);
    }

    /// Counts a floating IP anew.
    pub(in crate::dataplane) fn count(&mut self, egress: &EgressTable, address: IpAddr) {
        self.counted.insert(address);
        self.plan.floating_ips.remove(&address);
        self.halves.remove(&address);
        let Some(parts) = self.parts.get(&address) else {
            return;
        };
        if *parts == Parts::default() {
            self.parts.remove(&address);
        } else if parts.is_here && is_translated(parts, egress.mark(address)) {
            self.plan.floating_ips.insert(address);
        } else {
            self.halves.insert(address);
        }
    }
}

fn is_translated(parts: &Parts, mark: Option<u32>) -> bool {
    let has_mark = |mark| parts.marks.contains(&mark) && parts.translated.contains(&mark);
    parts.is_numbered && parts.is_guarded && mark.is_some_and(has_mark)
}
