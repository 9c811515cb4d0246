//! Nodes, controllers and a store in virtual time, with everything that goes wrong between them.
//!
//! The simulator sees what no part of the system can: true time, and what every kernel holds.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::time::Duration;

use super::message::{Ask, Event, Tell, What};
use super::schedule::{Choices, Faults, Segment, Setting};

use egressnat_core::model::NodeName;
use egressnat_core::ownership::{
    Candidate, GrantRecord, Granter, Holder, LeaderRecord, LeaseRecord, Probe, Source, Time,
    Timing, Version,
};

pub(super) const NODES: usize = 3;
pub(super) const CONTROLLERS: usize = 2;
pub(super) const ADDRESSES: usize = 2;
const ACTORS: usize = NODES + CONTROLLERS;

/// Microseconds of true time.
pub(super) type Micros = u64;

pub(super) const MILLI: Micros = 1_000;
pub(super) const TICK: Micros = 250 * MILLI;
/// When the faults end.
const CALM: Micros = 14_000 * MILLI;
/// By when everything has to be where it belongs after that: somebody leads, waits for leases that it cannot know of, moves.
const END: Micros = CALM + 9_000 * MILLI;

/// What came out of a schedule.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Never two owners, and in the end everything was where it belongs.
    Good {
        /// How often an address changed its holder.
        moves: usize,
    },
    /// Two owners.
    TwoOwners(String),
    /// An address that was not where it belongs in the end.
    NoProgress(String),
}

pub(super) struct Clock {
    pub(super) offset: Micros,
    /// Millionths of true time.
    pub(super) rate: u64,
}

impl Clock {
    pub(super) fn read(&self, now: Micros) -> Time {
        Time(Duration::from_micros(
            self.offset + now * self.rate / 1_000_000,
        ))
    }

    /// The true time at which the clock shows `time`.
    pub(super) fn when(&self, time: Time) -> Micros {
        let local = u64::try_from(time.0.as_micros()).unwrap_or(u64::MAX);
        local.saturating_sub(self.offset) * 1_000_000 / self.rate
    }
}

/// What a process and the machine under it have in common.
pub(super) struct Actor {
    pub(super) clock: Clock,
    /// Which run of the process this is. Messages and steps of earlier runs are lost.
    pub(super) run: u64,
    pub(super) is_running: bool,
    pub(super) frozen_until: Micros,
    /// From everybody.
    pub(super) cut_until: Micros,
    /// From the store and the controllers alone.
    pub(super) store_cut_until: Micros,
}

impl Actor {
    fn is_cut(&self, now: Micros) -> bool {
        now < self.cut_until.max(self.store_cut_until)
    }
}

pub(super) struct Node {
    pub(super) holder: Holder,
    pub(super) lease: Option<LeaseRecord>,
    pub(super) request: Option<Request>,
    /// Until when the kernel holds each address, in true time. Survives the process, not the machine.
    pub(super) kernel: [Micros; ADDRESSES],
    /// Whether the machine is off, and answers nobody.
    pub(super) is_off: bool,
}

pub(super) struct Controller {
    pub(super) candidate: Candidate<(usize, u64)>,
    pub(super) granter: Granter,
    pub(super) request: Option<Request>,
    /// Reads that were sent before do not count.
    pub(super) leads_since: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) id: u64,
    pub(super) expires: Micros,
}

pub(super) struct World<C> {
    pub(super) choices: C,
    pub(super) setting: Setting,
    pub(super) now: Micros,
    pub(super) events: BinaryHeap<Reverse<Event>>,
    pub(super) order: u64,
    pub(super) actors: Vec<Actor>,
    pub(super) nodes: Vec<Node>,
    pub(super) controllers: Vec<Controller>,
    pub(super) leader: LeaderRecord<(usize, u64)>,
    pub(super) leases: Vec<LeaseRecord>,
    pub(super) grants: Vec<GrantRecord>,
    pub(super) versions: u64,
    /// Where each address belongs.
    pub(super) wanted: [usize; ADDRESSES],
    pub(super) last_holder: [Option<usize>; ADDRESSES],
    pub(super) moves: usize,
    pub(super) broken: Option<String>,
}

