//! Who else has a floating IP of IPv6: asked before it is taken, listened for while it is held.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use egressnat_core::Report;
use egressnat_dataplane::Dataplane;

use super::*;

/// What a node must have that holds the floating IP of IPv6, and nothing of IPv4.
fn holding(node: &str) -> NodePlan {
    of_ipv6(plan(node, node))
}

/// The same before it holds it.
fn waiting(node: &str) -> NodePlan {
    let mut plan = holding(node);
    plan.floating_ips.clear();
    plan
}

fn floating() -> BTreeSet<IpAddr> {
    [FLOATING6.parse().unwrap()].into()
}

/// Applies until nothing fails, whenever the packet path asks for it.
async fn apply_until_complete(dataplane: &mut Dataplane, node: &str) -> Report {
    let start = Instant::now();
    loop {
        let report = dataplane.apply(&holding(node)).await;
        if report.failures.is_empty() {
            return report;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{report:?}");
        let change = tokio::time::timeout(Duration::from_secs(10), dataplane.changed());
        change.await.expect("it is tried again");
    }
}

/// What a report says of the floating IP.
fn told(report: &Report) -> &str {
    let [failure] = report.failures.as_slice() else {
        panic!("{report:?}");
    };
    assert_eq!(failure.object, format!("floating IP {FLOATING6}"));
    &failure.message
}

impl Network {
    fn has_address6(&self, name: &str) -> bool {
        self.ip(name, "addr show dev eth0").contains(FLOATING6)
    }
}

#[test]
fn an_address_of_ipv6_that_another_host_has_is_not_taken_until_that_lets_go() {
    let network = Network::dual_stack();
    network.ip("out", &format!("addr add {FLOATING6}/128 dev eth0 nodad"));
    // Who asks is a member of the group that is asked, so that switches let the questions of others through: a report of one record.
    network.count6(
        "joined",
        &format!(
            "ether saddr {} icmpv6 type mld2-listener-report @th,96,128 0xff0200000000000000000001ff000100",
            network.mac("n1")
        ),
    );
    let report = network.apply("n1", holding("n1"));
    assert!(told(&report).contains(&network.mac("out")), "{report:?}");
    eventually(true, || network.counted6("joined") > 0);
    assert!(!network.has_address6("n1"));
    assert_eq!(*report.floating_ips, [].into());

    let let_go = network.outside("out", |run| {
        run(&format!("ip addr del {FLOATING6}/128 dev eth0"));
    });
    let report = network.open("n1", async move |mut dataplane| {
        assert!(!dataplane.apply(&holding("n1")).await.is_complete());
        thread::spawn(let_go).join().unwrap();
        apply_until_complete(&mut dataplane, "n1").await
    });
    assert_eq!(*report.floating_ips, floating());
    assert!(network.has_address6("n1"));
    assert_eq!(network.seen_by_tcp(PODS[0], SERVER6), seen(FLOATING6));
}

#[test]
fn an_address_of_ipv6_that_its_old_holder_still_has_is_waited_for_e33() {
    let network = Network::dual_stack();
    network.apply_both("n1");
    // Never given up: not taken, and told.
    let report = network.apply("n2", holding("n2"));
    assert!(told(&report).contains(&network.mac("n1")), "{report:?}");
    assert!(!network.has_address6("n2"));

    // Given up while the new holder asks.
    let is_given_up = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&is_given_up);
    let give_up = network.outside("n1", move |run| {
        thread::sleep(Duration::from_millis(150));
        flag.store(true, Ordering::SeqCst);
        run(&format!("ip addr del {FLOATING6}/128 dev eth0"));
    });
    let (report, was_given_up) = network.open("n2", async move |mut dataplane| {
        let thread = thread::spawn(give_up);
        let report = apply_until_complete(&mut dataplane, "n2").await;
        let was_given_up = is_given_up.load(Ordering::SeqCst);
        thread.join().unwrap();
        (report, was_given_up)
    });
    assert!(was_given_up, "two nodes had it");
    assert_eq!(*report.floating_ips, floating());
}

