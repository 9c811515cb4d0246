//! The node's own small index of egress IPs: what a mark can hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use egressnat_core::gateway::EgressId;

use crate::dataplane::{ObserveError, map_error};
use crate::maps::{Egress, FIRST_EGRESS, MAX_EGRESS};
use crate::mark::MarkMask;
use crate::programs::{Maps, ProgramsError};

/// Egress IP ↔ index, kept in the map `egress_ips`, from which a restarted agent reads it back.
pub(crate) struct EgressTable {
    mark: MarkMask,
    entries: BTreeMap<Ipv4Addr, (u32, Egress)>,
}

impl EgressTable {
    /// Reads the table back. An index that the mask has no room for, or another meaning, is freed: it is of an earlier mask.
    pub(crate) fn read(maps: &mut Maps, mark: MarkMask) -> Result<Self, ProgramsError> {
        let mut entries = BTreeMap::new();
        for index in FIRST_EGRESS..MAX_EGRESS {
            let egress = maps
                .egress_ips
                .get(&index, 0)
                .map_err(map_error("egress_ips"))?;
            match egress.address() {
                Some(_) if index > mark.max_index() => {
                    maps.egress_ips
                        .set(index, Egress::default(), 0)
                        .map_err(map_error("egress_ips"))?;
                }
                Some(address) => {
                    entries.insert(address, (index, egress));
                }
                None => {}
            }
        }
        Ok(Self { mark, entries })
    }

    pub(crate) fn index(&self, address: Ipv4Addr) -> Option<u32> {
        self.entries.get(&address).map(|(index, _)| *index)
    }

    pub(crate) fn address(&self, index: u32) -> Option<Ipv4Addr> {
        self.entries
            .iter()
            .find(|(_, (other, _))| *other == index)
            .map(|(address, _)| *address)
    }

    /// The mark that stands for an egress IP held here.
    pub(crate) fn mark(&self, address: Ipv4Addr) -> Option<u32> {
        self.index(address).map(|index| self.mark.of_index(index))
    }

    /// Gives an egress IP an index, unless it has one.
    pub(crate) fn allocate(
        &mut self,
        maps: &mut Maps,
        address: Ipv4Addr,
    ) -> Result<(), ObserveError> {
        if self.entries.contains_key(&address) {
            return Ok(());
        }
        let taken: BTreeSet<u32> = self.entries.values().map(|(index, _)| *index).collect();
        let last = self.mark.max_index().min(MAX_EGRESS - 1);
        let index = (FIRST_EGRESS..=last)
            .find(|index| !taken.contains(index))
            .ok_or(ObserveError::NoEgressIndex(IpAddr::V4(address)))?;
        let vni = EgressId::of(IpAddr::V4(address)).vni();
        self.write(maps, address, index, Egress::new(address, vni, false))
    }

    /// Says whether this node holds an egress IP: then its own pods need no tunnel.
    pub(crate) fn set_local(
        &mut self,
        maps: &mut Maps,
        address: Ipv4Addr,
        local: bool,
    ) -> Result<(), ObserveError> {
        match self.entries.get(&address).copied() {
            Some((index, egress)) if egress.is_local() != local => self.write(
                maps,
                address,
                index,
                Egress::new(address, egress.vni(), local),
            ),
            _ => Ok(()),
        }
    }

    fn write(
        &mut self,
        maps: &mut Maps,
        address: Ipv4Addr,
        index: u32,
        egress: Egress,
    ) -> Result<(), ObserveError> {
        maps.egress_ips
            .set(index, egress, 0)
            .map_err(map_error("egress_ips"))?;
        self.entries.insert(address, (index, egress));
        Ok(())
    }

    /// Frees the indices of all other egress IPs. By then no destination and no mapping uses them.
    pub(crate) fn retain(
        &mut self,
        maps: &mut Maps,
        needed: &BTreeSet<Ipv4Addr>,
    ) -> Result<(), ObserveError> {
        let unused: Vec<Ipv4Addr> = self
            .entries
            .keys()
            .filter(|a| !needed.contains(a))
            .copied()
            .collect();
        for address in unused {
            if let Some((index, _)) = self.entries.remove(&address) {
                maps.egress_ips
                    .set(index, Egress::default(), 0)
                    .map_err(map_error("egress_ips"))?;
            }
        }
        Ok(())
    }
}
