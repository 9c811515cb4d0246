//! Loading the programs of a netfilter hook: aya parses and relocates them, and has no such type of program.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use aya::maps::{Array, Map, MapData, MapError};
use aya_obj::Object;
use aya_obj::btf::Btf;

use super::{ARRAY, COUNTING, DeparturesError, LINKED, program_error};
use crate::mark::MarkMask;
use crate::programs::netfilter;

static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/departure.bpf.o"));

/// What is told to the programs: as many bytes as their constants have.
const RODATA: &str = ".rodata";
type Constants = [u8; 16];

/// The programs of the object that we ship, in the kernel.
pub(super) struct Loaded {
    pub(super) linked: OwnedFd,
    pub(super) counting: OwnedFd,
    /// By which the one leads to the other.
    pub(super) array: OwnedFd,
}

impl Loaded {
    /// Loads them. They count in the maps that are pinned in `pins`, where the array is too, or is to be.
    pub(super) fn load(pins: &Path, mark: MarkMask) -> Result<Self, DeparturesError> {
        let mut object = Object::parse(OBJECT)?;
        let bytes = [mark.mask(), mark.tunnel(), mark.shift(), mark.max_index()];
        let bytes = bytes.map(u32::to_ne_bytes);
        let constants = ["MARK_MASK", "MARK_TUNNEL", "MARK_SHIFT", "MAX_INDEX"];
        let constants = constants.into_iter().zip(&bytes);
        let constants = constants.map(|(name, bytes)| (name, (&bytes[..], true)));
        object.patch_map_data(constants.collect())?;
        object.relocate_btf(&Btf::from_sys_fs()?)?;
        let mut maps = open_maps(&object, pins)?;
        let [linked, counting] = load_programs(object, &maps)?;
        let array = maps.remove(ARRAY);
        Ok(Self {
            linked,
            counting,
            array: array.expect("the object that we ship has this map"),
        })
    }
}

/// The maps of an object: its constants, those that are pinned, and a new array if that is not.
fn open_maps(object: &Object, pins: &Path) -> Result<HashMap<String, OwnedFd>, DeparturesError> {
    let mut maps = HashMap::new();
    for (name, definition) in &object.maps {
        let map_error = |source| DeparturesError::Map {
            name: name.clone(),
            source,
        };
        let path = pins.join(name);
        // All others were made with the programs of interfaces.
        let is_new = name == RODATA || name == ARRAY && !path.exists();
        let opened = match is_new {
            true => MapData::create(definition.clone(), name, None),
            false => MapData::from_pin(&path),
        };
        let opened = opened.map_err(map_error)?;
        let file = opened.fd().as_fd().try_clone_to_owned();
        let file = file.map_err(|error| map_error(MapError::IoError(error)))?;
        if name == RODATA {
            write_constants(opened, definition.data()).map_err(map_error)?;
        }
        maps.insert(name.clone(), file);
    }
    Ok(maps)
}

fn write_constants(map: MapData, bytes: &[u8]) -> Result<(), MapError> {
    let mut array: Array<MapData, Constants> = Map::Array(map).try_into()?;
    let constants = bytes.first_chunk();
    let constants: &Constants = constants.expect("the object that we ship has them");
    array.set(0, constants, 0)
}

/// Loads both programs of an object, whose maps these are.
fn load_programs(
    mut object: Object,
    maps: &HashMap<String, OwnedFd>,
) -> Result<[OwnedFd; 2], DeparturesError> {
    let sections = object.functions.keys().map(|(section, _)| *section);
    let sections: HashSet<usize> = sections.collect();
    let definitions = std::mem::take(&mut object.maps);
    let opened = definitions
        .iter()
        .map(|(name, definition)| (name.as_str(), maps[name].as_raw_fd(), definition));
    object.relocate_maps(opened, &sections)?;
    object.relocate_calls(&sections)?;
    let load = |name| {
        let function = &object.functions[&object.programs[name].function_key()];
        netfilter::load(name, &object.license, &function.instructions).map_err(program_error(name))
    };
    Ok([load(LINKED)?, load(COUNTING)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::programs::tests::Pins;
    use crate::programs::{CountedAt, Programs};

    #[test]
    fn the_running_kernel_takes_both_programs_of_the_object() {
        let pins = Pins::mount();
        let config = pins.config();
        let _maps = Programs::load(&config, CountedAt::Departure).unwrap();
        let loaded = Loaded::load(&config.pins(), config.mark).unwrap();
        netfilter::lead_to(loaded.array.as_fd(), loaded.counting.as_fd()).unwrap();
        let leads_to = netfilter::leads_to(loaded.array.as_fd()).unwrap();
        assert_eq!(leads_to, netfilter::id(loaded.counting.as_fd()).unwrap());
        assert_ne!(leads_to, netfilter::id(loaded.linked.as_fd()).unwrap());
    }
}
