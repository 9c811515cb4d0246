//! Programs as filters of `clsact`: what holds with TCX holds with them.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use egressnat_dataplane::Attachment;

use crate::network::{FLOATING, Network, OTHER_SERVER, SERVER, eventually, plan};
use crate::side::{self, SIDES};
use crate::traffic::PODS;

const NODE: &str = "192.168.1.1";

fn seen(address: &str) -> Option<String> {
    Some(address.to_owned())
}

impl Network {
    fn with_clsact() -> Self {
        let mut network = Network::new();
        network.attachment = Attachment::Clsact;
        network
    }

    fn filters(&self, interface: &str) -> String {
        self.exec("n1", &format!("tc filter show dev {interface} ingress"))
    }
}

#[test]
fn with_clsact_pods_leave_with_the_same_addresses_as_with_tcx() {
    let mut network = Network::dual_stack();
    network.attachment = Attachment::Clsact;
    for holder in ["n2", "n1"] {
        network.apply_sides(holder);
        for side in &SIDES {
            let floating = seen(side.floating);
            for pod in PODS {
                assert_eq!(network.seen_by_tcp(pod, side.server), floating, "{pod}");
                assert_eq!(network.seen_by_udp(pod, side.server), floating, "{pod}");
                assert!(network.is_pinged(pod, side.server), "{pod}");
            }
            let other = network.seen_by_tcp("10.10.1.3", side.server);
            assert_eq!(other, seen(side.nodes[0]));
        }
        assert_eq!(network.seen_by_tcp("10.10.1.2", OTHER_SERVER), seen(NODE));
        let again = network.apply("n1", side::plan("n1", holder));
        assert_eq!((again.changes, again.failures), (0, vec![]), "E45");
    }
    assert!(network.filters("veth2").contains("egressnat_steer"));
}

#[test]
fn a_restart_loses_no_packet_e45() {
    const RESTARTS: u32 = 5;
    let network = Network::with_clsact();
    network.apply_all("n2");
    // Neighbor entries are there, and both ends of the tunnel.
    assert_eq!(network.seen_by_udp("10.10.1.2", SERVER), seen(FLOATING));
    network.count(
        "out",
        "translated",
        &format!("ip daddr {SERVER} ip saddr {FLOATING} udp dport 5000"),
    );
    let sent = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&sent);
    let socket = network.enter("10.10.1.2", || UdpSocket::bind("0.0.0.0:0").unwrap());
    let is_over = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&is_over);
    let sender = std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            socket.send_to(b"?", (SERVER, 5000)).unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_micros(300));
        }
    });
    for _ in 0..RESTARTS {
        let before = sent.load(Ordering::Relaxed);
        for node in ["n1", "n2"] {
            assert_eq!(network.apply(node, plan(node, "n2")).failures, []);
        }
        let traffic = sent.load(Ordering::Relaxed) - before;
        assert!(traffic > 0, "packets were on their way");
    }
    is_over.store(true, Ordering::Relaxed);
    sender.join().unwrap();
    eventually(u64::from(sent.load(Ordering::Relaxed)), || {
        network.counted("out", "watch", "translated")
    });
    assert_eq!(network.undecided_by_guard(), 0);
}

#[test]
fn changing_how_programs_are_attached_leaks_nothing_and_leaves_nothing_behind() {
    let mut network = Network::new();
    network.count(
        "out",
        "leaked",
        &format!("ip daddr {SERVER} ip saddr != {FLOATING}"),
    );
    network.apply_all("n2");
    let sender = network.send("10.10.1.2", SERVER);
    let ways = [Attachment::Clsact, Attachment::Tcx];
    for attachment in ways.into_iter().cycle().take(6) {
        network.attachment = attachment;
        network.apply_all("n2");
        let with_filters = attachment == Attachment::Clsact;
        for (interface, side) in [
            ("veth2", "ingress"),
            ("egressnat0", "ingress"),
            ("egressnat0", "egress"),
        ] {
            let filters = network.exec("n1", &format!("tc filter show dev {interface} {side}"));
            assert_eq!(filters.contains("egressnat"), with_filters, "{filters}");
        }
        let qdiscs = network.exec("n1", "tc qdisc show");
        assert_eq!(qdiscs.contains("clsact"), with_filters, "{qdiscs}");
        let links = std::fs::read_dir(network.pins("n1").join("v1")).unwrap();
        // That of the hook behind all interfaces is no filter's.
        let is_link = |name: &std::ffi::OsStr| {
            let name = name.to_string_lossy();
            name.starts_with("link_") && !name.starts_with("link_depart_")
        };
        let links = links.filter(|entry| is_link(&entry.as_ref().unwrap().file_name()));
        assert_eq!(links.count() == 0, with_filters);
    }
    drop(sender);
    assert_eq!(network.seen_by_tcp("10.10.1.2", SERVER), seen(FLOATING));
    assert_eq!(network.counted("out", "watch", "leaked"), 0, "E43");
}

