//! E41: what else than plain TCP and UDP goes through the tunnel and through translation, both ways.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use egressnat_core::{PolicySetId, Steering};

use crate::network::{FLOATING, Network, SERVER, eventually, plan};
use crate::wire::{ICMP, Packet, SCTP, TCP, UDP, Wire};

/// One pod beside the floating IP and one that it is reached through the tunnel by.
const PODS: [&str; 2] = ["10.10.2.2", "10.10.1.2"];
const AWAY: &str = PODS[1];
const SECOND: &str = "192.168.1.101";

/// Of the policy's range, behind the router.
const BEYOND: &str = "8.8.8.9";

const DESTINATION_UNREACHABLE: u8 = 3;
const PROTOCOL: u8 = 2;
const PORT: u8 = 3;
const FRAGMENTATION_NEEDED: (u8, u8) = (DESTINATION_UNREACHABLE, 4);
const TIME_EXCEEDED: (u8, u8) = (11, 0);

/// MTU of every interface but the tunnel device, which has 50 bytes less.
const MTU: u16 = 1500;
const PATIENCE: Duration = Duration::from_secs(10);

fn address(text: &str, port: u16) -> SocketAddr {
    SocketAddr::from((text.parse::<Ipv4Addr>().unwrap(), port))
}

fn seen(address: &str) -> Option<String> {
    Some(address.to_owned())
}

impl Network {
    /// A UDP server outside that answers each datagram with one of the same size, which begins with the client's address.
    fn mirror(&self, port: u16) {
        let socket = self.enter("out", move || {
            UdpSocket::bind(address(SERVER, port)).unwrap()
        });
        thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                let mut answer = format!("{peer}\n").into_bytes();
                answer.resize(length.max(answer.len()), b'.');
                socket.send_to(&answer, peer).unwrap();
            }
        });
    }

    /// A UDP socket in a namespace, connected to the server.
    fn udp(&self, from: &str, port: u16, to: u16) -> UdpSocket {
        self.enter(from, move || {
            let socket = UdpSocket::bind(address("0.0.0.0", port)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect(address(SERVER, to)).unwrap();
            socket
        })
    }

    /// A TCP connection from a pod to the server, both ends of it.
    fn both_ends(&self, from: &str, port: u16) -> [TcpStream; 2] {
        let listener = self.enter("out", move || {
            TcpListener::bind(address(SERVER, port)).unwrap()
        });
        let client = self.enter(from, move || {
            TcpStream::connect_timeout(&address(SERVER, port), PATIENCE).unwrap()
        });
        let ends = [client, listener.accept().unwrap().0];
        for end in &ends {
            end.set_read_timeout(Some(PATIENCE)).unwrap();
            end.set_write_timeout(Some(PATIENCE)).unwrap();
        }
        ends
    }
}

/// Moves bytes from one end to the other, all of which have to arrive.
fn transfer(from: &TcpStream, to: &TcpStream, length: usize) {
    let mut from = from.try_clone().unwrap();
    let sender = thread::spawn(move || from.write_all(&vec![7; length]).unwrap());
    let mut arrived = vec![0; length];
    let mut to = to;
    to.read_exact(&mut arrived).unwrap();
    sender.join().unwrap();
    assert!(arrived.iter().all(|byte| *byte == 7));
}

/// Asks the mirror with so many bytes, and gives the address and port that it saw.
fn ask(socket: &UdpSocket, length: usize) -> SocketAddr {
    let mut answer = vec![0; 65_536];
    socket.send(&vec![b'?'; length]).unwrap();
    let received = socket.recv(&mut answer).unwrap();
    assert!(received >= length, "{received} of {length} bytes");
    let text = String::from_utf8_lossy(&answer[..received]).into_owned();
    text.lines().next().unwrap().parse().unwrap()
}

#[test]
fn echo_requests_are_translated_on_the_wire() {
    let network = Network::new();
    network.apply_all("n2");
    let wire = network.listen("out", "eth0");
    for pod in PODS {
        assert!(network.is_pinged(pod, SERVER), "{pod}");
    }
    let requests =
        wire.count(|p| p.icmp() == Some((8, 0)) && p.is_from(FLOATING) && p.is_to(SERVER));
    assert_eq!(requests, PODS.len());
    assert_eq!(wire.count(|p| p.is_from(PODS[0]) || p.is_from(PODS[1])), 0);
}

