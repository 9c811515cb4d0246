//! A node's side: what it may hold, and until when.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::IpAddr;

#[cfg(doc)]
use super::Grant;
use super::{
    Generation, GrantRecord, LeaseRecord, Release, SEGMENT_HOLD, Source, Term, Time, Timing,
};
use crate::model::NodeName;

/// What a probe for an address found (RFC 5227, or duplicate address detection).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Nobody answers for it.
    Free,
    /// Another host has it.
    Conflict,
}

/// What a node should do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HolderStep {
    /// Find out whether another host has the address, and tell [`Holder::probed`].
    Probe {
        /// Which.
        address: IpAddr,
        /// For which grant of it.
        generation: Generation,
        /// As in [`Grant::is_handed_over`]: if not, look for longer than [`SEGMENT_HOLD`].
        is_handed_over: bool,
    },
    /// Hold the address until this time and no longer, whatever happens to the process.
    HoldUntil(IpAddr, Time),
    /// Stop using the address. To be done before the lease is written the next time.
    Release(IpAddr),
}

/// A node's side of ownership.
#[derive(Debug, Clone)]
pub struct Holder {
    node: NodeName,
    timing: Timing,
    /// The term that this process has renewed its lease in.
    term: Option<Term>,
    valid_until: BTreeMap<Source, Time>,
    addresses: BTreeMap<IpAddr, Address>,
    released: BTreeMap<IpAddr, Release>,
}

#[derive(Debug, Clone, Default)]
struct Address {
    record: Option<GrantRecord>,
    usage: Usage,
    /// The newest grant that it was in the kernel by.
    used: Option<Generation>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Usage {
    #[default]
    Idle,
    /// A probe for this grant is on its way.
    Probing(Generation),
    /// Nobody else has it.
    Probed(Generation),
    /// Another host has it; to be probed again at this time.
    Refused(Time),
    /// In the kernel until then, by an earlier run of the process.
    Found(Time),
    /// In the kernel until then.
    Holding(Time),
}

impl Holder {
    /// The holder of `node`, which holds nothing.
    pub fn new(node: NodeName, timing: Timing) -> Self {
        Self {
            node,
            timing,
            term: None,
            valid_until: BTreeMap::new(),
            addresses: BTreeMap::new(),
            released: BTreeMap::new(),
        }
    }

    /// An earlier run of the process left `address` in the kernel, until `until`. It needs no probe, if the grant is still there.
    pub fn found(&mut self, address: IpAddr, until: Time) {
        self.addresses.entry(address).or_default().usage = Usage::Found(until);
    }

    /// The lease was read: what the node has given back before its process started counts still.
    pub fn read(&mut self, record: &LeaseRecord) {
        for (address, release) in &record.released {
            let known = self.released.entry(*address).or_default();
            *known = (*release).max(*known);
        }
        if self.term.is_some_and(|term| term != record.term) {
            self.term = None;
            self.valid_until.clear();
        }
    }

    /// What to write over the lease that was read as `record`.
    pub fn renewal(&self, record: &LeaseRecord) -> LeaseRecord {
        LeaseRecord {
            version: record.version,
            term: record.term,
            is_taken: false,
            duration: self.timing.duration,
            released: self.released.clone(),
        }
    }

    /// A renewal that was sent at `sent` was accepted in `term`, by way of `source`.
    ///
    /// The first one of a process must be a write to the store: it makes sure that nothing that an earlier run has sent can still
    /// take effect.
    pub fn renewed(&mut self, source: Source, term: Term, sent: Time) {
        if self.term.is_none() && source == Source::Store {
            self.term = Some(term);
        }
        if self.term == Some(term) {
            let deadline = match source {
                Source::Store | Source::Direct => self.timing.deadline(sent),
                Source::Segment => sent.after(SEGMENT_HOLD),
            };
            let known = self.valid_until.entry(source).or_default();
            *known = deadline.max(*known);
        }
    }

    /// The grant of `address` was read.
    pub fn saw(&mut self, address: IpAddr, record: GrantRecord) {
        let known = &mut self.addresses.entry(address).or_default().record;
        // Answers may come in any order. Within a generation a grant is only ever withdrawn.
        let is_news = known.as_ref().is_none_or(|known| {
            let rank = |record: &GrantRecord| {
                let is_withdrawn = record.grant.as_ref().is_none_or(|grant| grant.is_withdrawn);
                (record.generation, is_withdrawn)
            };
            rank(&record) > rank(known)
        });
        if is_news {
            if self
                .released
                .get(&address)
                .is_some_and(|released| released.generation < record.generation)
            {
                self.released.remove(&address);
            }
            *known = Some(record);
        }
    }

    /// A probe was answered, or nobody answered it.
    pub fn probed(&mut self, address: IpAddr, generation: Generation, outcome: Probe, now: Time) {
        let again = self.timing.deadline(now);
        if let Some(known) = self.addresses.get_mut(&address)
            && known.usage == Usage::Probing(generation)
        {
            known.usage = match outcome {
                Probe::Free => Usage::Probed(generation),
                Probe::Conflict => Usage::Refused(again),
            };
        }
    }

