//! Who could hold what: kept up to date change by change, so that one change costs what it affects.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::net::IpAddr;
use ipnet::IpNet;

use super::{Assignment, Move, Stuck, Unassigned};
use crate::hash::Map;
use crate::model::{Health, Node, NodeName, Role};

/// Where a floating IP is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// Where it may stay.
    Well,
    /// On a node that should not have it.
    Stuck(Stuck),
    /// On no node.
    Nowhere,
}

/// Nodes, floating IPs, and who holds what.
///
/// After [`Places::settle`] the guarantees of the module hold. All other methods only note what has changed.
#[derive(Debug, Default)]
pub(crate) struct Places {
    nodes: Map<NodeName, Place>,
    /// Floating IP → holder.
    holders: BTreeMap<IpAddr, Option<NodeName>>,
    /// Floating IPs without a holder.
    nowhere: BTreeSet<IpAddr>,
    /// Floating IPs that should leave their holder.
    stuck: BTreeMap<IpAddr, Stuck>,
    /// Every subnet of every node.
    subnets: Map<IpNet, Subnet>,
    /// Whether something may be placed better since the last time.
    is_unsettled: bool,
    /// Who held each floating IP that was touched since [`Places::take_changed`].
    touched: BTreeMap<IpAddr, Option<NodeName>>,
}

/// What placement needs to know of a node.
#[derive(Debug, Clone)]
struct Place {
    role: Role,
    health: Health,
    draining: bool,
    capacity: Option<usize>,
    subnets: Vec<IpNet>,
    held: BTreeSet<IpAddr>,
}

impl Place {
    fn is_eligible(&self, address: IpAddr) -> bool {
        self.health == Health::Up && self.subnets.iter().any(|subnet| subnet.contains(&address))
    }

    /// Whether it may take one more.
    fn is_open(&self) -> bool {
        self.health == Health::Up
            && !self.draining
            && self.capacity.is_none_or(|most| self.held.len() < most)
    }

    fn rank(&self, name: &NodeName) -> Rank {
        Rank {
            role: self.role,
            holds: self.held.len(),
            name: name.clone(),
        }
    }

    /// Those of its floating IPs that should leave it.
    fn stuck(&self) -> impl Iterator<Item = (IpAddr, Stuck)> + '_ {
        let (stays, reason) = if self.draining {
            (0, Stuck::Draining)
        } else {
            (self.capacity.unwrap_or(usize::MAX), Stuck::OverCapacity)
        };
        self.held
            .iter()
            .skip(stays)
            .map(move |address| (*address, reason))
    }
}

/// The order of E30 among the open nodes of one subnet. The first is the best:
/// 1. the IP lies in a subnet of the node, and the node is open: by being in the list at all;
/// 2. workers before control-plane nodes;
/// 3. nodes that hold no floating IP before those that do, then the fewest: 0 comes before 1;
/// 4. name, so that the order is total.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    role: Role,
    holds: usize,
    name: NodeName,
}

#[derive(Debug, Default)]
struct Subnet {
    /// How many nodes have it.
    nodes: usize,
    /// How many of them are up.
    up: usize,
    /// How many of those are not being drained.
    serving: usize,
    /// The open ones, in order; made when it is first needed.
    open: Option<BTreeSet<Rank>>,
}

impl Places {
    /// Adds or replaces a node.
    pub(crate) fn set_node(&mut self, name: &NodeName, node: &Node) {
        let mut subnets: Vec<IpNet> = node.subnets.iter().map(IpNet::trunc).collect();
        subnets.dedup();
        let place = Place {
            role: node.role,
            health: node.health,
            draining: node.draining,
            capacity: node.capacity,
            subnets,
            held: BTreeSet::new(),
        };
        self.replace_node(name, Some(place));
    }

    /// Removes a node.
    pub(crate) fn remove_node(&mut self, name: &NodeName) {
        self.replace_node(name, None);
    }

