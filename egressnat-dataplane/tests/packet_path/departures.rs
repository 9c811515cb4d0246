//! E13: what leaves from a node itself is counted where it leaves, and as often as it does.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, UdpSocket};

use aya::maps::{Map, MapData, ProgramArray};
use egressnat_core::model::{Action, Snapshot};
use egressnat_core::{NodePlan, Resource};
use egressnat_dataplane::{CountedAt, Counters, Dataplane, Traffic, cleanup};

use crate::container::{PERFMON, SYS_ADMIN, confine, drop_capabilities};
use crate::ipv6::{self, FLOATING6, OTHER_SERVER6};
use crate::network::{FLOATING, Network, OTHER_SERVER, eventually, planned, runtime};
use crate::restart::Stream;
use crate::side::{SIDES, Side};
use crate::traffic::{address, ask};

/// On the node that has the floating IPs.
const POD: &str = "10.10.1.2";
/// Where servers answer with what they saw.
const PORT: u16 = 5000;
/// What a packet has in front of its IP header.
const ETHERNET: u64 = 14;

/// Where network policies drop, and where somebody may do so behind all source NAT.
const FORWARD: &str = "filter hook forward priority 0";
const LATE: &str = "filter hook postrouting priority 300";

/// The cluster with a policy that keeps the addresses of the same pods on their way to other servers.
fn snapshot() -> Snapshot {
    let mut snapshot = ipv6::snapshot();
    let mut kept = snapshot.policies[&"egress".parse().unwrap()].clone();
    kept.action = Action::NoSnat;
    let others = [format!("{OTHER_SERVER}/32"), format!("{OTHER_SERVER6}/128")];
    kept.destinations = others.map(|other| other.parse().unwrap()).into();
    snapshot.policies.insert("kept".parse().unwrap(), kept);
    snapshot
}

fn plan() -> NodePlan {
    let holders = [(FLOATING, "n1"), (FLOATING6, "n1")];
    planned(&snapshot(), "n1", &holders)
}

/// One way out: to a server, by a policy, with an address.
struct Way {
    side: &'static Side,
    server: &'static str,
    policy: &'static str,
    seen: String,
}

/// With an egress IP and with the pod's own address, in both families.
fn ways() -> [Way; 4] {
    let [four, six] = &SIDES;
    let way = |side: &'static Side, server, policy, seen: &str| Way {
        side,
        server,
        policy,
        seen: seen.to_owned(),
    };
    [
        way(four, four.server, "egress", FLOATING),
        way(six, six.server, "egress6", FLOATING6),
        way(four, OTHER_SERVER, "kept", &four.pod(POD)),
        way(six, OTHER_SERVER6, "kept", &six.pod(POD)),
    ]
}

impl Way {
    /// Has the node that the pod is on drop what goes this way, in a chain of somebody else.
    fn block(&self, network: &Network, chain: &str) {
        let (family, own) = (self.side.family(), self.side.pod(POD));
        let flow = format!("ct original {family} saddr {own}");
        let rule = format!("{flow} {family} daddr {} drop", self.server);
        self.side.add_rules(network, "n1", chain, &[rule]);
    }

    /// What comes to the server: packets, and bytes as they are on the wire.
    fn count(&self, network: &Network) {
        let family = self.side.family();
        for command in [
            format!("add table {family} arrived"),
            format!(
                "add chain {family} arrived in {{ type filter hook prerouting priority -400 ; }}"
            ),
            format!("add counter {family} arrived {}", self.policy),
            format!(
                "add rule {family} arrived in {family} saddr {} {family} daddr {} counter name {}",
                self.seen, self.server, self.policy
            ),
        ] {
            network.exec("out", &format!("nft {command}"));
        }
    }

    fn arrived(&self, network: &Network) -> Traffic {
        let (family, policy) = (self.side.family(), self.policy);
        let text = network.exec(
            "out",
            &format!("nft list counter {family} arrived {policy}"),
        );
        let number = |name: &str| -> u64 {
            let mut words = text.split_whitespace();
            words.find(|word| *word == name);
            words.next().unwrap().parse().unwrap()
        };
        let packets = number("packets");
        Traffic {
            packets,
            bytes: number("bytes") + packets * ETHERNET,
        }
    }

    /// What is counted for its policy and for its address so far: packets and bytes, and the policy's connections.
    fn counted(&self, network: &Network) -> (Traffic, Traffic, u64) {
        let counters = network.read_counters("n1");
        let by_address = match self.policy {
            "kept" => counters.kept,
            _ => counters.egress[&self.seen.parse::<IpAddr>().unwrap()].steered,
        };
        let policy = network.policy(self.policy);
        (policy.sent, by_address, policy.connections)
    }
}

