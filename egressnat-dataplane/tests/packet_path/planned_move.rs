//! A planned move of a floating IP, while nobody watches over the source nodes.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use egressnat_core::NodePlan;
use nix::sys::socket::{setsockopt, sockopt};

use crate::ipv6::NODES;
use crate::network::{Network, runtime};
use crate::side::{self, SIDES, Side};
use crate::traffic::{AWAY, PODS, address};
use egressnat_dataplane::Dataplane;

const PACKETS_PER_SECOND: u32 = 5000;
const MOVES: u32 = 4;
const PORT: u16 = 7000;
const ATTEMPTS: u16 = 5;

/// What waited comes to the next holder at once, and its kernel takes 1,000 packets (`net.core.netdev_max_backlog`).
const MOST_AT_ONCE: f64 = 900.0;

#[derive(Debug)]
struct Observed {
    sent: usize,
    seen: usize,
    /// How many answers came back to the pod.
    answers: usize,
    longest_pause: Duration,
    /// Packets with another source port. A flow that begins anew with two packets on two processors at once gives one of them
    /// another: the kernel decides so when it finds the port taken by the other.
    strays: usize,
}

/// What a gateway node without pods that anybody selects has to do.
fn gateway_plan(is_holder: bool) -> NodePlan {
    let mut plan = side::plan("n2", "n2");
    plan.pods.clear();
    let peers = SIDES.iter().map(|side| side.nodes[0].parse::<IpAddr>());
    plan.peers.extend(peers.map(Result::unwrap));
    if !is_holder {
        plan.floating_ips.clear();
    }
    plan
}

/// An agent that applies what it is told, and answers when that is done.
struct Told {
    orders: Sender<NodePlan>,
    answers: Receiver<()>,
}

impl Told {
    fn apply(&self, plan: NodePlan) {
        self.orders.send(plan).unwrap();
        self.answers.recv().unwrap();
    }
}

impl Network {
    /// A third node, without pods.
    fn add_gateway(&mut self) {
        self.add_namespace("n3");
        let inside = self.namespace("n3");
        self.ip(
            "lan",
            &format!("link add pn3 type veth peer name eth0 netns {inside}"),
        );
        self.ip("lan", "link set pn3 master br0 up");
        self.ip("n3", "link set eth0 up");
        self.ip("n3", "addr add 192.168.1.3/24 dev eth0");
        self.ip("n3", "route add default via 192.168.1.254");
        self.ip("n3", "route add 10.10.1.0/24 via 192.168.1.1");
        self.sysctl("n3", "net.ipv4.ip_forward=1");
        self.sysctl("n3", "net.ipv6.conf.all.forwarding=1");
        self.ip("n3", "addr add fd00:192:168:1::3/64 dev eth0 nodad");
        self.ip("n3", "route add default via fd00:192:168:1::254");
        self.ip(
            "n3",
            &format!("route add fd00:10:10:1::/64 via {}", NODES[0]),
        );
    }

    /// An agent of a node.
    fn agent(&self, node: &str) -> Told {
        let config = self.config(node);
        let (orders, received) = channel();
        let (done, answers) = channel();
        let namespace =
            std::fs::File::open(format!("/run/netns/{}", self.namespace(node))).unwrap();
        thread::spawn(move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            runtime().block_on(async {
                let mut dataplane = Dataplane::open(config).await.unwrap();
                for plan in received {
                    let report = dataplane.apply(&plan).await;
                    assert_eq!(report.failures, []);
                    done.send(()).unwrap();
                }
            });
        });
        Told { orders, answers }
    }
}

#[test]
fn a_planned_move_loses_no_packet_while_the_source_nodes_have_no_agent() {
    let mut network = Network::dual_stack();
    network.add_gateway();
    let agents = ["n2", "n3"].map(|node| network.agent(node));
    agents[1].apply(gateway_plan(false));
    agents[0].apply(gateway_plan(true));
    // Once, and then there is nobody.
    let report = network.apply("n1", side::plan("n1", "n2"));
    assert_eq!(report.failures, []);

    for side in &SIDES {
        at_some_rate(PACKETS_PER_SECOND, |rate, attempt| {
            let flow = Flow::start(&network, side, AWAY, rate, attempt);
            for round in 0..MOVES as usize {
                flow.wait_for(rate / 2);
                agents[round % 2].apply(gateway_plan(false));
                agents[(round + 1) % 2].apply(gateway_plan(true));
            }
            flow.wait_for(rate / 2);
            vec![flow.finish()]
        });
    }
}

#[test]
fn no_pod_loses_a_packet_when_its_floating_ip_leaves_or_comes_to_its_own_node_e35() {
    let network = Network::dual_stack();
    let nodes = ["n1", "n2"];
    let agents = nodes.map(|node| network.agent(node));
    for (node, agent) in nodes.iter().zip(&agents) {
        agent.apply(side::plan(node, "n1"));
    }
    for side in &SIDES {
        at_some_rate(PACKETS_PER_SECOND / 10, |rate, attempt| {
            let flows = PODS.map(|pod| Flow::start(&network, side, pod, rate, attempt));
            for round in 0..MOVES as usize {
                flows[0].wait_for(rate / 2);
                let (from, to) = (round % 2, (round + 1) % 2);
                agents[from].apply(side::plan(nodes[from], nodes[to]));
                agents[to].apply(side::plan(nodes[to], nodes[to]));
            }
            flows[0].wait_for(rate / 2);
            flows.map(Flow::finish).into()
        });
    }
}