impl Network {
    fn undecided_by_guard(&self) -> u64 {
        self.counted("n1", "egressnat", "undecided")
    }
}

#[test]
fn a_filter_that_somebody_deletes_is_noticed_and_comes_back() {
    let network = Network::with_clsact();
    network.apply_all("n2");
    let delete = network.outside("n1", |run| run("tc filter del dev veth2 ingress"));
    let report = network.open("n1", async move |mut dataplane| {
        let plan = plan("n1", "n2");
        assert_eq!(dataplane.apply(&plan).await.changes, 0);
        let thread = std::thread::spawn(delete);
        loop {
            let change = tokio::time::timeout(Duration::from_secs(10), dataplane.changed());
            change.await.expect("the kernel tells of deleted filters");
            let report = dataplane.apply(&plan).await;
            if report.changes > 0 {
                thread.join().unwrap();
                return report;
            }
        }
    });
    assert_eq!((report.changes, report.failures), (1, vec![]));
    assert_eq!(network.seen_by_tcp("10.10.1.2", SERVER), seen(FLOATING));

    // The whole queueing discipline, while no agent runs: nothing leaks.
    network.exec("n1", "tc qdisc del dev veth2 clsact");
    eventually(None, || network.seen_by_udp("10.10.1.2", SERVER));
    assert!(network.undecided_by_guard() > 0, "E43");
    assert_eq!(network.apply("n1", plan("n1", "n2")).changes, 1);
    assert_eq!(network.seen_by_tcp("10.10.1.2", SERVER), seen(FLOATING));
}

#[test]
fn filters_of_others_come_first_and_stay_with_their_queueing_discipline() {
    let network = Network::with_clsact();
    // One that was there before, one that comes later without asking for a place.
    let drop_to = |prio: &str, address: &str| {
        // The word at 30 is an IPv4 packet's destination: 2 drops, the largest number goes on to the next filter.
        let address = u32::from(address.parse::<std::net::Ipv4Addr>().unwrap());
        let bytecode = format!("4,32 0 0 30,21 0 1 {address},6 0 0 2,6 0 0 4294967295");
        network.shell(
            "n1",
            &format!("tc filter add dev veth2 ingress {prio} bpf da bytecode '{bytecode}'"),
        );
    };
    network.exec("n1", "tc qdisc add dev veth2 clsact");
    drop_to("prio 7", "8.8.8.9");
    network.apply_all("n2");
    drop_to("", "8.8.8.8");
    // Both see packets first, and what they let pass is decided.
    assert_eq!(network.seen_by_udp("10.10.1.2", SERVER), None);
    let report = network.open("n1", async |mut dataplane| {
        let before = dataplane.counters().unwrap().steered();
        let report = dataplane.apply(&plan("n1", "n2")).await;
        assert_eq!(dataplane.counters().unwrap().steered(), before);
        report
    });
    assert_eq!((report.changes, report.failures), (0, vec![]));
    let filters = network.filters("veth2");
    let place = |pref: &str| filters.find(pref).unwrap_or_else(|| panic!("{filters}"));
    assert!(place("134744072") < place("egressnat_steer"), "{filters}");

    assert_eq!(network.clean("n1").failures, []);
    let filters = network.filters("veth2");
    assert!(
        filters.contains("134744073") && filters.contains("134744072"),
        "{filters}"
    );
    assert!(!filters.contains("egressnat"), "{filters}");
    let qdiscs = network.exec("n1", "tc qdisc show");
    assert_eq!(
        qdiscs.matches("clsact").count(),
        1,
        "ours are gone: {qdiscs}"
    );
}

#[test]
fn a_foreign_filter_in_our_place_is_left_alone_and_told() {
    let network = Network::with_clsact();
    network.exec("n1", "tc qdisc add dev veth2 clsact");
    network.shell(
        "n1",
        "tc filter add dev veth2 ingress prio 61190 handle 0x1 bpf da bytecode '1,6 0 0 4294967295'",
    );
    let report = network.apply("n1", plan("n1", "n2"));
    assert_eq!(report.failures.len(), 1, "{report:?}");
    let told = &report.failures[0];
    assert_eq!(told.object, "steering on veth2");
    assert!(told.message.contains("somebody else"), "{}", told.message);
    assert!(network.filters("veth2").contains("bytecode"));
}
