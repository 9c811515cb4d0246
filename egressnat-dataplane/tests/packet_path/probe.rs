//! Who else has a floating IP: asked before it is taken, listened for while it is held.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use egressnat_core::{NodePlan, Report};
use egressnat_dataplane::Dataplane;

use crate::network::{FLOATING, Network, SERVER, plan};

/// Applies until nothing fails, whenever the packet path asks for it.
async fn apply_until_complete(dataplane: &mut Dataplane, node: &str) -> Report {
    let start = Instant::now();
    loop {
        let report = dataplane.apply(&plan(node, node)).await;
        if report.failures.is_empty() {
            return report;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{report:?}");
        let change = tokio::time::timeout(Duration::from_secs(10), dataplane.changed());
        change.await.expect("it is tried again");
    }
}

impl Network {
    pub(crate) fn mac(&self, name: &str) -> String {
        let mac = self.exec(name, "cat /sys/class/net/eth0/address");
        mac.trim().to_owned()
    }

    /// Has both nodes take an address at the same moment, and says which of them holds it in the end: one.
    pub(crate) fn ask_at_the_same_moment(&self, holding: fn(&str) -> NodePlan) -> [bool; 2] {
        let start = Arc::new(Barrier::new(2));
        let is_over = Arc::new(AtomicBool::new(false));
        let ask = |node: &'static str| {
            let (start, is_over) = (Arc::clone(&start), Arc::clone(&is_over));
            self.open(node, async move |mut dataplane| {
                let mut waiting = holding(node);
                waiting.floating_ips.clear();
                assert!(dataplane.apply(&waiting).await.is_complete());
                start.wait();
                let first = dataplane.apply(&holding(node)).await;
                let mut last = first.clone();
                while last.floating_ips.is_empty() && !is_over.load(Ordering::SeqCst) {
                    // The other node may be done meanwhile.
                    let wait = Duration::from_millis(100);
                    let change = tokio::time::timeout(wait, dataplane.changed());
                    if change.await.is_ok() {
                        last = dataplane.apply(&holding(node)).await;
                    }
                }
                let is_holder = !last.floating_ips.is_empty();
                is_over.fetch_or(is_holder, Ordering::SeqCst);
                (first, is_holder)
            })
        };
        let [one, other] = thread::scope(|scope| {
            let threads = ["n1", "n2"].map(|node| scope.spawn(move || ask(node)));
            threads.map(|thread| thread.join().unwrap())
        });
        // Most of the time both find each other. On a busy machine one of them may be late, and finds that the other has it.
        let contests = [(&one, "n2"), (&other, "n1")].map(|((first, _), other)| {
            let told = first.failures.first().map(|failure| &failure.message);
            assert!(
                told.is_none_or(|told| told.contains(&self.mac(other))),
                "{first:?}"
            );
            told.is_some()
        });
        assert!(contests.contains(&true), "{one:?} {other:?}");
        assert_ne!(one.1, other.1, "{one:?} {other:?}");
        [one.1, other.1]
    }

    fn has_address(&self, name: &str) -> bool {
        self.ip(name, "addr show dev eth0").contains(FLOATING)
    }
}

#[test]
fn an_address_that_another_host_has_is_not_taken_until_that_lets_go() {
    let network = Network::new();
    network.ip("out", &format!("addr add {FLOATING}/32 dev eth0"));
    let report = network.apply("n1", plan("n1", "n1"));
    let [failure] = report.failures.as_slice() else {
        panic!("{report:?}");
    };
    assert_eq!(failure.object, format!("floating IP {FLOATING}"));
    assert!(failure.message.contains(&network.mac("out")), "{failure:?}");
    assert!(!network.has_address("n1"));
    assert_eq!(*report.floating_ips, [].into());

    let let_go = network.outside("out", |run| {
        run(&format!("ip addr del {FLOATING}/32 dev eth0"))
    });
    let report = network.open("n1", async move |mut dataplane| {
        assert!(!dataplane.apply(&plan("n1", "n1")).await.is_complete());
        thread::spawn(let_go).join().unwrap();
        apply_until_complete(&mut dataplane, "n1").await
    });
    assert_eq!(*report.floating_ips, [FLOATING.parse().unwrap()].into());
    assert!(network.has_address("n1"));
    assert_eq!(
        network.seen_by_tcp("10.10.1.2", SERVER),
        Some(FLOATING.to_owned())
    );
}

