//! Where packets are counted that leave from this node itself: behind everything that may drop them, if the kernel lets us.

use std::path::Path;

use super::departures::{self, Departures};
use super::pins::PinnedMaps;
use super::{Programs, ProgramsError, names};
use crate::config::Config;
use crate::dataplane::chain;
use crate::maps::Maps;

/// Where packets are counted that leave with an egress IP of this node or with their pod's address. What goes into a tunnel is counted there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CountedAt {
    /// Where they leave: what anything on the node drops is not counted (E13).
    #[default]
    Departure,
    /// Where they leave their pods, also those that a network policy drops afterwards: before Linux 6.4, and without CAP_PERFMON.
    Pod,
}

impl CountedAt {
    /// By what is pinned.
    pub(crate) fn read(pins: &Path) -> Self {
        match departures::are_pinned(pins) {
            true => CountedAt::Departure,
            false => CountedAt::Pod,
        }
    }
}

impl Programs {
    /// Loads the programs and opens the maps, those of an earlier run where they are pinned. Puts what counts in its place in this thread's
    /// network namespace, and says how many programs were not there before: packets are counted at their pods where that cannot be.
    pub(crate) fn open(config: &Config) -> Result<(Self, Maps, usize), ProgramsError> {
        let (mut programs, maps) = Self::load(config, CountedAt::Departure)?;
        match Departures::put(&programs.pins, config.mark) {
            Ok((departures, made)) => {
                programs.departures = Some(departures);
                // There is one more.
                programs.pinned = PinnedMaps::open(&programs.pins)?;
                Ok((programs, maps, made))
            }
            Err(error) => {
                tracing::info!(
                    reason = chain(&error),
                    "what leaves from this node is counted at its pods, with what network policies drop"
                );
                let (programs, maps) = Self::load(config, CountedAt::Pod)?;
                Ok((programs, maps, 0))
            }
        }
    }

    /// Where packets are counted that leave with an egress IP of this node or with their pod's address.
    pub(crate) fn counted_at(&self) -> CountedAt {
        match self.departures {
            Some(_) => CountedAt::Departure,
            None => CountedAt::Pod,
        }
    }

    /// Whether what counts where packets leave is in its place, as far as it was ever there.
    pub(crate) fn are_departures_there(&self) -> bool {
        self.departures.as_ref().is_none_or(Departures::are_there)
    }

    /// Puts back what others took away of it, and names it.
    pub(crate) fn restore_departures(&mut self) -> Result<Vec<String>, ProgramsError> {
        match &mut self.departures {
            Some(departures) => departures.restore().map_err(ProgramsError::Departures),
            None => Ok(Vec::new()),
        }
    }

    /// Takes away what counts where packets leave, of an earlier run, if this run counts at pods. Every `steer` is of this run by now.
    pub(crate) fn leave_departures(&self) -> Result<(), ProgramsError> {
        match self.departures {
            Some(_) => Ok(()),
            None => departures::remove(&self.pins).map_err(ProgramsError::Departures),
        }
    }
}

/// Takes off their hooks, below `root`, what counts where packets leave: a link that is only unpinned is there for a moment longer. Goes on
/// behind an error, and tells the first.
pub(crate) fn remove_departures(root: &Path) -> Result<(), ProgramsError> {
    let mut outcome = Ok(());
    for layout in names(root)? {
        outcome = outcome.and(departures::remove(&root.join(layout)));
    }
    outcome.map_err(ProgramsError::Departures)
}
