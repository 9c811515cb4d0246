//! Who could hold what: kept up to date change by change, so that one change costs what it affects.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::net::IpAddr;
use ipnet::IpNet;

use super::{Assignment, Move, Stuck, Unassigned};
use crate::hash::Map;
use crate::model::{Health, Node, NodeName, Role};
use crate::slab::Slab;

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
    nodes: Map<NodeName, NodeId>,
    places: Slab<Place>,
    /// Floating IP → holder.
    holders: BTreeMap<IpAddr, Option<NodeId>>,
    /// Floating IPs without a holder.
    nowhere: BTreeSet<IpAddr>,
    /// Floating IPs that should leave their holder.
    stuck: BTreeMap<IpAddr, Stuck>,
    /// Every subnet of every node.
    subnets: Map<IpNet, Subnet>,
    /// Whether something may be placed better since the last time.
    is_unsettled: bool,
    /// Who held each floating IP that was touched since [`Places::take_changed`]; none while nobody asks.
    touched: Option<BTreeMap<IpAddr, Option<NodeName>>>,
}

type NodeId = u32;

/// What placement needs to know of a node.
#[derive(Debug, Clone)]
struct Place {
    name: NodeName,
    role: Role,
    health: Health,
    draining: bool,
    capacity: Option<usize>,
    subnets: Vec<IpNet>,
    /// In order.
    held: Vec<IpAddr>,
}

impl Place {
    fn is_eligible(&self, address: IpAddr) -> bool {
        self.health == Health::Up && self.subnets.iter().any(|subnet| subnet.contains(&address))
    }

    /// Whether it can take one more.
    fn has_room(&self) -> bool {
        self.health == Health::Up && self.capacity.is_none_or(|most| self.held.len() < most)
    }

    fn rank(&self) -> Rank {
        Rank {
            draining: self.draining,
            role: self.role,
            holds: self.held.len(),
            name: self.name.clone(),
        }
    }

    fn has_stuck(&self) -> bool {
        !self.held.is_empty()
            && (self.draining || self.capacity.is_some_and(|most| self.held.len() > most))
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

/// The order of E30 among the nodes of one subnet that have room. The first is the best:
/// 1. the IP lies in a subnet of the node, and the node is up: by being in the list at all;
/// 2. those that are not being drained; the others are for what would be nowhere;
/// 3. workers before control-plane nodes;
/// 4. nodes that hold no floating IP before those that do, then the fewest: 0 comes before 1;
/// 5. name, so that the order is total.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    draining: bool,
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
    /// Those with room, in order; made when it is first needed.
    open: Option<BTreeSet<Rank>>,
}

impl Places {
    /// From now on notes what changes, for [`Places::take_changed`].
    pub(crate) fn note_changes(&mut self) {
        self.touched = Some(BTreeMap::new());
    }

    /// Adds or replaces a node.
    pub(crate) fn set_node(&mut self, name: &NodeName, node: &Node) {
        let mut subnets: Vec<IpNet> = node.subnets.iter().map(IpNet::trunc).collect();
        subnets.dedup();
        let place = Place {
            name: name.clone(),
            role: node.role,
            health: node.health,
            draining: node.draining,
            capacity: node.capacity,
            subnets,
            held: Vec::new(),
        };
        let id = match self.nodes.get(name) {
            Some(id) => *id,
            None => {
                self.count(&place, Sign::Plus);
                self.list(&place, Sign::Plus);
                self.is_unsettled |= place.has_room();
                let id = self.places.insert(place);
                self.nodes.insert(name.clone(), id);
                return;
            }
        };
        self.count(&place, Sign::Plus);
        let before = self.unlisted(id, |known| core::mem::replace(known, place));
        self.count(&before, Sign::Minus);
        for address in before.held {
            if self.places[id].is_eligible(address) {
                self.change_held(id, address, Sign::Plus);
            } else {
                self.lose(address);
            }
        }
    }

    /// Removes a node.
    pub(crate) fn remove_node(&mut self, name: &NodeName) {
        let Some(id) = self.nodes.remove(name) else {
            return;
        };
        let held = self.unlisted(id, |place| core::mem::take(&mut place.held));
        for address in held {
            self.lose(address);
        }
        if let Some(place) = self.places.remove(id) {
            self.list(&place, Sign::Minus);
            self.count(&place, Sign::Minus);
        }
    }

    /// Changes a place, while nothing else that is kept about it is in the way.
    fn unlisted<T>(&mut self, id: NodeId, change: impl FnOnce(&mut Place) -> T) -> T {
        let place = &self.places[id];
        if place.has_stuck() {
            for (address, _) in place.stuck() {
                self.stuck.remove(&address);
            }
        }
        list(&mut self.subnets, place, Sign::Minus);
        let place = &mut self.places[id];
        let changed = change(place);
        if place.has_stuck() {
            self.stuck.extend(place.stuck());
        }
        list(&mut self.subnets, place, Sign::Plus);
        self.is_unsettled |= place.has_room() || !self.stuck.is_empty();
        changed
    }

    fn change_held(&mut self, id: NodeId, address: IpAddr, sign: Sign) {
        self.unlisted(id, |place| {
            match (place.held.binary_search(&address), sign) {
                (Err(position), Sign::Plus) => place.held.insert(position, address),
                (Ok(position), Sign::Minus) => {
                    place.held.remove(position);
                }
                (Ok(_), Sign::Plus) | (Err(_), Sign::Minus) => {}
            }
        });
    }

