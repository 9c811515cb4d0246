//! Who else has a floating IP: asked before it is taken, listened for while it is held.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use egressnat_core::Report;
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
    fn mac(&self, name: &str) -> String {
        let mac = self.exec(name, "cat /sys/class/net/eth0/address");
        mac.trim().to_owned()
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
    assert_eq!(report.floating_ips, [].into());

    let let_go = network.outside("out", |run| {
        run(&format!("ip addr del {FLOATING}/32 dev eth0"))
    });
    let report = network.open("n1", async move |mut dataplane| {
        assert!(!dataplane.apply(&plan("n1", "n1")).await.is_complete());
        std::thread::spawn(let_go).join().unwrap();
        apply_until_complete(&mut dataplane, "n1").await
    });
    assert_eq!(report.floating_ips, [FLOATING.parse().unwrap()].into());
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
        std::thread::sleep(Duration::from_millis(150));
        flag.store(true, Ordering::SeqCst);
        run(&format!("ip addr del {FLOATING}/32 dev eth0"));
    });
    let (report, was_given_up) = network.open("n2", async move |mut dataplane| {
        let thread = std::thread::spawn(give_up);
        let report = apply_until_complete(&mut dataplane, "n2").await;
        let was_given_up = is_given_up.load(Ordering::SeqCst);
        thread.join().unwrap();
        (report, was_given_up)
    });
    assert!(was_given_up, "two nodes had it");
    assert_eq!(report.floating_ips, [FLOATING.parse().unwrap()].into());
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
        let thread = std::thread::spawn(claim);
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
    assert_eq!(report.floating_ips, [FLOATING.parse().unwrap()].into());
    assert!(network.has_address("n1"));
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
