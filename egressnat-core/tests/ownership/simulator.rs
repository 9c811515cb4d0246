//! Nodes, controllers and a store in virtual time, with everything that goes wrong between them.
//!
//! The simulator sees what no part of the system can: true time, and what every kernel holds.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::time::Duration;

use egressnat_core::Assignment;
use egressnat_core::model::NodeName;
use egressnat_core::ownership::{
    Candidate, Generation, GrantRecord, Granter, GranterStep, Holder, HolderStep, LeaderRecord,
    LeaderStep, LeaseRecord, Probe, Source, Term, Time, Timing, Version,
};

/// Where a schedule takes its choices from.
pub trait Choices {
    /// A number below `n`, which is at least 1.
    fn below(&mut self, n: u64) -> u64;
}

/// A schedule by number.
pub struct Dice(u64);

impl Dice {
    /// The schedule with this number.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }
}

impl Choices for Dice {
    fn below(&mut self, n: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// A schedule from the bytes of a fuzzer; calm when they end.
pub struct Bytes<'a>(pub &'a [u8]);

impl Choices for Bytes<'_> {
    fn below(&mut self, n: u64) -> u64 {
        let (taken, rest) = self.0.split_at(self.0.len().min(2));
        self.0 = rest;
        let number = taken
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte));
        number % n
    }
}

/// What the machines assume, and what is true.
#[derive(Clone, Copy)]
pub struct Setting {
    /// What holders and candidates are told.
    pub holder: Timing,
    /// What granters are told.
    pub granter: Timing,
    /// What the clocks' rates are really off by at most, in millionths.
    pub rate_error: u32,
    /// From when nodes count a renewal.
    pub counted_from: CountedFrom,
    /// What goes wrong.
    pub faults: Faults,
}

/// From when nodes count a renewal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum CountedFrom {
    /// As they must.
    Sent,
    /// The mistake that is easily made.
    Answered,
}

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Faults {
    /// Everything.
    All,
    /// Nothing.
    None,
}

/// A lease of one second and clocks that are off by 2 % at most.
pub const TIMING: Timing = Timing {
    duration: Duration::from_secs(1),
    rate_error: 20_000,
};

/// What holds under the assumptions.
pub const SOUND: Setting = Setting {
    holder: TIMING,
    granter: TIMING,
    rate_error: 20_000,
    counted_from: CountedFrom::Sent,
    faults: Faults::All,
};

const NODES: usize = 3;
const CONTROLLERS: usize = 2;
const ADDRESSES: usize = 2;
const ACTORS: usize = NODES + CONTROLLERS;

/// Microseconds of true time.
type Micros = u64;

const MILLI: Micros = 1_000;
const TICK: Micros = 250 * MILLI;
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

struct Clock {
    offset: Micros,
    /// Millionths of true time.
    rate: u64,
}

impl Clock {
    fn read(&self, now: Micros) -> Time {
        Time(Duration::from_micros(
            self.offset + now * self.rate / 1_000_000,
        ))
    }

    /// The true time at which the clock shows `time`.
    fn when(&self, time: Time) -> Micros {
        let local = u64::try_from(time.0.as_micros()).unwrap_or(u64::MAX);
        local.saturating_sub(self.offset) * 1_000_000 / self.rate
    }
}

/// What a process and the machine under it have in common.
struct Actor {
    clock: Clock,
    /// Which run of the process this is. Messages and steps of earlier runs are lost.
    run: u64,
    is_running: bool,
    frozen_until: Micros,
    cut_until: Micros,
}

struct Node {
    holder: Holder,
    lease: Option<LeaseRecord>,
    request: Option<Request>,
    /// Until when the kernel holds each address, in true time. Survives the process, not the machine.
    kernel: [Micros; ADDRESSES],
}

struct Controller {
    candidate: Candidate<(usize, u64)>,
    granter: Granter,
    request: Option<Request>,
    /// Reads that were sent before do not count.
    leads_since: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Request {
    id: u64,
    expires: Micros,
}

#[derive(Clone)]
enum Ask {
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
enum Tell {
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

enum What {
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
    Fault,
}

struct Event {
    at: Micros,
    order: u64,
    actor: usize,
    run: u64,
    what: What,
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

struct World<C> {
    choices: C,
    setting: Setting,
    now: Micros,
    events: BinaryHeap<Reverse<Event>>,
    order: u64,
    actors: Vec<Actor>,
    nodes: Vec<Node>,
    controllers: Vec<Controller>,
    leader: LeaderRecord<(usize, u64)>,
    leases: Vec<LeaseRecord>,
    grants: Vec<GrantRecord>,
    versions: u64,
    /// Where each address belongs.
    wanted: [usize; ADDRESSES],
    last_holder: [Option<usize>; ADDRESSES],
    moves: usize,
    broken: Option<String>,
}

fn address(n: usize) -> IpAddr {
    IpAddr::from([192, 168, 1, 100 + n as u8])
}

fn index(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(v4) => usize::from(v4.octets()[3]) - 100,
        IpAddr::V6(_) => unreachable!("the addresses are IPv4"),
    }
}

fn name(n: usize) -> NodeName {
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
    fn new(mut choices: C, setting: Setting) -> Self {
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
            leases: vec![LeaseRecord::default(); NODES],
            grants: vec![GrantRecord::default(); ADDRESSES],
            versions: 0,
            last_holder: [None; ADDRESSES],
            moves: 0,
            broken: None,
        };
        for actor in 0..ACTORS {
            let at = world.choices.below(TICK);
            world.push(at, actor, What::Tick);
        }
        if setting.faults == Faults::All {
            world.push(2_000 * MILLI, 0, What::Fault);
        }
        world
    }

