//! What a controller does.

use egressnat_core::Assignment;
use egressnat_core::ownership::{GranterStep, LeaderStep, Time};

use super::message::{Ask, Tell};
use super::schedule::Choices;
use super::simulator::{Micros, NODES, World, address, index, name};

impl<C: Choices> World<C> {
    pub(super) fn tick_controller(&mut self, c: usize, now: Time) {
        let actor = c + NODES;
        let is_waiting = self.controllers[c]
            .request
            .is_some_and(|request| self.now < request.expires);
        if !is_waiting {
            let ask = match self.controllers[c].candidate.step(now) {
                LeaderStep::Read | LeaderStep::Wait => Ask::ReadLeader,
                LeaderStep::Write(version) => {
                    Ask::WriteLeader(version, (c, self.actors[actor].run))
                }
            };
            self.controllers[c].request = Some(self.request(actor, ask));
        }
        if self.controllers[c].granter.leads(now) {
            self.ask(actor, None, Ask::ReadAll);
        }
    }

    pub(super) fn told_controller(
        &mut self,
        c: usize,
        id: u64,
        sent: Micros,
        tell: Tell,
        now: Time,
    ) {
        let actor = c + NODES;
        let sent = self.actors[actor].clock.read(sent);
        match tell {
            Tell::All(leases, grants) if id > self.controllers[c].leads_since => {
                let granter = &mut self.controllers[c].granter;
                if !granter.leads(now) {
                    return;
                }
                for (n, record) in leases.into_iter().enumerate() {
                    granter.saw_lease(&name(n), record, now);
                }
                for (ip, record) in grants.into_iter().enumerate() {
                    granter.saw_grant(address(ip), record);
                }
                return self.grant(c, now);
            }
            Tell::LeaseWritten { over, record, of } => {
                self.controllers[c]
                    .granter
                    .took(&name(of), over, record, now);
                return;
            }
            _ => {}
        }
        let controller = &mut self.controllers[c];
        if controller.request.is_none_or(|request| request.id != id) {
            return;
        }
        controller.request = None;
        match tell {
            Tell::Leader(record) => controller.candidate.saw(record, now),
            Tell::LeaderRefused => {
                controller.candidate.lost();
                controller.granter.follow();
            }
            Tell::LeaderWritten(record) => {
                controller.candidate.wrote(record, sent);
                if let Some(until) = controller.candidate.leads_until(now) {
                    if !controller.granter.leads(now) {
                        controller.leads_since = self.order;
                    }
                    controller.granter.lead(now, until);
                }
            }
            _ => {}
        }
    }

    pub(super) fn grant(&mut self, c: usize, now: Time) {
        let granter = &self.controllers[c].granter;
        let mut wanted = Assignment::default();
        for (ip, first) in self.wanted.iter().enumerate() {
            let in_order = (0..NODES).map(|n| name((first + n) % NODES));
            if let Some(node) = in_order
                .into_iter()
                .find(|node| granter.is_alive(node, now))
            {
                wanted.nodes.insert(address(ip), node);
            }
        }
        for step in self.controllers[c].granter.step(&wanted, now) {
            let ask = match step {
                GranterStep::Take { node, record } => {
                    let n = (0..NODES).find(|n| name(*n) == node);
                    Ask::WriteLease(n.expect("a node"), record)
                }
                GranterStep::Write { address, record } => Ask::WriteGrant(index(address), record),
            };
            self.ask(c + NODES, None, ask);
        }
    }
}