    /// Adds a floating IP, on the node that has it already if that is eligible.
    pub(crate) fn add(&mut self, address: IpAddr, previous: Option<&NodeName>) {
        if self.holders.contains_key(&address) {
            return;
        }
        let holder = previous.and_then(|name| self.nodes.get(name)).copied();
        match holder.filter(|id| self.places[*id].is_eligible(address)) {
            Some(id) => self.hold(address, id),
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
        self.note(address, holder);
        if let Some(id) = holder {
            self.change_held(id, address, Sign::Minus);
        }
    }

    /// Places what can be placed: first what is nowhere, then what should leave its holder, in the order of addresses.
    pub(crate) fn settle(&mut self) {
        while core::mem::take(&mut self.is_unsettled) {
            self.place_nowhere();
            let moved = self.move_stuck();
            // What moved was in nobody's way, but where a node that is being drained has room again for what would be nowhere.
            self.is_unsettled = moved > 0 && !self.nowhere.is_empty();
        }
    }

    fn place_nowhere(&mut self) {
        let nowhere: Vec<IpAddr> = self.nowhere.iter().copied().collect();
        for address in nowhere {
            if let Some((id, _)) = self.best(address) {
                self.nowhere.remove(&address);
                self.hold(address, id);
            }
        }
    }

    fn move_stuck(&mut self) -> usize {
        let mut moved = 0;
        let stuck: Vec<IpAddr> = self.stuck.keys().copied().collect();
        for address in stuck {
            // Its node is being drained or has no room, so that an open one is another.
            if let Some((id, Draining::No)) = self.best(address)
                && let Some(holder) = self.holders.get(&address).copied().flatten()
            {
                self.change_held(holder, address, Sign::Minus);
                self.hold(address, id);
                moved += 1;
            }
        }
        moved
    }

    /// The floating IPs that have another holder than the last time.
    pub(crate) fn take_changed(&mut self) -> Vec<Move> {
        let Some(touched) = &mut self.touched else {
            return Vec::new();
        };
        let touched = core::mem::take(touched).into_iter();
        let moves = touched.map(|(address, from)| Move {
            to: self.holder(&address).cloned(),
            address,
            from,
        });
        moves.filter(|moved| moved.from != moved.to).collect()
    }

    /// Remembers who held `address` before it was touched.
    fn note(&mut self, address: IpAddr, before: Option<NodeId>) {
        if let Some(touched) = &mut self.touched {
            let name = before.map(|id| self.places[id].name.clone());
            touched.entry(address).or_insert(name);
        }
    }

    /// Sets who holds `address`.
    fn set_holder(&mut self, address: IpAddr, holder: Option<NodeId>) {
        let before = self.holders.insert(address, holder).flatten();
        self.note(address, before);
    }

    /// Who holds `address`.
    pub(crate) fn holder(&self, address: &IpAddr) -> Option<&NodeName> {
        let id = self.holders.get(address).copied().flatten()?;
        Some(&self.places[id].name)
    }

    /// Everything that is held.
    pub(crate) fn assignment(&self) -> Assignment {
        let held = self
            .holders
            .iter()
            .filter_map(|(address, holder)| Some((*address, self.places[(*holder)?].name.clone())));
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
        let (mut nodes, mut up) = (0, 0);
        for subnet in self.subnets_of(address) {
            nodes += subnet.nodes;
            up += subnet.up;
        }
        match (nodes, up) {
            (0, _) => Unassigned::NoSubnet,
            (_, 0) => Unassigned::NoNodeUp,
            _ => Unassigned::NoRoom,
        }
    }

    fn subnets_of(&self, address: IpAddr) -> impl Iterator<Item = &Subnet> {
        around(address).filter_map(|range| self.subnets.get(&range))
    }

    /// The best node for `address` that has room, and whether it is being drained.
    fn best(&mut self, address: IpAddr) -> Option<(NodeId, Draining)> {
        for range in around(address) {
            let Some(subnet) = self.subnets.get_mut(&range) else {
                continue;
            };
            if subnet.open.is_none() {
                let members = self.places.iter().map(|(_, place)| place);
                let members =
                    members.filter(|place| place.has_room() && place.subnets.contains(&range));
                subnet.open = Some(members.map(Place::rank).collect());
            }
        }
        let open = self
            .subnets_of(address)
            .filter_map(|subnet| subnet.open.as_ref());
        let best = open.filter_map(BTreeSet::first).min()?;
        let draining = if best.draining {
            Draining::Yes
        } else {
            Draining::No
        };
        Some((*self.nodes.get(&best.name)?, draining))
    }

    fn hold(&mut self, address: IpAddr, id: NodeId) {
        self.change_held(id, address, Sign::Plus);
        self.set_holder(address, Some(id));
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
            if subnet.nodes == 0 {
                self.subnets.remove(range);
            }
        }
    }

    fn list(&mut self, place: &Place, sign: Sign) {
        list(&mut self.subnets, place, sign);
    }
}

/// Keeps a node in the lists of those with room, where they were made already.
fn list(subnets: &mut Map<IpNet, Subnet>, place: &Place, sign: Sign) {
    if !place.has_room() {
        return;
    }
    for range in &place.subnets {
        let subnet = subnets.get_mut(range);
        if let Some(open) = subnet.and_then(|subnet| subnet.open.as_mut()) {
            match sign {
                Sign::Plus => open.insert(place.rank()),
                Sign::Minus => open.remove(&place.rank()),
            };
        }
    }
}

/// Whether a node is being drained.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Draining {
    Yes,
    No,
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
