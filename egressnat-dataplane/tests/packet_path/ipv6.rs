//! The same for IPv6, in the same cluster: each family has its own floating IP.

mod bridge;
mod heal;
mod nodes;
mod ours;
mod policies;
mod probe;
mod unprivileged;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use egressnat_core::model::*;
use egressnat_core::selector::Selector;
use egressnat_core::{NodePlan, PolicySetId};
use egressnat_dataplane::cleanup;
use ipnet::IpNet;

use crate::network::{
    FLOATING, Network, SERVER, eventually, planned, runtime, snapshot as ipv4_snapshot,
};

pub(crate) const FLOATING6: &str = "fd00:192:168:1::100";
pub(crate) const SERVER6: &str = "2001:db8:8::8";
pub(crate) const OTHER_SERVER6: &str = "2001:db8:9::9";
/// Selected, one on each node. They are called by their IPv4 addresses.
const PODS: [&str; 2] = ["10.10.1.2", "10.10.2.2"];
/// Not selected.
const OTHER_PODS: [&str; 2] = ["10.10.1.3", "10.10.2.3"];
pub(crate) const NODES: [&str; 2] = ["fd00:192:168:1::1", "fd00:192:168:1::2"];

fn seen(address: &str) -> Option<String> {
    Some(address.to_owned())
}

/// The IPv6 address of a pod by its IPv4 address: `fd00:10:10:NODE::N`.
pub(crate) fn address6(pod: &str) -> String {
    let octets: Vec<&str> = pod.split('.').collect();
    format!("fd00:10:10:{}::{}", octets[2], octets[3])
}

/// The cluster with a second group and a second policy, which are of IPv6.
pub(crate) fn snapshot() -> Snapshot {
    let mut snapshot = ipv4_snapshot();
    for (index, node) in snapshot.nodes.values_mut().enumerate() {
        node.addresses.insert(NODES[index].parse().unwrap());
        node.subnets.insert("fd00:192:168:1::/64".parse().unwrap());
        let range = format!("fd00:10:10:{}::/64", index + 1);
        node.pod_ranges.insert(range.parse().unwrap());
    }
    for pod in snapshot.pods.values_mut() {
        let ipv4 = pod.ips.first().unwrap().to_string();
        pod.ips.insert(address6(&ipv4).parse().unwrap());
    }
    let key = GatewayKey::group("kube-system".parse().unwrap(), "six".parse().unwrap());
    let floating: IpAddr = FLOATING6.parse().unwrap();
    snapshot
        .gateways
        .insert(key.clone(), Gateway::new([floating]));
    let mut source = Source::everything();
    source.pods = Selector::from_labels([("role", "frontend")]);
    let policy = Policy::snat(
        [source],
        ["2001:db8:8::/48".parse().unwrap()],
        EgressSource::from(&key),
    );
    snapshot.policies.insert("egress6".parse().unwrap(), policy);
    snapshot
}

/// What a node must have when `holder` has the floating IP of IPv6, and `n1` that of IPv4.
pub(crate) fn plan(node: &str, holder: &str) -> NodePlan {
    planned(&snapshot(), node, &[(FLOATING, "n1"), (FLOATING6, holder)])
}

/// A node's plan that does not know an address.
fn without(mut plan: NodePlan, address: &str) -> NodePlan {
    plan.pods.remove(&address.parse::<IpAddr>().unwrap());
    plan
}

/// What a plan has of IPv6.
fn of_ipv6(mut plan: NodePlan) -> NodePlan {
    let is_ipv6 = |range: &IpNet| range.addr().is_ipv6();
    plan.pods.retain(|address, _| address.is_ipv6());
    plan.destinations.retain(|(_, prefix), _| is_ipv6(prefix));
    plan.deciders.retain(|(_, prefix), _| is_ipv6(prefix));
    plan.floating_ips.retain(IpAddr::is_ipv6);
    plan.peers.retain(IpAddr::is_ipv6);
    plan.pod_ranges.retain(is_ipv6);
    plan.internal_ranges.retain(is_ipv6);
    plan.guard_ranges.retain(is_ipv6);
    plan
}

