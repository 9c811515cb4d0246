//! Loading, pinning and attaching the eBPF programs.

mod query;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray};
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfError, EbpfLoader};
use thiserror::Error;

use crate::config::Config;
use crate::maps::{DestinationKey, Egress, PodKey};

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
        "could not load the eBPF object: it takes CAP_BPF, CAP_NET_ADMIN and kernel 6.6 or later"
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
    /// A program was refused.
    #[error("could not load the eBPF program {name}")]
    Program {
        /// Its name.
        name: &'static str,
        /// What the kernel said.
        #[source]
        source: ProgramError,
    },
    /// A program could not be attached.
    #[error(
        "could not attach the eBPF program {name} to {interface}: TCX takes kernel 6.6 or later"
    )]
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
}

/// One of our programs: what it is called, which side of an interface it sits on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Steer,
    Encap,
    Decap,
}

impl Hook {
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
}

/// The maps that the agent writes.
pub(crate) struct Maps {
    pub(crate) pods: HashMap<MapData, PodKey, u32>,
    pub(crate) destinations: LpmTrie<MapData, DestinationKey, u32>,
    pub(crate) egress_ips: Array<MapData, Egress>,
    pub(crate) vnis: HashMap<MapData, u32, u32>,
    pub(crate) peers: HashMap<MapData, u32, u32>,
    pub(crate) counters: PerCpuArray<MapData, u64>,
}

/// What the eBPF programs counted, in packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Marked on the way out of a pod.
    pub steered: u64,
    /// Accepted from the tunnel.
    pub decapsulated: u64,
    /// Dropped at the tunnel device: no egress IP for the mark.
    pub no_egress: u64,
    /// Dropped on the gateway node: the sender is no node of the cluster (E47).
    pub unknown_peer: u64,
    /// Dropped on the gateway node: it does not translate to that egress IP.
    pub unknown_egress_id: u64,
}

impl Maps {
    /// Adds up the counters of all CPUs, in the order of `enum counter` in the C source.
    pub(crate) fn counters(&self) -> Result<Counters, ProgramsError> {
        let read = |index: u32| match self.counters.get(&index, 0) {
            Ok(values) => Ok(values.iter().sum()),
            Err(source) => Err(ProgramsError::Map {
                name: "counters",
                source,
            }),
        };
        Ok(Counters {
            steered: read(0)?,
            decapsulated: read(1)?,
            no_egress: read(2)?,
            unknown_peer: read(3)?,
            unknown_egress_id: read(4)?,
        })
    }
}

/// The loaded programs, and where their links are pinned.
pub(crate) struct Programs {
    ebpf: Ebpf,
    pins: PathBuf,
}

impl Programs {
    /// Loads the programs and opens the maps, those of an earlier run where they are pinned.
    pub(crate) fn load(config: &Config) -> Result<(Self, Maps), ProgramsError> {
        check_bpffs(&config.bpffs)?;
        let pins = config.pins();
        fs::create_dir_all(&pins).map_err(|source| ProgramsError::Pins {
            path: pins.clone(),
            source,
        })?;
        let mut ebpf = EbpfLoader::new()
            .default_map_pin_directory(&pins)
            .override_global("MARK_MASK", &config.mark.mask(), true)
            .override_global("MARK_TUNNEL", &config.mark.tunnel(), true)
            .override_global("MARK_SHIFT", &config.mark.shift(), true)
            .load(OBJECT)
            .map_err(ProgramsError::Load)?;
        let mut take = |name: &'static str| {
            ebpf.take_map(name)
                .expect("the object that we ship has this map")
        };
        macro_rules! map {
            ($name:literal) => {
                take($name)
                    .try_into()
                    .map_err(|source| ProgramsError::Map {
                        name: $name,
                        source,
                    })?
            };
        }
        let maps = Maps {
            pods: map!("pods"),
            destinations: map!("destinations"),
            egress_ips: map!("egress_ips"),
            vnis: map!("vnis"),
            peers: map!("peers"),
            counters: map!("counters"),
        };
        let mut programs = Self { ebpf, pins };
        for hook in [Hook::Steer, Hook::Encap, Hook::Decap] {
            let name = hook.name();
            programs
                .program(hook)
                .load()
                .map_err(|source| ProgramsError::Program { name, source })?;
        }
        Ok((programs, maps))
    }

    fn program(&mut self, hook: Hook) -> &mut SchedClassifier {
        self.ebpf
            .program_mut(hook.name())
            .and_then(|program| program.try_into().ok())
            .expect("the object that we ship has this classifier")
    }

    /// Puts a program on an interface. A pinned link of an earlier run is taken over: the program is swapped under running
    /// traffic. Returns whether it was not there before.
    pub(crate) fn attach(
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
    pub(crate) fn is_attached(&mut self, hook: Hook, ifindex: u32) -> bool {
        let Ok(own) = self.program(hook).info() else {
            return false;
        };
        query::attached(ifindex, hook.side()).is_ok_and(|ids| ids.contains(&own.id()))
    }

    /// The interfaces that have `steer` pinned, by index.
    pub(crate) fn steered(&self) -> Result<Vec<u32>, ProgramsError> {
        let read_error = |source| ProgramsError::Pins {
            path: self.pins.clone(),
            source,
        };
        let mut indices = Vec::new();
        for entry in fs::read_dir(&self.pins).map_err(read_error)? {
            let name = entry.map_err(read_error)?.file_name();
            let index = name
                .to_str()
                .and_then(|name| name.strip_prefix("link_steer_"));
            indices.extend(index.and_then(|index| index.parse::<u32>().ok()));
        }
        Ok(indices)
    }

    /// Takes `steer` off an interface.
    pub(crate) fn detach_steer(&self, ifindex: u32) -> Result<(), ProgramsError> {
        remove_pin(&Hook::Steer.pin(&self.pins, ifindex))
    }
}

fn check_bpffs(path: &Path) -> Result<(), ProgramsError> {
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
    match fs::remove_file(pin) {
        // Somebody else was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|source| ProgramsError::Pins {
            path: pin.to_owned(),
            source,
        }),
    }
}

/// The key of a destination prefix.
pub(crate) fn destination_key(set: u32, prefix: ipnet::Ipv4Net) -> Key<DestinationKey> {
    let bits = DestinationKey::SET_BITS + u32::from(prefix.prefix_len());
    Key::new(bits, DestinationKey::new(set, prefix.network()))
}

#[cfg(test)]
mod tests;