    /// The floating IPs that another host has although they are granted to this node.
    pub fn conflicts(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let refused = self
            .addresses
            .iter()
            .filter(|(_, address)| matches!(address.usage, Usage::Refused(_)));
        refused.map(|(address, _)| *address)
    }

    /// The floating IPs that this node may use now: found in the kernel, or told to be held.
    pub fn held(&self, now: Time) -> impl Iterator<Item = IpAddr> + '_ {
        let held = self
            .addresses
            .iter()
            .filter(move |(_, address)| address.usage.is_held(now));
        held.map(|(address, _)| *address)
    }

    /// The term that its renewals are of; none before the first, and after the lease was taken.
    pub fn term(&self) -> Option<Term> {
        self.term
    }

    /// What is known of the grant of each address that was ever seen.
    pub fn grants(&self) -> impl Iterator<Item = (IpAddr, &GrantRecord)> {
        let known = self.addresses.iter();
        known.filter_map(|(address, known)| Some((*address, known.record.as_ref()?)))
    }

    /// Until when the lease is good, by any source.
    pub fn valid_until(&self) -> Option<Time> {
        self.valid_until.values().max().copied()
    }

    /// What to do now, in this order.
    pub fn step(&mut self, now: Time) -> Vec<HolderStep> {
        let mut steps = Vec::new();
        let valid_until = self.valid_until().filter(|until| now < *until);
        for (ip, address) in &mut self.addresses {
            // Nothing is known about it yet. What an earlier run left in the kernel has its deadline there.
            let Address {
                record,
                usage,
                used,
            } = address;
            let Some(record) = record else {
                continue;
            };
            let own = record
                .grant
                .as_ref()
                .filter(|grant| grant.node == self.node);
            let is_released = self
                .released
                .get(ip)
                .is_some_and(|released| released.generation >= record.generation);
            match own.filter(|grant| !grant.is_withdrawn && !is_released) {
                None => {
                    let is_withdrawn = own.is_some_and(|grant| grant.is_withdrawn);
                    if is_withdrawn && usage.is_in_kernel() {
                        *used = Some(record.generation);
                    }
                    usage.stop(*ip, &mut steps);
                    if is_withdrawn {
                        let release = Release {
                            generation: record.generation,
                            was_used: *used == Some(record.generation),
                        };
                        let known = self.released.entry(*ip).or_default();
                        *known = release.max(*known);
                    }
                }
                // The process has not renewed the lease yet: what an earlier run left is neither right nor wrong.
                Some(_) if self.term.is_none() && usage.is_found(now) => {}
                Some(grant) => match valid_until.filter(|_| Some(grant.term) == self.term) {
                    None => usage.stop(*ip, &mut steps),
                    Some(until) => {
                        let grant = (record.generation, grant.is_handed_over);
                        usage.go_on(*ip, grant, now, until, &mut steps);
                        if usage.is_in_kernel() {
                            *used = Some(record.generation);
                        }
                    }
                },
            }
        }
        steps
    }
}

impl Usage {
    fn is_found(&self, now: Time) -> bool {
        matches!(*self, Self::Found(end) if now < end)
    }

    fn is_held(&self, now: Time) -> bool {
        matches!(*self, Self::Found(end) | Self::Holding(end) if now < end)
    }

    fn is_in_kernel(&self) -> bool {
        matches!(*self, Self::Found(_) | Self::Holding(_))
    }

    /// It may not be used.
    fn stop(&mut self, ip: IpAddr, steps: &mut Vec<HolderStep>) {
        if self.is_in_kernel() {
            steps.push(HolderStep::Release(ip));
        }
        *self = Self::Idle;
    }

    /// It may be used until `until`.
    fn go_on(
        &mut self,
        ip: IpAddr,
        (generation, is_handed_over): (Generation, bool),
        now: Time,
        until: Time,
        steps: &mut Vec<HolderStep>,
    ) {
        // It was gone for a moment: somebody else may have it by now.
        if matches!(*self, Self::Found(end) | Self::Holding(end) if end <= now) {
            self.stop(ip, steps);
        }
        match *self {
            Self::Found(end) | Self::Holding(end) if end >= until => {}
            Self::Found(_) | Self::Holding(_) => {
                *self = Self::Holding(until);
                steps.push(HolderStep::HoldUntil(ip, until));
            }
            Self::Probed(probed) if probed == generation => {
                *self = Self::Holding(until);
                steps.push(HolderStep::HoldUntil(ip, until));
            }
            Self::Probing(probing) if probing == generation => {}
            Self::Refused(again) if now < again => {}
            Self::Idle | Self::Probing(_) | Self::Probed(_) | Self::Refused(_) => {
                *self = Self::Probing(generation);
                steps.push(HolderStep::Probe {
                    address: ip,
                    generation,
                    is_handed_over,
                });
            }
        }
    }
}
