//! Loading, pinning and attaching the eBPF programs.

mod attachment;
mod clsact;
mod counting;
mod departures;
mod layout;
mod netfilter;
mod outgrown;
mod pins;
mod query;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::maps::MapError;
use aya::pin::PinError;
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfError, EbpfLoader};
use thiserror::Error;

use crate::config::{Config, Encapsulation};
use crate::maps::{BY_INDEX, Maps, PODS};
use attachment::Mechanism;
use clsact::Maker;
use departures::Departures;
use pins::PinnedMaps;

pub use attachment::Attachment;
pub use counting::CountedAt;
pub(crate) use counting::remove_departures;
pub use departures::DeparturesError;

/// The compiled programs, shipped with the crate so that nobody needs clang to use it.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/egressnat.bpf.o"));

/// eBPF programs or maps could not be put in place.
#[derive(Debug, Error)]
pub enum ProgramsError {
    /// There is no bpffs.
    #[error("{0} is no bpffs: run 'mount -t bpf bpf {0}', or name another mount point")]
    NoBpffs(PathBuf),
    /// A directory for pins could not be made or read.
    #[error("could not use the pin directory {path}")]
    Pins {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The object did not load.
    #[error(
        "could not load the eBPF object: it takes Linux 5.18 or later, CAP_BPF and CAP_NET_ADMIN, and a seccomp profile that lets \
         bpf(2) through"
    )]
    Load(#[source] EbpfError),
    /// A map is missing or of another kind.
    #[error("could not use the eBPF map {name}")]
    Map {
        /// Its name.
        name: &'static str,
        /// What is wrong with it.
        #[source]
        source: MapError,
    },
    /// A pinned map could not be opened, or its entries not be read.
    #[error("could not use the pinned map {path}")]
    PinnedMap {
        /// Where it is pinned.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: MapError,
    },
    /// A map could not be pinned again.
    #[error("could not pin {path} again, from which the next run takes over")]
    Pin {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: PinError,
    },
    /// A map of another shape is pinned under the name of one of ours.
    #[error(
        "{path} is a map of another shape ({found}, not {wanted}): run 'egressnat-agent cleanup', or configure what it was made with"
    )]
    Layout {
        /// Where it is pinned.
        path: PathBuf,
        /// The shape of what is there.
        found: String,
        /// The shape that is ours.
        wanted: String,
    },
    /// A map has no room.
    #[error("the eBPF map {name} is full: all else is in place, and this comes once there is room")]
    Full {
        /// Its name.
        name: &'static str,
    },
    /// A program was refused.
    #[error(
        "could not load the eBPF program {name}, which takes CAP_PERFMON too on some kernels, such as Debian's 6.1"
    )]
    Program {
        /// Its name.
        name: &'static str,
        /// What the kernel said.
        #[source]
        source: ProgramError,
    },
    /// TCX is wanted and the kernel has none.
    #[error("the kernel has no TCX, which takes 6.6 or later: allow clsact")]
    NoTcx,
    /// A filter could not be put on an interface or taken off.
    #[error("could not put a filter on interface {interface} or take it off")]
    Filter {
        /// The interface, by name or index.
        interface: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A program could not be attached.
    #[error("could not attach the eBPF program {name} to {interface}")]
    Attach {
        /// The program.
        name: &'static str,
        /// The interface.
        interface: String,
        /// What the kernel said.
        #[source]
        source: ProgramError,
    },
    /// A link could not be pinned, read back or removed.
    #[error("could not use the pinned link {path}")]
    Link {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: LinkError,
    },
    /// What counts packets where they leave could not be put back, or taken away.
    #[error("could not count what leaves where it leaves")]
    Departures(#[source] DeparturesError),
}

/// One of our programs: what it is called, which side of an interface it sits on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Steer,
    Encap,
    Decap,
}

impl Hook {
    const ALL: [Hook; 3] = [Hook::Steer, Hook::Encap, Hook::Decap];

    fn name(self) -> &'static str {
        match self {
            Hook::Steer => "steer",
            Hook::Encap => "encap",
            Hook::Decap => "decap",
        }
    }

    fn side(self) -> TcAttachType {
        match self {
            Hook::Steer | Hook::Decap => TcAttachType::Ingress,
            Hook::Encap => TcAttachType::Egress,
        }
    }

    /// Pins are named by interface index: a name may come back as another interface.
    fn pin(self, pins: &Path, ifindex: u32) -> PathBuf {
        pins.join(format!("link_{}_{ifindex}", self.name()))
    }

    /// A filter cannot be pinned: an empty directory says that there is one.
    fn note(self, pins: &Path, ifindex: u32) -> PathBuf {
        pins.join(format!("filter_{}_{ifindex}", self.name()))
    }
}

