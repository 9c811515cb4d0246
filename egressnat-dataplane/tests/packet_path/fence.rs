//! E33: a floating IP is used until its deadline and no longer, whatever becomes of the agent.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use egressnat_dataplane::cleanup;

use crate::network::{FLOATING, Network, SERVER, eventually, plan, runtime};

const PODS: [&str; 2] = ["10.10.1.2", "10.10.2.2"];

fn seen() -> Option<String> {
    Some(FLOATING.to_owned())
}

impl Network {
    /// On `n2`, which holds the floating IP: moves its deadline, and lets go of the packet path again.
    fn hold_for(&self, time: Duration) -> Instant {
        let deadline = Instant::now() + time;
        self.open("n2", async move |dataplane| {
            dataplane
                .deadlines()
                .hold_until(&[FLOATING.parse().unwrap()], deadline)
                .unwrap();
        });
        deadline
    }

    /// Whether somebody answers ARP for the floating IP.
    fn is_told(&self) -> bool {
        self.ip("out", "neigh flush dev eth0");
        self.is_pinged("out", FLOATING);
        self.ip("out", &format!("neigh show {FLOATING}"))
            .contains("lladdr")
    }
}

#[test]
fn at_its_deadline_a_floating_ip_falls_silent_without_an_agent() {
    let network = Network::new();
    network.apply_all("n2");
    network.count("out", "from", &format!("ip saddr {FLOATING}"));
    assert!(network.is_told());
    network.hold_for(Duration::from_secs(60));
    assert!(network.is_told());
    for pod in PODS {
        assert_eq!(network.seen_by_udp(pod, SERVER), seen());
    }
    // Flows that run, one through the tunnel and one of the holder's own pod, are asked for all the time.
    let senders = PODS.map(|pod| network.send(pod, SERVER));
    let counted = || network.counted("out", "watch", "from");
    let start = counted();
    let deadline = network.hold_for(Duration::from_secs(4));
    let mut before = start;
    let mut since = Instant::now();
    // Reading a counter takes a while, so that a packet is late for sure only if the counter was read after the deadline before it
    // came. Silent is who says nothing for 300 ms from there on.
    let silent_from = loop {
        let (asked, now) = (Instant::now(), counted());
        if asked >= deadline {
            break now;
        }
        if now != before {
            (since, before) = (asked, now);
        }
    };
    let patience = Instant::now() + Duration::from_millis(300);
    while Instant::now() < patience {
        assert_eq!(counted(), silent_from, "packets after the deadline");
    }
    assert!(silent_from > start);
    eprintln!(
        "heard last {:?} before the deadline",
        deadline.saturating_duration_since(since)
    );
    drop(senders);
    for pod in PODS {
        assert_eq!(network.seen_by_udp(pod, SERVER), None, "{pod}");
        assert_eq!(network.seen_by_tcp(pod, SERVER), None, "{pod}");
    }
    assert!(!network.is_told());
    assert_eq!(counted(), silent_from);

    // The agent is back, and knows that it is not in use.
    let report = network.apply("n2", plan("n2", "n2"));
    assert_eq!((report.changes, report.floating_ips.len()), (0, 0));
    network.hold_for(Duration::from_secs(60));
    eventually(seen(), || network.seen_by_udp(PODS[0], SERVER));
    let report = network.apply("n2", plan("n2", "n2"));
    assert_eq!(report.floating_ips.len(), 1);
}

/// Moves the deadline of the floating IP, to so long from each moment, again and again for longer than any one lasts. Returns the longest
/// time from when one renewal began until the next was there: what a deadline had to last for.
fn renew_again_and_again(network: &Network, time: Duration) -> Duration {
    network.open("n2", async move |dataplane| {
        let address = FLOATING.parse().unwrap();
        let (start, mut renewals) = (Instant::now(), Vec::new());
        while start.elapsed() < time + Duration::from_secs(1) {
            let before = Instant::now();
            dataplane
                .deadlines()
                .hold_until(&[address], before + time)
                .unwrap();
            renewals.push((before, Instant::now()));
        }
        // Until all is counted.
        let later = Instant::now() + Duration::from_secs(60);
        dataplane.deadlines().hold_until(&[address], later).unwrap();
        let between = renewals.windows(2).map(|pair| pair[1].1 - pair[0].0);
        let longest = between.max().unwrap_or(start.elapsed());
        eprintln!("{} renewals, {longest:?} at most", renewals.len());
        longest
    })
}

