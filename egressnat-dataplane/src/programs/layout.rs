//! The shapes of our maps: one of another shape that is pinned would be opened without an error, and misread.

use std::fmt;
use std::path::Path;

use aya::maps::{MapInfo, MapType};

use super::{ProgramsError, outgrown};
use crate::config::Config;
use crate::maps::{BY_INDEX, EgressTraffic, MAX_POLICIES, NAME_LENGTH, PODS, PolicyTraffic};

/// As in the C source.
const MAX_DESTINATIONS: u32 = 262_144;
const MAX_PEERS: u32 = 16_384;
const FLOW_BUCKETS: u32 = 8_192;
/// Bytes of a bucket.
const FLOW_BUCKET: usize = 64;

/// Bytes of an address.
const IPV4: usize = 4;
const IPV6: usize = 16;

/// What a map is made of.
#[derive(Debug, PartialEq)]
struct Shape {
    kind: Option<MapType>,
    key: usize,
    value: usize,
    entries: u32,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Some(kind) => write!(f, "{kind:?}")?,
            None => write!(f, "unknown kind")?,
        }
        let Self {
            key,
            value,
            entries,
            ..
        } = self;
        write!(f, " of {entries} entries, {key} bytes to {value} bytes")
    }
}

/// The maps whose keys or values mean something to more than one release.
fn shapes(config: &Config) -> Vec<(&'static str, Shape)> {
    const WORD: usize = size_of::<u32>();
    let shape = |kind, key, value, entries| Shape {
        kind: Some(kind),
        key,
        value,
        entries,
    };
    let indices = config.mark.indices();
    let counted = size_of::<EgressTraffic>();
    let mut shapes = vec![
        ("vnis", shape(MapType::Hash, WORD, WORD, indices)),
        (
            "traffic",
            shape(MapType::PerCpuArray, WORD, counted, indices),
        ),
        ("peers", shape(MapType::Hash, WORD, WORD, MAX_PEERS)),
        ("peers6", shape(MapType::Hash, IPV6, WORD, MAX_PEERS)),
        (
            "policy_traffic",
            shape(
                MapType::PerCpuArray,
                WORD,
                size_of::<PolicyTraffic>(),
                MAX_POLICIES,
            ),
        ),
        ("departures", shape(MapType::ProgramArray, WORD, WORD, 1)),
        (
            "flows",
            shape(MapType::Array, WORD, FLOW_BUCKET, FLOW_BUCKETS),
        ),
        (
            "policy_names",
            shape(MapType::Hash, WORD, NAME_LENGTH, MAX_POLICIES),
        ),
    ];
    for (address, [pods, destinations, egress_ips]) in [
        (IPV4, ["pods", "destinations", "egress_ips"]),
        (IPV6, ["pods6", "destinations6", "egress_ips6"]),
    ] {
        // With the interface; with the prefix length and the policy set; with the VNI and whether it is held here.
        let (pod, destination, egress) = (address + WORD, 2 * WORD + address, address + 2 * WORD);
        shapes.extend([
            (pods, shape(MapType::Hash, pod, WORD, config.max_pods)),
            (
                destinations,
                shape(MapType::LpmTrie, destination, WORD, MAX_DESTINATIONS),
            ),
            (egress_ips, shape(MapType::Array, WORD, egress, indices)),
        ]);
    }
    shapes
}

/// Fails if a map of another shape is pinned. One whose size is configured, and that differs in nothing else, is set aside.
pub(super) fn check(pins: &Path, config: &Config) -> Result<(), ProgramsError> {
    for (name, wanted) in shapes(config) {
        let path = pins.join(name);
        if !path.exists() {
            continue;
        }
        let info =
            MapInfo::from_pin(&path).map_err(|source| ProgramsError::Map { name, source })?;
        let found = Shape {
            kind: info.map_type().ok(),
            key: info.key_size() as usize,
            value: info.value_size() as usize,
            entries: info.max_entries(),
        };
        let is_resizable = PODS.contains(&name) || BY_INDEX.contains(&name);
        let is_resized = is_resizable && {
            let entries = found.entries;
            found != wanted && found == Shape { entries, ..wanted }
        };
        if is_resized {
            outgrown::set_aside(&path)?;
        } else if found != wanted {
            return Err(ProgramsError::Layout {
                path,
                found: found.to_string(),
                wanted: wanted.to_string(),
            });
        }
    }
    Ok(())
}
