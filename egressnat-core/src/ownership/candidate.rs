//! Who leads: a lock with a lease, safe under the same assumptions.

use super::{Time, Timing, Version};

/// The lock, as the store has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaderRecord<Id> {
    /// Its version.
    pub version: Version,
    /// Who has it.
    pub leader: Option<Id>,
}

/// What a candidate should do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaderStep {
    /// Read the lock.
    Read,
    /// Write its own name over this version.
    Write(Version),
    /// Somebody else leads: read the lock again in a while.
    Wait,
}

/// One controller's part in who leads.
#[derive(Debug, Clone)]
pub struct Candidate<Id> {
    id: Id,
    timing: Timing,
    /// The lock as last seen, and since when it has had that version.
    seen: Option<(LeaderRecord<Id>, Time)>,
    leads_until: Option<Time>,
}

impl<Id: Clone + PartialEq> Candidate<Id> {
    /// A candidate with a name that no other run of any controller has.
    pub fn new(id: Id, timing: Timing) -> Self {
        Self {
            id,
            timing,
            seen: None,
            leads_until: None,
        }
    }

    /// The lock was read.
    pub fn saw(&mut self, record: LeaderRecord<Id>, now: Time) {
        let is_known = self
            .seen
            .as_ref()
            .is_some_and(|(seen, _)| seen.version == record.version);
        if !is_known {
            self.seen = Some((record, now));
        }
    }

    /// A write that was sent at `sent` was accepted, and made `record`.
    pub fn wrote(&mut self, record: LeaderRecord<Id>, sent: Time) {
        self.seen = Some((record, sent));
        self.leads_until = Some(self.timing.deadline(sent));
    }

    /// A write was refused: somebody else has written.
    pub fn lost(&mut self) {
        self.seen = None;
        self.leads_until = None;
    }

    /// Until when it leads, if it does now.
    pub fn leads_until(&self, now: Time) -> Option<Time> {
        self.leads_until.filter(|until| now < *until)
    }

    /// What to do now.
    pub fn step(&self, now: Time) -> LeaderStep {
        match &self.seen {
            None => LeaderStep::Read,
            Some((record, since)) => {
                let is_free = match &record.leader {
                    None => true,
                    // Its own, perhaps of a write whose answer was lost: nobody else may lead meanwhile.
                    Some(leader) if *leader == self.id => true,
                    Some(_) => now >= self.timing.expiry(*since),
                };
                if is_free {
                    LeaderStep::Write(record.version)
                } else {
                    LeaderStep::Wait
                }
            }
        }
    }
}