impl std::fmt::Display for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The loaded programs, and where their links are pinned.
pub(crate) struct Programs {
    ebpf: Ebpf,
    pins: PathBuf,
    mechanism: Mechanism,
    /// What the kernel calls them, in the order of [`Hook::ALL`].
    ids: [u32; Hook::ALL.len()],
    pinned: PinnedMaps,
    /// The interfaces whose queueing discipline is ours. It is noted beside the pins, and known here when somebody deletes them.
    qdiscs: BTreeSet<u32>,
    /// Where the kernel takes programs there.
    departures: Option<Departures>,
}

impl Programs {
    /// Loads the programs of interfaces, and opens the maps, those of an earlier run where they are pinned.
    pub(crate) fn load(
        config: &Config,
        counted_at: CountedAt,
    ) -> Result<(Self, Maps), ProgramsError> {
        let mechanism = config.attachment.mechanism()?;
        let pins = config.pins();
        fs::create_dir_all(&pins).map_err(|source| ProgramsError::Pins {
            path: pins.clone(),
            source,
        })?;
        layout::check(&pins, config)?;
        let writes_headers = u32::from(config.encapsulation == Encapsulation::Program);
        let counts_departures = u32::from(counted_at == CountedAt::Departure);
        let mut loader = EbpfLoader::new();
        for name in PODS {
            loader.map_max_entries(name, config.max_pods);
        }
        for name in BY_INDEX {
            loader.map_max_entries(name, config.mark.indices());
        }
        let mut ebpf = loader
            .default_map_pin_directory(&pins)
            .override_global("MARK_MASK", &config.mark.mask(), true)
            .override_global("MARK_TUNNEL", &config.mark.tunnel(), true)
            .override_global("MARK_SHIFT", &config.mark.shift(), true)
            .override_global("TUNNEL_PORT", &config.tunnel_port, true)
            .override_global("WRITES_HEADERS", &writes_headers, true)
            .override_global("COUNTS_DEPARTURES", &counts_departures, true)
            .load(OBJECT)
            .map_err(ProgramsError::Load)?;
        let mut maps = Maps::open(|name| {
            let map = ebpf.take_map(name);
            Ok(map.expect("the object that we ship has this map"))
        })?;
        outgrown::take_over(&pins, &mut maps, config.mark)?;
        let mut programs = Self {
            ebpf,
            pinned: PinnedMaps::open(&pins)?,
            qdiscs: noted(QDISC, &names(&pins)?).collect(),
            pins,
            mechanism,
            ids: Default::default(),
            departures: None,
        };
        for hook in Hook::ALL {
            let name = hook.name();
            let program = programs.program(hook);
            let loaded = program.load().and_then(|()| program.info());
            let info = loaded.map_err(|source| ProgramsError::Program { name, source })?;
            programs.ids[hook as usize] = info.id();
        }
        Ok((programs, maps))
    }

    fn program(&mut self, hook: Hook) -> &mut SchedClassifier {
        self.ebpf
            .program_mut(hook.name())
            .and_then(|program| program.try_into().ok())
            .expect("the object that we ship has this classifier")
    }

    /// Puts a program on an interface. What is there from an earlier run is taken over: the program is swapped under running
    /// traffic, also when it was attached by the other mechanism. Returns whether it was not there before.
    pub(crate) fn attach(
        &mut self,
        hook: Hook,
        interface: &str,
        ifindex: u32,
    ) -> Result<bool, ProgramsError> {
        match self.mechanism {
            Mechanism::Tcx => {
                let made = self.attach_link(hook, interface, ifindex)?;
                self.remove_filter(hook, ifindex)?;
                Ok(made)
            }
            Mechanism::Clsact => {
                let made = self.attach_filter(hook, interface, ifindex)?;
                remove_pin(&hook.pin(&self.pins, ifindex))?;
                Ok(made)
            }
        }
    }

