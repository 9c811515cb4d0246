//! E43, E44, E33 with everything at once: policies, holders and agents change in random order, others take things away, pods and
//! servers send without end. Whatever comes by is held against what the planner says.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use egressnat_core::model::{
    EgressSource, Enforcement, Gateway, GatewayKey, Policy, Snapshot, Source,
};
use egressnat_core::selector::Selector;
use egressnat_core::{Decision, NodePlan};
use egressnat_dataplane::{Config, Dataplane};
use fastrand::Rng;
use ipnet::IpNet;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::ipv6;
use crate::network::{self, FLOATING, Network, OTHER_SERVER, SERVER, eventually, planned, runtime};

/// What the random numbers begin with, to see once more what was seen before.
const SEED: &str = "EGRESSNAT_SEED";

const NODES: [&str; 2] = ["n1", "n2"];
const PODS: [&str; 4] = ["10.10.1.2", "10.10.1.3", "10.10.2.2", "10.10.2.3"];
/// As the labels of the pods say.
const ROLES: [&str; 2] = ["frontend", "backend"];

/// Each flow has a port of its own on its server, so that it is known whatever it is translated to.
const FIRST_PORT: u16 = 7100;
const FLOWS: usize = PODS.len() * 2;

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

/// What there is for a while.
#[derive(Debug, Clone, Default, PartialEq)]
struct State {
    /// Which floating IP a role has to a server, by index, and what is to be where nobody holds it.
    egress: [[Option<(usize, Enforcement)>; 2]; ROLES.len()],
    /// Which node has a floating IP, by index.
    holders: [Option<usize>; 2],
}

impl State {
    /// One thing less, one more, or another.
    fn change(&mut self, rng: &mut Rng) {
        let before = self.clone();
        while *self == before {
            let any = [None, Some(0), Some(1)][rng.usize(..3)];
            if rng.bool() {
                let enforcement = [Enforcement::Strict, Enforcement::BestEffort][rng.usize(..2)];
                self.egress[rng.usize(..ROLES.len())][rng.usize(..2)] =
                    any.map(|floating| (floating, enforcement));
            } else {
                self.holders[rng.usize(..2)] = any;
            }
        }
    }

    /// What the planner makes of it.
    fn plans(&self, addresses: &Addresses) -> [NodePlan; 2] {
        let mut snapshot = (addresses.snapshot)();
        snapshot.policies.clear();
        let keys = ["default", "other"]
            .map(|name| GatewayKey::group("kube-system".parse().unwrap(), name.parse().unwrap()));
        for (key, floating) in keys.iter().zip(addresses.floating_ips) {
            let gateway = Gateway::new([address(floating)]);
            snapshot.gateways.insert(key.clone(), gateway);
        }
        for (role, by_server) in ROLES.into_iter().zip(self.egress) {
            for (index, egress) in by_server.into_iter().enumerate() {
                let Some((egress, enforcement)) = egress else {
                    continue;
                };
                let mut source = Source::everything();
                source.pods = Selector::from_labels([("role", role)]);
                let destination = IpNet::from(address(addresses.servers[index]));
                let mut policy =
                    Policy::snat([source], [destination], EgressSource::from(&keys[egress]));
                policy.enforcement = enforcement;
                let name = format!("{role}-{index}").parse().unwrap();
                snapshot.policies.insert(name, policy);
            }
        }
        let holders = addresses.floating_ips.into_iter().zip(self.holders);
        let holders = holders.filter_map(|(floating, node)| Some((floating, NODES[node?])));
        let holders: Vec<_> = holders.collect();
        NODES.map(|node| planned(&snapshot, node, &holders))
    }
}

/// What is on the wire of a datagram.
struct Datagram {
    source: IpAddr,
    destination: IpAddr,
    /// Hops that are left.
    hops: u8,
    /// Its UDP header and what follows.
    payload: Vec<u8>,
}

impl Datagram {
    fn parse(packet: &[u8]) -> Option<Self> {
        const UDP: u8 = 17;
        let (protocol, hops, source, destination, header) = match packet.first()? >> 4 {
            4 => (9, 8, 12..16, 16..20, 20),
            6 => (6, 7, 8..24, 24..40, 40),
            _ => return None,
        };
        let address = |range| {
            let octets: &[u8] = packet.get(range)?;
            let ipv4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
            ipv4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from))
                .ok()
        };
        (*packet.get(protocol)? == UDP).then_some(Self {
            source: address(source)?,
            destination: address(destination)?,
            hops: *packet.get(hops)?,
            payload: packet.get(header..)?.to_vec(),
        })
    }

    fn number(&self, at: usize) -> Option<u16> {
        let octets = self.payload.get(at..)?.first_chunk()?;
        Some(u16::from_be_bytes(*octets))
    }
}