impl Network {
    /// The network with IPv6 addresses besides those of IPv4.
    pub(crate) fn dual_stack() -> Self {
        let network = Self::new();
        let gateway = "fd00:192:168:1::254";
        for (name, address) in [("out", gateway), ("n1", NODES[0]), ("n2", NODES[1])] {
            network.ip(name, &format!("addr add {address}/64 dev eth0 nodad"));
            network.sysctl(name, "net.ipv6.conf.all.forwarding=1");
        }
        for (node, other) in [(1, 2), (2, 1)] {
            let name = format!("n{node}");
            network.ip(&name, &format!("route add default via {gateway}"));
            let via = NODES[other - 1];
            network.ip(
                &name,
                &format!("route add fd00:10:10:{other}::/64 via {via}"),
            );
            let via = NODES[node - 1];
            network.ip(
                "out",
                &format!("route add fd00:10:10:{node}::/64 via {via}"),
            );
        }
        for pod in PODS.into_iter().chain(OTHER_PODS) {
            network.connect_pod6(pod);
        }
        for server in [SERVER6, OTHER_SERVER6] {
            network.ip("out", &format!("addr add {server}/128 dev lo nodad"));
            network.serve("out", server);
        }
        network
    }

    /// The IPv6 address and the routes of a pod that has a veth pair.
    pub(crate) fn connect_pod6(&self, pod: &str) {
        let octets: Vec<&str> = pod.split('.').collect();
        let (node, veth) = (format!("n{}", octets[2]), format!("veth{}", octets[3]));
        let address = address6(pod);
        self.ip(&node, &format!("addr add fe80::1/64 dev {veth} nodad"));
        self.ip(&node, &format!("route add {address}/128 dev {veth}"));
        self.ip(pod, &format!("addr add {address}/128 dev eth0 nodad"));
        self.ip(pod, "route add fe80::1 dev eth0");
        self.ip(pod, "route add default via fe80::1 dev eth0");
    }

    /// Applies to both nodes what they must have when `holder` has the floating IP of IPv6.
    pub(crate) fn apply_both(&self, holder: &str) {
        // Who gives an address away is first, as in a planned move.
        let mut nodes = ["n1", "n2"];
        nodes.sort_by_key(|node| *node == holder);
        for node in nodes {
            let report = self.apply(node, plan(node, holder));
            assert_eq!(report.failures, [], "{node}");
        }
    }

    /// Counts IPv6 packets that come into `out` and match, under a name.
    pub(crate) fn count6(&self, counter: &str, matches: &str) {
        for command in [
            "add table ip6 watch".to_owned(),
            "add chain ip6 watch in { type filter hook prerouting priority -400 ; }".to_owned(),
            format!("add counter ip6 watch {counter}"),
            format!("add rule ip6 watch in {matches} counter name {counter}"),
        ] {
            self.exec("out", &format!("nft {command}"));
        }
    }

    pub(crate) fn counted6(&self, counter: &str) -> u64 {
        self.counted_in("out", "ip6 watch", counter)
    }

    /// Counts what comes to the server from another address than the floating IP.
    pub(crate) fn watch_for_leaks6(&self) {
        self.count6(
            "leaked",
            &format!("ip6 daddr {SERVER6} ip6 saddr != {FLOATING6}"),
        );
    }

    /// Whether somebody answers a neighbor solicitation for the floating IP.
    fn is_told6(&self) -> bool {
        self.ip("out", "-6 neigh flush dev eth0");
        self.is_pinged("out", FLOATING6);
        self.ip("out", &format!("-6 neigh show {FLOATING6}"))
            .contains("lladdr")
    }

    /// On `n2`, which holds the floating IP: moves its deadline, and lets go of the packet path again.
    fn hold6_for(&self, time: Duration) -> Instant {
        let deadline = Instant::now() + time;
        self.open("n2", async move |dataplane| {
            let address = FLOATING6.parse().unwrap();
            dataplane
                .deadlines()
                .hold_until(&[address], deadline)
                .unwrap();
        });
        deadline
    }
}

