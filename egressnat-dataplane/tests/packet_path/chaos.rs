//! E43, E44, E33 with everything at once: policies, holders and agents change in random order, others take things away, pods and
//! servers send without end and open, use, leave and end connections. Whatever comes by is held against what the planner says.

mod agent;
mod connections;
mod datagrams;
mod history;
mod packet;
mod state;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use egressnat_core::model::Snapshot;
use egressnat_core::{Decision, NodePlan};
use fastrand::Rng;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::ipv6;
use crate::network::{self, FLOATING, Network, OTHER_SERVER, SERVER, eventually};
use agent::{Agent, Order};
use history::{History, clock};
use packet::Packet;
use state::State;

/// What the random numbers begin with, to see once more what was seen before.
const SEED: &str = "EGRESSNAT_SEED";

const NODES: [&str; 2] = ["n1", "n2"];
const PODS: [&str; 4] = ["10.10.1.2", "10.10.1.3", "10.10.2.2", "10.10.2.3"];
/// As the labels of the pods say.
const ROLES: [&str; 2] = ["frontend", "backend"];

/// Each flow has a port of its own on its server, so that it is known whatever it is translated to.
const FIRST_PORT: u16 = 7100;
/// Of the same flows over TCP.
const FIRST_TCP_PORT: u16 = 7200;
const FLOWS: usize = PODS.len() * 2;

/// How long a packet may wait for a floating IP that moves: the kernel asks for it three times, a second apart.
const PACKETS_WAIT: Duration = Duration::from_millis(3500);

/// The addresses of one family.
struct Addresses {
    nodes: [&'static str; 2],
    floating_ips: [&'static str; 2],
    servers: [&'static str; 2],
    /// Of a pod that is called by its IPv4 address.
    pod: fn(&str) -> IpAddr,
    snapshot: fn() -> Snapshot,
}

const IPV4: Addresses = Addresses {
    nodes: ["192.168.1.1", "192.168.1.2"],
    floating_ips: [FLOATING, "192.168.1.101"],
    servers: [SERVER, OTHER_SERVER],
    pod: |name| name.parse().unwrap(),
    snapshot: network::snapshot,
};

const IPV6: Addresses = Addresses {
    nodes: ipv6::NODES,
    floating_ips: [ipv6::FLOATING6, "fd00:192:168:1::101"],
    servers: [ipv6::SERVER6, ipv6::OTHER_SERVER6],
    pod: |name| ipv6::address6(name).parse().unwrap(),
    snapshot: ipv6::snapshot,
};

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pod_of(flow: usize) -> &'static str {
    PODS[flow / 2]
}

fn node_of(pod: &str) -> usize {
    usize::from(pod.starts_with("10.10.2."))
}

impl Addresses {
    fn server_of(&self, flow: usize) -> &'static str {
        self.servers[flow % 2]
    }

    /// What a node's plan says about a flow.
    fn decide(&self, plans: &[NodePlan; 2], flow: usize) -> Decision {
        let (pod, server) = (pod_of(flow), address(self.server_of(flow)));
        plans[node_of(pod)].decide((self.pod)(pod), server, None)
    }
}

/// Ends what runs until then when it is dropped.
struct End(Arc<AtomicBool>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs until `is_over`, on a thread of its own in a namespace.
fn repeat(is_over: &Arc<AtomicBool>, mut work: impl FnMut() + Send + 'static) {
    let is_over = Arc::clone(is_over);
    thread::spawn(move || {
        while !is_over.load(Ordering::Relaxed) {
            work();
        }
    });
}

impl Network {
    /// Looks at all that comes in from the nodes.
    fn inspect(&self, history: &Arc<History>, is_over: &Arc<AtomicBool>) {
        let nodes = NODES.map(|node| {
            let address = self.exec(node, "cat /sys/class/net/eth0/address");
            let octets = address.trim().split(':');
            octets
                .map(|octet| u8::from_str_radix(octet, 16).unwrap())
                .collect::<Vec<u8>>()
        });
        let capture: OwnedFd = self.enter("out", || {
            let capture = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::empty(),
                SockProtocol::EthAll,
            )
            .unwrap();
            let _ = setsockopt(&capture, sockopt::RcvBufForce, &(64 << 20));
            setsockopt(
                &capture,
                sockopt::ReceiveTimeout,
                &TimeVal::milliseconds(50),
            )
            .unwrap();
            capture
        });
        let history = Arc::clone(history);
        let mut frame = vec![0; 2048];
        repeat(is_over, move || {
            let Ok(length) = recv(capture.as_raw_fd(), &mut frame, MsgFlags::empty()) else {
                return;
            };
            let from = nodes.iter().position(|mac| frame[6..12] == mac[..]);
            if let (Some(from), Some(packet)) = (from, Packet::parse(&frame[14..length])) {
                history.check(from, &packet);
            }
        });
    }

    /// What others do to a node at any time. The agent finds out by itself.
    fn disturb(&self, rng: &mut Rng) -> String {
        let node = NODES[rng.usize(..2)];
        let command = rng.choice([
            "ip link del egressnat0",
            "ip rule del priority 1190",
            "ip -6 rule del priority 1190",
            "ip route flush table 1190",
            "ip -6 route flush table 1190",
            "nft flush ruleset",
            "ip neigh flush dev eth0",
            "ip link set egressnat0 down",
        ]);
        let command = command.unwrap();
        // It may be gone, and a table that is owned stays.
        self.told(node, command);
        format!("{node}: {command}")
    }
}

fn steps() -> usize {
    match std::env::var_os("EGRESSNAT_LONG") {
        Some(_) => 1000,
        None => 40,
    }
}

#[test]
fn whatever_happens_in_whatever_order_no_packet_has_an_address_that_nobody_decided_e33_e43_e44() {
    chaos(IPV4);
}

#[test]
fn whatever_happens_no_packet_of_ipv6_has_an_address_that_nobody_decided_e33_e43_e44() {
    chaos(IPV6);
}

/// Lives through random changes, which `told` has.
struct Run {
    network: Network,
    agents: [Agent; 2],
    history: Arc<History>,
    rng: Rng,
    state: State,
    held: [BTreeSet<IpAddr>; 2],
    told: String,
}

fn chaos(addresses: Addresses) {
    let seed = std::env::var(SEED).map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    let network = Network::dual_stack();
    let mut run = Run {
        agents: NODES.map(|node| Agent::start(&network, node)),
        network,
        history: Arc::new(History::new(addresses)),
        rng: Rng::with_seed(seed),
        state: State::default(),
        held: Default::default(),
        told: format!("{SEED}={seed}"),
    };
    let is_over = Arc::new(AtomicBool::new(false));
    let end = End(Arc::clone(&is_over));
    for step in 0..steps() {
        run.change(step);
        if step == 0 {
            run.start_traffic(&is_over);
        }
        if run.rng.bool() {
            thread::sleep(Duration::from_millis(run.rng.u64(..100)));
        }
        if run.rng.u8(..4) == 0 {
            let flow = run.rng.usize(..FLOWS);
            run.ask(flow, Network::seen_by_udp);
        }
        run.check();
    }
    run.settle();
    drop(end);
    run.check();
    let seen = run.history.seen();
    eprintln!(
        "{SEED}={seed}: {} changes, packets seen by flow: {seen:?}",
        steps()
    );
    let told = &run.told;
    assert!(
        seen.iter().flatten().all(|count| *count > 0),
        "{seen:?}\n{told}"
    );
}

impl Run {
    fn change(&mut self, step: usize) {
        let rng = &mut self.rng;
        for _ in 0..rng.usize(1..=2) {
            self.state.change(rng);
        }
        let (state, told) = (&self.state, &mut self.told);
        let plans = state.plans(&self.history.addresses);
        let (egress, holders) = (&state.egress, &state.holders);
        let from = clock();
        write!(
            told,
            "\n{step}: {egress:?} held by {holders:?}, from {from}"
        )
        .unwrap();
        self.history.plans.lock().unwrap().push(plans.clone());
        if rng.u8(..4) == 0 {
            write!(told, "\n  {}", self.network.disturb(rng)).unwrap();
        }
        // Nobody takes what another has not given away.
        let mut order = [0, 1];
        rng.shuffle(&mut order);
        for node in order {
            let mut giving = plans[node].clone();
            giving
                .floating_ips
                .retain(|address| self.held[node].contains(address));
            if rng.u8(..8) == 0 {
                let after = Duration::from_millis(rng.u64(..30));
                write!(told, "\n  {}: dies after {after:?}", NODES[node]).unwrap();
                self.agents[node].order(Order::Die(Box::new(giving), after));
            } else {
                self.agents[node].apply(giving);
            }
        }
        for node in order {
            self.agents[node].apply(plans[node].clone());
            self.held[node] = plans[node].floating_ips.clone();
        }
        self.history.set_applied(step);
        write!(self.told, " to {}", clock()).unwrap();
    }

