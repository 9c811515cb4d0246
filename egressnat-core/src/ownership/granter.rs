//! The controller's side: who is given what, and not before it is free.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::IpAddr;

use super::{Generation, Grant, GrantRecord, LeaseRecord, Release, Term, Time, Timing, Version};
use crate::assignment::Assignment;
use crate::model::NodeName;

/// A write that the leading controller should make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GranterStep {
    /// Take the lease of a silent node: write the next term over this version.
    Take {
        /// Whose.
        node: NodeName,
        /// What to write; its version is the one to write over.
        record: LeaseRecord,
    },
    /// Change who has a floating IP.
    Write {
        /// Which.
        address: IpAddr,
        /// What to write; its version is the one to write over.
        record: GrantRecord,
    },
}

/// The leading controller's side of ownership.
#[derive(Debug, Clone)]
pub struct Granter {
    /// The most that a clock is off by, in millionths.
    rate_error: u32,
    leads_until: Option<Time>,
    leases: BTreeMap<NodeName, SeenLease>,
    grants: BTreeMap<IpAddr, GrantRecord>,
}

#[derive(Debug, Clone)]
struct SeenLease {
    record: LeaseRecord,
    /// When what was granted in `record.term` ends, unless the lease is renewed.
    expiry: Time,
    /// From when on nobody holds anything by an older term.
    older_terms_end: Time,
    /// A take of this version may be on its way: nothing may extend the term.
    taking: Option<Version>,
    /// It counts as dead although it may hold something: until it is renewed the next time.
    is_presumed_dead: bool,
}

impl SeenLease {
    /// That the node has given `address` back since it was granted the last time.
    fn release(&self, address: IpAddr, generation: Generation) -> Option<&Release> {
        let released = self.record.released.get(&address);
        released.filter(|release| release.generation >= generation)
    }

    fn is_alive(&self, now: Time) -> bool {
        !self.record.is_taken && !self.is_presumed_dead && now < self.expiry
    }
}

impl Granter {
    /// A granter that does not lead. Clocks are off by `rate_error` millionths at most.
    pub fn new(rate_error: u32) -> Self {
        Self {
            rate_error,
            leads_until: None,
            leases: BTreeMap::new(),
            grants: BTreeMap::new(),
        }
    }

    /// It leads until `until`. When it did not lead before, what it knows is forgotten: only reads that are sent from now on count.
    pub fn lead(&mut self, now: Time, until: Time) {
        if !self.leads(now) {
            self.follow();
        }
        self.leads_until = Some(until);
    }

    /// It leads no more.
    pub fn follow(&mut self) {
        self.leads_until = None;
        self.leases.clear();
        self.grants.clear();
    }

    /// Whether it leads now.
    pub fn leads(&self, now: Time) -> bool {
        self.leads_until.is_some_and(|until| now < until)
    }

    /// The lease of `node` was read.
    pub fn saw_lease(&mut self, node: &NodeName, record: LeaseRecord, now: Time) {
        let timing = record.timing(self.rate_error);
        let Some(seen) = self.leases.get_mut(node) else {
            // Seen for the first time: it may have been renewed just now, in this term and in the one before.
            let expiry = timing.expiry(now);
            let seen = SeenLease {
                record,
                expiry,
                older_terms_end: expiry,
                taking: None,
                is_presumed_dead: false,
            };
            self.leases.insert(node.clone(), seen);
            return;
        };
        if record.version == seen.record.version || record.term < seen.record.term {
            return;
        }
        if record.term > seen.record.term {
            // Somebody else took it, perhaps after renewals that were not seen here.
            let longest = Timing {
                duration: timing.duration.max(seen.record.duration),
                ..timing
            };
            seen.older_terms_end = longest.expiry(now);
        }
        seen.expiry = timing.expiry(now);
        seen.taking = None;
        seen.is_presumed_dead = false;
        seen.record = record;
    }

    /// A take that [`Granter::step`] asked for was accepted, and made `record`.
    pub fn took(&mut self, node: &NodeName, over: Version, record: LeaseRecord, now: Time) {
        match self.leases.get_mut(node) {
            Some(seen) if seen.taking == Some(over) && seen.record.version == over => {
                // Nothing was written in between, so that nothing counts but what was seen here.
                seen.older_terms_end = seen.expiry;
                seen.taking = None;
                seen.record = record;
            }
            _ => self.saw_lease(node, record, now),
        }
    }

    /// There is no lease of `node` any more. What the node holds it may hold until its deadline; it counts as dead, and its lease
    /// can be taken by creating it anew: [`LeaseRecord::version`] of the step is [`Version::ABSENT`].
    pub fn lost_lease(&mut self, node: &NodeName) {
        if let Some(seen) = self.leases.get_mut(node) {
            seen.record.version = Version::ABSENT;
            seen.is_presumed_dead = true;
        }
    }

    /// Somebody has told that `node` is dead: it counts as that until it renews its lease the next time, but is waited for as if it
    /// were alive.
    pub fn presume_dead(&mut self, node: &NodeName) {
        if let Some(seen) = self.leases.get_mut(node) {
            seen.is_presumed_dead = true;
        }
    }

    /// Nothing could be seen since `since`: who was alive then has not been heard because of that, and counts as renewed now.
    pub fn resume(&mut self, since: Time, now: Time) {
        for seen in self.leases.values_mut().filter(|seen| seen.is_alive(since)) {
            seen.expiry = seen.record.timing(self.rate_error).expiry(now);
        }
    }

