//! The maps in their directory: by it the next run finds them. When somebody empties it, they live on with the programs that use
//! them, and can be pinned again.

use std::fs;
use std::path::{Path, PathBuf};

use aya::maps::MapData;

use super::{ProgramsError, check_bpffs, names, outgrown};

/// The maps that a loaded object has pinned.
pub(super) struct PinnedMaps {
    maps: Vec<(PathBuf, MapData)>,
}

impl PinnedMaps {
    /// Opens all maps that are pinned in a directory.
    pub(super) fn open(pins: &Path) -> Result<Self, ProgramsError> {
        let is_map = |name: &String| {
            let others = ["link_", "filter_", "qdisc_"];
            !others.iter().any(|prefix| name.starts_with(prefix)) && !outgrown::is_set_aside(name)
        };
        let mut maps = Vec::new();
        for name in names(pins)?.into_iter().filter(is_map) {
            let path = pins.join(name);
            let map = MapData::from_pin(&path).map_err(|source| ProgramsError::PinnedMap {
                path: path.clone(),
                source,
            })?;
            maps.push((path, map));
        }
        Ok(Self { maps })
    }

    /// Whether all of them still are.
    pub(super) fn are_there(&self) -> bool {
        self.maps.iter().all(|(path, _)| path.exists())
    }

    /// Pins again those that are not, and gives their names.
    pub(super) fn restore(&self, bpffs: &Path) -> Result<Vec<String>, ProgramsError> {
        let mut restored = Vec::new();
        for (path, map) in &self.maps {
            if path.exists() {
                continue;
            }
            // Where somebody unmounted it, directories would be ordinary ones.
            check_bpffs(bpffs)?;
            if let Some(pins) = path.parent() {
                fs::create_dir_all(pins).map_err(|source| ProgramsError::Pins {
                    path: pins.to_owned(),
                    source,
                })?;
            }
            map.pin(path).map_err(|source| ProgramsError::Pin {
                path: path.clone(),
                source,
            })?;
            let name = path.file_name().unwrap_or_default();
            restored.push(name.to_string_lossy().into_owned());
        }
        Ok(restored)
    }
}