    fn replace_node(&mut self, name: &NodeName, place: Option<Place>) {
        let before = self.nodes.remove(name);
        if let Some(before) = &before {
            self.count(before, Sign::Minus);
            self.list(name, before, Sign::Minus);
        }
        let held = before.map(|place| place.held).unwrap_or_default();
        for address in &held {
            self.stuck.remove(address);
        }
        let Some(mut place) = place else {
            for address in held {
                self.lose(address);
            }
            return;
        };
        for address in held {
            if place.is_eligible(address) {
                place.held.insert(address);
            } else {
                self.lose(address);
            }
        }
        self.stuck.extend(place.stuck());
        self.count(&place, Sign::Plus);
        self.list(name, &place, Sign::Plus);
        self.is_unsettled |= place.is_open() || !self.stuck.is_empty();
        self.nodes.insert(name.clone(), place);
    }

    /// Adds a floating IP, on the node that has it already if that is eligible.
    pub(crate) fn add(&mut self, address: IpAddr, previous: Option<&NodeName>) {
        if self.holders.contains_key(&address) {
            return;
        }
        let holder = previous.and_then(|name| self.nodes.get_key_value(name));
        match holder.filter(|(_, place)| place.is_eligible(address)) {
            Some((name, _)) => {
                let name = name.clone();
                self.hold(address, &name);
            }
            None => {
                self.set_holder(address, None);
                self.nowhere.insert(address);
                self.is_unsettled = true;
            }
        }
    }

    /// Removes a floating IP.
    pub(crate) fn remove(&mut self, address: IpAddr) {
        let holder = self.holders.remove(&address).flatten();
        self.nowhere.remove(&address);
        if let Some(name) = holder.clone() {
            self.let_go(address, &name);
        }
        self.touched.entry(address).or_insert(holder);
    }

    /// Places what can be placed: first what is nowhere, then what should leave its holder, in the order of addresses.
    pub(crate) fn settle(&mut self) {
        if !core::mem::take(&mut self.is_unsettled) {
            return;
        }
        let nowhere: Vec<IpAddr> = self.nowhere.iter().copied().collect();
        for address in nowhere {
            if let Some(name) = self.best(address) {
                self.nowhere.remove(&address);
                self.hold(address, &name);
            }
        }
        let stuck: Vec<IpAddr> = self.stuck.keys().copied().collect();
        for address in stuck {
            // Its node is not open, so the best one is another.
            if let Some(name) = self.best(address)
                && let Some(holder) = self.holders.get(&address).cloned().flatten()
            {
                self.let_go(address, &holder);
                self.hold(address, &name);
            }
        }
        // What left made no node open: it was being drained, or holds its capacity now.
        self.is_unsettled = false;
    }

    /// The floating IPs that have another holder than the last time.
    pub(crate) fn take_changed(&mut self) -> Vec<Move> {
        let touched = core::mem::take(&mut self.touched).into_iter();
        let moves = touched.map(|(address, from)| Move {
            to: self.holder(&address).cloned(),
            address,
            from,
        });
        moves.filter(|moved| moved.from != moved.to).collect()
    }

    /// Sets who holds `address`.
    fn set_holder(&mut self, address: IpAddr, holder: Option<NodeName>) {
        let before = self.holders.insert(address, holder).flatten();
        self.touched.entry(address).or_insert(before);
    }

    /// Who holds `address`.
    pub(crate) fn holder(&self, address: &IpAddr) -> Option<&NodeName> {
        self.holders.get(address)?.as_ref()
    }

    /// Everything that is held.
    pub(crate) fn assignment(&self) -> Assignment {
        let held = self
            .holders
            .iter()
            .filter_map(|(address, holder)| Some((*address, holder.clone()?)));
        Assignment {
            nodes: held.collect(),
        }
    }

    /// Where `address` is.
    pub(crate) fn placement(&self, address: &IpAddr) -> Placement {
        if self.holder(address).is_none() {
            return Placement::Nowhere;
        }
        self.stuck
            .get(address)
            .map_or(Placement::Well, |stuck| Placement::Stuck(*stuck))
    }

