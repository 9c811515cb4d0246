//! Cleanup leaves a node as if we had never been there (E46).

use std::fs;
use std::time::{Duration, Instant};

use egressnat_core::Report;
use egressnat_dataplane::{Attachment, cleanup};

use crate::foreign::{OBJECTS, masquerades_at};
use crate::ipv6;
use crate::network::{FLOATING, Network, SERVER, eventually, plan, runtime};
use crate::traffic::{address, ask};

/// Where the server answers with what it saw.
const PORT: u16 = 5000;

impl Network {
    /// Everything that a packet path changes on a node.
    fn whole_state(&self, node: &str) -> Vec<String> {
        let changes_by_itself = ["nf_conntrack_count", "random", "file-nr", "inode", "dentry"];
        let settings = self.told(node, "sysctl -a 2>/dev/null | grep '^net'");
        let settings = settings
            .lines()
            .filter(|line| !changes_by_itself.iter().any(|one| line.contains(one)));
        let mut state: Vec<String> = settings.map(str::to_owned).collect();
        for command in OBJECTS {
            state.extend(self.exec(node, command).lines().map(str::to_owned));
        }
        state
    }

    fn has_pins(&self, node: &str) -> bool {
        self.pins(node).exists()
    }
}

/// What there is in one of two states only.
fn difference<'a>(one: &'a [String], other: &'a [String]) -> Vec<&'a String> {
    let only = |of: &'a [String], not: &'a [String]| {
        let lines = of.iter().filter(|line| !not.contains(line));
        lines.collect::<Vec<_>>()
    };
    [only(one, other), only(other, one)].concat()
}

fn assert_clean(report: &Report) {
    assert_eq!(report.failures, []);
    assert!(report.changes >= 4, "{}", report.changes);
}

#[test]
fn cleanup_leaves_a_node_as_it_was_whatever_was_under_way_and_does_so_twice_e46() {
    for attachment in [Attachment::Tcx, Attachment::Clsact] {
        let mut network = Network::dual_stack();
        network.attachment = attachment;
        // Waits for what the kernel does by itself, such as link-local addresses.
        eventually(false, || {
            network.ip("n1", "addr show").contains("tentative")
        });
        // Connection tracking has settings of its own once something tracks.
        network.exec("n1", "nft add table ip other");
        network.shell(
            "n1",
            "nft 'add chain ip other c { type filter hook prerouting priority 0 ; } ; add rule ip other c ct state new'",
        );
        let before = network.whole_state("n1");
        network.apply_both("n2");
        let mut connection = network.connect("10.10.1.2", ipv6::SERVER6).unwrap();
        assert_eq!(connection.ask().as_deref(), Some(ipv6::FLOATING6));
        network.open("n1", async |dataplane| {
            let soon = Instant::now() + Duration::from_secs(60);
            let address = FLOATING.parse().unwrap();
            dataplane.deadlines().hold_until(&[address], soon).unwrap();
        });
        // An edit whose answers are waited for, and a move whose settings are not put back yet.
        network.apply("n2", ipv6::plan("n2", "n1"));
        let mut edited = ipv6::plan("n1", "n1");
        edited.destinations.clear();
        edited.deciders.clear();
        assert_eq!(network.apply("n1", edited).failures, []);
        let tables = network.exec("n1", "nft list ruleset");
        for there in ["table arp egressnat", "chain answers"] {
            assert!(tables.contains(there), "{there}: {tables}");
        }
        let mid_move = network.exec("n1", "sysctl -n net.ipv4.neigh.eth0.unres_qlen_bytes");
        assert!(mid_move.trim().ends_with("727"), "{mid_move}");
        // As of another version.
        fs::create_dir(network.pins("n1").join("v0")).unwrap();
        assert_clean(&network.clean("n1"));
        let after = network.whole_state("n1");
        assert_eq!(difference(&before, &after), [""; 0], "{attachment:?}");
        assert!(!network.has_pins("n1"));
        let again = network.clean("n1");
        assert_eq!((again.changes, again.failures), (0, vec![]));
    }
}

#[test]
fn what_an_older_version_has_pinned_stops_to_steer_e46() {
    let network = Network::new();
    network.apply_all("n2");
    let pins = network.pins("n1");
    fs::rename(pins.join("v1"), pins.join("v0")).unwrap();
    let seen = network.seen_by_tcp("10.10.1.2", SERVER);
    assert_eq!(seen.as_deref(), Some(FLOATING), "it steers");
    assert_clean(&network.clean("n1"));
    assert!(!network.has_pins("n1"));
    network.load("n1", &masquerades_at(100));
    eventually(Some("192.168.1.1".to_owned()), || {
        network.seen_by_udp("10.10.1.2", SERVER)
    });
}