fn since(now: Traffic, before: Traffic) -> Traffic {
    Traffic {
        packets: now.packets - before.packets,
        bytes: now.bytes - before.bytes,
    }
}

impl Network {
    /// The network with one node's plan applied.
    fn departing() -> Self {
        let network = Self::dual_stack();
        for way in ways() {
            network.mirror(way.server, PORT);
        }
        assert_eq!(network.apply("n1", plan()).failures, []);
        assert_eq!(network.counted_at(), CountedAt::Departure);
        network
    }

    fn counted_at(&self) -> CountedAt {
        self.read_counters("n1").counted_at
    }

    /// Applies the plan in an agent that lacks CAP_PERFMON, and gives what it says of itself.
    fn apply_without_perfmon(&self) -> CountedAt {
        // The latter includes the former.
        self.apply_with_less(|| drop_capabilities(&[PERFMON, SYS_ADMIN]))
    }

    /// The same of one that may do less in another way.
    fn apply_with_less(&self, confine: impl FnOnce() + Send + 'static) -> CountedAt {
        let config = self.config("n1");
        self.enter("n1", move || {
            confine();
            runtime().block_on(async {
                let mut dataplane = Dataplane::open(config).await.unwrap();
                assert_eq!(dataplane.apply(&plan()).await.failures, []);
                dataplane.counters().unwrap().counted_at
            })
        })
    }

    fn socket(&self, way: &Way) -> UdpSocket {
        self.udp(POD, 0, address(way.server, PORT))
    }
}

/// All that is counted of what leaves, but how often something was translated.
fn numbers(counters: &Counters) -> String {
    let egress = counters.egress.iter();
    let egress: Vec<_> = egress
        .map(|(address, of)| (address, of.steered, of.received))
        .collect();
    let (policies, kept) = (&counters.policies, counters.kept);
    format!("{egress:?} {policies:?} {kept:?}")
}

#[test]
fn what_a_network_policy_drops_is_counted_nowhere_and_what_it_lets_pass_is_exactly() {
    let network = Network::departing();
    for way in ways() {
        way.count(&network);
        let socket = network.socket(&way);
        let before = network.read_counters("n1");
        for chain in [FORWARD, LATE] {
            way.block(&network, chain);
            for _ in 0..3 {
                socket.send(b"?").unwrap();
            }
            assert_eq!(network.seen_by_tcp(POD, way.server), None, "{chain}");
            assert_eq!(network.seen_by_udp(POD, way.server), None, "{chain}");
            way.side.delete_rules(&network, "n1");
        }
        let after = network.read_counters("n1");
        assert_eq!(numbers(&after), numbers(&before), "{}", way.server);

        let (policy, by_address, connections) = way.counted(&network);
        // The flow whose first packets were dropped, two more of UDP, one of TCP, and one of echo requests.
        for length in [10, 100, 1000] {
            assert_eq!(ask(&socket, length).ip().to_string(), way.seen);
        }
        for _ in 0..2 {
            ask(&network.socket(&way), 20);
        }
        let seen = network.seen_by_tcp(POD, way.server);
        assert_eq!(seen.as_deref(), Some(way.seen.as_str()));
        assert!(network.is_pinged(POD, way.server));
        // What is left of a connection goes on for a moment.
        let wrong = || {
            let (sent, by, _) = way.counted(&network);
            let sent = [since(sent, policy), since(by, by_address)];
            let arrived = way.arrived(&network);
            (sent != [arrived; 2]).then_some((sent, arrived))
        };
        eventually(None, wrong);
        let (_, _, now) = way.counted(&network);
        assert_eq!(now - connections, 3 + 1 + 1, "{}", way.server);
    }
}

#[test]
fn what_is_cut_behind_the_node_counts_as_what_it_is_on_the_wire() {
    const LENGTH: usize = 4 << 20;
    let network = Network::departing();
    for way in ways() {
        way.count(&network);
        let (before, _, _) = way.counted(&network);
        let to = address(way.server, 7000);
        let sink = network.enter("out", move || std::net::TcpListener::bind(to).unwrap());
        let mut connection = network.enter(POD, move || std::net::TcpStream::connect(to).unwrap());
        let reader = std::thread::spawn(move || {
            let (mut stream, _) = sink.accept().unwrap();
            std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
        });
        connection.write_all(&vec![7; LENGTH]).unwrap();
        drop(connection);
        assert_eq!(reader.join().unwrap(), LENGTH as u64);
        let (after, _, _) = way.counted(&network);
        let sent = since(after, before);
        // Full segments, and some that only answer.
        let least = LENGTH as u64 / 1460;
        assert!((least..least * 2).contains(&sent.packets), "{sent:?}");
        assert!(sent.bytes > LENGTH as u64, "{sent:?}");
        // Or nothing was cut.
        assert!(way.arrived(&network).packets < least);
    }
}

