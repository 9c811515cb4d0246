//! What was to be, in order, and what was seen against it.

use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use egressnat_core::{Decision, NodePlan};
use nix::time::{ClockId, clock_gettime};

use super::packet::{Kind, Packet};
use super::{
    Addresses, FIRST_PORT, FIRST_TCP_PORT, FLOWS, NODES, PACKETS_WAIT, address, node_of, pod_of,
};

/// How far what a segment says of its time may be behind.
const TICK: u32 = 2;

/// What the clock shows that TCP's timestamps are read from, in milliseconds.
pub(super) fn clock() -> u32 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    (now.tv_sec() * 1000 + now.tv_nsec() / 1_000_000) as u32
}

/// What was to be, in order, and up to where it is.
pub(super) struct History {
    pub(super) addresses: Addresses,
    pub(super) plans: Mutex<Vec<[NodePlan; 2]>>,
    /// Index of the last that all nodes have.
    applied: AtomicUsize,
    /// When each of them was what all nodes have.
    applied_at: Mutex<Vec<u32>>,
    pub(super) violations: Mutex<Vec<String>>,
    /// Packets of each flow over UDP and TCP.
    seen: [[AtomicUsize; FLOWS]; 2],
    /// What was asked and answered over TCP in each flow.
    answered: [AtomicUsize; FLOWS],
}

impl History {
    pub(super) fn new(addresses: Addresses) -> Self {
        Self {
            addresses,
            plans: Mutex::default(),
            applied: AtomicUsize::default(),
            applied_at: Mutex::default(),
            violations: Mutex::default(),
            seen: Default::default(),
            answered: Default::default(),
        }
    }

    /// Packets that were seen of each flow over UDP and TCP.
    pub(super) fn seen(&self) -> [[usize; FLOWS]; 2] {
        self.seen.each_ref().map(read)
    }

    /// What was asked and answered over TCP in each flow.
    pub(super) fn answered(&self) -> [usize; FLOWS] {
        read(&self.answered)
    }

    /// Something was asked and answered over TCP.
    pub(super) fn answer(&self, flow: usize) {
        self.answered[flow].fetch_add(1, Ordering::Relaxed);
    }

    /// What is decided about a flow in the end.
    pub(super) fn decide_last(&self, flow: usize) -> Decision {
        let plans = self.plans.lock().unwrap();
        self.addresses.decide(plans.last().unwrap(), flow)
    }

    /// Index of the last that all nodes have.
    pub(super) fn applied(&self) -> usize {
        self.applied.load(Ordering::SeqCst)
    }

    /// All nodes have what is to be in `step`.
    pub(super) fn set_applied(&self, step: usize) {
        self.applied_at.lock().unwrap().push(clock());
        self.applied.store(step, Ordering::SeqCst);
    }

    /// What all nodes had at a time.
    fn applied_before(&self, time: u32) -> usize {
        let applied_at = self.applied_at.lock().unwrap();
        // The clock starts anew every 49 days.
        let is_before = |at: &u32| time.wrapping_sub(*at).cast_signed() > 0;
        applied_at.partition_point(is_before).saturating_sub(1)
    }

    pub(super) fn violate(&self, violation: String) {
        self.violations.lock().unwrap().push(violation);
    }

    /// Whether a packet may be on the wire now, for what was in force when it was sent, and since.
    pub(super) fn check(&self, from: usize, packet: &Packet) {
        let (protocol, first_port, sent_in) = match packet.kind {
            Kind::Datagram(sent_in) => (0, FIRST_PORT, usize::from(sent_in)),
            Kind::Segment(_, time) => {
                let time = time.unwrap_or(clock().wrapping_sub(PACKETS_WAIT.as_millis() as u32));
                let sent_in = self.applied_before(time.wrapping_sub(TICK));
                (1, FIRST_TCP_PORT, sent_in)
            }
        };
        let flow = usize::from(packet.ports[1]).checked_sub(usize::from(first_port));
        let Some(flow) = flow.filter(|flow| *flow < FLOWS) else {
            return;
        };
        if packet.destination != address(self.addresses.server_of(flow)) {
            return;
        }
        self.seen[protocol][flow].fetch_add(1, Ordering::Relaxed);
        let own = node_of(pod_of(flow));
        let source = packet.source;
        let plans = self.plans.lock().unwrap();
        let decide = |plans: &[NodePlan; 2]| self.addresses.decide(plans, flow);
        let current = &plans[sent_in..];
        let is_masqueraded = current
            .iter()
            .any(|plans| decide(plans) == Decision::Masquerade);
        // What was translated goes on as it is when its policy goes.
        let translated = if is_masqueraded { &plans[..] } else { current };
        let is_allowed = if source == address(self.addresses.nodes[own]) {
            is_masqueraded && from == own
        } else {
            translated
                .iter()
                .any(|plans| decide(plans) == Decision::Snat(source))
                && current
                    .iter()
                    .any(|plans| plans[from].floating_ips.contains(&source))
        };
        if !is_allowed {
            let decisions: Vec<Decision> = current.iter().map(decide).collect();
            self.violate(format!(
                "{} to {}, ports {:?}, {:?}: seen as {source} from {}, {} hops left, sent in {sent_in}, decided since: {decisions:?}",
                pod_of(flow),
                packet.destination,
                packet.ports,
                packet.kind,
                NODES[from],
                packet.hops,
            ));
        }
    }

    /// Whether a flow's packets have left from one node with one address since `step`.
    pub(super) fn is_steady(&self, flow: usize, step: usize) -> bool {
        let way = |plans: &[NodePlan; 2]| {
            let decision = self.addresses.decide(plans, flow);
            let holder = match decision {
                Decision::Snat(egress) => holder(plans, egress),
                _ => None,
            };
            (decision, holder)
        };
        let plans = self.plans.lock().unwrap();
        let first = way(&plans[step]);
        let is_open = match first {
            (Decision::Snat(_), holder) => holder.is_some(),
            (decision, _) => decision == Decision::Masquerade,
        };
        is_open && plans[step..].iter().all(|plans| way(plans) == first)
    }
}

/// Which node has a floating IP.
fn holder(plans: &[NodePlan; 2], floating: IpAddr) -> Option<usize> {
    let mut plans = plans.iter();
    plans.position(|plan| plan.floating_ips.contains(&floating))
}

fn read(counters: &[AtomicUsize; FLOWS]) -> [usize; FLOWS] {
    counters
        .each_ref()
        .map(|counter| counter.load(Ordering::Relaxed))
}