pub(super) fn address(n: usize) -> IpAddr {
    IpAddr::from([192, 168, 1, 100 + n as u8])
}

pub(super) fn index(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(v4) => usize::from(v4.octets()[3]) - 100,
        IpAddr::V6(_) => unreachable!("the addresses are IPv4"),
    }
}

pub(super) fn name(n: usize) -> NodeName {
    format!("n{n}").parse().expect("a name")
}

/// Runs one schedule.
pub fn run(choices: impl Choices, setting: Setting) -> Outcome {
    let mut world = World::new(choices, setting);
    while let Some(Reverse(event)) = world.events.pop() {
        if event.at > END {
            break;
        }
        world.now = event.at;
        world.happen(event);
        if let Some(broken) = world.broken {
            return Outcome::TwoOwners(broken);
        }
    }
    for ip in 0..ADDRESSES {
        let holders: Vec<usize> = (0..NODES)
            .filter(|n| world.nodes[*n].kernel[ip] > END)
            .collect();
        if holders != [world.wanted[ip]] {
            let message = format!(
                "{} belongs to n{} and is on {holders:?}",
                address(ip),
                world.wanted[ip]
            );
            return Outcome::NoProgress(message);
        }
    }
    Outcome::Good { moves: world.moves }
}

impl<C: Choices> World<C> {
    pub(super) fn new(mut choices: C, setting: Setting) -> Self {
        let error = u64::from(setting.rate_error);
        let actors = (0..ACTORS).map(|_| Actor {
            clock: Clock {
                offset: choices.below(10_000_000_000),
                rate: 1_000_000 - error + choices.below(2 * error + 1),
            },
            run: 0,
            is_running: true,
            frozen_until: 0,
            cut_until: 0,
            store_cut_until: 0,
        });
        let actors: Vec<Actor> = actors.collect();
        let mut world = Self {
            nodes: (0..NODES).map(|n| Node::new(n, setting.holder)).collect(),
            controllers: (0..CONTROLLERS)
                .map(|c| Controller::new(c, 0, setting))
                .collect(),
            wanted: [0; ADDRESSES].map(|_| choices.below(NODES as u64) as usize),
            choices,
            setting,
            now: 0,
            events: BinaryHeap::new(),
            order: 0,
            actors,
            leader: LeaderRecord::default(),
            leases: vec![
                LeaseRecord {
                    duration: setting.told,
                    ..LeaseRecord::default()
                };
                NODES
            ],
            grants: vec![GrantRecord::default(); ADDRESSES],
            versions: 0,
            last_holder: [None; ADDRESSES],
            moves: 0,
            broken: None,
        };
        for actor in 0..ACTORS {
            let at = world.choices.below(TICK);
            world.push(at, actor, What::Tick);
            world.push_asking(at, actor);
        }
        if setting.faults == Faults::All {
            world.push(2_000 * MILLI, 0, What::Fault);
        }
        world
    }

    pub(super) fn push(&mut self, at: Micros, actor: usize, what: What) {
        let run = self.actors[actor].run;
        self.push_of_run(at, actor, run, what);
    }

    /// A node looks from then on whether it has to ask the others.
    fn push_asking(&mut self, at: Micros, actor: usize) {
        if self.setting.segment == Segment::Answers && actor < NODES {
            self.push(at, actor, What::AskSegment);
        }
    }

    /// Something that counts only while the actor is in this run.
    fn push_of_run(&mut self, at: Micros, actor: usize, run: u64, what: What) {
        self.order += 1;
        let order = self.order;
        self.events.push(Reverse(Event {
            at,
            order,
            actor,
            run,
            what,
        }));
    }

    pub(super) fn is_calm(&self) -> bool {
        self.now >= CALM || self.setting.faults == Faults::None
    }

