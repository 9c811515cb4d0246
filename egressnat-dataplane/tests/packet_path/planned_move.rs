//! A planned move of a floating IP, while nobody watches over the source nodes.

use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use egressnat_core::NodePlan;
use nix::sys::socket::{setsockopt, sockopt};

use crate::network::{FLOATING, Network, SERVER, plan, runtime};
use crate::traffic::{AWAY, address};
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
    longest_pause: Duration,
}

/// What a gateway node without pods that anybody selects has to do.
fn gateway_plan(is_holder: bool) -> NodePlan {
    let mut plan = plan("n2", "n2");
    plan.pods.clear();
    plan.peers.insert(IpAddr::from([192, 168, 1, 1]));
    if !is_holder {
        plan.floating_ips.clear();
    }
    plan
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
        self.exec("n3", "sysctl -qw net.ipv4.ip_forward=1");
    }

    /// An agent of a gateway node that does as it is told: whether to have the floating IP. It answers when that is done.
    fn agent(&self, node: &str) -> (Sender<bool>, Receiver<()>) {
        let config = self.config(node);
        let (orders, received) = channel();
        let (done, answers) = channel();
        let namespace =
            std::fs::File::open(format!("/run/netns/{}", self.namespace(node))).unwrap();
        thread::spawn(move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            runtime().block_on(async {
                let mut dataplane = Dataplane::open(config).await.unwrap();
                for is_holder in received {
                    let report = dataplane.apply(&gateway_plan(is_holder)).await;
                    assert_eq!(report.failures, []);
                    done.send(()).unwrap();
                }
            });
        });
        (orders, answers)
    }
}

#[test]
fn a_planned_move_loses_no_packet_while_the_source_nodes_have_no_agent() {
    let mut network = Network::new();
    network.add_gateway();
    let agents = ["n2", "n3"].map(|node| network.agent(node));
    let order = |agent: usize, is_holder| {
        agents[agent].0.send(is_holder).unwrap();
        agents[agent].1.recv().unwrap();
    };
    order(1, false);
    order(0, true);
    // Once, and then there is nobody.
    assert_eq!(network.apply("n1", plan("n1", "n2")).failures, []);

    for attempt in 0..ATTEMPTS {
        // The slower the machine, the slower the flow.
        let rate = PACKETS_PER_SECOND >> attempt;
        let observed = observe(&network, rate, attempt, &order);
        eprintln!("{MOVES} moves at {rate} packets/s: {observed:?}");
        let waiting = observed.longest_pause.as_secs_f64() * f64::from(rate);
        if waiting < MOST_AT_ONCE {
            assert_eq!(observed.seen, observed.sent, "packets lost");
            return;
        }
        eprintln!("void: so slow a machine that {waiting} packets waited at once");
    }
    panic!("in {ATTEMPTS} attempts the machine was always too slow to tell anything");
}

/// What became of a flow while its floating IP moved to and fro.
fn observe(network: &Network, rate: u32, attempt: u16, order: &dyn Fn(usize, bool)) -> Observed {
    let (to_port, from_port) = (PORT + attempt, 5300 + attempt);
    let server = network.enter("out", move || {
        UdpSocket::bind(address(SERVER, to_port)).unwrap()
    });
    let _ = setsockopt(&server, sockopt::RcvBufForce, &(16 << 20));
    server
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let client = network.udp(AWAY, from_port, to_port);
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
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        while let Ok((_, from)) = server.recv_from(&mut buffer) {
            assert_eq!(
                from,
                address(FLOATING, from_port),
                "one flow, with one address and one port"
            );
            longest = longest.max(last.elapsed());
            last = Instant::now();
            numbers.push(u32::from_be_bytes(buffer));
        }
        (numbers, longest)
    });
    for round in 0..MOVES {
        let (from, to) = [(0, 1), (1, 0)][round as usize % 2];
        let before = sent.load(Ordering::Relaxed);
        while sent.load(Ordering::Relaxed) < before + rate / 2 {
            thread::yield_now();
        }
        order(from, false);
        order(to, true);
    }
    let before = sent.load(Ordering::Relaxed);
    while sent.load(Ordering::Relaxed) < before + rate / 2 {
        thread::yield_now();
    }
    is_over.store(true, Ordering::Relaxed);
    sender.join().unwrap();
    let (mut numbers, longest) = receiver.join().unwrap();
    numbers.sort_unstable();
    numbers.dedup();
    Observed {
        sent: sent.load(Ordering::Relaxed) as usize,
        seen: numbers.len(),
        longest_pause: longest,
    }
}