#[test]
fn who_claims_an_address_of_ipv6_that_is_held_is_told_and_the_address_is_kept() {
    let network = Network::dual_stack();
    let mac = network.mac("out");
    let claim = network.outside("out", |run| {
        run(&format!("ip addr add {FLOATING6}/128 dev eth0 nodad"));
        // Whoever it talks to hears the address from it.
        run("ip -6 neigh flush dev eth0");
        run(&format!("ping -6 -c1 -W1 -I {FLOATING6} {}", NODES[1]));
    });
    let report = network.open("n1", async move |mut dataplane| {
        assert!(dataplane.apply(&holding("n1")).await.is_complete());
        let thread = thread::spawn(claim);
        let start = Instant::now();
        let report = loop {
            let change = tokio::time::timeout(Duration::from_secs(10), dataplane.changed());
            change.await.expect("a claim is told at once");
            let report = dataplane.apply(&holding("n1")).await;
            if !report.is_complete() {
                break report;
            }
            assert!(start.elapsed() < Duration::from_secs(10));
        };
        thread.join().unwrap();
        report
    });
    assert!(told(&report).contains(&mac), "{report:?}");
    assert_eq!(*report.floating_ips, floating());
    assert!(network.has_address6("n1"));
}

#[test]
fn of_two_nodes_that_ask_for_an_address_of_ipv6_at_the_same_moment_one_gets_it_e33() {
    let network = Network::dual_stack();
    let holders = network.ask_at_the_same_moment(holding);
    assert_eq!(["n1", "n2"].map(|node| network.has_address6(node)), holders);
}

#[test]
fn asking_for_an_address_of_ipv6_takes_no_longer_than_it_is_configured_to() {
    let network = Network::dual_stack();
    let elapsed = network.open("n1", async |mut dataplane| {
        assert!(dataplane.apply(&waiting("n1")).await.is_complete());
        let start = Instant::now();
        assert!(dataplane.apply(&plan("n1", "n1")).await.is_complete());
        start.elapsed()
    });
    eprintln!("addresses of both families that nobody has are taken in {elapsed:?}");
    // Three pauses of 20 ms at least. Not those of RFC 4862, which are a second each: the rest is for a busy machine.
    assert!(elapsed > Duration::from_millis(60), "{elapsed:?}");
    assert!(elapsed < Duration::from_secs(4), "{elapsed:?}");
}

#[test]
fn an_address_of_ipv6_that_a_node_gave_up_is_asked_for_once() {
    let network = Network::dual_stack();
    network.apply_both("n1");
    network.count6(
        "asked",
        &format!(
            "ip6 saddr :: ether saddr {} icmpv6 type nd-neighbor-solicit ip6 daddr ff02::1:ff00:100",
            network.mac("n2")
        ),
    );
    let (listens, is_listening) = mpsc::channel();
    let (gives_up, is_given_up) = mpsc::channel();
    let shared = &network;
    thread::scope(|scope| {
        scope.spawn(move || {
            is_listening.recv().unwrap();
            let report = shared.apply("n1", plan("n1", "n2"));
            assert_eq!(report.failures, []);
            gives_up.send(()).unwrap();
        });
        let report = network.open("n2", async move |mut dataplane| {
            // It does not know the holder by itself.
            assert!(dataplane.apply(&waiting("n2")).await.is_complete());
            listens.send(()).unwrap();
            is_given_up.recv().unwrap();
            dataplane.apply(&holding("n2")).await
        });
        assert_eq!(
            (report.failures, report.floating_ips),
            (vec![], floating().into())
        );
    });
    eventually(1, || network.counted6("asked"));
    assert_eq!(network.seen_by_tcp(PODS[0], SERVER6), seen(FLOATING6));
}