#[test]
fn a_selected_pod_leaves_with_the_floating_ip_of_ipv6_from_any_node() {
    let network = Network::dual_stack();
    network.apply_both("n2");
    network.watch_for_leaks6();
    for pod in PODS {
        assert_eq!(
            network.seen_by_tcp(pod, SERVER6),
            seen(FLOATING6),
            "{pod} over TCP"
        );
        assert_eq!(
            network.seen_by_udp(pod, SERVER6),
            seen(FLOATING6),
            "{pod} over UDP"
        );
        assert!(network.is_pinged(pod, SERVER6), "{pod} by ping");
    }
    assert_eq!(network.counted6("leaked"), 0);
}

#[test]
fn all_else_of_ipv6_leaves_with_the_nodes_address_also_where_the_floating_ip_is() {
    let network = Network::dual_stack();
    network.apply_both("n2");
    for index in 0..2 {
        let node = seen(NODES[index]);
        let pod = OTHER_PODS[index];
        assert_eq!(network.seen_by_tcp(pod, SERVER6), node, "not selected");
        let pod = PODS[index];
        assert_eq!(network.seen_by_tcp(pod, OTHER_SERVER6), node, "E11");
        // The node itself does not choose the floating IP either.
        let name = format!("n{}", index + 1);
        assert_eq!(network.seen_by_tcp(&name, SERVER6), node);
    }
    let inside = address6("10.10.2.3");
    network.serve("10.10.2.3", &inside);
    for pod in ["10.10.1.2", "10.10.1.3", "10.10.2.2"] {
        assert_eq!(
            network.seen_by_tcp(pod, &inside),
            seen(&address6(pod)),
            "E12"
        );
    }
}

#[test]
fn each_family_of_a_pod_has_its_own_policy_and_its_own_gateway_node() {
    let network = Network::dual_stack();
    for holder in ["n1", "n2"] {
        network.apply_both(holder);
        for pod in PODS {
            assert_eq!(network.seen_by_tcp(pod, SERVER), seen(FLOATING), "{pod}");
            assert_eq!(network.seen_by_tcp(pod, SERVER6), seen(FLOATING6), "{pod}");
        }
    }
}

#[test]
fn a_running_connection_follows_its_floating_ip_of_ipv6() {
    let network = Network::dual_stack();
    network.apply_both("n2");
    network.watch_for_leaks6();
    let mut connections = PODS.map(|pod| network.connect(pod, SERVER6).unwrap());
    for holder in ["n2", "n1", "n2"] {
        network.apply_both(holder);
        for (pod, connection) in PODS.into_iter().zip(&mut connections) {
            assert_eq!(connection.ask(), seen(FLOATING6), "{pod}, {holder} (E42)");
            assert_eq!(network.seen_by_tcp(pod, SERVER6), seen(FLOATING6));
        }
    }
    assert_eq!(network.counted6("leaked"), 0);
}

#[test]
fn neighbors_are_told_at_once_where_the_floating_ip_of_ipv6_is() {
    let network = Network::dual_stack();
    network.apply_both("n1");
    assert_eq!(network.seen_by_tcp(PODS[0], SERVER6), seen(FLOATING6));
    let mac = |node: &str| {
        let link = network.ip(node, "-o link show dev eth0");
        let mut words = link.split_whitespace();
        words.find(|word| *word == "link/ether");
        words.next().unwrap().to_owned()
    };
    let neighbor = || network.ip("out", &format!("-6 neigh show {FLOATING6}"));
    assert!(neighbor().contains(&mac("n1")), "{}", neighbor());
    // Where addresses are otherwise uncertain for a second or two.
    network.sysctl("n2", "net.ipv6.conf.all.accept_dad=1");
    network.apply_both("n2");
    let addresses = network.ip("n2", "-6 addr show dev eth0");
    assert!(!addresses.contains("tentative"), "{addresses}");
    // Before anybody asked.
    eventually(true, || neighbor().contains(&mac("n2")));
}

