//! E43 under fire: while things break, not one packet of a selected pod reaches a strict destination with another address than
//! the floating IP. What the server's side of the wire sees is what counts.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use egressnat_core::{NodePlan, PolicySetId, Resource};
use egressnat_dataplane::Attachment;

use crate::guard::detach;
use crate::ipv6::{FLOATING6, NODES, SERVER6};
use crate::network::{FLOATING, Network, OTHER_SERVER, SERVER, Sender, eventually, plan};
use crate::restart::Agent;
use crate::side::{self, SIDES, Side};

/// Between two datagrams: often enough to hit any gap of a millisecond.
const PAUSE: Duration = Duration::from_micros(200);

/// How often each thing happens: 3 times, or 50 in the long mode.
pub(crate) fn rounds() -> usize {
    match std::env::var_os("EGRESSNAT_LONG") {
        Some(_) => 50,
        None => 3,
    }
}

impl Network {
    /// The families that somebody counts the leaks of.
    fn watched(&self) -> Vec<&'static Side> {
        let tables = self.exec("out", "nft list tables");
        let is_watched = |side: &&Side| tables.contains(&format!("table {} watch", side.family()));
        SIDES.iter().filter(is_watched).collect()
    }

    /// Counts what comes to the servers of both families, with the floating IP and with another address.
    fn watch_both(&self) {
        self.watch_for_leaks();
        self.watch_for_leaks6();
        // What a node says of itself about an answer that it can bring to nobody, as its pod is gone.
        let errors = format!(
            "ip6 saddr {{ {} }} icmpv6 type {{ 1, 2, 3, 4 }} accept",
            NODES.join(", ")
        );
        self.exec("out", &format!("nft insert rule ip6 watch in {errors}"));
        self.exec("out", "nft add counter ip6 watch translated");
        self.exec(
            "out",
            &format!("nft add rule ip6 watch in ip6 daddr {SERVER6} ip6 saddr {FLOATING6} counter name translated"),
        );
    }

    fn count_of(&self, side: &Side, counter: &str) -> u64 {
        self.counted_in("out", &format!("{} watch", side.family()), counter)
    }

    /// Waits until traffic of each family gets through with the floating IP.
    fn until_translated(&self) {
        for side in self.watched() {
            let before = self.count_of(side, "translated");
            eventually(true, || self.count_of(side, "translated") > before);
        }
    }

    /// Where a node pins what attaches a program to an interface.
    fn link(&self, node: &str, program: &str, interface: &str) -> PathBuf {
        let index = self.exec(node, &format!("cat /sys/class/net/{interface}/ifindex"));
        let link = format!("v1/link_{program}_{}", index.trim());
        self.pins(node).join(link)
    }

    fn assert_no_leak(&self, what: &str, round: usize) {
        for side in self.watched() {
            let leaked = self.count_of(side, "leaked");
            assert_eq!(leaked, 0, "{what}, round {round}, {}", side.server);
        }
    }
}

/// Sends to the servers of both families.
fn send_both(network: &Network, pod: &str) -> [Sender; 2] {
    [SERVER, SERVER6].map(|server| network.send_every(pod, server, PAUSE))
}

/// Nodes with a plan each, a pod of `n1` that sends without end, and nothing leaked so far.
fn under_fire(holder: &str) -> (Network, [Sender; 2]) {
    let network = Network::held_by(holder);
    network.watch_both();
    let senders = send_both(&network, "10.10.1.2");
    network.until_translated();
    (network, senders)
}

#[test]
fn nothing_leaks_while_the_tunnel_device_is_deleted_and_no_agent_runs() {
    let (network, _senders) = under_fire("n2");
    for round in 0..rounds() {
        network.ip("n1", "link del egressnat0");
        let blocked = network.counted("n1", "egressnat", "no_tunnel");
        eventually(true, || {
            network.counted("n1", "egressnat", "no_tunnel") > blocked
        });
        network.apply("n1", side::plan("n1", "n2"));
        network.until_translated();
        network.assert_no_leak("tunnel device deleted", round);
    }
}

