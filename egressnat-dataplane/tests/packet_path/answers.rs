//! Answers that come between an edit of a policy and the pod's next packet: they begin no connection, for what the pod then sends would
//! be taken for its answers and leave with the pod's address (E14).

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use egressnat_core::{NodePlan, Steering};
use egressnat_dataplane::Dataplane;

use crate::ipv6::{self, FLOATING6, SERVER6, address6};
use crate::network::{FLOATING, Network, SERVER, eventually, planned, runtime};

/// Steered through the tunnel to the floating IPs, which are the other node's.
const POD: &str = "10.10.1.2";
const PORT: u16 = 7000;
/// So long a server waits between two datagrams to one client.
const PAUSE: Duration = Duration::from_millis(1);

/// What the test is about, in one family.
#[derive(Debug, Clone, Copy)]
struct Side {
    server: &'static str,
    floating: &'static str,
    /// Another floating IP of the same node.
    second: &'static str,
    /// One that is on the pod's own node.
    here: &'static str,
    node: &'static str,
}

const SIDES: [Side; 2] = [
    Side {
        server: SERVER,
        floating: FLOATING,
        second: "192.168.1.101",
        here: "192.168.1.102",
        node: "192.168.1.1",
    },
    Side {
        server: SERVER6,
        floating: FLOATING6,
        second: "fd00:192:168:1::101",
        here: "fd00:192:168:1::102",
        node: ipv6::NODES[0],
    },
];

impl Side {
    fn pod(self) -> IpAddr {
        match self.server {
            SERVER => POD.parse().unwrap(),
            _ => address6(POD).parse().unwrap(),
        }
    }

    fn server(self) -> SocketAddr {
        (self.server.parse::<IpAddr>().unwrap(), PORT).into()
    }

    /// A plan whose pod has this decision for all that it sends to the server.
    fn edited(self, mut plan: NodePlan, steering: Steering) -> NodePlan {
        let set = plan.pods[&self.pod()];
        let server = self.server().ip();
        let of_pod = plan.destinations.iter_mut();
        for ((_, _), decided) in
            of_pod.filter(|((of, prefix), _)| *of == set && prefix.contains(&server))
        {
            *decided = steering;
        }
        plan
    }
}

/// What `node` must have: the floating IPs are on `n2`, save one of each family.
fn plan(node: &str) -> NodePlan {
    let holders = [(FLOATING, "n2"), (FLOATING6, "n2")];
    let mut plan = planned(&ipv6::snapshot(), node, &holders);
    let held = SIDES.map(|side| match node {
        "n2" => side.second,
        _ => side.here,
    });
    plan.floating_ips.extend(addresses(held));
    plan
}

/// Who sent to a server, and how much it has sent itself.
#[derive(Default)]
struct Log {
    seen: Mutex<BTreeSet<IpAddr>>,
    sent: AtomicU64,
}

impl Log {
    fn seen(&self) -> BTreeSet<IpAddr> {
        self.seen.lock().unwrap().clone()
    }

    /// Waits until the server has sent so much more.
    fn wait_for(&self, more: u64) {
        let want = self.sent.load(Ordering::SeqCst) + more;
        eventually(true, || self.sent.load(Ordering::SeqCst) >= want);
    }
}

impl Network {
    /// A UDP server that goes on sending to whoever ever sent to it, all the time.
    fn stream(&self, side: Side) -> Arc<Log> {
        let socket = self.enter("out", move || UdpSocket::bind(side.server()).unwrap());
        socket.set_read_timeout(Some(PAUSE)).unwrap();
        let log = Arc::new(Log::default());
        let shared = Arc::clone(&log);
        thread::spawn(move || {
            let mut clients = BTreeSet::new();
            let mut buffer = [0; 16];
            // Until the test is over.
            while Arc::strong_count(&shared) > 1 {
                if let Ok((_, client)) = socket.recv_from(&mut buffer) {
                    shared.seen.lock().unwrap().insert(client.ip());
                    clients.insert(client);
                }
                for client in &clients {
                    let _ = socket.send_to(b"!", client);
                    shared.sent.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        log
    }

    /// A TCP server that goes on sending to whoever connects.
    fn push(&self, side: Side) -> Arc<Log> {
        let listener = self.enter("out", move || TcpListener::bind(side.server()).unwrap());
        let log = Arc::new(Log::default());
        let shared = Arc::clone(&log);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, log) = (stream.unwrap(), Arc::clone(&shared));
                stream.set_nodelay(true).unwrap();
                log.seen
                    .lock()
                    .unwrap()
                    .insert(stream.peer_addr().unwrap().ip());
                thread::spawn(move || {
                    while stream.write_all(b"!").is_ok() {
                        log.sent.fetch_add(1, Ordering::SeqCst);
                        thread::sleep(PAUSE);
                    }
                });
            }
        });
        log
    }

    /// Counts what comes to the router from the pod's own addresses to a server.
    fn watch_for_pods(&self) {
        self.count(
            "out",
            "leaked",
            &format!("ip saddr {POD} ip daddr {SERVER}"),
        );
        let pod = address6(POD);
        self.count6("leaked", &format!("ip6 saddr {pod} ip6 daddr {SERVER6}"));
    }

    fn leaked_of_each(&self) -> [u64; 2] {
        [
            self.counted("out", "watch", "leaked"),
            self.counted6("leaked"),
        ]
    }

    /// Opens `n1` and applies there what comes, telling when each is done.
    fn applying(&self) -> (Sender<NodePlan>, Receiver<()>) {
        let (plans, next) = channel::<NodePlan>();
        let (done, is_done) = channel();
        let config = self.config("n1");
        self.start("n1", move || {
            runtime().block_on(async {
                let mut dataplane = Dataplane::open(config).await.unwrap();
                for plan in next {
                    let report = dataplane.apply(&plan).await;
                    assert_eq!(report.failures, []);
                    done.send(()).unwrap();
                }
            });
        });
        (plans, is_done)
    }
}