    fn happen(&mut self, event: Event) {
        if let What::Fault = event.what {
            return self.fault();
        }
        let Event {
            actor, run, what, ..
        } = event;
        // What arrives at the store does not need the one who asked any more.
        if let What::Asked {
            id,
            from,
            sent,
            to: None,
            ask,
        } = what
        {
            let tell = self.ask_store(ask);
            self.send(from, run, What::Told { id, sent, tell });
            return;
        }
        let is_of_this_run = run == self.actors[actor].run || matches!(what, What::Asked { .. });
        if !is_of_this_run || !self.actors[actor].is_running {
            return;
        }
        if self.now < self.actors[actor].frozen_until {
            let at = self.actors[actor].frozen_until;
            self.push_of_run(at, actor, run, what);
            return;
        }
        let now = self.actors[actor].clock.read(self.now);
        match what {
            What::Tick => {
                let next = self.now + TICK / 2 + self.choices.below(TICK);
                self.push(next, actor, What::Tick);
                match actor.checked_sub(NODES) {
                    None => self.tick_node(actor, now),
                    Some(controller) => self.tick_controller(controller, now),
                }
            }
            What::Asked {
                id,
                from,
                sent,
                ask,
                ..
            } => {
                let Ask::Renew(node, term) = ask else { return };
                let granter = &mut self.controllers[actor - NODES].granter;
                if granter.renew(&name(node), term, now) {
                    let run = self.actors[from].run;
                    self.send(
                        from,
                        run,
                        What::Told {
                            id,
                            sent,
                            tell: Tell::Renewed(term),
                        },
                    );
                }
            }
            What::Told { id, sent, tell } => match actor.checked_sub(NODES) {
                None => self.told_node(actor, id, sent, tell),
                Some(controller) => self.told_controller(controller, id, sent, tell, now),
            },
            What::Act(steps) => self.act(actor, steps),
            What::Probed(ip, generation) => {
                // A probe may be lost, so that nothing may depend on it.
                let is_taken = (0..NODES).any(|n| n != actor && self.holds(n, ip))
                    && self.choices.below(4) == 3;
                let outcome = if is_taken {
                    Probe::Conflict
                } else {
                    Probe::Free
                };
                self.nodes[actor]
                    .holder
                    .probed(address(ip), generation, outcome, now);
            }
            What::Looking(ip, generation, since) => self.look(actor, (ip, generation), since),
            What::AskSegment => self.ask_segment(actor, now),
            What::SegmentAnswered(term, sent) => {
                let sent = self.actors[actor].clock.read(sent);
                let holder = &mut self.nodes[actor].holder;
                holder.renewed(Source::Segment, term, sent);
                let steps = holder.step(now);
                self.act(actor, steps);
            }
            What::Fault => {}
        }
    }

    pub(super) fn holds(&self, node: usize, ip: usize) -> bool {
        self.nodes[node].kernel[ip] > self.now
    }

    /// Something goes wrong, or is mended.
    fn fault(&mut self) {
        if self.now >= CALM {
            for actor in 0..ACTORS {
                self.actors[actor].frozen_until = 0;
                self.actors[actor].cut_until = 0;
                self.actors[actor].store_cut_until = 0;
                if !self.actors[actor].is_running {
                    self.start(actor);
                }
            }
            return;
        }
        let actor = self.choices.below(ACTORS as u64) as usize;
        let a_while = self.choices.below(2_500) * MILLI;
        let kinds = match self.setting.segment {
            Segment::Silent => 10,
            Segment::Answers => 14,
        };
        match self.choices.below(kinds) {
            0 | 1 => self.actors[actor].frozen_until = self.now + a_while,
            2 | 3 => self.actors[actor].cut_until = self.now + a_while,
            4 => self.stop(actor),
            5 => {
                self.stop(actor);
                self.start(actor);
            }
            6 if !self.actors[actor].is_running => self.start(actor),
            6 if actor < NODES => {
                // The machine, not only the process.
                self.stop(actor);
                self.nodes[actor].kernel = [0; ADDRESSES];
                self.nodes[actor].is_off = true;
            }
            10.. => self.actors[actor].store_cut_until = self.now + 4 * a_while,
            _ => {
                let ip = self.choices.below(ADDRESSES as u64) as usize;
                self.wanted[ip] = self.choices.below(NODES as u64) as usize;
            }
        }
        let next = self.now + (50 + self.choices.below(1_000)) * MILLI;
        self.push(next.min(CALM), 0, What::Fault);
    }

    fn stop(&mut self, actor: usize) {
        self.actors[actor].is_running = false;
        self.actors[actor].run += 1;
    }