#[test]
fn an_unknown_address_of_ipv6_reaches_all_but_strict_destinations_and_is_counted() {
    let network = Network::dual_stack();
    network.apply_both("n2");
    let (pod, address) = (OTHER_PODS[0], address6(OTHER_PODS[0]));
    assert_eq!(network.seen_by_tcp(pod, SERVER6), seen(NODES[0]));
    let undecided = || network.counted_in("n1", "ip6 egressnat", "undecided");
    assert_eq!(undecided(), 0);

    network.apply("n1", without(plan("n1", "n2"), &address));
    assert_eq!(network.seen_by_udp(pod, SERVER6), None, "E43");
    assert_eq!(network.seen_by_tcp(pod, SERVER6), None, "E43");
    assert!(!network.is_pinged(pod, SERVER6), "E43");
    let told = network.open("n1", async |dataplane| {
        dataplane.counters().unwrap().blocked.undecided
    });
    assert_eq!(told, undecided());
    assert!(told >= 3, "{told}");
    assert_eq!(network.seen_by_tcp(pod, OTHER_SERVER6), seen(NODES[0]));
    assert!(network.is_pinged(pod, &address6("10.10.2.3")));
    // Its other family is known.
    assert_eq!(network.seen_by_tcp(pod, SERVER), seen("192.168.1.1"));

    // The guard holds without an agent and without programs.
    network.watch_for_leaks6();
    std::fs::remove_dir_all(network.pins("n1")).unwrap();
    // The kernel takes a moment to take them off.
    eventually(None, || network.seen_by_udp(PODS[0], SERVER6));
    assert_eq!(network.counted6("leaked"), 0);
}

#[test]
fn a_packet_too_big_for_the_tunnel_is_answered_with_what_fits() {
    let network = Network::dual_stack();
    network.apply_both("n2");
    let pod = PODS[0];
    // 1500 less the outer headers: Ethernet's 14, IPv6's 40, UDP's 8, VXLAN's 8.
    let ping = |payload: u32| {
        network.told(
            pod,
            &format!("ping -6 -c1 -W1 -M do -s {payload} {SERVER6}"),
        )
    };
    let told = ping(1430 - 48 + 1);
    assert!(told.contains("mtu=1430"), "{told}");
    let fits = ping(1430 - 48);
    assert!(fits.contains(" 1 received"), "{fits}");
    // Longer ones arrive in fragments that fit.
    let fragmented = network.told(pod, &format!("ping -6 -c2 -i0.2 -W2 -s 3000 {SERVER6}"));
    assert!(!fragmented.contains(" 0 received"), "{fragmented}");
    // TCP learns from the same answer.
    network.ip(pod, "-6 route flush cache");
    let mut connection = network.connect(pod, SERVER6).unwrap();
    assert_eq!(connection.ask_often(8000), seen(FLOATING6));
}

#[test]
fn what_is_too_big_for_ipv6_follows_the_mtu_of_the_uplink() {
    let network = Network::dual_stack();
    network.apply_both("n2");
    let pod = PODS[0];
    for uplink in [1400, 1500, 1450] {
        network.ip("n1", &format!("link set eth0 mtu {uplink}"));
        assert_eq!(network.apply("n1", plan("n1", "n2")).failures, []);
        network.ip(pod, "-6 route flush cache");
        let fits = uplink - 70;
        let payload = fits - 48 + 1;
        let ping = format!("ping -6 -c1 -W1 -M do -s {payload} {SERVER6}");
        let told = network.told(pod, &ping);
        assert!(told.contains(&format!("mtu={fits}")), "{told}");
        let routes = network.ip("n1", "-6 route show table 1190");
        assert_eq!(routes.lines().count(), 1, "{routes}");
    }
    assert_eq!(network.apply("n1", plan("n1", "n2")).changes, 0);
}

#[test]
fn a_floating_ip_of_ipv6_takes_no_new_connections_and_has_a_neighbor_entry() {
    let network = Network::dual_stack();
    network.apply_both("n2");
    assert!(network.is_told6());
    assert!(!network.is_pinged("out", FLOATING6), "E47");
    assert!(network.is_pinged("out", NODES[1]));
    assert_eq!(network.seen_by_tcp("out", FLOATING6), None, "E47");
}