#[test]
fn sctp_is_translated_both_ways_with_a_right_checksum() {
    // Without the kernel's sctp module no association is made here: these are its packets, and conntrack has to know them.
    const INIT: [u8; 20] = [1, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];
    const INIT_ACK: [u8; 20] = [2, 0, 0, 20, 0, 0, 0, 9, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];
    let network = Network::new();
    network.apply_all("n2");
    // A host without SCTP refuses the protocol; here somebody answers.
    for command in [
        "add table ip quiet",
        "add chain ip quiet in { type filter hook input priority 0 ; }",
        "add rule ip quiet in meta l4proto 132 drop",
    ] {
        network.exec("out", &format!("nft {command}"));
    }
    let outside = network.listen("out", "eth0");
    for (pod, port) in PODS.into_iter().zip([5000, 5001]) {
        let inside = network.listen(pod, "eth0");
        network.inject(pod, &Packet::sctp((pod, port), (SERVER, 3868), 0, &INIT));
        let init = outside.wait_for("INIT", |p| {
            p.protocol == SCTP && p.payload[12] == 1 && p.ports() == Some((port, 3868))
        });
        assert!(init.is_from(FLOATING), "{init:?}");
        let [found, want] = init.sctp_checksums();
        assert_eq!(found, want, "{pod}");
        network.inject(
            "out",
            &Packet::sctp((SERVER, 3868), (FLOATING, port), 7, &INIT_ACK),
        );
        let answer = inside.wait_for("INIT ACK", |p| p.protocol == SCTP && p.payload[12] == 2);
        assert_eq!((answer.is_from(SERVER), answer.is_to(pod)), (true, true));
        assert_eq!(answer.ports(), Some((3868, port)));
        let [found, want] = answer.sctp_checksums();
        assert_eq!(found, want, "{pod}");
    }
}

#[test]
fn what_the_server_refuses_the_pod_is_told() {
    let network = Network::new();
    network.apply_all("n2");
    for pod in PODS {
        let socket = network.udp(pod, 0, 81);
        socket.send(b"?").unwrap();
        let refused = socket.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{pod}");
    }
    let inside = network.listen(AWAY, "eth0");
    network.inject(AWAY, &Packet::new(AWAY, SERVER, 253, vec![0; 8]));
    let refused = inside.wait_for("unreachable", |p| {
        p.icmp() == Some((DESTINATION_UNREACHABLE, PROTOCOL))
    });
    assert!(
        refused.is_from(SERVER) && refused.cause().unwrap().is_from(AWAY),
        "{refused:?}"
    );
}

#[test]
fn what_the_pod_refuses_the_server_is_told_by_the_floating_ip() {
    let network = Network::new();
    network.apply_all("n2");
    network.mirror(7000);
    let outside = network.listen("out", "eth0");
    for (pod, port) in PODS.into_iter().zip([5100, 5101]) {
        let socket = network.udp(pod, port, 7000);
        assert_eq!(ask(&socket, 8), address(FLOATING, port));
        drop(socket);
        // The flow is known, and nobody has it any more.
        network.inject(
            "out",
            &Packet::udp((SERVER, 7000), (FLOATING, port), b"late"),
        );
        let refused = outside.wait_for("unreachable", |p| {
            p.icmp() == Some((DESTINATION_UNREACHABLE, PORT))
                && p.cause()
                    .is_some_and(|cause| cause.ports() == Some((7000, port)))
        });
        assert!(refused.is_from(FLOATING), "{refused:?}");
        let cause = refused.cause().unwrap();
        assert!(cause.is_from(SERVER) && cause.is_to(FLOATING), "{cause:?}");
    }
}

#[test]
fn hops_that_count_to_zero_are_told_to_the_pod_from_every_hop() {
    let network = Network::new();
    network.apply_all("n2");
    network.ip("out", &format!("route add {BEYOND}/32 dev eth0"));
    let inside = network.listen(AWAY, "eth0");
    // The source node, the gateway node, the router: as traceroute sees them.
    for (ttl, hop) in [(1, "10.10.1.254"), (2, "192.168.1.2"), (3, "192.168.1.254")] {
        let port = 33_434 + u16::from(ttl);
        let mut probe = Packet::udp((AWAY, 6000), (BEYOND, port), b"?");
        probe.ttl = ttl;
        network.inject(AWAY, &probe);
        let told = inside.wait_for("time exceeded", |p| {
            p.icmp() == Some(TIME_EXCEEDED)
                && p.cause()
                    .is_some_and(|cause| cause.ports() == Some((6000, port)))
        });
        assert!(told.is_from(hop), "{ttl}: {told:?}");
        let cause = told.cause().unwrap();
        assert!(cause.is_from(AWAY) && cause.is_to(BEYOND), "{cause:?}");
    }
}