    fn start(&mut self, actor: usize) {
        self.actors[actor].is_running = true;
        self.actors[actor].run += 1;
        let run = self.actors[actor].run;
        match actor.checked_sub(NODES) {
            None => {
                let kernel = self.nodes[actor].kernel;
                self.nodes[actor] = Node::new(actor, self.setting.holder);
                self.nodes[actor].kernel = kernel;
                for (ip, until) in kernel.into_iter().enumerate() {
                    if until > self.now {
                        let until = self.actors[actor].clock.read(until);
                        self.nodes[actor].holder.found(address(ip), until);
                    }
                }
            }
            Some(controller) => {
                self.controllers[controller] = Controller::new(controller, run, self.setting);
            }
        }
        self.push(self.now + MILLI, actor, What::Tick);
    }

    /// Sends something to `to`; it may be late or lost, now or at the other end.
    pub(super) fn send(&mut self, to: usize, run: u64, what: What) {
        let is_bad = !self.is_calm();
        let mut delay = MILLI + self.choices.below(40 * MILLI);
        if is_bad {
            match self.choices.below(24) {
                0 => return,
                1 | 2 => delay += self.choices.below(3_000 * MILLI),
                _ => {}
            }
            if self.actors[to].is_cut(self.now) {
                return;
            }
        }
        self.push_of_run(self.now + delay, to, run, what);
    }

    /// Asks the store, or a controller.
    pub(super) fn ask(&mut self, from: usize, to: Option<usize>, ask: Ask) -> u64 {
        self.order += 1;
        let id = self.order;
        if !self.actors[from].is_cut(self.now) || self.is_calm() {
            let run = self.actors[from].run;
            let sent = self.now;
            let asked = What::Asked {
                id,
                from,
                sent,
                to: to.map(|c| c + NODES),
                ask,
            };
            // A question to the store is with the store once it is sent; partitions are at the actors.
            self.send(to.map_or(from, |c| c + NODES), run, asked);
        }
        id
    }

    pub(super) fn request(&mut self, from: usize, ask: Ask) -> Request {
        let id = self.ask(from, None, ask);
        Request {
            id,
            expires: self.now + 600 * MILLI,
        }
    }

    fn new_version(&mut self) -> Version {
        self.versions += 1;
        Version(self.versions)
    }

    fn ask_store(&mut self, ask: Ask) -> Tell {
        match ask {
            Ask::ReadLease(node) => Tell::Lease(self.leases[node].clone()),
            Ask::WriteLease(node, mut record) => {
                let over = record.version;
                if self.leases[node].version != over {
                    return Tell::LeaseRefused(self.leases[node].clone());
                }
                record.version = self.new_version();
                self.leases[node] = record.clone();
                Tell::LeaseWritten {
                    over,
                    record,
                    of: node,
                }
            }
            Ask::ReadGrants => Tell::Grants(self.grants.clone()),
            Ask::ReadLeader => Tell::Leader(self.leader.clone()),
            Ask::WriteLeader(over, leader) => {
                if self.leader.version != over {
                    return Tell::LeaderRefused;
                }
                self.leader = LeaderRecord {
                    version: self.new_version(),
                    leader: Some(leader),
                };
                Tell::LeaderWritten(self.leader.clone())
            }
            Ask::ReadAll => Tell::All(self.leases.clone(), self.grants.clone()),
            Ask::WriteGrant(ip, mut record) => {
                if self.grants[ip].version == record.version {
                    record.version = self.new_version();
                    self.grants[ip] = record;
                }
                Tell::Nothing
            }
            Ask::Renew(..) => Tell::Nothing,
        }
    }
}

impl Node {
    pub(super) fn new(n: usize, timing: Timing) -> Self {
        Self {
            holder: Holder::new(name(n), timing),
            lease: None,
            request: None,
            kernel: [0; ADDRESSES],
            is_off: false,
        }
    }
}

impl Controller {
    pub(super) fn new(c: usize, run: u64, setting: Setting) -> Self {
        Self {
            candidate: Candidate::new((c, run), setting.holder),
            granter: Granter::new(setting.holder.rate_error),
            request: None,
            leads_since: 0,
        }
    }
}
