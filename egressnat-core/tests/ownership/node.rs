//! What a node does.

use egressnat_core::ownership::{HolderStep, Source, Time};

use super::message::{Ask, Tell, What};
use super::schedule::{Choices, CountedFrom};
use super::simulator::{CONTROLLERS, MILLI, Micros, NODES, World, address, index};

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
                    ..
                } => {
                    self.push(
                        self.now + 30 * MILLI,
                        n,
                        What::Probed(index(address), generation),
                    );
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