#[test]
fn fragments_go_both_ways() {
    const LENGTH: usize = 6000;
    let network = Network::new();
    network.apply_all("n2");
    network.mirror(7000);
    let outside = network.listen("out", "eth0");
    for pod in PODS {
        let socket = network.udp(pod, 0, 7000);
        assert_eq!(ask(&socket, LENGTH).ip().to_string(), FLOATING, "{pod}");
        let fragments =
            |from, to| outside.count(|p| p.is_fragment && p.is_from(from) && p.is_to(to));
        assert!(fragments(FLOATING, SERVER) > LENGTH / 1500, "{pod}");
        assert!(fragments(SERVER, FLOATING) > LENGTH / 1500, "{pod}");
    }
    assert_eq!(
        outside.count(|p| PODS.into_iter().any(|pod| p.is_from(pod))),
        0
    );
    // A ping whose fragments each fit the pod's interface and not the tunnel.
    for pod in PODS {
        network.exec(pod, &format!("ping -c1 -W5 -q -s 8000 {SERVER}"));
    }
}

#[test]
fn what_does_not_fit_the_tunnel_is_told_with_the_right_mtu() {
    let network = Network::new();
    network.apply_all("n2");
    let (inside, outside) = (network.listen(AWAY, "eth0"), network.listen("out", "eth0"));
    let headers = 28;
    for (length, fits) in [(MTU, false), (MTU - 49, false), (MTU - 50, true)] {
        let mut packet = Packet::udp(
            (AWAY, length),
            (SERVER, 7000),
            &vec![0; usize::from(length - headers)],
        );
        packet.dont_fragment = true;
        network.inject(AWAY, &packet);
        let is_it = |p: &Packet| p.ports() == Some((length, 7000));
        if fits {
            let arrived = outside.wait_for("the packet", |p| p.protocol == UDP && is_it(p));
            assert!(arrived.is_from(FLOATING) && arrived.dont_fragment);
            continue;
        }
        let told = inside.wait_for("fragmentation needed", |p| {
            p.icmp() == Some(FRAGMENTATION_NEEDED) && p.cause().is_some_and(|cause| is_it(&cause))
        });
        assert_eq!(told.told_mtu(), MTU - 50);
        assert!(told.cause().unwrap().is_from(AWAY));
        assert_eq!(outside.count(|p| p.protocol == UDP && is_it(p)), 0);
    }
}

#[test]
fn a_narrow_path_behind_the_gateway_is_told_to_the_pod() {
    let network = Network::new();
    network.apply_all("n2");
    network.ip(
        "out",
        &format!("route add {BEYOND}/32 dev eth0 mtu lock 1200"),
    );
    for pod in PODS {
        let inside = network.listen(pod, "eth0");
        let mut packet = Packet::udp((pod, 6000), (BEYOND, 7000), &[0; 1300]);
        packet.dont_fragment = true;
        network.inject(pod, &packet);
        let told = inside.wait_for("fragmentation needed", |p| {
            p.icmp() == Some(FRAGMENTATION_NEEDED)
        });
        assert_eq!((told.told_mtu(), told.is_to(pod)), (1200, true));
        let cause = told.cause().unwrap();
        assert!(
            cause.is_from(pod) && cause.ports() == Some((6000, 7000)),
            "{cause:?}"
        );
    }
}

#[test]
fn bulk_transfers_go_both_ways_in_packets_larger_than_the_mtu() {
    const LENGTH: usize = 20 << 20;
    let network = Network::new();
    network.apply_all("n2");
    let [client, server] = network.both_ends(AWAY, 7001);
    assert_eq!(server.peer_addr().unwrap().ip().to_string(), FLOATING);
    let tunnel = network.listen("n1", "egressnat0");
    transfer(&client, &server, LENGTH);
    transfer(&server, &client, LENGTH);
    let sizes: Vec<usize> = tunnel
        .packets()
        .iter()
        .map(|p| 20 + p.payload.len())
        .collect();
    let bytes: usize = sizes.iter().sum();
    let largest = sizes.iter().max().copied();
    assert!(
        largest > Some(10 * usize::from(MTU)),
        "{largest:?}: cut up before the tunnel"
    );
    // Cut up, it would be one packet for each 1,400 bytes.
    assert!(
        sizes.len() < bytes / 4000,
        "{} packets for {bytes} bytes",
        sizes.len()
    );
}

#[test]
fn connections_go_on_when_the_mtu_of_the_uplink_changes() {
    const LENGTH: usize = 1 << 20;
    let network = Network::new();
    network.apply_all("n2");
    let [client, server] = network.both_ends(AWAY, 7001);
    let mtu = || network.exec("n1", "cat /sys/class/net/egressnat0/mtu");
    for uplink in [1500, 1300, 1500, 1400] {
        network.ip("n1", &format!("link set eth0 mtu {uplink}"));
        let report = network.apply("n1", plan("n1", "n2"));
        assert_eq!(report.failures, []);
        assert_eq!(mtu().trim(), (uplink - 50).to_string());
        transfer(&client, &server, LENGTH);
        transfer(&server, &client, LENGTH);
    }
    assert_eq!(network.apply("n1", plan("n1", "n2")).changes, 0);
    // Under an agent that runs: it is told, and then it applies.
    network.open("n1", async |mut dataplane| {
        dataplane.apply(&plan("n1", "n2")).await;
        let set = nix::unistd::gettid();
        let command = format!("nsenter -t {set} -n ip link set eth0 mtu 1200");
        let changed = async {
            tokio::task::spawn_blocking(move || {
                std::process::Command::new("sh")
                    .args(["-c", &command])
                    .status()
                    .unwrap()
            })
            .await
            .unwrap();
        };
        tokio::join!(tokio::time::timeout(PATIENCE, dataplane.changed()), changed)
            .0
            .unwrap();
        let report = dataplane.apply(&plan("n1", "n2")).await;
        assert_eq!((report.changes, report.failures), (1, vec![]));
    });
    assert_eq!(mtu().trim(), "1150");
    transfer(&client, &server, LENGTH);
}