    fn push(&mut self, at: Micros, actor: usize, what: What) {
        self.order += 1;
        let run = self.actors[actor].run;
        let order = self.order;
        self.events.push(Reverse(Event {
            at,
            order,
            actor,
            run,
            what,
        }));
    }

    fn is_calm(&self) -> bool {
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
            let (at, run) = (self.actors[actor].frozen_until, event.run);
            self.order += 1;
            let order = self.order;
            self.events.push(Reverse(Event {
                at,
                order,
                actor,
                run,
                what,
            }));
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
            What::Fault => {}
        }
    }

    fn holds(&self, node: usize, ip: usize) -> bool {
        self.nodes[node].kernel[ip] > self.now
    }

    /// Something goes wrong, or is mended.
    fn fault(&mut self) {
        if self.now >= CALM {
            for actor in 0..ACTORS {
                self.actors[actor].frozen_until = 0;
                self.actors[actor].cut_until = 0;
                if !self.actors[actor].is_running {
                    self.start(actor);
                }
            }
            return;
        }
        let actor = self.choices.below(ACTORS as u64) as usize;
        let a_while = self.choices.below(2_500) * MILLI;
        match self.choices.below(10) {
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
            }
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
    fn send(&mut self, to: usize, run: u64, what: What) {
        let is_bad = !self.is_calm();
        let mut delay = MILLI + self.choices.below(40 * MILLI);
        if is_bad {
            match self.choices.below(24) {
                0 => return,
                1 | 2 => delay += self.choices.below(3_000 * MILLI),
                _ => {}
            }
            if self.now < self.actors[to].cut_until {
                return;
            }
        }
        let at = self.now + delay;
        self.order += 1;
        let order = self.order;
        self.events.push(Reverse(Event {
            at,
            order,
            actor: to,
            run,
            what,
        }));
    }

    /// Asks the store, or a controller.
    fn ask(&mut self, from: usize, to: Option<usize>, ask: Ask) -> u64 {
        self.order += 1;
        let id = self.order;
        if self.now >= self.actors[from].cut_until || self.is_calm() {
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

    fn request(&mut self, from: usize, ask: Ask) -> Request {
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

    fn tick_node(&mut self, n: usize, now: Time) {
        let steps = self.nodes[n].holder.step(now);
        // The process may be stopped between what it decides and what it does.
        let later = if self.is_calm() {
            0
        } else {
            self.choices.below(5) * MILLI
        };
        self.push(self.now + later, n, What::Act(steps));
    }

    fn act(&mut self, n: usize, steps: Vec<HolderStep>) {
        for step in steps {
            match step {
                HolderStep::Probe(ip, generation) => {
                    self.push(
                        self.now + 30 * MILLI,
                        n,
                        What::Probed(index(ip), generation),
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
                Some(lease) => Ask::WriteLease(n, self.nodes[n].holder.renewal(lease)),
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

    fn hold(&mut self, n: usize, ip: usize, until: Time) {
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

    fn told_node(&mut self, n: usize, id: u64, sent: Micros, tell: Tell) {
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

    fn tick_controller(&mut self, c: usize, now: Time) {
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

    fn told_controller(&mut self, c: usize, id: u64, sent: Micros, tell: Tell, now: Time) {
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

    fn grant(&mut self, c: usize, now: Time) {
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

impl Node {
    fn new(n: usize, timing: Timing) -> Self {
        Self {
            holder: Holder::new(name(n), timing),
            lease: None,
            request: None,
            kernel: [0; ADDRESSES],
        }
    }
}

impl Controller {
    fn new(c: usize, run: u64, setting: Setting) -> Self {
        Self {
            candidate: Candidate::new((c, run), setting.holder),
            granter: Granter::new(setting.granter),
            request: None,
            leads_since: 0,
        }
    }
}