    /// The grant of `address` was read.
    ///
    /// An older one than is known already, or none, counts for its version only: somebody has removed what was written, and the next
    /// write has to be over that.
    pub fn saw_grant(&mut self, address: IpAddr, record: GrantRecord) {
        match self.grants.get_mut(&address) {
            Some(known) if record.generation < known.generation => known.version = record.version,
            _ => {
                self.grants.insert(address, record);
            }
        }
    }

    /// What is known of the grant of each address.
    pub fn grants(&self) -> &BTreeMap<IpAddr, GrantRecord> {
        &self.grants
    }

    /// A node renews directly. Says whether its renewal counts; if not, the node must not be told that it does.
    pub fn renew(&mut self, node: &NodeName, term: Term, now: Time) -> bool {
        if !self.leads(now) {
            return false;
        }
        let Some(seen) = self.leases.get_mut(node) else {
            return false;
        };
        let counts = seen.record.term == term && !seen.record.is_taken && seen.taking.is_none();
        if counts {
            seen.expiry = seen.record.timing(self.rate_error).expiry(now);
        }
        counts
    }

    /// Whether `node` has renewed its lease in time.
    pub fn is_alive(&self, node: &NodeName, now: Time) -> bool {
        self.leases.get(node).is_some_and(|seen| seen.is_alive(now))
    }

    /// The nodes that have renewed their lease in time.
    pub fn alive(&self, now: Time) -> impl Iterator<Item = &NodeName> {
        let alive = self
            .leases
            .iter()
            .filter(move |(_, seen)| seen.is_alive(now));
        alive.map(|(node, _)| node)
    }

    /// When something changes next although nothing is read: a lease runs out.
    pub fn next_expiry(&self, now: Time) -> Option<Time> {
        let expiries = self.leases.values().flat_map(|seen| {
            let own = (!seen.record.is_taken).then_some(seen.expiry);
            own.into_iter().chain([seen.older_terms_end])
        });
        expiries.filter(|expiry| now < *expiry).min()
    }

    /// What to write, so that the floating IPs get where `wanted` has them.
    ///
    /// None while it does not lead. Writing again what was written before is harmless.
    pub fn step(&mut self, wanted: &Assignment, now: Time) -> Vec<GranterStep> {
        if !self.leads(now) {
            return Vec::new();
        }
        let mut steps = Vec::new();
        let mut takes = Vec::new();
        for (address, record) in &self.grants {
            let wanted = wanted.nodes.get(address);
            let next = wanted.filter(|node| self.is_alive(node, now));
            let write = |record| GranterStep::Write {
                address: *address,
                record,
            };
            // To who is next, or to nobody.
            let give = |is_handed_over| {
                let grant = next.and_then(|node| {
                    Some(Grant {
                        node: node.clone(),
                        term: self.leases.get(node)?.record.term,
                        is_withdrawn: false,
                        is_handed_over,
                    })
                });
                let generation = match grant {
                    Some(_) => self.next_generation(*address, record),
                    None => record.generation,
                };
                write(GrantRecord {
                    version: record.version,
                    generation,
                    grant,
                })
            };
            let Some(grant) = &record.grant else {
                steps.extend(next.map(|_| give(false)));
                continue;
            };
            let Some(seen) = self.leases.get(&grant.node) else {
                continue;
            };
            let is_current = grant.term == seen.record.term;
            // A node gives back by itself what its gateway has no more, and may be wanted again.
            let release = seen.release(*address, record.generation);
            if wanted == Some(&grant.node) && is_current && !grant.is_withdrawn && release.is_none()
            {
                continue;
            }
            if next == Some(&grant.node) && !is_current {
                // The same node again cannot be a second owner.
                steps.push(give(false));
            } else if let Some(release) = release {
                // Who never used it gives back what it was given, which somebody before may go on with.
                steps.push(give(release.was_used || grant.is_handed_over));
            } else if grant.term < seen.record.term && now >= seen.older_terms_end {
                steps.push(give(false));
            } else if !is_current || (wanted.is_some() && next.is_none()) {
                // To be waited for, or left where it is: nobody is there to take it.
            } else if now >= seen.expiry {
                takes.push(grant.node.clone());
            } else if !grant.is_withdrawn {
                let grant = Grant {
                    is_withdrawn: true,
                    ..grant.clone()
                };
                steps.push(write(GrantRecord {
                    grant: Some(grant),
                    ..record.clone()
                }));
            }
        }
        takes.sort();
        takes.dedup();
        for node in takes {
            if let Some(seen) = self.leases.get_mut(&node) {
                seen.taking = Some(seen.record.version);
                let record = LeaseRecord {
                    term: Term(seen.record.term.0 + 1),
                    is_taken: true,
                    ..seen.record.clone()
                };
                steps.push(GranterStep::Take { node, record });
            }
        }
        steps
    }

    /// Newer than all there were, also than those that are known only to who gave the address back.
    fn next_generation(&self, address: IpAddr, record: &GrantRecord) -> Generation {
        let released = self.leases.values();
        let released = released.filter_map(|seen| seen.record.released.get(&address));
        let released = released.map(|release| release.generation);
        let newest = released.fold(record.generation, Generation::max);
        Generation(newest.0 + 1)
    }
}
