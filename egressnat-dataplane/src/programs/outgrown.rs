//! Maps that are pinned with another number of entries than they are to have now.
//!
//! The kernel gives a map no other size. So it is set aside, the new one gets what it has, and then it goes. Programs that are
//! attached use the old one until they are swapped, which comes next: what they count until then is lost.
//!
//! A narrower mark mask may have no room for an index that is in use. Then nothing is known of its egress IP any more, and what was
//! decided to leave with it does not leave until a plan says how: cut off, the index would be another one's.

use std::fs;
use std::path::Path;

use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};

use super::{ProgramsError, names, remove_pin};
use crate::maps::{BY_INDEX, EgressTraffic, Maps, read_array};
use crate::mark::MarkMask;

/// What the name of a map begins with that was set aside. A run that ended in the middle leaves it to the next one.
const PREFIX: &str = "outgrown_";

/// Whether a pin is of a map that was set aside.
pub(super) fn is_set_aside(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Sets a map aside, so that one of another size is made in its place.
pub(super) fn set_aside(pin: &Path) -> Result<(), ProgramsError> {
    let name = pin.file_name().unwrap_or_default().to_string_lossy();
    let aside = pin.with_file_name(format!("{PREFIX}{name}"));
    fs::rename(pin, aside).map_err(|source| ProgramsError::Pins {
        path: pin.to_owned(),
        source,
    })
}

/// Brings what maps have that were set aside into those that took their place, and removes them. `maps` are those that are in place.
pub(super) fn take_over(pins: &Path, maps: &mut Maps, mark: MarkMask) -> Result<(), ProgramsError> {
    for name in names(pins)? {
        let Some(new) = name.strip_prefix(PREFIX) else {
            continue;
        };
        let (old, new_pin) = (pins.join(&name), pins.join(new));
        let map_error = |path: &Path| {
            let path = path.to_owned();
            |source| ProgramsError::PinnedMap { path, source }
        };
        let open = |path: &Path| {
            let map = MapData::from_pin(path).map_err(map_error(path))?;
            let entries = map.info().map_err(map_error(path))?.max_entries();
            Ok((map, entries))
        };
        let ((from, before), (to, now)) = (open(&old)?, open(&new_pin)?);
        if BY_INDEX.contains(&new) && now < before {
            maps.block_beyond(mark.max_index())?;
        }
        let copied = match new {
            "pods" => copy_hash::<[u8; 8], u32>(from, to, |_| true),
            "pods6" => copy_hash::<[u8; 20], u32>(from, to, |_| true),
            "vnis" => copy_hash::<u32, u32>(from, to, |index| *index <= mark.max_index()),
            "egress_ips" => copy_array::<12>(from, to),
            "egress_ips6" => copy_array::<24>(from, to),
            "traffic" => copy_traffic(from, to),
            _ => Ok(()),
        };
        copied.map_err(map_error(&new_pin))?;
        remove_pin(&old)?;
    }
    Ok(())
}

/// Copies all entries for which there is room, but those that are not wanted. Those that find no room are told when the plan is applied.
fn copy_hash<K: Pod, V: Pod>(
    from: MapData,
    to: MapData,
    is_wanted: impl Fn(&V) -> bool,
) -> Result<(), MapError> {
    let from: HashMap<MapData, K, V> = Map::HashMap(from).try_into()?;
    let mut to: HashMap<MapData, K, V> = Map::HashMap(to).try_into()?;
    for entry in from.iter() {
        let (key, value) = entry?;
        if !is_wanted(&value) {
            continue;
        }
        match to.insert(key, value, 0) {
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::E2BIG) =>
            {
                return Ok(());
            }
            inserted => inserted?,
        }
    }
    Ok(())
}

/// Copies the values of the indices that both have.
fn copy_array<const BYTES: usize>(from: MapData, to: MapData) -> Result<(), MapError> {
    let from: Array<MapData, [u8; BYTES]> = Map::Array(from).try_into()?;
    let mut to: Array<MapData, [u8; BYTES]> = Map::Array(to).try_into()?;
    let both = 0..from.len().min(to.len());
    for (index, value) in both.zip(read_array(&from)?) {
        if value != [0; BYTES] {
            to.set(index, value, 0)?;
        }
    }
    Ok(())
}

/// Copies what was counted for the indices that both have.
fn copy_traffic(from: MapData, to: MapData) -> Result<(), MapError> {
    let from: PerCpuArray<MapData, EgressTraffic> = Map::PerCpuArray(from).try_into()?;
    let mut to: PerCpuArray<MapData, EgressTraffic> = Map::PerCpuArray(to).try_into()?;
    for index in 0..from.len().min(to.len()) {
        let counted = from.get(&index, 0)?;
        if counted
            .iter()
            .any(|traffic| *traffic != EgressTraffic::default())
        {
            to.set(index, counted, 0)?;
        }
    }
    Ok(())
}