#[test]
fn filters_whose_pins_somebody_deleted_go_all_the_same_e46() {
    let mut network = Network::new();
    network.attachment = Attachment::Clsact;
    let traces = || {
        let qdiscs = network.exec("n1", "tc qdisc show");
        let filters = ["veth2", "veth3"]
            .map(|name| network.exec("n1", &format!("tc filter show dev {name} ingress")));
        (qdiscs.contains("clsact"), filters.concat())
    };
    // While an agent runs, which notes its own again.
    network.apply_all("n2");
    let pins = network.pins("n1");
    network.open("n1", async move |mut dataplane| {
        let plan = plan("n1", "n2");
        assert_eq!(dataplane.apply(&plan).await.failures, []);
        fs::remove_dir_all(&pins).unwrap();
        assert_eq!(dataplane.apply(&plan).await.failures, []);
    });
    assert_clean(&network.clean("n1"));
    assert_eq!(traces(), (false, String::new()));

    // Without one, which of the queueing disciplines are ours is known by the filters, also by those of a run that found no pins. What
    // somebody else made stays.
    network.exec("n1", "tc qdisc add dev veth3 clsact");
    let before = network.exec("n1", "tc qdisc show");
    for _ in 0..2 {
        network.apply("n1", plan("n1", "n2"));
        fs::remove_dir_all(network.pins("n1")).unwrap();
        assert!(traces().1.contains("egressnat_steer"));
    }
    assert_eq!(network.clean("n1").failures, []);
    assert_eq!(network.exec("n1", "tc qdisc show"), before);
    assert_eq!(traces(), (true, String::new()));
}

#[test]
fn a_tunnel_device_that_somebody_renamed_goes_all_the_same_and_no_other_e46() {
    let network = Network::new();
    let tunnels = || {
        let links = network.ip("n1", "-o -d link show type vxlan");
        links.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    network.apply("n1", plan("n1", "n2"));
    network.ip("n1", "link set egressnat0 down");
    network.ip("n1", "link set egressnat0 name stolen0");
    assert!(tunnels()[0].contains("stolen0"), "{:?}", tunnels());
    assert_clean(&network.clean("n1"));
    assert_eq!(tunnels(), [""; 0]);

    // Of the same kind, at the same port.
    let port = network.config("n1").tunnel_port;
    let foreign = format!("link add other0 type vxlan external dstport {port}");
    network.ip("n1", &foreign);
    assert_eq!(network.clean("n1").failures, []);
    assert!(tunnels()[0].contains("other0"), "{:?}", tunnels());
}

#[test]
fn running_connections_are_bound_as_others_bind_them_after_a_cleanup_e46() {
    let network = Network::new();
    network.mirror(SERVER, PORT);
    for node in ["n1", "n2"] {
        network.load(node, &masquerades_at(100));
    }
    network.apply_all("n2");
    let pods = ["10.10.1.2", "10.10.2.2"];
    let sockets = pods.map(|pod| network.udp(pod, 0, address(SERVER, PORT)));
    let mut inside = {
        network.serve("10.10.2.3", "10.10.2.3");
        network.connect("10.10.1.2", "10.10.2.3").unwrap()
    };
    let from_inside = inside.ask();
    let seen = || {
        let seen = sockets.each_ref().map(|socket| ask(socket, 100));
        seen.map(|address| address.ip().to_string())
    };
    assert_eq!(seen(), [FLOATING, FLOATING]);
    for node in ["n1", "n2"] {
        assert_clean(&network.clean(node));
    }
    assert_eq!(seen(), ["192.168.1.1", "192.168.1.2"]);
    assert_eq!(inside.ask(), from_inside, "it goes on");
}

#[test]
fn nothing_leaks_from_a_gateway_node_that_is_cleaned_up_under_traffic_e43() {
    let network = Network::new();
    network.apply_all("n2");
    network.watch_for_leaks();
    let _sender = network.send_every("10.10.1.2", SERVER, Duration::from_micros(500));
    network.count("out", "arrived", &format!("ip saddr {FLOATING}"));
    eventually(true, || network.counted("out", "watch", "arrived") > 100);
    assert_clean(&network.clean("n2"));
    assert_eq!(network.leaked(), 0);
    // And it comes back, with what was on its way meanwhile.
    network.apply("n2", plan("n2", "n2"));
    let before = network.counted("out", "watch", "arrived");
    eventually(true, || {
        network.counted("out", "watch", "arrived") > before + 100
    });
    assert_eq!(network.leaked(), 0);
}

#[test]
fn the_guard_file_goes_too_where_it_is_named_e46() {
    let network = Network::new();
    let directory = tempfile::tempdir().unwrap();
    let mut config = network.config("n1");
    config.guard_file = Some(directory.path().join("guard"));
    let own = config.clone();
    network.open_with("n1", config, async |mut dataplane| {
        assert_eq!(dataplane.apply(&plan("n1", "n2")).await.failures, []);
    });
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    let report = network.enter("n1", move || runtime().block_on(cleanup(&own)));
    assert_clean(&report);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}