    fn attach_filter(
        &mut self,
        hook: Hook,
        interface: &str,
        ifindex: u32,
    ) -> Result<bool, ProgramsError> {
        let attach_error = |source| ProgramsError::Attach {
            name: hook.name(),
            interface: interface.to_owned(),
            source,
        };
        let (note, qdisc) = (hook.note(&self.pins, ifindex), self.qdisc_note(ifindex));
        // Before the filter: what is there and not noted would be left behind.
        make_note(&note)?;
        let known = match self.qdiscs.contains(&ifindex) {
            true => Maker::Us,
            false => Maker::Others,
        };
        let program = self.program(hook).fd().map_err(attach_error)?.as_fd();
        let attached = clsact::attach(ifindex, hook.side(), program, hook.name(), known);
        let attached = attached.map_err(|source| ProgramsError::Filter {
            interface: interface.to_owned(),
            source,
        })?;
        if attached.qdisc == Maker::Us {
            self.qdiscs.insert(ifindex);
            make_note(&qdisc)?;
        }
        Ok(attached.filter_made)
    }

    fn qdisc_note(&self, ifindex: u32) -> PathBuf {
        self.pins.join(format!("{QDISC}{ifindex}"))
    }

    fn remove_filter(&mut self, hook: Hook, ifindex: u32) -> Result<(), ProgramsError> {
        let note = hook.note(&self.pins, ifindex);
        if !note.exists() {
            return Ok(());
        }
        let filter_error = |source| ProgramsError::Filter {
            interface: ifindex.to_string(),
            source,
        };
        clsact::detach(ifindex, hook.side()).map_err(filter_error)?;
        remove_note(&note)?;
        let (qdisc, other) = (
            self.qdisc_note(ifindex),
            Hook::ALL.map(|hook| hook.note(&self.pins, ifindex)),
        );
        if qdisc.exists() && !other.iter().any(|note| note.exists()) {
            clsact::remove_empty_qdisc(ifindex).map_err(filter_error)?;
            remove_note(&qdisc)?;
            self.qdiscs.remove(&ifindex);
        }
        Ok(())
    }

    fn attach_link(
        &mut self,
        hook: Hook,
        interface: &str,
        ifindex: u32,
    ) -> Result<bool, ProgramsError> {
        let pin = hook.pin(&self.pins, ifindex);
        if pin.exists() {
            if self.take_over(hook, &pin)? {
                return Ok(false);
            }
            // Its interface is gone, and the index has been given out again.
            remove_pin(&pin)?;
        }
        let attach_error = |source| ProgramsError::Attach {
            name: hook.name(),
            interface: interface.to_owned(),
            source,
        };
        let program = self.program(hook);
        // After other programs: what they drop is never ours to decide.
        let options = TcAttachOptions::TcxOrder(LinkOrder::last());
        let id = program
            .attach_with_options(interface, hook.side(), options)
            .map_err(attach_error)?;
        let link: FdLink = program
            .take_link(id)
            .map_err(attach_error)?
            .try_into()
            .map_err(|source| ProgramsError::Link {
                path: pin.clone(),
                source,
            })?;
        // The kernel keeps a pinned link when this process lets go of it.
        link.pin(&pin).map_err(|source| ProgramsError::Link {
            path: pin.clone(),
            source: LinkError::SyscallError(aya::sys::SyscallError {
                call: "BPF_OBJ_PIN",
                io_error: io::Error::other(source),
            }),
        })?;
        Ok(true)
    }

    /// Swaps the program of a pinned link. Returns false if the link's interface is gone.
    fn take_over(&mut self, hook: Hook, pin: &Path) -> Result<bool, ProgramsError> {
        let link_error = |source| ProgramsError::Link {
            path: pin.to_owned(),
            source,
        };
        let link = FdLink::from(PinnedLink::from_pin(pin).map_err(link_error)?);
        let link = SchedClassifierLink::try_from(link).map_err(link_error)?;
        let program = self.program(hook);
        let Ok(id) = program.attach_to_link(link) else {
            return Ok(false);
        };
        // Out of aya's hands, or it would detach the link when the programs are dropped.
        let attach_error = |source| ProgramsError::Attach {
            name: hook.name(),
            interface: pin.display().to_string(),
            source,
        };
        drop(program.take_link(id).map_err(attach_error)?);
        Ok(true)
    }

    /// Whether this very program is on an interface: others may have taken it off, whatever is pinned.
    pub(crate) fn is_attached(&self, hook: Hook, ifindex: u32) -> bool {
        let own = self.ids[hook as usize];
        match self.mechanism {
            Mechanism::Tcx => {
                query::attached(ifindex, hook.side()).is_ok_and(|ids| ids.contains(&own))
            }
            Mechanism::Clsact => {
                let is_noted = hook.note(&self.pins, ifindex).exists();
                is_noted && clsact::attached(ifindex, hook.side()).is_ok_and(|id| id == Some(own))
            }
        }
    }