#[test]
fn what_goes_by_postrouting_twice_is_counted_once() {
    let network = Network::departing();
    for (way, id) in ways().into_iter().skip(2).zip(7..) {
        let side = way.side;
        let [near, far] = match side.is_ipv6() {
            true => ["fd00:31::1", "fd00:31::2"],
            false => ["172.31.0.1", "172.31.0.2"],
        };
        let length = if side.is_ipv6() { 64 } else { 24 };
        // Somebody's tunnel, whose packets the kernel sends as it got them, with another header in front.
        for (host, [local, remote], own) in [
            ("n1", [side.nodes[0], side.router], near),
            ("out", [side.router, side.nodes[0]], far),
        ] {
            let link = format!("link add other{id} type vxlan id {id} dstport 4789");
            network.ip(host, &format!("{link} local {local} remote {remote}"));
            network.ip(
                host,
                &format!("addr add {own}/{length} dev other{id} nodad"),
            );
            network.ip(host, &format!("link set other{id} up"));
        }
        network.ip("n1", &format!("route add {} via {far}", way.server));
        network.ip("out", &format!("route add {} via {near}", side.pod(POD)));
        way.count(&network);
        let before = way.counted(&network);
        let socket = network.socket(&way);
        for _ in 0..5 {
            assert_eq!(ask(&socket, 10).ip().to_string(), way.seen);
        }
        let statistics = format!("/sys/class/net/other{id}/statistics/tx_packets");
        let tunneled = network.exec("n1", &format!("cat {statistics}"));
        assert!(tunneled.trim().parse::<u64>().unwrap() >= 5, "{tunneled}");
        let after = way.counted(&network);
        let sent = [since(after.0, before.0), since(after.1, before.1)];
        assert_eq!(sent, [way.arrived(&network); 2]);
        assert_eq!((sent[0].packets, after.2 - before.2), (5, 1));
    }
}

#[test]
fn what_stays_on_the_node_or_answers_who_came_from_outside_is_not_counted() {
    let network = Network::departing();
    for side in &SIDES {
        // Of the range that the policy is about, and on this node.
        network.ip("n1", &format!("addr add {} dev lo", side.beyond));
        let own = side.pod(POD);
        network.mirror_at(POD, &own, PORT);
        network.ip(
            "out",
            &format!(
                "route replace {own} via {} src {}",
                side.nodes[0], side.server
            ),
        );
        let before = network.read_counters("n1");
        eventually(true, || network.is_pinged(POD, side.beyond));
        let outside = network.udp("out", 0, address(&own, PORT));
        assert_eq!(ask(&outside, 10).ip().to_string(), side.server);
        eventually(true, || network.is_pinged("out", &own));
        let after = network.read_counters("n1");
        assert_eq!(numbers(&after), numbers(&before));
    }
}

#[test]
fn what_comes_out_of_the_tunnel_is_not_counted_again_whatever_index_somebody_gave_it() {
    let network = Network::held_by("n1");
    // All bits, on everything that comes in at the uplink.
    network.exec("n1", "tc qdisc add dev eth0 clsact");
    let filter = "tc filter add dev eth0 ingress bpf bytecode '1,6 0 0 4294967295' classid 1:ffff";
    network.shell("n1", filter);
    for side in &SIDES {
        let seen = network.seen_by_udp("10.10.2.2", side.server);
        assert_eq!(seen.as_deref(), Some(side.floating));
        let egress_ip = side.floating.parse().unwrap();
        let counted = network.read_counters("n1").egress[&egress_ip];
        assert_eq!((counted.received.packets, counted.steered.packets), (1, 0));
    }
}

#[test]
fn an_agent_without_cap_perfmon_counts_at_the_pods_and_says_so() {
    let network = Network::dual_stack();
    for way in ways() {
        network.mirror(way.server, PORT);
    }
    assert_eq!(network.apply_without_perfmon(), CountedAt::Pod);
    assert_eq!(network.counted_at(), CountedAt::Pod);
    for way in ways() {
        way.count(&network);
        let (before, _, connections) = way.counted(&network);
        way.block(&network, FORWARD);
        let socket = network.socket(&way);
        socket.send(b"?").unwrap();
        way.side.delete_rules(&network, "n1");
        assert_eq!(ask(&socket, 10).ip().to_string(), way.seen);
        let (after, _, now) = way.counted(&network);
        // Also what was dropped.
        let sent = since(after, before);
        assert_eq!((sent.packets, way.arrived(&network).packets), (2, 1));
        assert_eq!(now - connections, 1);
    }
}

