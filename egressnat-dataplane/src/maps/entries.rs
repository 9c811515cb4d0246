//! All that the agent writes into the maps, a few entries at a time.

use std::net::IpAddr;

use aya::maps::{IterableMap, MapError};
use egressnat_core::model::PolicyName;
use ipnet::IpNet;

use super::batch::Cursor;
use super::policies::decoded;
use super::{
    AddressMaps, DestinationValue, EgressEntry, Maps, NAME_LENGTH, Octets, PodEntry,
    destination_of, map_error, peer_of,
};
use crate::programs::ProgramsError;

/// Entries that are read at a time: a fraction of a millisecond, whatever map they are of.
const FEW: u32 = 256;

/// An entry of one of the maps that the agent writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    Pod(PodEntry),
    /// Policy set, prefix, value.
    Destination(u32, IpNet, DestinationValue),
    /// A destination of no policy set in particular. None of ours is.
    Astray,
    Peer(IpAddr),
    Slot(EgressEntry),
    Number {
        vni: u32,
        index: u32,
    },
    /// What is no policy's name is none.
    Name(u32, Option<PolicyName>),
}

/// A walk through all entries. What is written meanwhile may be missed, or be met twice.
#[derive(Debug)]
pub(crate) struct Walk {
    part: usize,
    cursor: Cursor,
    /// Slots of egress IPs, of IPv4 and of IPv6, behind which none is looked at.
    ends: [u32; 2],
}

type Part = fn(&Maps, &mut Walk) -> Result<Vec<Entry>, ProgramsError>;

/// One for each map.
const PARTS: [Part; 10] = [
    |maps, walk| maps.ipv4.next_pods(&mut walk.cursor),
    |maps, walk| maps.ipv6.next_pods(&mut walk.cursor),
    |maps, walk| maps.ipv4.next_destinations(&mut walk.cursor),
    |maps, walk| maps.ipv6.next_destinations(&mut walk.cursor),
    |maps, walk| maps.ipv4.next_slots(&mut walk.cursor, walk.ends[0]),
    |maps, walk| maps.ipv6.next_slots(&mut walk.cursor, walk.ends[1]),
    |maps, walk| {
        let entry = |(key, _)| Entry::Peer(peer_of(key));
        next("peers", &maps.peers, &mut walk.cursor, entry)
    },
    |maps, walk| {
        let entry = |(key, _): ([u8; 16], u32)| Entry::Peer(key.into());
        next("peers6", &maps.peers6, &mut walk.cursor, entry)
    },
    |maps, walk| {
        let entry = |(vni, index)| Entry::Number { vni, index };
        next("vnis", &maps.vnis, &mut walk.cursor, entry)
    },
    |maps, walk| {
        let entry = |(index, name): (u32, [u8; NAME_LENGTH])| Entry::Name(index, decoded(&name));
        let names = &maps.policies.names;
        next("policy_names", names, &mut walk.cursor, entry)
    },
];

impl Walk {
    /// Begins one that looks at as many slots of egress IPs as these, of IPv4 and of IPv6.
    pub(crate) fn new(ends: [u32; 2]) -> Self {
        Self {
            part: 0,
            cursor: Cursor::default(),
            ends,
        }
    }

    /// The next entries, perhaps none; nothing behind the last.
    pub(crate) fn next(&mut self, maps: &Maps) -> Result<Option<Vec<Entry>>, ProgramsError> {
        let Some(part) = PARTS.get(self.part) else {
            return Ok(None);
        };
        let entries = part(maps, self)?;
        if self.cursor.is_at_end() {
            self.cursor = Cursor::default();
            self.part += 1;
        }
        Ok(Some(entries))
    }
}

impl Maps {
    /// Takes away destinations of no policy set in particular. Returns how many there were.
    pub(crate) fn remove_astray(&mut self) -> Result<usize, ProgramsError> {
        Ok(self.ipv4.remove_astray()? + self.ipv6.remove_astray()?)
    }

    /// The VNIs of egress IPs, with what they lead to.
    pub(crate) fn numbers(&self) -> Result<Vec<(u32, u32)>, ProgramsError> {
        super::all(&self.vnis).map_err(map_error("vnis"))
    }
}

