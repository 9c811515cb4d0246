//! Maps of pods that are pinned with another number of entries than they are to have now.
//!
//! The kernel gives a map no other size. So it is set aside, the new one gets what it has, and then it goes. Programs that are
//! attached use the old one until they are swapped, which comes next.

use std::fs;
use std::path::Path;

use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapError};

use super::{ProgramsError, names, remove_pin};

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

/// Brings what maps have that were set aside into those that took their place, and removes them.
pub(super) fn take_over(pins: &Path) -> Result<(), ProgramsError> {
    for name in names(pins)? {
        let Some(new) = name.strip_prefix(PREFIX) else {
            continue;
        };
        let (old, new) = (pins.join(&name), pins.join(new));
        let map_error = |path: &Path| {
            let path = path.to_owned();
            |source| ProgramsError::PinnedMap { path, source }
        };
        let [from, to] = [&old, &new].map(|path| MapData::from_pin(path).map_err(map_error(path)));
        let (from, to) = (from?, to?);
        let key = from.info().map_err(map_error(&old))?.key_size() as usize;
        let copied = match key {
            IPV4_POD => copy::<[u8; IPV4_POD]>(from, to),
            IPV6_POD => copy::<[u8; IPV6_POD]>(from, to),
            _ => Ok(()),
        };
        copied.map_err(map_error(&new))?;
        remove_pin(&old)?;
    }
    Ok(())
}

/// Bytes of a pod's address and of its interface's index.
const IPV4_POD: usize = 8;
const IPV6_POD: usize = 20;

/// Copies all entries for which there is room. Those that find none are told when the plan is applied.
fn copy<K: Pod>(from: MapData, to: MapData) -> Result<(), MapError> {
    let from: HashMap<MapData, K, u32> = Map::HashMap(from).try_into()?;
    let mut to: HashMap<MapData, K, u32> = Map::HashMap(to).try_into()?;
    for entry in from.iter() {
        let (key, value) = entry?;
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
