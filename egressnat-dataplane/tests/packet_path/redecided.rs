//! E44: what becomes of running connections whose decision changes, also where it is the server that talks.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use egressnat_core::model::{EgressSource, Gateway, GatewayKey};
use egressnat_core::{NodePlan, PolicySetId, Snapshot};

use crate::ipv6;
use crate::network::{FLOATING, Network, SERVER, eventually, plan, planned, snapshot};
use crate::traffic::{PATIENCE, PODS, address, ask};

const SECOND: &str = "192.168.1.101";
const PORT: u16 = 7000;

/// A server that goes on sending to whom it heard from last, until this is dropped.
struct Talker {
    told: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
}

impl Drop for Talker {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

impl Talker {
    fn start(network: &Network, server: &str) -> Self {
        let address = SocketAddr::from((server.parse::<IpAddr>().unwrap(), PORT));
        let socket = network.enter("out", move || UdpSocket::bind(address).unwrap());
        let pause = Duration::from_millis(1);
        socket.set_read_timeout(Some(pause)).unwrap();
        let talker = Self {
            told: Arc::default(),
            is_over: Arc::default(),
        };
        let (told, is_over) = (Arc::clone(&talker.told), Arc::clone(&talker.is_over));
        thread::spawn(move || {
            let mut heard = None;
            while !is_over.load(Ordering::Relaxed) {
                if let Ok((_, peer)) = socket.recv_from(&mut [0; 16]) {
                    heard = Some(peer);
                }
                if let Some(peer) = heard
                    && socket.send_to(peer.to_string().as_bytes(), peer).is_ok()
                {
                    told.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        talker
    }

    /// Waits until it has sent many more.
    fn talk(&self) {
        let enough = self.told.load(Ordering::Relaxed) + 50;
        eventually(true, || self.told.load(Ordering::Relaxed) > enough);
    }
}

/// A plan by which nothing is selected.
pub(crate) fn unselected(mut plan: NodePlan) -> NodePlan {
    for set in plan.pods.values_mut() {
        *set = PolicySetId::EMPTY;
    }
    plan.destinations.clear();
    plan.deciders.clear();
    plan.guard_ranges.clear();
    plan
}

/// A policy before and after it gets another egress IP.
pub(crate) fn of_two_egress_ips() -> [Snapshot; 2] {
    let mut snapshot = snapshot();
    let key = GatewayKey::group("kube-system".parse().unwrap(), "second".parse().unwrap());
    let second: IpAddr = SECOND.parse().unwrap();
    snapshot
        .gateways
        .insert(key.clone(), Gateway::new([second]));
    let mut edited = snapshot.clone();
    let policy = edited.policies.values_mut().next().unwrap();
    policy.action = egressnat_core::model::Action::Snat(EgressSource::from(&key));
    [snapshot, edited]
}

/// A node's plan where the second one holds both egress IPs.
pub(crate) fn of_second_node(snapshot: &Snapshot, node: &str) -> NodePlan {
    planned(snapshot, node, &[(FLOATING, "n2"), (SECOND, "n2")])
}

/// As whom the server says to see a socket, once it says something new.
fn seen_by(socket: &UdpSocket) -> String {
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).unwrap();
    let peer: SocketAddr = String::from_utf8_lossy(&buffer[..length]).parse().unwrap();
    peer.ip().to_string()
}

/// A pod's first and last word, and what a server says in between while policies stop selecting the pod and select it again.
fn talked_to(network: &Network, plan: NodePlan, [pod, server, floating, node]: [&str; 4]) {
    let talker = Talker::start(network, server);
    let to = SocketAddr::from((server.parse::<IpAddr>().unwrap(), PORT));
    let from = match to {
        SocketAddr::V4(_) => "0.0.0.0:0",
        SocketAddr::V6(_) => "[::]:0",
    };
    let socket = network.enter("10.10.1.2", move || {
        let socket = UdpSocket::bind(from).unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    });
    let family = if to.is_ipv4() { "ip" } else { "ip6" };
    for command in [
        format!("add table {family} leaks"),
        format!("add counter {family} leaks own"),
        format!("add chain {family} leaks in {{ type filter hook prerouting priority -400 ; }}"),
        format!("add rule {family} leaks in {family} saddr {pod} counter name own"),
    ] {
        network.exec("out", &format!("nft {command}"));
    }
    socket.send(b"?").unwrap();
    assert_eq!(seen_by(&socket), floating);
    for (next, seen) in [
        (unselected(plan.clone()), node),
        (plan.clone(), floating),
        (unselected(plan.clone()), node),
    ] {
        assert_eq!(network.apply("n1", next).failures, []);
        // The first word after the change is not the pod's.
        talker.talk();
        eventually(seen.to_owned(), || {
            socket.send(b"?").unwrap();
            seen_by(&socket)
        });
        let own = network.counted_in("out", &format!("{family} leaks"), "own");
        assert_eq!(own, 0, "packets with the pod's own address");
    }
    drop(talker);
    // Steered again, the answers are the new flow's: none is expected any more.
    network.apply("n1", plan.clone());
    socket.send(b"?").unwrap();
    let set = |name| format!("set {family} egressnat {name}");
    let is_filled = |name| {
        let listed = network.exec("n1", &format!("nft list {}", set(name)));
        listed.contains("elements")
    };
    eventually(false, || is_filled("forgotten"));
    // Nothing is left of that once these are empty, as they are in three minutes.
    let has_chains = || {
        network.apply("n1", plan.clone());
        let listed = network.exec("n1", &format!("nft list table {family} egressnat"));
        listed.contains("chain answers")
    };
    for name in ["begun", "silenced"] {
        assert!(is_filled(name) && has_chains(), "{name}");
        network.exec("n1", &format!("nft flush {}", set(name)));
    }
    assert!(!has_chains());
}

#[test]
fn a_pod_that_hears_before_it_speaks_leaves_as_decided_e14_e44() {
    let network = Network::new();
    network.apply_all("n2");
    let names = ["10.10.1.2", SERVER, FLOATING, "192.168.1.1"];
    talked_to(&network, plan("n1", "n2"), names);
}

#[test]
fn a_pod_that_hears_before_it_speaks_leaves_as_decided_in_ipv6_e14_e44() {
    let network = Network::dual_stack();
    network.apply_both("n2");
    let pod = ipv6::address6("10.10.1.2");
    let names = [pod.as_str(), ipv6::SERVER6, ipv6::FLOATING6, ipv6::NODES[0]];
    talked_to(&network, ipv6::plan("n1", "n2"), names);
}

#[test]
fn a_flow_whose_policy_gets_another_egress_ip_of_the_same_node_leaves_with_that_e44() {
    let network = Network::new();
    network.mirror(SERVER, PORT);
    let [snapshot, edited] = of_two_egress_ips();
    let apply = |snapshot| {
        for node in ["n1", "n2"] {
            let report = network.apply(node, of_second_node(snapshot, node));
            assert_eq!(report.failures, [], "{node}");
        }
    };
    apply(&snapshot);
    let flows = PODS.map(|pod| network.udp(pod, 0, address(SERVER, PORT)));
    for (snapshot, seen) in [
        (&snapshot, FLOATING),
        (&edited, SECOND),
        (&snapshot, FLOATING),
    ] {
        apply(snapshot);
        for (pod, flow) in PODS.iter().zip(&flows) {
            assert_eq!(ask(flow, 8).ip().to_string(), seen, "{pod}");
        }
    }
}
