//! What nodes, controllers and the store tell each other, and when it arrives.

use egressnat_core::ownership::{
    Generation, GrantRecord, HolderStep, LeaderRecord, LeaseRecord, Term, Version,
};

use super::simulator::Micros;

#[derive(Clone)]
pub(super) enum Ask {
    ReadLease(usize),
    WriteLease(usize, LeaseRecord),
    ReadGrants,
    ReadLeader,
    WriteLeader(Version, (usize, u64)),
    ReadAll,
    WriteGrant(usize, GrantRecord),
    Renew(usize, Term),
}

#[derive(Clone)]
pub(super) enum Tell {
    Lease(LeaseRecord),
    LeaseWritten {
        over: Version,
        record: LeaseRecord,
        of: usize,
    },
    LeaseRefused(LeaseRecord),
    Grants(Vec<GrantRecord>),
    Leader(LeaderRecord<(usize, u64)>),
    LeaderWritten(LeaderRecord<(usize, u64)>),
    LeaderRefused,
    All(Vec<LeaseRecord>, Vec<GrantRecord>),
    Renewed(Term),
    Nothing,
}

pub(super) enum What {
    Tick,
    /// A question arrives at the store, or at a controller.
    Asked {
        id: u64,
        from: usize,
        sent: Micros,
        to: Option<usize>,
        ask: Ask,
    },
    /// An answer arrives.
    Told {
        id: u64,
        sent: Micros,
        tell: Tell,
    },
    Act(Vec<HolderStep>),
    Probed(usize, Generation),
    /// Looks whether somebody answers for an address: since when, and since when somebody else was always heard.
    Looking(usize, Generation, [Micros; 2]),
    /// It may be time to ask the other nodes.
    AskSegment,
    /// Most of them have answered what was asked then.
    SegmentAnswered(Term, Micros),
    Fault,
}

pub(super) struct Event {
    pub(super) at: Micros,
    pub(super) order: u64,
    pub(super) actor: usize,
    pub(super) run: u64,
    pub(super) what: What,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}