impl<A: Octets> AddressMaps<A> {
    fn next_pods(&self, cursor: &mut Cursor) -> Result<Vec<Entry>, ProgramsError> {
        let entry = |entry| Entry::Pod(PodEntry::from(entry));
        next(A::NAMES.pods, &self.pods, cursor, entry)
    }

    fn next_destinations(&self, cursor: &mut Cursor) -> Result<Vec<Entry>, ProgramsError> {
        let entry = |entry| match destination_of(entry) {
            Some((set, prefix, value)) => Entry::Destination(set, prefix, value),
            None => Entry::Astray,
        };
        next(A::NAMES.destinations, &self.destinations, cursor, entry)
    }

    fn next_slots(&self, cursor: &mut Cursor, end: u32) -> Result<Vec<Entry>, ProgramsError> {
        let slots = cursor.read_until(&self.egress_ips, end, FEW);
        let slots = slots.map_err(map_error(A::NAMES.egress_ips))?.into_iter();
        Ok(slots
            .map(|slot| Entry::Slot(EgressEntry::from(slot)))
            .collect())
    }

    fn remove_astray(&mut self) -> Result<usize, ProgramsError> {
        let error = || map_error(A::NAMES.destinations);
        let mut keys = super::all(&self.destinations).map_err(error())?;
        keys.retain(|entry| destination_of(*entry).is_none());
        for (key, _) in &keys {
            self.destinations.remove(key).map_err(error())?;
        }
        Ok(keys.len())
    }
}

/// The next entries of a map.
fn next<K: aya::Pod, V: aya::Pod>(
    name: &'static str,
    map: &impl IterableMap<K, V>,
    cursor: &mut Cursor,
    entry: impl Fn((K, V)) -> Entry,
) -> Result<Vec<Entry>, ProgramsError> {
    let read: Result<Vec<(K, V)>, MapError> = cursor.read(map, FEW);
    Ok(read
        .map_err(map_error(name))?
        .into_iter()
        .map(entry)
        .collect())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::family::Family;
    use crate::programs::tests::Pins;
    use crate::programs::{CountedAt, Programs};

    const MANY: u32 = 3 * FEW + 1;

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    #[test]
    fn a_walk_meets_every_entry_once_however_many_there_are() {
        let pins = Pins::mount();
        let (_programs, mut maps) = Programs::load(&pins.config(), CountedAt::Pod).unwrap();
        let mut want = Vec::new();
        for number in 0..MANY {
            let pod = PodEntry {
                address: address(number),
                ifindex: 7,
                set: number,
            };
            maps.set_pod(pod).unwrap();
            let prefix = IpNet::from(address(number));
            let value = DestinationValue {
                egress: 2,
                policy: 1,
            };
            maps.set_destination(number % 9, prefix, value).unwrap();
            maps.add_peer(address(number)).unwrap();
            let name: PolicyName = format!("policy-{number}").parse().unwrap();
            maps.policies.rewrite_name(number, &name).unwrap();
            want.extend([
                Entry::Pod(pod),
                Entry::Destination(number % 9, prefix, value),
                Entry::Peer(address(number)),
                Entry::Name(number, Some(name)),
            ]);
        }
        let wide = IpNet::new([0xfd; 16].into(), 64).unwrap().trunc();
        let value = DestinationValue {
            egress: 0,
            policy: 0,
        };
        maps.set_destination(1, wide, value).unwrap();
        maps.add_peer(wide.addr()).unwrap();
        want.extend([Entry::Destination(1, wide, value), Entry::Peer(wide.addr())]);
        let slots = 2 * FEW;
        want.extend((0..slots).map(|slot| Entry::Slot(EgressEntry::free(Family::Ipv4, slot))));

        let mut walk = Walk::new([slots, 0]);
        while let Some(entries) = walk.next(&maps).unwrap() {
            assert!(entries.len() <= FEW as usize);
            for entry in entries {
                let place = want.iter().position(|wanted| *wanted == entry);
                want.swap_remove(place.unwrap_or_else(|| panic!("{entry:?}")));
            }
        }
        assert_eq!(want, []);
    }
}
