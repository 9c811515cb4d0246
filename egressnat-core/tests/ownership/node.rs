//! What a node does.

use egressnat_core::ownership::{Generation, HolderStep, Probe, SEGMENT_HOLD, Source, Time};

use super::message::{Ask, Tell, What};
use super::schedule::{Choices, CountedFrom, Segment};
use super::simulator::{CONTROLLERS, MILLI, Micros, NODES, World, address, index};

/// How long to look for an address that was not handed over.
const LOOK: Micros = SEGMENT_HOLD.as_micros() as Micros + 100 * MILLI;

/// How often it is looked whether the other nodes have to be asked.
const ASK_SEGMENT: Micros = SEGMENT_HOLD.as_micros() as Micros / 4;

impl<C: Choices> World<C> {
    pub(super) fn tick_node(&mut self, n: usize, now: Time) {
        let steps = self.nodes[n].holder.step(now);
        // The process may be stopped between what it decides and what it does.
        let later = if self.is_calm() {
            0
        } else {
            self.choices.below(5) * MILLI
        };
        self.push(self.now + later, n, What::Act(steps));
    }

    pub(super) fn act(&mut self, n: usize, steps: Vec<HolderStep>) {
        for step in steps {
            match step {
                HolderStep::Probe {
                    address,
                    generation,
                    is_handed_over,
                } => {
                    let ip = index(address);
                    let what = match self.setting.segment {
                        Segment::Answers if !is_handed_over => {
                            What::Looking(ip, generation, [self.now; 2])
                        }
                        _ => What::Probed(ip, generation),
                    };
                    self.push(self.now + 30 * MILLI, n, what);
                }
                HolderStep::HoldUntil(ip, until) => self.hold(n, index(ip), until),
                HolderStep::Release(ip) => self.nodes[n].kernel[index(ip)] = 0,
            }
        }
        let is_waiting = self.nodes[n]
            .request
            .is_some_and(|request| self.now < request.expires);
        if !is_waiting {
            let ask = match &self.nodes[n].lease {
                None => Ask::ReadLease(n),
                Some(lease) => {
                    let mut renewal = self.nodes[n].holder.renewal(lease);
                    renewal.duration = self.setting.told;
                    Ask::WriteLease(n, renewal)
                }
            };
            self.nodes[n].request = Some(self.request(n, ask));
        }
        self.ask(n, None, Ask::ReadGrants);
        if let Some(lease) = &self.nodes[n].lease {
            let term = lease.term;
            for controller in 0..CONTROLLERS {
                self.ask(n, Some(controller), Ask::Renew(n, term));
            }
        }
    }

    /// Whether nodes hear each other.
    fn hear(&self, one: usize, other: usize) -> bool {
        let is_there = |n: usize| self.now >= self.actors[n].cut_until && !self.nodes[n].is_off;
        is_there(one) && is_there(other)
    }

    /// Asks for an address again and again. It is free if nobody has answered for so long while others were heard. Where nobody else is
    /// heard, it takes as long as a lease: who is cut off has none any more then.
    pub(super) fn look(
        &mut self,
        n: usize,
        (ip, generation): (usize, Generation),
        [start, heard_since]: [Micros; 2],
    ) {
        let now = self.actors[n].clock.read(self.now);
        let others: Vec<usize> = (0..NODES).filter(|m| *m != n && self.hear(n, *m)).collect();
        let heard_since = match others.is_empty() {
            true => self.now,
            false => heard_since,
        };
        let lease = self.setting.holder.duration.as_micros() as Micros;
        let outcome = if others.iter().any(|m| self.holds(*m, ip)) {
            Probe::Conflict
        } else if self.now >= heard_since + LOOK || self.now >= start + LOOK + lease {
            Probe::Free
        } else {
            let again = What::Looking(ip, generation, [start, heard_since]);
            return self.push(self.now + 50 * MILLI, n, again);
        };
        let holder = &mut self.nodes[n].holder;
        holder.probed(address(ip), generation, outcome, now);
    }

    /// Asks the other nodes, if the lease is about to run out while something is held.
    pub(super) fn ask_segment(&mut self, n: usize, now: Time) {
        self.push(self.now + ASK_SEGMENT, n, What::AskSegment);
        let holder = &self.nodes[n].holder;
        let soon = now.after(self.setting.holder.duration / 2);
        let is_running_out = holder.valid_until().is_some_and(|until| until < soon);
        let Some(term) = holder.term() else { return };
        if is_running_out && holder.held(now).next().is_some() {
            let others = (0..NODES).filter(|m| *m != n && self.hear(n, *m));
            if 2 * (others.count() + 1) > NODES {
                let later = self.now + self.choices.below(150) * MILLI;
                self.push(later, n, What::SegmentAnswered(term, self.now));
            }
        }
    }

    pub(super) fn hold(&mut self, n: usize, ip: usize, until: Time) {
        let until = self.actors[n].clock.when(until);
        if until <= self.now {
            return;
        }
        if let Some(other) = (0..NODES).find(|m| *m != n && self.holds(*m, ip)) {
            let both = self.nodes[other].kernel[ip];
            self.broken = Some(format!(
                "at {} µs n{n} holds {} until {until}, and n{other} until {both}",
                self.now,
                address(ip)
            ));
        }
        if self.last_holder[ip] != Some(n) {
            self.last_holder[ip] = Some(n);
            self.moves += 1;
        }
        self.nodes[n].kernel[ip] = until;
    }

    pub(super) fn told_node(&mut self, n: usize, id: u64, sent: Micros, tell: Tell) {
        let counted = match self.setting.counted_from {
            CountedFrom::Sent => sent,
            CountedFrom::Answered => self.now,
        };
        let sent = self.actors[n].clock.read(counted);
        let node = &mut self.nodes[n];
        match tell {
            Tell::Grants(grants) => {
                for (ip, record) in grants.into_iter().enumerate() {
                    node.holder.saw(address(ip), record);
                }
                return;
            }
            Tell::Renewed(term) => return node.holder.renewed(Source::Direct, term, sent),
            _ => {}
        }
        // Answers to questions that were given up say nothing about now.
        if node.request.is_none_or(|request| request.id != id) {
            return;
        }
        node.request = None;
        match tell {
            Tell::Lease(record) | Tell::LeaseRefused(record) => {
                node.holder.read(&record);
                node.lease = Some(record);
            }
            Tell::LeaseWritten { record, .. } => {
                node.holder.renewed(Source::Store, record.term, sent);
                node.lease = Some(record);
            }
            _ => {}
        }
    }
}