#[test]
fn renewals_lose_no_packet() {
    const TIME: Duration = Duration::from_secs(5);
    let network = Network::new();
    network.apply_all("n2");
    network.count("out", "from", &format!("ip saddr {FLOATING}"));
    let _senders = PODS.map(|pod| network.send(pod, SERVER));
    let late = || network.counted("n2", "egressnat", "expired");
    // A deadline is earlier by up to twice what writing it took. On a machine so slow that it came, it did what it is for.
    let (mut before, mut rounds) = (late(), 0);
    loop {
        let longest = renew_again_and_again(&network, TIME);
        let lost = late() - before;
        if longest < TIME / 3 {
            assert_eq!(lost, 0, "lost by renewals that took {longest:?} at most");
            break;
        }
        eprintln!("{lost} packets lost by renewals that took {longest:?}");
        (before, rounds) = (late(), rounds + 1);
        assert!(rounds < 5, "{longest:?}: too slow to tell anything");
    }
    assert!(network.counted("out", "watch", "from") > 100);
}

#[test]
fn the_deadlines_of_many_floating_ips_move_together() {
    let network = Network::new();
    network.apply_all("n2");
    let addresses: Vec<IpAddr> = (0..2500u16)
        .map(|host| IpAddr::from([172, 16, (host >> 8) as u8, host as u8]))
        .chain([FLOATING.parse().unwrap()])
        .collect();
    let all = addresses.clone();
    network.open("n2", async move |dataplane| {
        for seconds in [60, 120] {
            let deadline = Instant::now() + Duration::from_secs(seconds);
            dataplane.deadlines().hold_until(&all, deadline).unwrap();
            let read = dataplane.deadlines().read().unwrap();
            assert!(read.keys().eq(BTreeSet::from_iter(&all)));
            let earliest = deadline - Duration::from_secs(30);
            assert!(
                read.values()
                    .all(|until| (earliest..deadline).contains(until))
            );
        }
    });
    assert_eq!(network.seen_by_udp(PODS[0], SERVER), seen());
    let (silent, held) = (addresses[..2000].to_vec(), addresses[2000..].len());
    network.open("n2", async move |dataplane| {
        dataplane
            .deadlines()
            .hold_until(&silent, Instant::now())
            .unwrap();
        assert_eq!(dataplane.deadlines().read().unwrap().len(), held);
    });
    assert_eq!(network.seen_by_udp(PODS[0], SERVER), seen());
}

#[test]
fn a_table_for_arp_that_takes_the_place_of_another_has_its_deadlines() {
    let network = Network::new();
    network.apply_all("n2");
    network.hold_for(Duration::from_secs(60));
    let held = || network.exec("n2", "nft list set arp egressnat held");
    assert!(held().contains(FLOATING), "{}", held());
    network.exec("n2", "nft delete table arp egressnat");
    network.apply("n2", plan("n2", "n2"));
    assert!(
        held().contains(&format!("{FLOATING} timeout")),
        "{}",
        held()
    );
    // Whoever asks for it now is answered.
    network.ip("out", "neigh flush dev eth0");
    assert_eq!(network.seen_by_udp(PODS[0], SERVER), seen());
}

#[test]
fn the_fence_goes_with_the_floating_ip_and_with_cleanup() {
    let network = Network::new();
    network.apply_all("n2");
    network.hold_for(Duration::ZERO);
    assert_eq!(network.seen_by_udp(PODS[0], SERVER), None);
    network.apply_all("n1");
    for set in [
        "ip egressnat fenced",
        "arp egressnat fenced",
        "arp egressnat held",
    ] {
        let listed = network.exec("n2", &format!("nft list set {set}"));
        assert!(!listed.contains(FLOATING), "{listed}");
    }
    assert_eq!(network.seen_by_udp(PODS[1], SERVER), seen());
    let config = network.config("n2");
    let report = network.enter("n2", move || runtime().block_on(cleanup(&config)));
    assert_eq!(report.failures, []);
    assert_eq!(network.exec("n2", "nft list tables"), "");
}