#[test]
fn an_address_that_its_old_holder_still_has_is_waited_for_e33() {
    let network = Network::new();
    network.apply_all("n1");
    // Never given up: not taken, and told.
    let report = network.apply("n2", plan("n2", "n2"));
    assert!(
        report.failures[0].message.contains(&network.mac("n1")),
        "{report:?}"
    );
    assert!(!network.has_address("n2"));

    // Given up while the new holder asks.
    let is_given_up = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&is_given_up);
    let give_up = network.outside("n1", move |run| {
        thread::sleep(Duration::from_millis(150));
        flag.store(true, Ordering::SeqCst);
        run(&format!("ip addr del {FLOATING}/32 dev eth0"));
    });
    let (report, was_given_up) = network.open("n2", async move |mut dataplane| {
        let thread = thread::spawn(give_up);
        let report = apply_until_complete(&mut dataplane, "n2").await;
        let was_given_up = is_given_up.load(Ordering::SeqCst);
        thread.join().unwrap();
        (report, was_given_up)
    });
    assert!(was_given_up, "two nodes had it");
    assert_eq!(*report.floating_ips, [FLOATING.parse().unwrap()].into());
}

#[test]
fn who_claims_an_address_that_is_held_is_told_and_the_address_is_kept() {
    let network = Network::new();
    let mac = network.mac("out");
    let claim = network.outside("out", |run| {
        run(&format!("ip addr add {FLOATING}/32 dev eth0"));
        // Whoever it talks to hears the address from it.
        run("ip neigh flush dev eth0");
        run(&format!("ping -c1 -W1 -I {FLOATING} 192.168.1.2"));
    });
    let report = network.open("n1", async move |mut dataplane| {
        assert!(dataplane.apply(&plan("n1", "n1")).await.is_complete());
        let thread = thread::spawn(claim);
        let start = Instant::now();
        let report = loop {
            let change = tokio::time::timeout(Duration::from_secs(10), dataplane.changed());
            change.await.expect("a claim is told at once");
            let report = dataplane.apply(&plan("n1", "n1")).await;
            if !report.is_complete() {
                break report;
            }
            assert!(start.elapsed() < Duration::from_secs(10));
        };
        thread.join().unwrap();
        report
    });
    let [failure] = report.failures.as_slice() else {
        panic!("{report:?}");
    };
    assert_eq!(failure.object, format!("floating IP {FLOATING}"));
    assert!(failure.message.contains(&mac), "{failure:?}");
    assert_eq!(*report.floating_ips, [FLOATING.parse().unwrap()].into());
    assert!(network.has_address("n1"));
}

#[test]
fn of_two_nodes_that_ask_for_an_address_at_the_same_moment_one_gets_it_e33() {
    let network = Network::new();
    let holders = network.ask_at_the_same_moment(|node| plan(node, node));
    assert_eq!(["n1", "n2"].map(|node| network.has_address(node)), holders);
}

#[test]
fn who_asks_nobody_takes_an_address_whoever_was_heard_to_have_it() {
    let network = Network::new();
    let claim = network.outside("out", |run| {
        run(&format!("ip addr add {FLOATING}/32 dev eth0"));
        run("ip neigh flush dev eth0");
        run(&format!("ping -c1 -W1 -I {FLOATING} 192.168.1.1"));
    });
    let mut config = network.config("n1");
    config.probes.count = 0;
    let report = network.open_with("n1", config, async move |mut dataplane| {
        let mut waiting = plan("n1", "n1");
        waiting.floating_ips.clear();
        assert!(dataplane.apply(&waiting).await.is_complete());
        thread::spawn(claim).join().unwrap();
        dataplane.apply(&plan("n1", "n1")).await
    });
    assert_eq!(*report.floating_ips, [FLOATING.parse().unwrap()].into());
}

#[test]
fn asking_takes_no_longer_than_it_is_configured_to() {
    let network = Network::new();
    let elapsed = network.open("n1", async |mut dataplane| {
        let mut without = plan("n1", "n1");
        without.floating_ips.clear();
        assert!(dataplane.apply(&without).await.is_complete());
        let start = Instant::now();
        assert!(dataplane.apply(&plan("n1", "n1")).await.is_complete());
        start.elapsed()
    });
    eprintln!("an address that nobody has is taken in {elapsed:?}");
    // Three pauses of 20 ms at least. Not those of RFC 5227, which are seconds: the rest is for a busy machine.
    assert!(elapsed > Duration::from_millis(60), "{elapsed:?}");
    assert!(elapsed < Duration::from_secs(4), "{elapsed:?}");
}