#[test]
fn nothing_leaks_while_others_take_away_rule_route_device_and_programs_under_an_agent() {
    let (network, _senders) = under_fire("n2");
    let keeper = network.keep("n1", network.config("n1"), side::plan("n1", "n2"));
    let pin = network.link("n1", "steer", "veth2");
    for round in 0..rounds() {
        for (resource, command) in [
            (Resource::RoutingRule, "ip rule del priority 1190"),
            (Resource::RoutingRule, "ip -6 rule del priority 1190"),
            (Resource::Route, "ip route flush table 1190"),
            (Resource::Route, "ip -6 route flush table 1190"),
            (
                Resource::Route,
                "ip route add 8.8.8.8/32 via 192.168.1.254 table 1190",
            ),
            (Resource::Device, "ip link del egressnat0"),
        ] {
            network.exec("n1", command);
            keeper.wait_for(resource);
            network.until_translated();
            network.assert_no_leak(command, round);
        }
        detach(&pin);
        keeper.wait_for(Resource::Program);
        network.until_translated();
        network.assert_no_leak("program detached", round);
        // It goes by the tables of an agent that lives.
        network.exec("n1", "nft flush ruleset");
        network.until_translated();
        network.assert_no_leak("ruleset flushed", round);
    }
}

#[test]
fn nothing_leaks_while_others_take_programs_away_and_no_agent_runs() {
    // As `bpftool link detach` and as `tc filter del`, from a pod and from both sides of the tunnel.
    for attachment in [Attachment::Tcx, Attachment::Clsact] {
        let mut network = Network::dual_stack();
        network.attachment = attachment;
        network.apply_sides("n2");
        network.watch_both();
        let _senders = ["10.10.1.2", "10.10.2.2"].map(|pod| send_both(&network, pod));
        network.until_translated();
        let places = [
            ("n1", "veth2", "steer", "10.10.1.2"),
            ("n2", "veth2", "steer", "10.10.2.2"),
            ("n2", "egressnat0", "decap", "10.10.1.2"),
        ];
        for round in 0..rounds() {
            for (node, interface, program, pod) in places {
                match attachment {
                    Attachment::Clsact => {
                        network.exec(node, &format!("tc filter del dev {interface} ingress"));
                    }
                    _ => detach(&network.link(node, program, interface)),
                }
                for server in [SERVER, SERVER6] {
                    eventually(None, || network.seen_by_udp(pod, server));
                }
                let what = format!("{program} of {node} taken away, {attachment:?}");
                network.assert_no_leak(&what, round);
                let report = network.apply(node, side::plan(node, "n2"));
                assert_eq!((report.changes, report.failures), (1, vec![]), "{what}");
                network.until_translated();
                network.assert_no_leak(&what, round);
            }
        }
    }
}

#[test]
fn nothing_leaks_while_others_flush_rules_and_delete_devices_of_the_gateway_node_under_an_agent() {
    let (network, _senders) = under_fire("n2");
    let _beside = send_both(&network, "10.10.2.2");
    let keeper = network.keep("n2", network.config("n2"), side::plan("n2", "n2"));
    for round in 0..rounds() {
        network.exec("n2", "nft flush ruleset");
        network.until_translated();
        network.assert_no_leak("ruleset flushed", round);
        for (resource, command) in [
            (Resource::Device, "ip link del egressnat0"),
            (Resource::Address, "ip addr del 192.168.1.100/32 dev eth0"),
            (
                Resource::Address,
                "ip addr del fd00:192:168:1::100/128 dev eth0",
            ),
        ] {
            network.exec("n2", command);
            keeper.wait_for(resource);
            network.until_translated();
            network.assert_no_leak(command, round);
        }
    }
}

#[test]
fn nothing_leaks_while_the_agent_is_frozen_and_others_take_away_what_it_keeps() {
    let (network, _senders) = under_fire("n2");
    let mut agent = Agent::start(&network, "n1", "n2");
    assert_eq!(agent.applied(), [0, 0]);
    let pin = network.link("n1", "steer", "veth2");
    for round in 0..rounds() {
        // A program is pinned after it is attached.
        eventually(true, || pin.exists());
        agent.freeze();
        network.ip("n1", "link del egressnat0");
        let blocked = network.counted("n1", "egressnat", "no_tunnel");
        eventually(true, || {
            network.counted("n1", "egressnat", "no_tunnel") > blocked
        });
        network.assert_no_leak("frozen, without a tunnel", round);
        detach(&pin);
        let undecided = network.undecided();
        eventually(true, || network.undecided() > undecided);
        // What it has in memory is not what is there any more.
        agent.thaw();
        network.until_translated();
        network.assert_no_leak("thawed", round);
    }
}

