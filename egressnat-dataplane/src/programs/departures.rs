//! Counting packets where they leave the node: a program at netfilter's postrouting, behind everything that may drop them.
//!
//! The kernel gives a link there no other program. So the one that is linked only leads to what counts, by a pinned array of one place, and
//! stays over restarts and releases: what counts is changed in one step, and no packet is counted twice or not at all.

mod object;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::MapError;
use aya_obj::ParseError;
use aya_obj::btf::{BtfError, BtfRelocationError};
use aya_obj::relocation::EbpfRelocationError;
use thiserror::Error;

use super::{netfilter, unlink};
use crate::family::Family;
use crate::mark::MarkMask;
use object::Loaded;

/// The program that is linked, and the one that counts.
const LINKED: &str = "depart";
const COUNTING: &str = "count_departure";
/// The array by which the one leads to the other.
const ARRAY: &str = "departures";
/// What the pins of links begin with.
const LINK: &str = "link_depart_";

/// Packets cannot be counted where they leave the node.
#[derive(Debug, Error)]
pub enum DeparturesError {
    /// The object that we ship is not as it should be.
    #[error("could not read the eBPF object")]
    Object(#[from] ParseError),
    /// The running kernel does not say what its structures are like.
    #[error("the kernel tells nothing of its types, which takes CONFIG_DEBUG_INFO_BTF")]
    Types(#[from] BtfError),
    /// Its structures lack what is read.
    #[error("the kernel's structures are not as they are known")]
    Structures(#[from] BtfRelocationError),
    /// The object's parts do not fit together.
    #[error("could not link the eBPF object")]
    Relocation(#[from] EbpfRelocationError),
    /// A map could not be made or opened.
    #[error("could not use the eBPF map {name}")]
    Map {
        /// Its name.
        name: String,
        /// What is wrong with it.
        #[source]
        source: MapError,
    },
    /// A program was refused.
    #[error(
        "could not load the eBPF program {name}, which takes CAP_PERFMON and Linux 6.4 or later with CONFIG_NETFILTER_BPF_LINK"
    )]
    Program {
        /// Its name.
        name: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The linked program cannot lead to the one that counts.
    #[error("could not have the linked eBPF program lead to the one that counts")]
    Lead(#[source] io::Error),
    /// A program could not be put at its hook.
    #[error("could not put an eBPF program at the postrouting hook of {family}")]
    Attach {
        /// The protocol family.
        family: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A link or the array could not be pinned, a link not be opened, taken off its hook or unpinned.
    #[error("could not use the pin {path}")]
    Pin {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The programs in place. They stay there when this is dropped.
pub(super) struct Departures {
    pins: PathBuf,
    linked: OwnedFd,
    counting: OwnedFd,
    /// What the kernel calls the one that counts.
    id: u32,
    array: OwnedFd,
    /// By family.
    links: Vec<(Family, OwnedFd)>,
}

impl Departures {
    /// Puts the programs in place in this thread's network namespace, or has those of an earlier run lead to this one's, and says how many
    /// were not there before. The maps that they count in are pinned in `pins`. Nothing is counted until `steer` says of a packet that it
    /// is to be.
    ///
    /// # Errors
    ///
    /// The kernel is too old, CAP_PERFMON is missing, or somebody else has a program in this place.
    pub(super) fn put(pins: &Path, mark: MarkMask) -> Result<(Self, usize), DeparturesError> {
        let Loaded {
            linked,
            counting,
            array,
        } = Loaded::load(pins, mark)?;
        netfilter::lead_to(array.as_fd(), counting.as_fd()).map_err(DeparturesError::Lead)?;
        let mut departures = Self {
            pins: pins.to_owned(),
            id: netfilter::id(counting.as_fd()).map_err(program_error(COUNTING))?,
            linked,
            counting,
            array,
            links: Vec::new(),
        };
        let path = pins.join(ARRAY);
        if !path.exists() {
            // A link of an earlier run leads by the array that it was made with.
            remove(pins)?;
            let pinned = netfilter::pin(departures.array.as_fd(), &path);
            pinned.map_err(pin_error(&path))?;
        }
        let mut made = 0;
        for family in Family::ALL {
            let (link, is_new) = match departures.attach(family)? {
                Some(link) => (link, true),
                None => (open(&pin(pins, family))?, false),
            };
            departures.links.push((family, link));
            made += usize::from(is_new);
        }
        Ok((departures, made))
    }

    /// Links and pins the program of a family, unless one is there.
    fn attach(&self, family: Family) -> Result<Option<OwnedFd>, DeparturesError> {
        let link = match netfilter::attach(self.linked.as_fd(), family) {
            Err(error) if is_taken(&error) && pin(&self.pins, family).exists() => return Ok(None),
            attached => attached.map_err(attach_error(family))?,
        };
        self.pin(family, &link)?;
        Ok(Some(link))
    }

    /// Pins a link in the place of what is there.
    fn pin(&self, family: Family, link: &OwnedFd) -> Result<(), DeparturesError> {
        let path = pin(&self.pins, family);
        let pinned = unlink(&path).and_then(|()| netfilter::pin(link.as_fd(), &path));
        pinned.map_err(pin_error(&path))
    }

    /// Whether the programs are where they were put, and what counts is this one's.
    pub(super) fn are_there(&self) -> bool {
        self.is_led() && Family::ALL.into_iter().all(|family| self.is_linked(family))
    }

    fn is_led(&self) -> bool {
        netfilter::leads_to(self.array.as_fd()).is_ok_and(|id| id == self.id)
    }

    /// A link does not tell that it was taken off its hook. So the place is asked for: who has it, is there.
    fn is_linked(&self, family: Family) -> bool {
        if !pin(&self.pins, family).exists() {
            return false;
        }
        match netfilter::attach(self.linked.as_fd(), family) {
            // Not kept: it is told and made by who restores it.
            Ok(link) => netfilter::detach(link.as_fd()).is_err(),
            Err(error) => is_taken(&error),
        }
    }

    /// Puts back what others took away, and names it.
    pub(super) fn restore(&mut self) -> Result<Vec<String>, DeparturesError> {
        let mut restored = Vec::new();
        if !self.is_led() {
            let array = self.array.as_fd();
            netfilter::lead_to(array, self.counting.as_fd()).map_err(DeparturesError::Lead)?;
            restored.push(format!("{COUNTING} behind {LINKED}"));
        }
        for place in 0..self.links.len() {
            let (family, link) = &self.links[place];
            let family = *family;
            if self.is_linked(family) {
                continue;
            }
            match netfilter::attach(self.linked.as_fd(), family) {
                Ok(new) => {
                    self.pin(family, &new)?;
                    self.links[place].1 = new;
                }
                // It lives by this process.
                Err(error) if is_taken(&error) => self.pin(family, link)?,
                Err(error) => return Err(attach_error(family)(error)),
            }
            restored.push(format!("{LINKED} at postrouting of {family}"));
        }
        Ok(restored)
    }
}

/// Whether links are pinned there.
pub(crate) fn are_pinned(pins: &Path) -> bool {
    Family::ALL
        .into_iter()
        .all(|family| pin(pins, family).exists())
}

/// Takes the linked programs off their hooks, by what is pinned there.
pub(super) fn remove(pins: &Path) -> Result<(), DeparturesError> {
    for family in Family::ALL {
        let path = pin(pins, family);
        if !path.exists() {
            continue;
        }
        let detached = netfilter::detach(open(&path)?.as_fd());
        detached.map_err(pin_error(&path))?;
        unlink(&path).map_err(pin_error(&path))?;
    }
    Ok(())
}

fn pin(pins: &Path, family: Family) -> PathBuf {
    let family = match family {
        Family::Ipv4 => "ipv4",
        Family::Ipv6 => "ipv6",
    };
    pins.join(format!("{LINK}{family}"))
}

fn open(path: &Path) -> Result<OwnedFd, DeparturesError> {
    netfilter::from_pin(path).map_err(pin_error(path))
}

fn pin_error(path: &Path) -> impl FnOnce(io::Error) -> DeparturesError {
    let path = path.to_owned();
    |source| DeparturesError::Pin { path, source }
}

/// Whether there is a program in our place.
fn is_taken(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBUSY)
}

fn attach_error(family: Family) -> impl Fn(io::Error) -> DeparturesError {
    move |source| DeparturesError::Attach {
        family: family.to_string(),
        source,
    }
}

fn program_error(name: &'static str) -> impl Fn(io::Error) -> DeparturesError {
    move |source| DeparturesError::Program { name, source }
}