    /// Whether all maps are still pinned.
    pub(crate) fn are_pinned(&self) -> bool {
        self.pinned.are_there()
    }

    /// Pins the maps again that somebody unpinned, in the bpffs `bpffs`, and gives their names.
    pub(crate) fn restore_pins(&self, bpffs: &Path) -> Result<Vec<String>, ProgramsError> {
        self.pinned.restore(bpffs)
    }

    /// The interfaces that have `steer` by an earlier run or this one, by index.
    pub(crate) fn steered(&self) -> Result<BTreeSet<u32>, ProgramsError> {
        let index = |name: &str| {
            let name = name
                .strip_prefix("link_")
                .or(name.strip_prefix("filter_"))?;
            name.strip_prefix("steer_")?.parse().ok()
        };
        Ok(names(&self.pins)?
            .iter()
            .filter_map(|name| index(name))
            .collect())
    }

    /// Takes `steer` off an interface.
    pub(crate) fn detach_steer(&mut self, ifindex: u32) -> Result<(), ProgramsError> {
        remove_pin(&Hook::Steer.pin(&self.pins, ifindex))?;
        self.remove_filter(Hook::Steer, ifindex)
    }
}

/// Takes all our filters off `interfaces`, whether they are noted or not, and the queueing disciplines that are noted below `root`, or by
/// the filters themselves, if they are empty then; links go with their pins. Goes on behind an error, and tells the first.
pub(crate) fn remove_filters(
    root: &Path,
    interfaces: impl IntoIterator<Item = u32>,
) -> Result<(), ProgramsError> {
    let mut outcome = Ok(());
    let mut note = |ifindex: u32, removed: io::Result<()>| {
        let removed = removed.map_err(|source| ProgramsError::Filter {
            interface: ifindex.to_string(),
            source,
        });
        outcome = std::mem::replace(&mut outcome, Ok(())).and(removed);
    };
    for ifindex in interfaces {
        let maker = clsact::maker(ifindex);
        for side in clsact::SIDES {
            note(ifindex, clsact::detach(ifindex, side));
        }
        match maker {
            Ok(Maker::Us) => note(ifindex, clsact::remove_empty_qdisc(ifindex)),
            Ok(Maker::Others) => {}
            Err(error) => note(ifindex, Err(error)),
        }
    }
    for layout in names(root)? {
        for ifindex in noted(QDISC, &names(&root.join(layout))?) {
            note(ifindex, clsact::remove_empty_qdisc(ifindex));
        }
    }
    outcome
}

/// What the name of a note of a queueing discipline begins with.
const QDISC: &str = "qdisc_";

/// The interfaces of the notes that begin so.
fn noted(prefix: &str, names: &[String]) -> impl Iterator<Item = u32> {
    let index = move |name: &String| name.strip_prefix(prefix)?.parse().ok();
    names.iter().filter_map(index)
}

/// What is in a directory of pins, which may not be there.
fn names(directory: &Path) -> Result<Vec<String>, ProgramsError> {
    let read_error = |source| ProgramsError::Pins {
        path: directory.to_owned(),
        source,
    };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(read_error)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(read_error)?.file_name();
        names.extend(name.into_string());
    }
    Ok(names)
}

fn make_note(note: &Path) -> Result<(), ProgramsError> {
    match fs::create_dir(note) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(|source| ProgramsError::Pins {
            path: note.to_owned(),
            source,
        }),
    }
}

fn remove_note(note: &Path) -> Result<(), ProgramsError> {
    match fs::remove_dir(note) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|source| ProgramsError::Pins {
            path: note.to_owned(),
            source,
        }),
    }
}

/// Fails where no bpffs is mounted: pins would be ordinary files.
pub(crate) fn check_bpffs(path: &Path) -> Result<(), ProgramsError> {
    let is_bpffs = nix::sys::statfs::statfs(path)
        .is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC);
    if is_bpffs {
        Ok(())
    } else {
        Err(ProgramsError::NoBpffs(path.to_owned()))
    }
}

/// Removing the pin drops the last reference to the link: the kernel detaches the program.
fn remove_pin(pin: &Path) -> Result<(), ProgramsError> {
    unlink(pin).map_err(|source| ProgramsError::Pins {
        path: pin.to_owned(),
        source,
    })
}

fn unlink(pin: &Path) -> io::Result<()> {
    match fs::remove_file(pin) {
        // Somebody else was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
pub(crate) mod tests;
