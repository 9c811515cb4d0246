//! Who holds a floating IP is told to the neighbors, and told again to those who missed it.

use std::time::{Duration, Instant};

use crate::ipv6::{self, FLOATING6, SERVER6};
use crate::network::{FLOATING, Network, SERVER, eventually, plan};

/// How often each announcement is sent: at once and within three seconds.
const TIMES: u64 = 5;
const LAST: Duration = Duration::from_secs(3);

impl Network {
    /// Counts announcements that come to `out`: requests and replies of ARP, and advertisements of neighbor discovery.
    fn count_announcements(&self) {
        for command in [
            "add table arp told".to_owned(),
            "add chain arp told in { type filter hook input priority 0 ; }".to_owned(),
            "add counter arp told requests".to_owned(),
            "add counter arp told replies".to_owned(),
            rule("request", "requests"),
            rule("reply", "replies"),
        ] {
            self.exec("out", &format!("nft {command}"));
        }
        let advertised = format!("icmpv6 type nd-neighbor-advert ip6 saddr {FLOATING6}");
        self.count6("advertised", &advertised);
    }

    /// Requests, replies, advertisements.
    fn announced(&self) -> [u64; 3] {
        let arp = ["requests", "replies"].map(|name| self.counted_in("out", "arp told", name));
        [arp[0], arp[1], self.counted6("advertised")]
    }
}

fn rule(operation: &str, counter: &str) -> String {
    let about_itself = format!("arp saddr ip {FLOATING} arp daddr ip {FLOATING}");
    format!("add rule arp told in arp operation {operation} {about_itself} counter name {counter}")
}

/// The addresses of both families that `out` knows by a MAC address.
fn known_by(network: &Network, mac: &str) -> [bool; 2] {
    [FLOATING, FLOATING6].map(|address| {
        let entry = network.ip("out", &format!("neigh show {address}"));
        entry.contains(mac)
    })
}

/// As who missed what was said: `out` believes that the floating IPs are somewhere else. It sends nothing to them, so it does not ask.
fn forget(network: &Network) {
    for floating in [FLOATING, FLOATING6] {
        let old = format!("neigh replace {floating} lladdr 02:00:00:00:00:99 dev eth0 nud stale");
        network.ip("out", &old);
    }
}

#[test]
fn a_floating_ip_is_announced_again_and_again_so_that_who_missed_it_learns_it() {
    let network = Network::dual_stack();
    network.apply("n2", ipv6::plan("n2", "n1"));
    network.count_announcements();
    let _keeper = network.keep("n1", network.config("n1"), ipv6::plan("n1", "n1"));
    assert!(network.announced().iter().all(|count| *count > 0));
    forget(&network);
    let mac = network.mac("n1");
    eventually([true; 2], || known_by(&network, &mac));
    eventually([TIMES; 3], || network.announced());
}

#[test]
fn an_address_that_was_given_away_is_announced_no_more() {
    let network = Network::dual_stack();
    network.apply("n2", ipv6::plan("n2", "n2"));
    network.count_announcements();
    network.open("n1", async |mut dataplane| {
        assert_eq!(dataplane.apply(&plan("n1", "n1")).await.failures, []);
        assert_eq!(dataplane.apply(&plan("n1", "n2")).await.failures, []);
        // Longer than all announcements take.
        tokio::time::sleep(LAST + Duration::from_millis(500)).await;
    });
    let [requests, replies, _] = network.announced();
    assert!(replies > 0 && replies < TIMES, "{replies}");
    // The question by which it is given up looks like one of them.
    assert!(requests <= replies + 1, "{requests} {replies}");
}

#[test]
fn neighbors_are_told_when_the_uplink_has_another_mac_address() {
    const OTHER: &str = "02:00:00:00:00:42";
    let network = Network::dual_stack();
    network.apply("n2", ipv6::plan("n2", "n1"));
    let _keeper = network.keep("n1", network.config("n1"), ipv6::plan("n1", "n1"));
    let seen = || [SERVER, SERVER6].map(|server| network.seen_by_tcp("10.10.1.2", server));
    let floating = [FLOATING, FLOATING6].map(|address| Some(address.to_owned()));
    assert_eq!(seen(), floating);
    network.count_announcements();
    // As a bond does when its port fails.
    network.ip("n1", &format!("link set eth0 address {OTHER}"));
    eventually([true; 2], || known_by(&network, OTHER));
    assert!(network.announced().iter().all(|count| *count > 0));
    assert_eq!(seen(), floating);
}