/// Observes flows, slower ones on a slower machine, until one attempt tells something; then nothing may be lost.
fn at_some_rate(most: u32, observe: impl Fn(u32, u16) -> Vec<Observed>) {
    for attempt in 0..ATTEMPTS {
        let rate = most >> attempt;
        let before = backlog_drops();
        let observed = observe(rate, attempt);
        eprintln!("{MOVES} moves at {rate} packets/s: {observed:?}");
        let longest = observed
            .iter()
            .map(|flow| flow.longest_pause)
            .max()
            .unwrap();
        let waiting = longest.as_secs_f64() * f64::from(rate) * observed.len() as f64;
        let is_lost = observed.iter().any(|flow| flow.answers < flow.sent);
        if is_lost && backlog_drops() > before {
            eprintln!("void: so busy a machine that it took no more packets, of whomever");
            continue;
        }
        if waiting < MOST_AT_ONCE {
            for flow in &observed {
                assert_eq!(flow.seen, flow.sent, "packets lost: {observed:?}");
                assert_eq!(flow.answers, flow.sent, "answers lost: {observed:?}");
                assert!(flow.strays <= MOVES as usize, "other ports: {observed:?}");
            }
            return;
        }
        eprintln!("void: so slow a machine that {waiting} packets waited at once");
    }
    panic!("in {ATTEMPTS} attempts the machine was always too slow to tell anything");
}

/// How many packets the whole machine has dropped because too many had come at once to one processor.
fn backlog_drops() -> u64 {
    let lines = std::fs::read_to_string("/proc/net/softnet_stat").unwrap();
    let dropped = |line: &str| u64::from_str_radix(line.split(' ').nth(1)?, 16).ok();
    lines.lines().filter_map(dropped).sum()
}

/// A flow that runs, whose packets are numbered.
struct Flow {
    sent: Arc<AtomicU32>,
    is_over: Arc<AtomicBool>,
    sender: JoinHandle<()>,
    receiver: JoinHandle<(Vec<u32>, Duration, usize)>,
    listener: JoinHandle<usize>,
}

impl Flow {
    fn start(
        network: &Network,
        side: &'static Side,
        pod: &'static str,
        rate: u32,
        attempt: u16,
    ) -> Self {
        let [_, _, node, _] = pod.parse::<Ipv4Addr>().unwrap().octets();
        let own = 10 * u16::from(node) + attempt;
        let (to_port, from_port) = (PORT + own, 5300 + own);
        let server = network.enter("out", move || {
            UdpSocket::bind(address(side.server, to_port)).unwrap()
        });
        let _ = setsockopt(&server, sockopt::RcvBufForce, &(16 << 20));
        server
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        let client = network.udp(pod, from_port, address(side.server, to_port));
        let answered = client.try_clone().unwrap();
        let _ = setsockopt(&answered, sockopt::RcvBufForce, &(16 << 20));
        answered
            .set_read_timeout(Some(Duration::from_secs(3)))
            .unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU32::new(0));
        let (stop, count) = (Arc::clone(&is_over), Arc::clone(&sent));
        let sender = thread::spawn(move || {
            let start = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                let due = (start.elapsed().as_secs_f64() * f64::from(rate)) as u32;
                for number in count.load(Ordering::Relaxed)..due {
                    client.send(&number.to_be_bytes()).unwrap();
                }
                count.fetch_max(due, Ordering::Relaxed);
                thread::sleep(Duration::from_micros(500));
            }
        });
        let receiver = thread::spawn(move || {
            let (mut numbers, mut buffer) = (Vec::new(), [0; 4]);
            let (mut last, mut longest, mut strays) = (Instant::now(), Duration::ZERO, 0);
            while let Ok((_, from)) = server.recv_from(&mut buffer) {
                assert_eq!(from.ip(), address(side.floating, from_port).ip());
                strays += usize::from(from.port() != from_port);
                longest = longest.max(last.elapsed());
                last = Instant::now();
                numbers.push(u32::from_be_bytes(buffer));
                server.send_to(&buffer, from).unwrap();
            }
            (numbers, longest, strays)
        });
        let listener = thread::spawn(move || {
            let mut buffer = [0; 4];
            let mut answers = 0;
            while answered.recv(&mut buffer).is_ok() {
                answers += 1;
            }
            answers
        });
        Self {
            sent,
            is_over,
            sender,
            receiver,
            listener,
        }
    }

    /// Waits until so many more packets are sent.
    fn wait_for(&self, packets: u32) {
        let before = self.sent.load(Ordering::Relaxed);
        while self.sent.load(Ordering::Relaxed) < before + packets {
            thread::yield_now();
        }
    }

    fn finish(self) -> Observed {
        self.is_over.store(true, Ordering::Relaxed);
        self.sender.join().unwrap();
        let (mut numbers, longest_pause, strays) = self.receiver.join().unwrap();
        numbers.sort_unstable();
        numbers.dedup();
        Observed {
            sent: self.sent.load(Ordering::Relaxed) as usize,
            seen: numbers.len(),
            answers: self.listener.join().unwrap(),
            longest_pause,
            strays,
        }
    }
}
