//! The controller's side: who is given what, and not before it is free.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::IpAddr;

use super::{Generation, Grant, GrantRecord, LeaseRecord, Term, Time, Timing, Version};
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
    timing: Timing,
    leads_until: Option<Time>,
    leases: BTreeMap<NodeName, SeenLease>,
    grants: BTreeMap<IpAddr, GrantRecord>,
}

#[derive(Debug, Clone)]
struct SeenLease {
    record: LeaseRecord,
    /// When it was last seen to change, or renewed directly.
    renewed: Time,
    /// From when on nobody holds anything by an older term.
    older_terms_end: Time,
    /// A take of this version may be on its way: nothing may extend the term.
    taking: Option<Version>,
}

impl Granter {
    /// A granter that does not lead. `timing` is that of the nodes' leases.
    pub fn new(timing: Timing) -> Self {
        Self {
            timing,
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
        let expiry = self.timing.expiry(now);
        let Some(seen) = self.leases.get_mut(node) else {
            // Seen for the first time: it may have been renewed just now, in this term and in the one before.
            let seen = SeenLease {
                record,
                renewed: now,
                older_terms_end: expiry,
                taking: None,
            };
            self.leases.insert(node.clone(), seen);
            return;
        };
        if record.version == seen.record.version || record.term < seen.record.term {
            return;
        }
        if record.term > seen.record.term {
            // Somebody else took it, perhaps after renewals that were not seen here.
            seen.older_terms_end = expiry;
        }
        seen.renewed = now;
        seen.taking = None;
        seen.record = record;
    }

    /// A take that [`Granter::step`] asked for was accepted, and made `record`.
    pub fn took(&mut self, node: &NodeName, over: Version, record: LeaseRecord, now: Time) {
        match self.leases.get_mut(node) {
            Some(seen) if seen.taking == Some(over) && seen.record.version == over => {
                // Nothing was written in between, so that nothing counts but what was seen here.
                seen.older_terms_end = self.timing.expiry(seen.renewed);
                seen.taking = None;
                seen.record = record;
            }
            _ => self.saw_lease(node, record, now),
        }
    }

    /// The grant of `address` was read.
    pub fn saw_grant(&mut self, address: IpAddr, record: GrantRecord) {
        let is_older = self
            .grants
            .get(&address)
            .is_some_and(|known| record.generation < known.generation);
        if !is_older {
            self.grants.insert(address, record);
        }
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
            seen.renewed = now;
        }
        counts
    }

    /// Whether `node` has renewed its lease in time.
    pub fn is_alive(&self, node: &NodeName, now: Time) -> bool {
        self.leases
            .get(node)
            .is_some_and(|seen| !seen.record.is_taken && now < self.timing.expiry(seen.renewed))
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
            let write = |generation, grant| GranterStep::Write {
                address: *address,
                record: GrantRecord {
                    version: record.version,
                    generation,
                    grant,
                },
            };
            let give = next.and_then(|node| {
                let grant = Grant {
                    node: node.clone(),
                    term: self.leases.get(node)?.record.term,
                    is_withdrawn: false,
                };
                Some(write(Generation(record.generation.0 + 1), Some(grant)))
            });
            let Some(grant) = &record.grant else {
                steps.extend(give);
                continue;
            };
            let Some(seen) = self.leases.get(&grant.node) else {
                continue;
            };
            let is_current = grant.term == seen.record.term;
            if wanted == Some(&grant.node) && is_current && !grant.is_withdrawn {
                continue;
            }
            // The same node again cannot be a second owner.
            let is_same = next == Some(&grant.node) && !is_current;
            if is_same || self.is_free(*address, record, grant, seen, now) {
                steps.push(give.unwrap_or_else(|| write(record.generation, None)));
            } else if !is_current || (wanted.is_some() && next.is_none()) {
                // To be waited for, or left where it is: nobody is there to take it.
            } else if now >= self.timing.expiry(seen.renewed) {
                takes.push(grant.node.clone());
            } else if !grant.is_withdrawn {
                let grant = Grant {
                    is_withdrawn: true,
                    ..grant.clone()
                };
                steps.push(write(record.generation, Some(grant)));
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

    /// Whether nobody can hold `address` by its present grant.
    fn is_free(
        &self,
        address: IpAddr,
        record: &GrantRecord,
        grant: &Grant,
        seen: &SeenLease,
        now: Time,
    ) -> bool {
        let is_released = seen
            .record
            .released
            .get(&address)
            .is_some_and(|released| *released >= record.generation);
        is_released || (grant.term < seen.record.term && now >= seen.older_terms_end)
    }
}