#[test]
fn who_was_cut_off_for_longer_than_the_first_announcements_learns_it_too() {
    let network = Network::dual_stack();
    network.apply("n2", ipv6::plan("n2", "n1"));
    let mut config = network.config("n1");
    config.announce_every = Duration::from_secs(1);
    let _keeper = network.keep("n1", config, ipv6::plan("n1", "n1"));
    network.count_announcements();
    eventually([true; 3], || network.announced().map(|count| count > TIMES));
    let mac = network.mac("n1");
    for _ in 0..2 {
        forget(&network);
        eventually([true; 2], || known_by(&network, &mac));
    }
}

#[test]
fn an_agent_that_starts_anew_goes_on_announcing_what_it_finds() {
    let network = Network::dual_stack();
    for node in ["n1", "n2"] {
        network.apply(node, ipv6::plan(node, "n1"));
    }
    let mut config = network.config("n1");
    config.announce_every = Duration::from_secs(1);
    network.count_announcements();
    let _keeper = network.keep("n1", config, ipv6::plan("n1", "n1"));
    eventually([true; 3], || network.announced().map(|count| count > TIMES));
}

#[test]
fn neighbors_are_told_at_once_when_the_carrier_is_back() {
    let network = Network::dual_stack();
    network.apply("n2", ipv6::plan("n2", "n1"));
    network.count_announcements();
    let _keeper = network.keep("n1", network.config("n1"), ipv6::plan("n1", "n1"));
    eventually([TIMES; 3], || network.announced());
    forget(&network);
    for state in ["down", "up"] {
        network.ip("lan", &format!("link set pn1 {state}"));
    }
    let mac = network.mac("n1");
    eventually([true; 2], || known_by(&network, &mac));
}

#[test]
fn an_address_whose_deadline_has_come_is_announced_no_more_e33() {
    let network = Network::dual_stack();
    network.apply("n2", ipv6::plan("n2", "n1"));
    let mut config = network.config("n1");
    config.announce_every = Duration::from_millis(200);
    network.count_announcements();
    let (expire, expired) = std::sync::mpsc::channel();
    let counted = std::thread::scope(|scope| {
        scope.spawn(|| {
            network.open_with("n1", config, async move |mut dataplane| {
                let floating = [FLOATING, FLOATING6].map(|ip| ip.parse().unwrap());
                let report = dataplane.apply(&ipv6::plan("n1", "n1")).await;
                assert_eq!(report.failures, []);
                let deadline = Instant::now() + Duration::from_secs(1);
                let deadlines = dataplane.deadlines();
                deadlines.hold_until(&floating, deadline).unwrap();
                tokio::time::sleep_until(deadline.into()).await;
                expire.send(()).unwrap();
                // Some of the first announcements are to come, and many of the later ones. Nobody applies a plan meanwhile.
                tokio::time::sleep(LAST + Duration::from_secs(1)).await;
            });
        });
        expired.recv().unwrap();
        network.announced()
    });
    assert!(counted.iter().all(|count| *count > 0), "{counted:?}");
    assert_eq!(network.announced(), counted);
}

#[test]
fn an_uplink_that_is_made_anew_has_its_floating_ips_again() {
    let network = Network::new();
    network.apply("n2", plan("n2", "n1"));
    let lan = network.namespace("lan");
    let make_anew = network.outside("n1", move |run| {
        run("ip link del eth0");
        run(&format!(
            "ip link add eth0 type veth peer name pn1 netns {lan}"
        ));
        run(&format!("ip -n {lan} link set pn1 master br0 up"));
        run("ip link set eth0 up");
        run("ip addr add 192.168.1.1/24 dev eth0");
        run("ip route add default via 192.168.1.254");
        run("ip route add 10.10.2.0/24 via 192.168.1.2");
    });
    let (segment, report) = network.open("n1", async move |mut dataplane| {
        let plan = plan("n1", "n1");
        assert_eq!(dataplane.apply(&plan).await.failures, []);
        let before = dataplane.uplink().index;
        let segment = dataplane.segment();
        let thread = std::thread::spawn(make_anew);
        let start = Instant::now();
        let report = loop {
            let change = tokio::time::timeout(Duration::from_secs(10), dataplane.changed());
            change.await.expect("links are told of");
            let report = dataplane.apply(&plan).await;
            if thread.is_finished() && report.failures.is_empty() {
                break report;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "{report:?}");
        };
        thread.join().unwrap();
        assert_ne!(dataplane.uplink().index, before);
        // What was handed out before asks by the new one.
        let other = "192.168.1.2".parse().unwrap();
        (segment.answers(other, Duration::from_secs(5)).await, report)
    });
    assert!(segment);
    assert_eq!(*report.floating_ips, [FLOATING.parse().unwrap()].into());
    for pod in ["10.10.1.2", "10.10.2.2"] {
        let seen = network.seen_by_tcp(pod, SERVER);
        assert_eq!(seen.as_deref(), Some(FLOATING), "{pod}");
    }
}