#[test]
fn the_rights_of_the_agents_container_are_enough_to_count_where_packets_leave() {
    let network = Network::dual_stack();
    assert_eq!(network.apply_with_less(confine), CountedAt::Departure);
}

#[test]
fn agents_that_count_here_and_there_lose_no_packet_and_count_none_twice() {
    let network = Network::departing();
    for side in &SIDES {
        network.sink(side);
    }
    let streams = SIDES
        .each_ref()
        .map(|side| (side, Stream::start(&network, side, POD, 5000)));
    for _ in 0..3 {
        for counted_at in [CountedAt::Pod, CountedAt::Departure] {
            let before = network.arrived(&SIDES[1]);
            match counted_at {
                CountedAt::Pod => drop(network.apply_without_perfmon()),
                CountedAt::Departure => drop(network.apply("n1", plan())),
            }
            assert_eq!(network.counted_at(), counted_at);
            eventually(true, || network.arrived(&SIDES[1]) > before + 100);
        }
    }
    let sent = streams.map(|(side, stream)| network.finish(side, stream));
    let counted = ["egress", "egress6"].map(|policy| network.policy(policy).sent.packets);
    assert_eq!(counted, sent);
}

#[test]
fn what_counts_is_back_within_a_second_whatever_was_taken_of_it() {
    let network = Network::departing();
    let keeper = network.keep("n1", network.config("n1"), plan());
    let pins = network.pins("n1").join("v1");
    for way in ways() {
        let family = match way.side.is_ipv6() {
            true => "IPv6",
            false => "IPv4",
        };
        let pin = pins.join(format!("link_depart_{}", family.to_lowercase()));
        let restored = keeper.restores(Resource::Program, "detach", || crate::guard::detach(&pin));
        assert_eq!(
            restored[0].object,
            format!("depart at postrouting of {family}")
        );
        keeper.restores(Resource::Program, "unpin", || {
            fs::remove_file(&pin).unwrap()
        });
        let array = pins.join("departures");
        keeper.restores(Resource::Program, "clear", || {
            let map = Map::ProgramArray(MapData::from_pin(&array).unwrap());
            ProgramArray::try_from(map)
                .unwrap()
                .clear_index(&0)
                .unwrap();
        });
        keeper.restores(Resource::Map, "unpin the array", || {
            fs::remove_file(&array).unwrap();
        });
        way.count(&network);
        let (before, _, _) = way.counted(&network);
        ask(&network.socket(&way), 10);
        let (after, _, _) = way.counted(&network);
        assert_eq!(since(after, before), way.arrived(&network));
    }
    drop(keeper);
    // The next agent finds everything as it is to be.
    let report = network.apply("n1", plan());
    assert_eq!((report.changes, report.failures), (0, vec![]));
}

#[test]
fn links_whose_array_is_gone_are_made_anew() {
    let network = Network::departing();
    fs::remove_file(network.pins("n1").join("v1/departures")).unwrap();
    assert_eq!(network.apply("n1", plan()).failures, []);
    assert_eq!(network.counted_at(), CountedAt::Departure);
    for way in ways() {
        way.count(&network);
        let (before, _, _) = way.counted(&network);
        ask(&network.socket(&way), 10);
        let (after, _, _) = way.counted(&network);
        assert_eq!(since(after, before), way.arrived(&network));
    }
}

#[test]
fn cleanup_leaves_the_hooks_to_others_also_of_an_older_version_e46() {
    let network = Network::departing();
    for is_older in [false, true] {
        if is_older {
            let pins = network.pins("n1");
            fs::rename(pins.join("v1"), pins.join("v0")).unwrap();
        }
        // It has no CAP_PERFMON, and needs none.
        let config = network.config("n1");
        let report = network.enter("n1", move || {
            drop_capabilities(&[PERFMON, SYS_ADMIN]);
            runtime().block_on(cleanup(&config))
        });
        assert_eq!(report.failures, []);
        // There is room for one program in that place.
        assert_eq!(network.apply("n1", plan()).failures, []);
        assert_eq!(network.counted_at(), CountedAt::Departure);
    }
    // While somebody else's is there, ours counts at the pods.
    let pins = network.pins("n1");
    let elsewhere = pins.with_file_name("elsewhere");
    fs::rename(&pins, &elsewhere).unwrap();
    assert_eq!(network.apply("n1", plan()).failures, []);
    assert_eq!(network.counted_at(), CountedAt::Pod);
}
