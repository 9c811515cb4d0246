//! The node's own small index of egress IPs: what a mark can hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_core::gateway::EgressId;

use crate::dataplane::ObserveError;
use crate::maps::{EgressEntry, FIRST_EGRESS, MAX_EGRESS, Maps};
use crate::mark::MarkMask;
use crate::programs::ProgramsError;

/// Egress IP ↔ index, kept in the maps `egress_ips` and `egress_ips6`, from which a restarted agent reads it back. An index
/// is of one address of either family.
pub(crate) struct EgressTable {
    mark: MarkMask,
    entries: BTreeMap<IpAddr, EgressEntry>,
    addresses: BTreeMap<u32, IpAddr>,
}

impl EgressTable {
    /// Reads the table back. An index that the mask has no room for, or another meaning, is freed: it is of an earlier mask.
    pub(crate) fn read(maps: &mut Maps, mark: MarkMask) -> Result<Self, ProgramsError> {
        let (mut entries, mut addresses) = (BTreeMap::new(), BTreeMap::new());
        for entry in maps.egress_ips()? {
            if entry.index > mark.max_index() {
                maps.free_egress(entry)?;
            } else {
                entries.insert(entry.address, entry);
                addresses.insert(entry.index, entry.address);
            }
        }
        Ok(Self {
            mark,
            entries,
            addresses,
        })
    }

    pub(crate) fn index(&self, address: IpAddr) -> Option<u32> {
        self.entries.get(&address).map(|entry| entry.index)
    }

    pub(crate) fn address(&self, index: u32) -> Option<IpAddr> {
        self.addresses.get(&index).copied()
    }

    /// The mark that stands for an egress IP held here.
    pub(crate) fn mark(&self, address: IpAddr) -> Option<u32> {
        self.index(address).map(|index| self.mark.of_index(index))
    }

    /// Gives an egress IP an index, unless it has one.
    pub(crate) fn allocate(
        &mut self,
        maps: &mut Maps,
        address: IpAddr,
    ) -> Result<(), ObserveError> {
        if self.entries.contains_key(&address) {
            return Ok(());
        }
        let last = self.mark.max_index().min(MAX_EGRESS - 1);
        let index = (FIRST_EGRESS..=last)
            .find(|index| !self.addresses.contains_key(index))
            .ok_or(ObserveError::NoEgressIndex(address))?;
        maps.reset_traffic(index)?;
        let entry = EgressEntry {
            index,
            address,
            vni: EgressId::of(address).vni(),
            is_local: false,
        };
        self.write(maps, entry)
    }

    /// All egress IPs with their index.
    pub(crate) fn indices(&self) -> impl Iterator<Item = (IpAddr, u32)> {
        let entries = self.entries.values();
        entries.map(|entry| (entry.address, entry.index))
    }

    /// Says whether this node holds an egress IP: then its own pods need no tunnel.
    pub(crate) fn set_local(
        &mut self,
        maps: &mut Maps,
        address: IpAddr,
        is_local: bool,
    ) -> Result<(), ObserveError> {
        match self.entries.get(&address).copied() {
            Some(entry) if entry.is_local != is_local => {
                self.write(maps, EgressEntry { is_local, ..entry })
            }
            _ => Ok(()),
        }
    }

    fn write(&mut self, maps: &mut Maps, entry: EgressEntry) -> Result<(), ObserveError> {
        maps.set_egress(entry)?;
        self.entries.insert(entry.address, entry);
        self.addresses.insert(entry.index, entry.address);
        Ok(())
    }

    /// Frees the indices of all other egress IPs. By then no destination and no mapping uses them.
    pub(crate) fn retain(
        &mut self,
        maps: &mut Maps,
        needed: &BTreeSet<IpAddr>,
    ) -> Result<(), ObserveError> {
        let unused: Vec<EgressEntry> = self
            .entries
            .values()
            .filter(|entry| !needed.contains(&entry.address))
            .copied()
            .collect();
        for entry in unused {
            self.entries.remove(&entry.address);
            self.addresses.remove(&entry.index);
            maps.free_egress(entry)?;
        }
        Ok(())
    }
}
