//! The node's own small index of egress IPs: what a mark can hold.

use std::collections::BTreeMap;
use std::net::IpAddr;

use egressnat_core::Steering;
use egressnat_core::gateway::EgressId;

use crate::dataplane::ObserveError;
use crate::family::Family;
use crate::maps::{DROP, EgressEntry, FIRST_EGRESS, FORWARD, KEEP, Maps};
use crate::mark::MarkMask;
use crate::programs::ProgramsError;

/// Egress IP ↔ index, kept in the maps `egress_ips` and `egress_ips6`, from which a restarted agent reads it back. An index
/// is of one address of either family.
pub(crate) struct EgressTable {
    mark: MarkMask,
    entries: BTreeMap<IpAddr, EgressEntry>,
    addresses: BTreeMap<u32, IpAddr>,
    /// No smaller index is free.
    first_free: u32,
}

impl EgressTable {
    /// Reads the table back. An index that the mask has no room for, or another meaning, is freed: it is of an earlier mask.
    pub(crate) fn read(maps: &mut Maps, mark: MarkMask) -> Result<Self, ProgramsError> {
        let (mut entries, mut addresses) = (BTreeMap::new(), BTreeMap::new());
        for entry in maps.egress_ips()? {
            if entry.index > mark.max_index() {
                maps.set_egress(EgressEntry::free(Family::of(entry.address), entry.index))?;
            } else {
                entries.insert(entry.address, entry);
                addresses.insert(entry.index, entry.address);
            }
        }
        Ok(Self {
            mark,
            entries,
            addresses,
            first_free: FIRST_EGRESS,
        })
    }

    pub(crate) fn index(&self, address: IpAddr) -> Option<u32> {
        self.entries.get(&address).map(|entry| entry.index)
    }

    pub(crate) fn address(&self, index: u32) -> Option<IpAddr> {
        self.addresses.get(&index).copied()
    }

    /// What the value of a destination says of what becomes of a packet.
    pub(crate) fn value_of(&self, steering: Steering) -> Result<u16, ObserveError> {
        match steering {
            Steering::Forward => Ok(FORWARD),
            Steering::Keep => Ok(KEEP),
            Steering::Drop => Ok(DROP),
            Steering::Snat(address) => {
                let index = self.index(address);
                let index = index.and_then(|index| u16::try_from(index).ok());
                index.ok_or(ObserveError::NoEgressIndex(address))
            }
        }
    }

    /// What a slot of a family is to have.
    pub(crate) fn slot(&self, family: Family, index: u32) -> EgressEntry {
        let address = self.address(index);
        let address = address.filter(|address| Family::of(*address) == family);
        let entry = address.and_then(|address| self.entries.get(&address));
        let free = || EgressEntry::free(family, index);
        entry.copied().unwrap_or_else(free)
    }

    /// Slots of IPv4 and of IPv6 behind which none is in use.
    pub(crate) fn ends(&self) -> [u32; 2] {
        Family::ALL.map(|family| {
            let mut used = self.addresses.iter().rev();
            let last = used.find(|(_, address)| Family::of(**address) == family);
            last.map_or(0, |(index, _)| index + 1)
        })
    }

    /// Writes the slots anew that somebody altered. Returns what they have now.
    pub(crate) fn restore(&self, maps: &mut Maps) -> Result<Vec<EgressEntry>, ProgramsError> {
        let mut restored = Vec::new();
        for slot in maps.slots()? {
            let right = self.slot(Family::of(slot.address), slot.index);
            if slot != right {
                maps.set_egress(right)?;
                restored.push(right);
            }
        }
        Ok(restored)
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
        let index = (self.first_free..=self.mark.max_index())
            .find(|index| !self.addresses.contains_key(index))
            .ok_or(ObserveError::NoEgressIndex(address))?;
        maps.reset_traffic(index)?;
        let entry = EgressEntry {
            index,
            address,
            vni: EgressId::of(address).vni(),
            is_local: false,
        };
        self.write(maps, entry)?;
        self.first_free = index + 1;
        Ok(())
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

    /// Frees the indices of egress IPs that have one. By then no destination and no mapping uses them.
    pub(crate) fn free<'a>(
        &mut self,
        maps: &mut Maps,
        addresses: impl IntoIterator<Item = &'a IpAddr>,
    ) -> Result<(), ObserveError> {
        for address in addresses {
            let Some(entry) = self.entries.remove(address) else {
                continue;
            };
            self.addresses.remove(&entry.index);
            self.first_free = self.first_free.min(entry.index);
            maps.set_egress(EgressEntry::free(Family::of(entry.address), entry.index))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::programs::tests::Pins;
    use crate::programs::{CountedAt, Programs};

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from(0xac10_0000 + number).into()
    }

    #[test]
    fn the_smallest_free_index_is_given_and_freed_again_and_read_back() {
        let pins = Pins::mount();
        let (mut config, mark) = (pins.config(), MarkMask::new(0xff00).unwrap());
        config.mark = mark;
        let (_programs, mut maps) = Programs::load(&config, CountedAt::Pod).unwrap();
        let mut table = EgressTable::read(&mut maps, mark).unwrap();
        let most = mark.max_index() - 1;
        for number in 0..most {
            table.allocate(&mut maps, address(number)).unwrap();
            assert_eq!(table.index(address(number)), Some(number + FIRST_EGRESS));
        }
        let refused = table.allocate(&mut maps, address(most)).unwrap_err();
        assert!(matches!(refused, ObserveError::NoEgressIndex(_)));

        // One that has none has nothing to be freed.
        let freed = [address(70), address(90), address(most)];
        table.free(&mut maps, &freed).unwrap();
        assert_eq!(freed.map(|address| table.index(address)), [None; 3]);
        table.allocate(&mut maps, address(most)).unwrap();
        assert_eq!(table.index(address(most)), Some(70 + FIRST_EGRESS));
        table.allocate(&mut maps, address(70)).unwrap();
        assert_eq!(table.index(address(70)), Some(90 + FIRST_EGRESS));
        assert!(table.allocate(&mut maps, address(90)).is_err());

        let read = EgressTable::read(&mut maps, mark).unwrap();
        assert!(read.indices().eq(table.indices()));
        // The next run has a narrower mask.
        let narrow = MarkMask::new(0xf00).unwrap();
        let read = EgressTable::read(&mut maps, narrow).unwrap();
        assert_eq!(read.indices().count() as u32, narrow.max_index() - 1);
    }
}