#[test]
fn steered_packets_of_ipv6_are_accepted_from_nodes_only_e47() {
    let network = Network::dual_stack();
    network.apply_both("n2");
    let mut stranger = plan("n2", "n2");
    stranger.peers.remove(&NODES[0].parse::<IpAddr>().unwrap());
    network.apply("n2", stranger);
    assert_eq!(network.seen_by_udp(PODS[0], SERVER6), None);
    let counters = network.open("n2", async |dataplane| dataplane.counters().unwrap());
    assert!(counters.blocked.unknown_peer > 0, "{counters:?}");
    network.apply_both("n2");
    assert_eq!(network.seen_by_udp(PODS[0], SERVER6), seen(FLOATING6));
}

#[test]
fn what_the_kernel_says_on_the_tunnel_device_by_itself_is_no_lost_packet() {
    let network = Network::dual_stack();
    network.apply_both("n2");
    // Reports of multicast groups and router solicitations come by themselves; this one at once.
    network.told("n1", "ping -6 -c1 -W1 -I egressnat0 ff02::2");
    let counters = network.open("n1", async |dataplane| dataplane.counters().unwrap());
    assert_eq!(counters.blocked.no_egress, 0);
}

#[test]
fn replies_of_connections_from_outside_are_never_steered_in_ipv6() {
    let network = Network::dual_stack();
    let address = address6(PODS[0]);
    network.serve(PODS[0], &address);
    for holder in ["n2", "n1"] {
        network.apply_both(holder);
        // The server connects from an address that the policy of the pod covers.
        let via = NODES[0];
        let route = format!("route replace fd00:10:10:1::/64 via {via} src {SERVER6}");
        network.ip("out", &route);
        assert_eq!(
            network.seen_by_tcp("out", &address),
            seen(SERVER6),
            "E14, held by {holder}"
        );
    }
}

#[test]
fn at_its_deadline_a_floating_ip_of_ipv6_falls_silent_without_an_agent() {
    let network = Network::dual_stack();
    network.apply_both("n2");
    network.count6("from", &format!("ip6 saddr {FLOATING6}"));
    network.hold6_for(Duration::from_secs(60));
    assert!(network.is_told6());
    let senders = PODS.map(|pod| {
        assert_eq!(network.seen_by_udp(pod, SERVER6), seen(FLOATING6));
        network.send(pod, SERVER6)
    });
    let counted = || network.counted6("from");
    let start = counted();
    let deadline = network.hold6_for(Duration::from_millis(1500));
    // What was read after the deadline is all there will ever be.
    let silent_from = loop {
        let (asked, now) = (Instant::now(), counted());
        if asked >= deadline {
            break now;
        }
    };
    assert!(silent_from > start);
    let patience = Instant::now() + Duration::from_millis(300);
    while Instant::now() < patience {
        assert_eq!(counted(), silent_from, "packets after the deadline");
    }
    drop(senders);
    assert!(!network.is_told6(), "neighbors are answered");
    let chain = network.exec("n2", "nft list chain ip6 egressnat input");
    let asked = chain.lines().find(|line| line.contains("asks who has it"));
    assert!(!asked.unwrap().contains("packets 0 "), "{chain}");
    assert_eq!(counted(), silent_from);

    // The agent is back, and knows that it is not in use; IPv4 is.
    let report = network.apply("n2", plan("n2", "n2"));
    assert_eq!((report.changes, report.floating_ips.len()), (0, 0));
    network.hold6_for(Duration::from_secs(60));
    eventually(seen(FLOATING6), || network.seen_by_udp(PODS[0], SERVER6));

    // The fence goes with the floating IP.
    network.apply_both("n1");
    for set in ["fenced", "held"] {
        let listed = network.exec("n2", &format!("nft list set ip6 egressnat {set}"));
        assert!(!listed.contains(FLOATING6), "{listed}");
    }
    assert_eq!(network.seen_by_udp(PODS[1], SERVER6), seen(FLOATING6));
}

