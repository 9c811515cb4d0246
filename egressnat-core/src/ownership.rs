//! Who may use a floating IP when: never two nodes at once (E33).
//!
//! Two state machines without I/O and without a clock: the [`Holder`] on each node, and the [`Granter`] in the controller that
//! leads. Whoever runs them reads and writes three kinds of records in a store that can compare and swap (the Kubernetes API),
//! and tells them what was read and what its own clock says.
//!
//! ```text
//!  node                             store                            controller
//!  Holder ── renews, reports ─────► LeaseRecord (per node) ────────► Granter
//!    ▲                                  ▲ takes: next term ────────────┤
//!    └────────── sees ◄──── GrantRecord (per floating IP) ◄─── grants ─┘
//! ```
//!
//! # How
//!
//! * A node **holds** a floating IP only with a grant in the *term* of its own lease, and only until a deadline: the time it *sent* its
//!   last successful renewal plus the lease duration. The deadline sits in the kernel, so it works while the process is frozen.
//! * The controller counts from when it *saw* the renewal, and waits longer by what two clocks may differ in rate. So the holder
//!   always ends first.
//! * Before it gives away what a silent node has, the controller **takes** the lease: it writes the next term over the version that
//!   it watched. A renewal on its way then fails, and every grant of an older term is void.
//! * A planned move does not wait: the grant is **withdrawn**, the node stops, reports it in its lease, and the IP is free.
//! * There may be several [`Source`]s of renewal: a node holds while any of them is valid, and the controller waits until all have
//!   run out.
//!
//! # Assumptions
//!
//! * Clocks run at a rate within [`Timing::rate_error`] of true time, sleep of the machine included (`CLOCK_BOOTTIME`). Nothing is
//!   assumed about what they show.
//! * A write with a version takes effect only if the record still has that version.
//! * The kernel stops by itself at the deadline, which is an absolute time of the node's clock.
//! * Lease records are not deleted while a grant names their node.
//! * A controller that begins to lead forgets what it read before, and leads only by its own [`Candidate`].
//!
//! Nothing is assumed about messages: they may be lost, late, and arrive in any order.

mod candidate;
mod granter;
mod holder;

pub use candidate::{Candidate, LeaderRecord, LeaderStep};
pub use granter::{Granter, GranterStep};
pub use holder::{Holder, HolderStep, Probe};

use alloc::collections::BTreeMap;
use core::fmt;
use core::net::IpAddr;
use core::time::Duration;

use crate::model::NodeName;

/// What one machine's clock shows; compared with other times of the same machine only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub Duration);

impl Time {
    /// This much later.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// The version of a record. Every write changes it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

impl Version {
    /// That of a record which is not there: writing over it creates it.
    pub const ABSENT: Self = Self(0);
}

/// Counts how often a node's lease was taken from it. Grants of an older term are void.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(pub u64);

/// Counts the grants of one floating IP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

/// By which way a lease was renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// A write to the store.
    Store,
    /// An answer of the leading controller itself.
    Direct,
    /// The other gateway nodes on the segment, most of which answer while the store does not. It says nothing about what the store
    /// has granted since, so that it counts for [`SEGMENT_HOLD`] only, and is safe only if who takes an address that was not handed
    /// over has looked for longer than that whether somebody answers for it.
    Segment,
}

/// How long the answers of a segment are good for.
pub const SEGMENT_HOLD: Duration = Duration::from_millis(600);

/// The lease of one node, as the store has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Its version.
    pub version: Version,
    /// Its term.
    pub term: Term,
    /// Whether a controller began this term, and the node has not renewed the lease since.
    pub is_taken: bool,
    /// How long the node holds by a renewal.
    pub duration: Duration,
    /// The floating IPs that the node has given back.
    pub released: BTreeMap<IpAddr, Release>,
}

/// That a node has given a floating IP back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    /// The newest grant of it that the node has given back.
    pub generation: Generation,
    /// Whether the node used the floating IP by that grant. If not, it may have found that somebody answered for it.
    pub was_used: bool,
}

impl LeaseRecord {
    /// That of a renewal of it, where clocks are off by `rate_error` millionths at most.
    fn timing(&self, rate_error: u32) -> Timing {
        Timing {
            duration: self.duration,
            rate_error,
        }
    }
}

/// To whom a floating IP is granted, as the store has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GrantRecord {
    /// Its version.
    pub version: Version,
    /// How many grants there were.
    pub generation: Generation,
    /// The present one.
    pub grant: Option<Grant>,
}

/// A floating IP given to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// To whom.
    pub node: NodeName,
    /// In which term of the node's lease.
    pub term: Term,
    /// Whether the node is asked to give it back.
    pub is_withdrawn: bool,
    /// Whether the last one to use it has given it back. If not, there was none, or it fell silent and its kernel may have been told
    /// to go on without the store ([`Source::Segment`]): who takes it looks for long whether somebody answers for it.
    pub is_handed_over: bool,
}

/// The most that a clock runs too fast or too slow, in millionths: 0.1 % is ten times what a crystal is off by.
pub const RATE_ERROR: u32 = 1_000;

/// How long a lease lasts, and how much clocks may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long a renewal is good for.
    pub duration: Duration,
    /// The most that a clock runs too fast or too slow, in millionths, such as [`RATE_ERROR`].
    pub rate_error: u32,
}

impl Timing {
    /// Until when a renewal that was sent at `sent` is good, for the one who sent it.
    pub fn deadline(&self, sent: Time) -> Time {
        sent.after(self.duration)
    }

    /// From when on a renewal that was seen at `seen` is good no more, for the one who saw it.
    ///
    /// `duration · (1 + e) / (1 − e)`: the sender's clock may be slow while ours is fast.
    pub fn expiry(&self, seen: Time) -> Time {
        let million = 1_000_000u128;
        let error = u128::from(self.rate_error).min(million - 1);
        let nanos = (self.duration.as_nanos() * (million + error)).div_ceil(million - error);
        seen.after(Duration::from_nanos(
            u64::try_from(nanos).unwrap_or(u64::MAX),
        ))
    }
}