    /// Why no node could take `address`.
    pub(crate) fn why_unassigned(&self, address: IpAddr) -> Unassigned {
        let (mut nodes, mut up, mut serving) = (0, 0, 0);
        for subnet in self.subnets_of(address) {
            nodes += subnet.nodes;
            up += subnet.up;
            serving += subnet.serving;
        }
        match (nodes, up, serving) {
            (0, _, _) => Unassigned::NoSubnet,
            (_, 0, _) => Unassigned::NoNodeUp,
            (_, _, 0) => Unassigned::AllDraining,
            _ => Unassigned::NoRoom,
        }
    }

    fn subnets_of(&self, address: IpAddr) -> impl Iterator<Item = &Subnet> {
        around(address).filter_map(|range| self.subnets.get(&range))
    }

    /// The best open node for `address`.
    fn best(&mut self, address: IpAddr) -> Option<NodeName> {
        let mut best: Option<&Rank> = None;
        for range in around(address) {
            let Some(subnet) = self.subnets.get_mut(&range) else {
                continue;
            };
            if subnet.open.is_none() {
                let nodes = self.nodes.iter().filter(|(_, place)| place.is_open());
                let members = nodes.filter(|(_, place)| place.subnets.contains(&range));
                subnet.open = Some(members.map(|(name, place)| place.rank(name)).collect());
            }
        }
        for subnet in self.subnets_of(address) {
            let first = subnet.open.as_ref().and_then(|open| open.first());
            best = match (best, first) {
                (Some(best), Some(first)) => Some(best.min(first)),
                (best, first) => best.or(first),
            };
        }
        best.map(|rank| rank.name.clone())
    }

    fn hold(&mut self, address: IpAddr, name: &NodeName) {
        self.change_held(name, |held| held.insert(address));
        self.set_holder(address, Some(name.clone()));
    }

    fn let_go(&mut self, address: IpAddr, name: &NodeName) {
        self.change_held(name, |held| held.remove(&address));
    }

    fn change_held(&mut self, name: &NodeName, change: impl FnOnce(&mut BTreeSet<IpAddr>) -> bool) {
        let Some(mut place) = self.nodes.remove(name) else {
            return;
        };
        self.list(name, &place, Sign::Minus);
        for (address, _) in place.stuck() {
            self.stuck.remove(&address);
        }
        change(&mut place.held);
        self.stuck.extend(place.stuck());
        self.list(name, &place, Sign::Plus);
        self.is_unsettled |= place.is_open() || !self.stuck.is_empty();
        self.nodes.insert(name.clone(), place);
    }

    fn lose(&mut self, address: IpAddr) {
        self.set_holder(address, None);
        self.nowhere.insert(address);
        self.is_unsettled = true;
    }

    /// Keeps the numbers of a node's subnets.
    fn count(&mut self, place: &Place, sign: Sign) {
        let is_up = place.health == Health::Up;
        for range in &place.subnets {
            let subnet = self.subnets.entry(*range).or_default();
            sign.apply(&mut subnet.nodes, true);
            sign.apply(&mut subnet.up, is_up);
            sign.apply(&mut subnet.serving, is_up && !place.draining);
            if subnet.nodes == 0 {
                self.subnets.remove(range);
            }
        }
    }

    /// Keeps a node in the lists of open nodes, where they were made already.
    fn list(&mut self, name: &NodeName, place: &Place, sign: Sign) {
        if !place.is_open() {
            return;
        }
        for range in &place.subnets {
            if let Some(open) = self
                .subnets
                .get_mut(range)
                .and_then(|subnet| subnet.open.as_mut())
            {
                match sign {
                    Sign::Plus => open.insert(place.rank(name)),
                    Sign::Minus => open.remove(&place.rank(name)),
                };
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Sign {
    Plus,
    Minus,
}

impl Sign {
    fn apply(self, number: &mut usize, counts: bool) {
        match self {
            Sign::Plus => *number += usize::from(counts),
            Sign::Minus => *number -= usize::from(counts),
        }
    }
}

/// Every CIDR that `address` lies in.
fn around(address: IpAddr) -> impl Iterator<Item = IpNet> {
    let width = if address.is_ipv4() { 32 } else { 128 };
    (0..=width).filter_map(move |length| Some(IpNet::new(address, length).ok()?.trunc()))
}
