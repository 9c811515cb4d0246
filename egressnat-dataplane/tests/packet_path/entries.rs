//! What others do to entries of the eBPF maps, of which the kernel tells nobody, is undone within a second.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use egressnat_core::Resource;

use crate::network::{FLOATING, Network, SERVER, plan};

/// The maps of one node, as anybody who may opens them.
struct Pinned(PathBuf);

/// `destinations`: policy set and address.
type Destination = [u8; 8];

impl Pinned {
    fn open(&self, map: &str) -> MapData {
        MapData::from_pin(self.0.join(map)).unwrap()
    }

    fn hash<const K: usize, const V: usize>(
        &self,
        map: &str,
    ) -> HashMap<MapData, [u8; K], [u8; V]> {
        Map::HashMap(self.open(map)).try_into().unwrap()
    }

    fn destinations(&self) -> LpmTrie<MapData, Destination, [u8; 4]> {
        Map::LpmTrie(self.open("destinations")).try_into().unwrap()
    }

    fn egress_ips(&self) -> Array<MapData, [u8; 12]> {
        Map::Array(self.open("egress_ips")).try_into().unwrap()
    }

    /// Everything that an agent writes for IPv4, by map and key.
    fn contents(&self) -> BTreeMap<(&'static str, Vec<u8>), Vec<u8>> {
        let mut contents = BTreeMap::new();
        let mut note = |map, key: &[u8], value: &[u8]| {
            contents.insert((map, key.to_vec()), value.to_vec());
        };
        for entry in self.hash::<8, 4>("pods").iter() {
            let (key, value) = entry.unwrap();
            note("pods", &key, &value);
        }
        for map in ["peers", "vnis"] {
            for entry in self.hash::<4, 4>(map).iter() {
                let (key, value) = entry.unwrap();
                note(map, &key, &value);
            }
        }
        for entry in self.hash::<4, 256>("policy_names").iter() {
            let (key, value) = entry.unwrap();
            note("policy_names", &key, &value);
        }
        for entry in self.destinations().iter() {
            let (key, value) = entry.unwrap();
            let key = [&key.prefix_len().to_ne_bytes()[..], &key.data()].concat();
            note("destinations", &key, &value);
        }
        for (index, slot) in (0u32..).zip(self.egress_ips().iter()) {
            note("egress_ips", &index.to_ne_bytes(), &slot.unwrap());
        }
        contents
    }

    /// The first key of a hash with its value.
    fn first<const K: usize, const V: usize>(&self, map: &str) -> ([u8; K], [u8; V]) {
        self.hash(map).iter().next().unwrap().unwrap()
    }
}

/// What somebody does to a map.
struct Sabotage {
    name: &'static str,
    make: fn(&Pinned) -> Result<(), MapError>,
}

const SABOTAGES: [Sabotage; 14] = [
    Sabotage {
        name: "a peer is removed",
        make: |maps| {
            maps.hash::<4, 4>("peers")
                .remove(&maps.first::<4, 4>("peers").0)
        },
    },
    Sabotage {
        name: "a stranger becomes a peer",
        make: |maps| {
            maps.hash("peers")
                .insert([254, 1, 168, 192], [1, 0, 0, 0], 0)
        },
    },
    Sabotage {
        name: "a pod is removed",
        make: |maps| {
            maps.hash::<8, 4>("pods")
                .remove(&maps.first::<8, 4>("pods").0)
        },
    },
    Sabotage {
        name: "a pod is of another policy set",
        make: |maps| {
            maps.hash("pods")
                .insert(maps.first::<8, 4>("pods").0, [77, 0, 0, 0], 0)
        },
    },
    Sabotage {
        name: "a pod is on another interface",
        make: |maps| {
            let (mut pod, set) = maps.first::<8, 4>("pods");
            pod[6] = 0xff;
            maps.hash("pods").insert(pod, set, 0)
        },
    },
    Sabotage {
        name: "a destination is removed",
        make: |maps| {
            let key = maps.destinations().keys().next().unwrap()?;
            maps.destinations().remove(&key)
        },
    },
    Sabotage {
        name: "a destination is left to the node",
        make: |maps| {
            let key = maps.destinations().keys().next().unwrap()?;
            maps.destinations().insert(&key, [0; 4], 0)
        },
    },
    Sabotage {
        name: "a destination leads to an egress IP that is none",
        make: |maps| {
            let key = maps.destinations().keys().next().unwrap()?;
            maps.destinations().insert(&key, [99, 0, 0, 0], 0)
        },
    },
    Sabotage {
        name: "a destination more",
        make: |maps| {
            let key = Key::new(64, [1, 0, 0, 0, 9, 9, 9, 9]);
            maps.destinations().insert(&key, [1, 0, 0, 0], 0)
        },
    },
    Sabotage {
        name: "a destination of all policy sets",
        make: |maps| {
            maps.destinations()
                .insert(&Key::new(0, [0; 8]), [1, 0, 0, 0], 0)
        },
    },
    Sabotage {
        name: "an egress IP has another address",
        make: |maps| {
            let mut slot = maps.egress_ips().get(&2, 0)?;
            slot[3] ^= 1;
            maps.egress_ips().set(2, slot, 0)
        },
    },
    Sabotage {
        name: "the VNI of an egress IP is removed",
        make: |maps| {
            maps.hash::<4, 4>("vnis")
                .remove(&maps.first::<4, 4>("vnis").0)
        },
    },
    Sabotage {
        name: "a VNI more",
        make: |maps| maps.hash("vnis").insert([1, 2, 3, 0], [2, 0, 0, 0], 0),
    },
    Sabotage {
        name: "a policy has another name",
        make: |maps| {
            let (index, mut name) = maps.first::<4, 256>("policy_names");
            name[0] = b'z';
            maps.hash("policy_names").insert(index, name, 0)
        },
    },
];

#[test]
fn what_others_do_to_entries_of_maps_is_undone_within_a_second() {
    let network = Network::new();
    network.apply("n2", plan("n2", "n1"));
    let keeper = network.keep("n1", network.config("n1"), plan("n1", "n1"));
    let maps = Pinned(network.pins("n1").join("v1"));
    let before = maps.contents();
    for Sabotage { name, make } in SABOTAGES {
        keeper.restores(Resource::Entry, name, || {
            make(&maps).unwrap();
            assert_ne!(maps.contents(), before, "{name}");
        });
        assert_eq!(maps.contents(), before, "{name}");
    }
    assert_eq!(
        network.seen_by_tcp("10.10.1.2", SERVER).as_deref(),
        Some(FLOATING)
    );
    // All is found as it was written: what is applied meanwhile is for the reading of everything, every ten seconds.
    assert!(keeper.applied_within(Duration::from_secs(3)) <= 1);
}