/// What was to be, in order, and up to where it is.
struct History {
    addresses: Addresses,
    plans: Mutex<Vec<[NodePlan; 2]>>,
    /// Index of the last that all nodes have.
    applied: AtomicUsize,
    violations: Mutex<Vec<String>>,
    seen: [AtomicUsize; FLOWS],
}

impl History {
    /// Whether a datagram may be on the wire now, for what was in force when it was sent, and since.
    fn check(&self, from: usize, datagram: &Datagram) {
        let (Some(to), Some(sent_in)) = (datagram.number(2), datagram.number(8)) else {
            return;
        };
        let flow = usize::from(to).checked_sub(usize::from(FIRST_PORT));
        let Some(flow) = flow.filter(|flow| *flow < FLOWS) else {
            return;
        };
        if datagram.destination != address(self.addresses.server_of(flow)) {
            return;
        }
        self.seen[flow].fetch_add(1, Ordering::Relaxed);
        let own = node_of(pod_of(flow));
        let source = datagram.source;
        let plans = self.plans.lock().unwrap();
        let decide = |plans: &[NodePlan; 2]| self.addresses.decide(plans, flow);
        let current = &plans[usize::from(sent_in)..];
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
            let violation = format!(
                "{} to {}: seen as {source} from {}, {} hops left, sent in {sent_in}, decided since: {decisions:?}",
                pod_of(flow),
                datagram.destination,
                NODES[from],
                datagram.hops,
            );
            self.violations.lock().unwrap().push(violation);
        }
    }
}

enum Order {
    Apply(Box<NodePlan>),
    /// Dies so long after it has begun to apply a plan, and is started again.
    Die(Box<NodePlan>, Duration),
}

/// An agent that lives until this is dropped.
struct Agent {
    orders: UnboundedSender<Order>,
    done: mpsc::Receiver<()>,
}

impl Agent {
    fn start(network: &Network, node: &str) -> Self {
        let (config, namespace) = (network.config(node), network.namespace(node));
        let (orders, received) = unbounded_channel();
        let (tell, done) = mpsc::channel();
        thread::spawn(move || {
            let file = std::fs::File::open(format!("/run/netns/{namespace}")).unwrap();
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            runtime().block_on(obey(config, received, tell));
        });
        Self { orders, done }
    }

    fn order(&self, order: Order) {
        assert!(self.orders.send(order).is_ok(), "the agent has ended");
        let patience = Duration::from_secs(60);
        self.done.recv_timeout(patience).expect("the agent obeys");
    }

    fn apply(&self, plan: NodePlan) {
        self.order(Order::Apply(Box::new(plan)));
    }
}