    fn start_traffic(&self, is_over: &Arc<AtomicBool>) {
        self.network.inspect(&self.history, is_over);
        for pod in PODS {
            // What segments say of their time is what the clock shows.
            self.network.sysctl(pod, "net.ipv4.tcp_timestamps=2");
        }
        for flow in 0..FLOWS {
            self.network.start_datagrams(flow, &self.history, is_over);
            self.network.start_connections(flow, &self.history, is_over);
        }
    }

    /// Asks the server of a flow anew, and waits until it sees the pod as was decided.
    fn ask(&self, flow: usize, seen_by: impl Fn(&Network, &str, &str) -> Option<String>) {
        let addresses = &self.history.addresses;
        let (pod, server) = (pod_of(flow), addresses.server_of(flow));
        let seen = match self.history.decide_last(flow) {
            Decision::Masquerade => Some(addresses.nodes[node_of(pod)].to_owned()),
            Decision::Snat(address) if self.held.iter().any(|held| held.contains(&address)) => {
                Some(address.to_string())
            }
            _ => None,
        };
        let told = &self.told;
        eventually((told, seen), || (told, seen_by(&self.network, pod, server)));
    }

    /// Once nothing changes any more, whatever can be used is used.
    fn settle(&self) {
        let history = &self.history;
        let open: Vec<usize> = (0..FLOWS)
            .filter(|flow| history.is_steady(*flow, history.applied()))
            .collect();
        let before = history.answered();
        eventually((&self.told, vec![]), || {
            let now = history.answered();
            // One connection for what was asked before, another for what is asked now.
            let is_stuck = |flow: &usize| now[*flow] < before[*flow] + 2;
            (&self.told, open.iter().copied().filter(is_stuck).collect())
        });
        for flow in open {
            self.ask(flow, Network::seen_by_tcp);
        }
    }

    fn check(&self) {
        let violations = self.history.violations.lock().unwrap();
        let told = &self.told;
        assert!(violations.is_empty(), "{told}\n{}", violations.join("\n"));
    }
}