#[test]
fn nothing_leaks_while_the_gateway_vanishes_and_comes_back() {
    for holder in ["n2", "n1"] {
        let (network, _senders) = under_fire(holder);
        let port = format!("link set p{holder}");
        for round in 0..rounds() {
            network.ip("lan", &format!("{port} down"));
            // Sources go on sending into nothing; nobody tells them.
            std::thread::yield_now();
            network.assert_no_leak("gateway off", round);
            network.ip("lan", &format!("{port} up"));
            network.until_translated();
            network.assert_no_leak("gateway back", round);
        }
        network.assert_no_leak(holder, rounds());
    }
}

#[test]
fn nothing_leaks_while_policies_are_created_and_edited_under_traffic() {
    let (network, _senders) = under_fire("n2");
    // Of IPv4 other ranges, of IPv6 the same as ever.
    let edited = |prefixes: &[&str]| {
        let mut edited = side::plan("n1", "n2");
        let (set, steering) = {
            let ((set, _), steering) = edited.destinations.first_key_value().unwrap();
            (*set, *steering)
        };
        edited
            .destinations
            .retain(|(_, prefix), _| prefix.addr().is_ipv6());
        edited.guard_ranges.retain(|range| range.addr().is_ipv6());
        for prefix in prefixes {
            let prefix = prefix.parse().unwrap();
            edited.destinations.insert((set, prefix), steering);
            edited.guard_ranges.insert(prefix);
        }
        edited
    };
    // Another set of policies, which says the same.
    let other_set = |mut plan: NodePlan| {
        let set = PolicySetId(4711);
        let entries = std::mem::take(&mut plan.destinations);
        plan.destinations = entries
            .into_iter()
            .map(|((_, prefix), steering)| ((set, prefix), steering))
            .collect();
        for id in plan.pods.values_mut() {
            if *id != PolicySetId::EMPTY {
                *id = set;
            }
        }
        plan
    };
    for round in 0..rounds() {
        for next in [
            edited(&["8.0.0.0/8"]),
            edited(&["8.8.8.8/32", "9.9.9.0/24"]),
            other_set(edited(&["8.8.8.8/32"])),
            edited(&["8.8.0.0/16"]),
            side::plan("n1", "n2"),
        ] {
            assert_eq!(network.apply("n1", next).failures, []);
            network.until_translated();
            network.assert_no_leak("policy edited", round);
        }
    }
}

#[test]
fn nothing_leaks_after_a_reboot_before_the_first_plan() {
    let network = Network::new();
    network.apply("n2", plan("n2", "n2"));
    let directory = tempfile::tempdir().unwrap();
    let mut config = network.config("n1");
    config.guard_file = Some(directory.path().join("guard"));
    drop(network.keep("n1", config.clone(), plan("n1", "n2")));
    network.watch_for_leaks();
    for round in 0..rounds() {
        // Nothing of an earlier life is in the kernel.
        network.reboot("n1");
        network.open_with("n1", config.clone(), async |_unplanned| {});
        // From here on it is guarded, and by nothing but the file.
        let sender = network.send_every("10.10.1.2", SERVER, PAUSE);
        eventually(true, || network.undecided() > 100);
        let seen = network.seen_by_tcp("10.10.1.3", OTHER_SERVER);
        assert_eq!(seen.as_deref(), Some("192.168.1.1"));
        let keeper = network.keep("n1", config.clone(), plan("n1", "n2"));
        network.until_translated();
        network.assert_no_leak("reboot", round);
        drop((sender, keeper));
    }
}