async fn obey(config: Config, mut orders: UnboundedReceiver<Order>, done: mpsc::Sender<()>) {
    let mut dataplane = Dataplane::open(config.clone()).await.unwrap();
    let mut plan = NodePlan::default();
    loop {
        let order = tokio::select! {
            order = orders.recv() => order,
            () = dataplane.changed() => {
                // Somebody may be at it again: the next will be complete.
                dataplane.apply(&plan).await;
                continue;
            }
        };
        match order {
            None => return,
            Some(Order::Apply(next)) => plan = *next,
            Some(Order::Die(next, after)) => {
                plan = *next;
                // Where it waits for something: at any other point a process is killed by tests of their own.
                let _ = tokio::time::timeout(after, dataplane.apply(&plan)).await;
                drop(dataplane);
                dataplane = Dataplane::open(config.clone()).await.unwrap();
            }
        }
        let mut report = dataplane.apply(&plan).await;
        if !report.is_complete() {
            report = dataplane.apply(&plan).await;
        }
        assert_eq!(report.failures, []);
        let _ = done.send(());
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
    /// A pod that sends now often, now seldom, from one port, and its server, which goes on sending to whoever it heard from.
    fn start_flow(&self, flow: usize, history: &Arc<History>, is_over: &Arc<AtomicBool>) {
        const BRIEF: Duration = Duration::from_millis(1);
        let port = FIRST_PORT + flow as u16;
        let own = (history.addresses.pod)(pod_of(flow));
        let to = SocketAddr::from((address(history.addresses.server_of(flow)), port));
        let client = self.enter(pod_of(flow), move || {
            let client = UdpSocket::bind((own, port)).unwrap();
            client.connect(to).unwrap();
            client
        });
        let (history, mut rng) = (Arc::clone(history), Rng::new());
        repeat(is_over, move || {
            let sent_in = history.applied.load(Ordering::SeqCst) as u16;
            // Refused, or no route: as for any application.
            let _ = client.send(&sent_in.to_be_bytes());
            thread::sleep(BRIEF * [0, 1, 1, 5, 20][rng.usize(..5)]);
        });
        let socket = self.enter("out", move || UdpSocket::bind(to).unwrap());
        socket.set_read_timeout(Some(BRIEF)).unwrap();
        let mut peers: Vec<SocketAddr> = Vec::new();
        repeat(is_over, move || {
            let mut buffer = [0; 16];
            if let Ok((_, peer)) = socket.recv_from(&mut buffer)
                && !peers.contains(&peer)
            {
                peers.push(peer);
                // Those of the last few changes.
                let old = peers.len().saturating_sub(4);
                peers.drain(..old);
            }
            for peer in &peers {
                let _ = socket.send_to(b"news", peer);
            }
        });
    }

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
            if let (Some(from), Some(datagram)) = (from, Datagram::parse(&frame[14..length])) {
                history.check(from, &datagram);
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

fn chaos(addresses: Addresses) {
    let seed = std::env::var(SEED).map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    let mut rng = Rng::with_seed(seed);
    let network = Network::dual_stack();
    let agents = NODES.map(|node| Agent::start(&network, node));
    let history = Arc::new(History {
        addresses,
        plans: Mutex::default(),
        applied: AtomicUsize::default(),
        violations: Mutex::default(),
        seen: Default::default(),
    });
    let addresses = &history.addresses;
    let is_over = Arc::new(AtomicBool::new(false));
    let end = End(Arc::clone(&is_over));
    let mut state = State::default();
    let mut told = format!("{SEED}={seed}");
    let mut held = [const { BTreeSet::new() }; 2];
    for step in 0..steps() {
        for _ in 0..rng.usize(1..=2) {
            state.change(&mut rng);
        }
        let plans = state.plans(addresses);
        write!(
            told,
            "\n{step}: {:?} held by {:?}",
            state.egress, state.holders
        )
        .unwrap();
        history.plans.lock().unwrap().push(plans.clone());
        if rng.u8(..4) == 0 {
            write!(told, "\n  {}", network.disturb(&mut rng)).unwrap();
        }
        // Nobody takes what another has not given away.
        let mut order = [0, 1];
        rng.shuffle(&mut order);
        for node in order {
            let mut giving = plans[node].clone();
            giving
                .floating_ips
                .retain(|address| held[node].contains(address));
            if rng.u8(..8) == 0 {
                let after = Duration::from_millis(rng.u64(..30));
                write!(told, "\n  {}: dies after {after:?}", NODES[node]).unwrap();
                agents[node].order(Order::Die(Box::new(giving), after));
            } else {
                agents[node].apply(giving);
            }
        }
        for node in order {
            agents[node].apply(plans[node].clone());
            held[node] = plans[node].floating_ips.clone();
        }
        history.applied.store(step, Ordering::SeqCst);
        if step == 0 {
            network.inspect(&history, &is_over);
            for flow in 0..FLOWS {
                network.start_flow(flow, &history, &is_over);
            }
        }
        if rng.bool() {
            thread::sleep(Duration::from_millis(rng.u64(..100)));
        }
        if rng.u8(..4) == 0 {
            let flow = rng.usize(..FLOWS);
            let (pod, server) = (pod_of(flow), addresses.server_of(flow));
            let seen = match addresses.decide(&plans, flow) {
                Decision::Masquerade => Some(addresses.nodes[node_of(pod)].to_owned()),
                Decision::Snat(address) if held.iter().any(|held| held.contains(&address)) => {
                    Some(address.to_string())
                }
                _ => None,
            };
            eventually((&told, seen), || (&told, network.seen_by_udp(pod, server)));
        }
        let violations = history.violations.lock().unwrap();
        assert!(violations.is_empty(), "{told}\n{}", violations.join("\n"));
    }
    drop(end);
    let seen = history
        .seen
        .each_ref()
        .map(|count| count.load(Ordering::Relaxed));
    eprintln!(
        "{SEED}={seed}: {} changes, packets seen by flow: {seen:?}",
        steps()
    );
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}\n{told}");
}
