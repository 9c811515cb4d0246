//! The outer headers, whoever writes them.

use egressnat_core::NodePlan;
use egressnat_core::gateway::EgressId;
use egressnat_dataplane::{Config, Encapsulation};

use crate::network::{FLOATING, Network, SERVER, eventually, plan};
use crate::seen;
use crate::side::{self, SIDES};
use crate::traffic::{AWAY, address};
use crate::wire::{Packet, Wire};

const WRITERS: [Encapsulation; 2] = [Encapsulation::Program, Encapsulation::Device];
const NODE: &str = "192.168.1.1";

impl Network {
    /// Has the outer headers of node n1 written by one or the other.
    fn encapsulate(&self, encapsulation: Encapsulation, plan: NodePlan) {
        let config = Config {
            encapsulation,
            ..self.config("n1")
        };
        let report = self.open_with("n1", config, async move |mut dataplane| {
            dataplane.apply(&plan).await
        });
        assert_eq!(report.failures, []);
    }

    /// What the kernel's tunnel device of n1 has sent so far.
    fn sent_by_the_device(&self) -> u64 {
        let sent = self.exec("n1", "cat /sys/class/net/egressnat0/statistics/tx_packets");
        sent.trim().parse().unwrap()
    }
}

impl Wire {
    /// The packet of the tunnel that has a datagram from this port inside.
    fn tunneled_from(&self, port: u16) -> (Packet, u32, Packet) {
        let is_it = |p: &Packet| {
            let inner = p.inner().and_then(|(_, inner)| inner.ports());
            inner.is_some_and(|(from, _)| from == port)
        };
        let outer = self.wait_for("the tunnel packet", is_it);
        let (vni, inner) = outer.inner().unwrap();
        (outer, vni, inner)
    }
}

#[test]
fn outer_headers_are_the_same_whoever_writes_them_e40() {
    let network = Network::new();
    network.apply_all("n2");
    let uplink = network.listen("n1", "eth0");
    let vni = EgressId::of(FLOATING.parse().unwrap()).vni();
    for (port, encapsulation) in (6001..).zip(WRITERS) {
        network.encapsulate(encapsulation, plan("n1", "n2"));
        // From here on the neighbor is known.
        assert_eq!(network.seen_by_udp(AWAY, SERVER), seen(FLOATING));
        let device = network.sent_by_the_device();
        // Congestion is told inside only, that it could be told is told outside too (RFC 6040).
        for (tos, outside) in [(0, 0), (0b01, 0b01), (0b10, 0b10), (0b11, 0b10), (0xb8, 0)] {
            let port = port + 10 * u16::from(tos);
            let mut packet = Packet::udp((AWAY, port), (SERVER, 7000), &[7; 100]);
            packet.tos = tos;
            network.inject(AWAY, &packet);
            let (outer, found, inner) = uplink.tunneled_from(port);
            let headers = (outer.ttl, outer.tos, outer.dont_fragment, found);
            assert_eq!(
                headers,
                (64, outside, true, vni),
                "{encapsulation:?} {tos:#x}"
            );
            assert!(outer.is_from(NODE) && outer.is_to(FLOATING));
            assert!(
                outer.has_right_header && outer.payload[6..8] == [0, 0],
                "no UDP checksum"
            );
            let length = u16::from_be_bytes([outer.payload[4], outer.payload[5]]);
            assert_eq!(usize::from(length), outer.payload.len());
            assert!(outer.ports().unwrap().0 >= 32_768, "{:?}", outer.ports());
            assert_eq!((inner.ttl, inner.tos), (packet.ttl - 1, tos));
            assert!(inner.is_from(AWAY) && inner.payload[8..] == [7; 100]);
        }
        // Or one of the two was not tested.
        let by_device = encapsulation == Encapsulation::Device;
        assert_eq!(network.sent_by_the_device() > device, by_device);
    }
}

#[test]
fn packets_of_one_flow_have_one_outer_port_and_flows_have_many() {
    let network = Network::new();
    network.apply_all("n2");
    let uplink = network.listen("n1", "eth0");
    for port in (6001..6017).chain(6001..6017) {
        let packet = Packet::udp((AWAY, port), (SERVER, 7000), &[]);
        network.inject(AWAY, &packet);
    }
    let tunneled = || uplink.packets().into_iter().filter(Packet::is_tunneled);
    eventually(32, || tunneled().count());
    let mut ports: Vec<_> = tunneled()
        .map(|p| (p.inner().unwrap().1.ports(), p.ports().unwrap().0))
        .collect();
    ports.sort();
    ports.dedup();
    assert_eq!(ports.len(), 16, "{ports:?}");
    ports.dedup_by_key(|(_, outer)| *outer);
    assert!(ports.len() > 8, "{ports:?}");
}