#[test]
fn several_egress_ips_of_one_node_stay_apart() {
    let network = Network::new();
    for node in ["n1", "n2"] {
        let mut plan = plan(node, "n2");
        let second = PolicySetId(4242);
        for (pod, set) in &mut plan.pods {
            if pod.to_string().ends_with(".3") {
                *set = second;
            }
        }
        let egress_ip = SECOND.parse().unwrap();
        let destination = (second, "8.8.8.0/24".parse().unwrap());
        plan.destinations
            .insert(destination, Steering::Snat(egress_ip));
        if node == "n2" {
            plan.floating_ips.insert(egress_ip);
        }
        assert_eq!(network.apply(node, plan).failures, []);
    }
    for (host, want) in [(2, FLOATING), (3, SECOND)] {
        for node in [1, 2] {
            let pod = format!("10.10.{node}.{host}");
            assert_eq!(network.seen_by_tcp(&pod, SERVER), seen(want), "{pod}");
            assert_eq!(network.seen_by_udp(&pod, SERVER), seen(want), "{pod}");
            assert!(network.is_pinged(&pod, SERVER), "{pod}");
        }
    }
}

#[test]
fn a_source_port_is_kept_where_it_is_free_and_else_another_is_found() {
    let network = Network::new();
    network.apply_all("n2");
    network.mirror(7000);
    let mut others = Vec::new();
    for port in [5200, 5201, 5202] {
        let [first, second] = PODS.map(|pod| network.udp(pod, port, 7000));
        assert_eq!(ask(&first, 8), address(FLOATING, port));
        let other = ask(&second, 8);
        assert_eq!(other.ip().to_string(), FLOATING);
        assert_ne!(other.port(), port);
        // Each gets its own answers all the same, and keeps its port.
        assert_eq!((ask(&first, 8).port(), ask(&second, 8)), (port, other));
        others.push(i32::from(other.port()) - i32::from(port));
    }
    assert!(
        others.windows(2).any(|pair| pair[0] != pair[1]),
        "not random: {others:?}"
    );
}

#[test]
fn an_unknown_flow_and_a_stranger_get_no_answer_at_all() {
    const SYN: u8 = 2;
    const SYN_ACK: u8 = 0x12;
    const ACK: u8 = 0x10;
    let network = Network::new();
    network.apply_all("n2");
    let outside = network.listen("out", "eth0");
    let floating = (FLOATING, 80);
    let mut echo = Packet::new(SERVER, FLOATING, ICMP, vec![8, 0, 0, 0, 0, 1, 0, 1]);
    echo.payload[2..4].copy_from_slice(&(!0x0802u16).to_be_bytes());
    let mut strangers = vec![Packet::udp((SERVER, 53), floating, b"?"), echo];
    strangers.extend([SYN, SYN_ACK, ACK].map(|flags| Packet::tcp((SERVER, 443), floating, flags)));
    for packet in &strangers {
        network.inject("out", packet);
    }
    // So many were dropped by the one rule that should drop them.
    eventually(strangers.len() as u64, || inbound_drops(&network));
    assert_eq!(from_floating(&outside), 0);
    // The node's own address refuses as ever.
    network.inject("out", &Packet::tcp((SERVER, 443), ("192.168.1.2", 80), ACK));
    outside.wait_for("reset", |p| p.protocol == TCP && p.is_from("192.168.1.2"));
    assert_eq!(from_floating(&outside), 0);
}

fn from_floating(wire: &Wire) -> usize {
    wire.count(|packet| packet.is_from(FLOATING))
}

/// What n2 dropped because a floating IP takes no new connections.
fn inbound_drops(network: &Network) -> u64 {
    let chain = network.exec("n2", "nft list chain ip egressnat prerouting");
    let rule = chain.lines().find(|line| line.contains("floating_ips"));
    let mut words = rule.unwrap().split_whitespace();
    words.find(|word| *word == "packets");
    words.next().unwrap().parse().unwrap()
}