/// A UDP socket of the pod that only its server can send to.
fn client(network: &Network, side: Side) -> UdpSocket {
    network.enter(POD, move || {
        let any: IpAddr = match side.pod() {
            IpAddr::V4(_) => [0; 4].into(),
            IpAddr::V6(_) => [0; 16].into(),
        };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.connect(side.server()).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        socket
    })
}

fn addresses<'a>(texts: impl IntoIterator<Item = &'a str>) -> BTreeSet<IpAddr> {
    let parsed = texts.into_iter().map(|text| text.parse().unwrap());
    parsed.collect()
}

/// An edit of a policy: what it makes of the pod's traffic to a server, and which address that then leaves with.
struct Edit {
    name: &'static str,
    before: fn(Side) -> Steering,
    after: fn(Side) -> Steering,
    seen: fn(Side) -> Vec<&'static str>,
}

/// Goes on through the tunnel.
const TUNNELED: &str = "another egress IP";

fn to_floating(side: Side) -> Steering {
    Steering::Snat(side.floating.parse().unwrap())
}

const EDITS: [Edit; 6] = [
    Edit {
        name: "kept its address before",
        before: |_| Steering::Keep,
        after: to_floating,
        seen: |side| vec![side.floating],
    },
    Edit {
        name: "left to the node before",
        before: |_| Steering::Forward,
        after: to_floating,
        seen: |side| vec![side.floating],
    },
    Edit {
        name: "selected no more",
        before: to_floating,
        after: |_| Steering::Forward,
        seen: |side| vec![side.node],
    },
    Edit {
        name: TUNNELED,
        before: to_floating,
        after: |side| Steering::Snat(side.second.parse().unwrap()),
        seen: |side| vec![side.second],
    },
    Edit {
        name: "an egress IP of the same node",
        before: to_floating,
        after: |side| Steering::Snat(side.here.parse().unwrap()),
        seen: |side| vec![side.here],
    },
    Edit {
        name: "strict without an egress IP",
        before: to_floating,
        after: |_| Steering::Drop,
        seen: |_| vec![],
    },
];

#[test]
fn a_pod_that_a_server_goes_on_sending_to_never_leaves_with_its_own_address_after_an_edit_e14() {
    let network = Network::dual_stack();
    for node in ["n2", "n1"] {
        assert_eq!(network.apply(node, plan(node)).failures, []);
    }
    network.watch_for_pods();
    let logs = SIDES.map(|side| network.stream(side));
    let (plans, is_done) = network.applying();
    for Edit {
        name,
        before,
        after,
        seen,
    } in EDITS
    {
        for (side, log) in SIDES.into_iter().zip(&logs) {
            plans.send(side.edited(plan("n1"), before(side))).unwrap();
            is_done.recv().unwrap();
            let socket = client(&network, side);
            let port = socket.local_addr().unwrap().port();
            socket.send(b"?").unwrap();
            socket.recv(&mut [0; 16]).expect("an answer");
            log.seen.lock().unwrap().clear();

            let kept = network.leaked_of_each();
            plans.send(side.edited(plan("n1"), after(side))).unwrap();
            is_done.recv().unwrap();
            // Many have come before the pod says anything.
            log.wait_for(100);
            let want = seen(side);
            for _ in 0..20 {
                socket.send(b"?").unwrap();
                log.wait_for(2);
            }
            let want = addresses(want);
            eventually((name, want), || (name, log.seen()));
            assert_eq!(network.leaked_of_each(), kept, "{name}: {side:?}");
            // Its answers are its answers again.
            if name == TUNNELED {
                let (pod, server) = (side.pod(), side.server);
                let list = format!("conntrack -L -p udp -s {pod} -d {server} --sport {port}");
                eventually(Some(false), || {
                    let flow = network.told("n1", &list);
                    flow.contains("src=").then(|| flow.contains("UNREPLIED"))
                });
            }
            // Nor does what the pod answers where nobody wants it.
            drop(socket);
            log.wait_for(100);
            assert_eq!(network.leaked_of_each(), kept, "{name}: {side:?}");
        }
    }
}

#[test]
fn a_connection_that_the_server_pushes_over_never_goes_on_with_the_pods_address_e14() {
    let network = Network::dual_stack();
    for node in ["n2", "n1"] {
        assert_eq!(network.apply(node, plan(node)).failures, []);
    }
    network.watch_for_pods();
    let logs = SIDES.map(|side| network.push(side));
    let (plans, is_done) = network.applying();
    let tunneled = EDITS.into_iter().skip(2);
    for Edit { name, after, .. } in tunneled {
        plans.send(plan("n1")).unwrap();
        is_done.recv().unwrap();
        for (side, log) in SIDES.into_iter().zip(&logs) {
            let mut stream = network.enter(POD, move || {
                TcpStream::connect_timeout(&side.server(), Duration::from_secs(5)).unwrap()
            });
            let mut buffer = [0; 64];
            stream.read_exact(&mut buffer).unwrap();
            assert_eq!(log.seen(), addresses([side.floating]));
            plans.send(side.edited(plan("n1"), after(side))).unwrap();
            is_done.recv().unwrap();
            // The pod's kernel acknowledges what comes until the server has heard of it.
            let timeout = Some(Duration::from_millis(500));
            stream.set_read_timeout(timeout).unwrap();
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(2)
                && stream.read(&mut buffer).is_ok_and(|length| length > 0)
            {}
            let _ = stream.write_all(b"?");
            assert_eq!(network.leaked_of_each(), [0, 0], "{name}: {side:?}");
        }
    }
}