#[test]
fn a_service_that_leads_to_a_strict_destination_is_blocked_for_selected_pods_only() {
    let network = Network::new();
    network.apply_all("n2");
    network.watch_for_leaks();
    // As kube-proxy translates a Service whose endpoint is outside, and one with an external IP.
    for command in [
        "add table ip foreign",
        "add chain ip foreign services { type nat hook prerouting priority -100 ; }",
        "add rule ip foreign services ip daddr 10.96.0.10 dnat to 8.8.8.8",
        "add rule ip foreign services ip daddr 8.8.8.9 dnat to 10.10.2.3",
    ] {
        network.exec("n1", &format!("nft {command}"));
    }
    network.serve("10.10.2.3", "10.10.2.3");
    let mut with_services = plan("n1", "n2");
    with_services
        .internal_ranges
        .insert("10.96.0.0/12".parse().unwrap());
    assert_eq!(network.apply("n1", with_services).failures, []);
    for round in 0..rounds() {
        assert_eq!(network.seen_by_tcp("10.10.1.2", "10.96.0.10"), None);
        assert_eq!(network.seen_by_udp("10.10.1.2", "10.96.0.10"), None);
        network.assert_no_leak("a Service", round);
    }
    let redirected = network.counted("n1", "egressnat", "redirected");
    assert!(redirected >= 2 * rounds() as u64, "{redirected}");
    // A pod that nothing selects uses the Service, and nobody's address leaks.
    let seen = network.seen_by_tcp("10.10.1.3", "10.96.0.10");
    assert_eq!(seen.as_deref(), Some("192.168.1.1"));
    // What a Service leads into the cluster is no egress, whatever the packet was first steered by (E12).
    let seen = network.seen_by_tcp("10.10.1.2", "8.8.8.9");
    assert_eq!(seen.as_deref(), Some("10.10.1.2"));
}

#[test]
fn a_pod_that_sends_from_its_first_instruction_does_not_leak_in_many_rounds() {
    let mut network = Network::held_by("n2");
    network.watch_both();
    let pod = "10.10.1.4";
    let own = SIDES
        .each_ref()
        .map(|side| side.pod(pod).parse::<IpAddr>().unwrap());
    let set = side::plan("n1", "n2").pods[&IpAddr::from([10, 10, 1, 2])];
    network.add_namespace(pod);
    for round in 0..rounds() {
        let senders = send_both(&network, pod);
        let undecided = |side: &Side| {
            network.counted_in("n1", &format!("{} egressnat", side.family()), "undecided")
        };
        let before = SIDES.each_ref().map(undecided);
        network.connect_pod(pod);
        network.connect_pod6(pod);
        for (side, before) in SIDES.iter().zip(before) {
            eventually(true, || undecided(side) > before);
        }
        let unselected = side::plan("n1", "n2");
        let mut wanted = unselected.clone();
        wanted.pods.extend(own.map(|address| (address, set)));
        assert_eq!(network.apply("n1", wanted).failures, []);
        network.until_translated();
        network.assert_no_leak("first instruction", round);
        drop(senders);
        network.ip("n1", "link del veth4");
        network.apply("n1", unselected);
    }
}

#[test]
fn strict_reverse_path_filters_on_all_interfaces_do_no_harm_and_what_does_is_told() {
    let network = Network::new();
    for name in ["all", "default", "eth0", "veth2", "veth3"] {
        for node in ["n1", "n2"] {
            network.sysctl(node, &format!("net.ipv4.conf.{name}.rp_filter=1"));
        }
    }
    for holder in ["n2", "n1"] {
        network.apply_all(holder);
        for pod in ["10.10.1.2", "10.10.2.2"] {
            let seen = network.seen_by_tcp(pod, SERVER);
            assert_eq!(seen.as_deref(), Some(FLOATING), "{pod}, held by {holder}");
        }
    }
    for (setting, object) in [
        (
            "net.ipv4.conf.all.src_valid_mark=1",
            "sysctl net.ipv4.conf.veth2.src_valid_mark",
        ),
        (
            "net.netfilter.nf_conntrack_tcp_loose=0",
            "sysctl net.netfilter.nf_conntrack_tcp_loose",
        ),
        ("net.ipv4.ip_forward=0", "sysctl net.ipv4.ip_forward"),
    ] {
        network.sysctl("n1", setting);
        let report = network.apply("n1", plan("n1", "n1"));
        let told = |failure: &egressnat_core::Failure| {
            failure.object == object && failure.message.contains("sysctl -w")
        };
        assert!(report.failures.iter().any(told), "{setting}: {report:?}");
    }
}