#[test]
fn a_neighbor_that_nobody_has_asked_for_is_asked_and_the_packet_waits_e40() {
    let network = Network::new();
    network.apply_all("n2");
    for encapsulation in WRITERS {
        network.encapsulate(encapsulation, plan("n1", "n2"));
        for _ in 0..3 {
            network.ip("n1", "neigh flush dev eth0");
            // One datagram, one answer: nothing is sent again.
            let udp = network.udp(AWAY, 0, address(SERVER, 80));
            udp.send(b"?").unwrap();
            let mut answer = [0; 64];
            let length = udp.recv(&mut answer).unwrap();
            let answer = String::from_utf8_lossy(&answer[..length]);
            assert_eq!(answer.trim(), FLOATING, "{encapsulation:?}");
        }
    }
}

#[test]
fn a_floating_ip_behind_a_router_is_reached_by_its_route() {
    let network = Network::new();
    network.apply_all("n2");
    // As if n2 were in another subnet: n1 has to go by way of its address.
    network.ip("n1", &format!("route add {FLOATING}/32 via 192.168.1.2"));
    network.ip("n1", "neigh flush dev eth0");
    assert_eq!(network.seen_by_udp(AWAY, SERVER), seen(FLOATING));
    let neighbors = network.ip("n1", "neigh show dev eth0");
    assert!(!neighbors.contains(FLOATING), "{neighbors}");
    // A route only in another table is the device's to find.
    network.ip("n1", &format!("route del {FLOATING}/32 via 192.168.1.2"));
    network.ip("n1", &format!("route add unreachable {FLOATING}/32"));
    network.ip("n1", &format!("route add {FLOATING}/32 dev eth0 table 77"));
    network.ip("n1", &format!("rule add to {FLOATING} table 77"));
    assert_eq!(network.seen_by_udp(AWAY, SERVER), seen(FLOATING));
}

#[test]
fn segments_are_cut_after_the_tunnel_where_the_uplink_cannot() {
    const LENGTH: usize = 4 << 20;
    const LARGEST: usize = 2000;
    let network = Network::new();
    network.apply_all("n2");
    // The driver takes no larger packet: the kernel cuts it up in front of it.
    network.ip("n1", &format!("link set eth0 gso_max_size {LARGEST}"));
    let uplink = network.listen("n1", "eth0");
    let [client, server] = network.both_ends(AWAY, address(SERVER, 7001));
    crate::mtu::transfer(&client, &server, LENGTH);
    let tunneled = || uplink.packets().into_iter().filter(Packet::is_tunneled);
    // Whole, they would be a tenth of that.
    eventually(true, || tunneled().count() > LENGTH / 1500);
    assert!(tunneled().all(|p| p.payload.len() < LARGEST && p.has_right_header));
}

#[test]
fn a_node_that_steers_nothing_has_no_ip_rule_and_one_that_began_keeps_it() {
    let network = Network::new();
    let has_rule = || network.ip("n1", "rule").contains("1190");
    let mut nothing = plan("n1", "n2");
    nothing.destinations.clear();
    assert_eq!(network.apply("n1", nothing.clone()).failures, []);
    assert!(!has_rule());
    let report = network.apply("n1", plan("n1", "n2"));
    assert_eq!((report.failures, report.restored), (vec![], vec![]));
    assert!(has_rule());
    assert_eq!(network.apply("n2", plan("n2", "n2")).failures, []);
    assert_eq!(network.seen_by_udp(AWAY, SERVER), seen(FLOATING));
    // The kernel would not forget it either.
    assert_eq!(network.apply("n1", nothing).failures, []);
    assert!(has_rule());
}

#[test]
fn outer_headers_of_ipv6_name_the_floating_ip_and_are_right_e40() {
    let network = Network::held_by("n2");
    let side = &SIDES[1];
    let uplink = network.listen("n1", "eth0");
    let vni = EgressId::of(side.floating.parse().unwrap()).vni();
    let pod = side.pod(AWAY);
    let packet = Packet::udp((&pod, 6001), (side.server, 7000), &[7; 100]);
    network.inject(AWAY, &packet);
    let (outer, found, inner) = uplink.tunneled_from(6001);
    assert_eq!((outer.ttl, found), (64, vni));
    assert!(outer.is_from(side.nodes[0]) && outer.is_to(side.floating));
    // Nothing else protects the addresses (RFC 8200, section 8.1). On the way out of a veth it is not summed up yet.
    assert!(outer.has_right_header && outer.payload[6..8] != [0, 0]);
    assert_eq!(inner.ttl, packet.ttl - 1);
    assert!(inner.is_from(&pod) && inner.payload == packet.payload);
}

#[test]
fn no_tunnel_packet_is_tracked_by_either_node() {
    let network = Network::held_by("n2");
    for encapsulation in WRITERS {
        network.encapsulate(encapsulation, side::plan("n1", "n2"));
        for side in &SIDES {
            assert_eq!(network.seen_by_udp(AWAY, side.server), seen(side.floating));
            for node in ["n1", "n2"] {
                let list = format!("conntrack -L -f {} -p udp", side.conntrack());
                let flows = network.told(node, &list);
                assert!(flows.contains("dport=80 "), "{node}: {flows}");
                assert!(!flows.contains("dport=8473"), "{node}: {flows}");
            }
        }
    }
}