#[test]
fn applying_both_families_again_changes_nothing_also_after_a_restart() {
    let network = Network::dual_stack();
    let changes = network.open("n1", async |mut dataplane| {
        let own = ["192.168.1.1/24", "fd00:192:168:1::1/64"].map(|own| own.parse().unwrap());
        assert_eq!(dataplane.uplink().addresses, own);
        let mut changes = Vec::new();
        for _ in 0..3 {
            let report = dataplane.apply(&plan("n1", "n1")).await;
            assert_eq!(report.failures, []);
            changes.push(report.changes);
        }
        changes
    });
    assert!(changes[0] > 20, "{changes:?}");
    assert_eq!(changes[1..], [0, 0]);
    let report = network.open("n1", async |mut dataplane| {
        let own = dataplane.uplink().addresses.len();
        assert_eq!(own, 2, "floating IPs are not the node's own");
        dataplane.apply(&plan("n1", "n1")).await
    });
    assert_eq!((report.changes, report.failures), (0, vec![]), "E45");
    let both = [FLOATING, FLOATING6].map(|address| address.parse().unwrap());
    assert_eq!(*report.floating_ips, both.into());
}

#[test]
fn what_others_removed_of_ipv6_comes_back_with_the_next_apply() {
    let network = Network::dual_stack();
    network.apply_both("n2");
    network.exec("n2", "nft flush ruleset");
    network.ip("n1", "-6 rule del priority 1190");
    network.apply_both("n2");
    assert_eq!(network.seen_by_tcp(PODS[0], SERVER6), seen(FLOATING6));
    network.ip("n1", "link del egressnat0");
    network.ip("n2", &format!("-6 addr del {FLOATING6}/128 dev eth0"));
    network.apply_both("n2");
    assert_eq!(network.seen_by_tcp(PODS[0], SERVER6), seen(FLOATING6));
}

#[test]
fn the_table_of_ipv6_can_be_read() {
    let network = Network::dual_stack();
    network.apply_both("n2");
    let table = network.exec("n2", "nft list table ip6 egressnat");
    for part in [
        "comment \"egressnat layout",
        "type ipv6_addr",
        "type mark : ipv6_addr",
        &format!(": {FLOATING6}"),
        "fd00:10:10:2::/64",
        "icmpv6 type nd-neighbor-solicit",
        "ip6 saddr @pod_ranges ip6 daddr @guard_ranges ip6 daddr != @internal_ranges",
        "snat to meta mark",
    ] {
        assert!(table.contains(part), "no '{part}' in {table}");
    }
}

#[test]
fn cleanup_leaves_nothing_of_ipv6() {
    let network = Network::dual_stack();
    let state = || {
        [
            "-o link show",
            "-o addr show",
            "-o rule show",
            "-o -6 rule show",
            "-o route show table all",
            "-o -6 route show table all",
        ]
        .map(|what| network.ip("n1", what))
    };
    // Waits for what the kernel does by itself, such as link-local addresses.
    eventually(false, || {
        network.ip("n1", "addr show").contains("tentative")
    });
    let before = state();
    network.apply_both("n1");
    let with_deadline = async |dataplane: egressnat_dataplane::Dataplane| {
        let deadline = Instant::now() + Duration::from_secs(60);
        let address = FLOATING6.parse().unwrap();
        dataplane
            .deadlines()
            .hold_until(&[address], deadline)
            .unwrap();
    };
    network.open("n1", with_deadline);
    assert!(state().iter().zip(&before).all(|(now, then)| now != then));
    let config = network.config("n1");
    let clean = move || runtime().block_on(cleanup(&config));
    assert_eq!(network.enter("n1", clean.clone()).failures, []);
    assert_eq!(state(), before, "E46");
    assert_eq!(network.exec("n1", "nft list tables"), "", "E46");
    assert!(!network.pins("n1").exists());
    let again = network.enter("n1", clean);
    assert_eq!((again.changes, again.failures), (0, vec![]));
}
