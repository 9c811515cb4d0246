//! Pods that appear, and many at once.

use std::cell::Cell;
use std::fmt::Write;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use egressnat_core::NodePlan;
use egressnat_dataplane::Attachment;

use crate::network::{FLOATING, Network, SERVER, plan};

const PODS: u16 = 2_000;

fn address(pod: u16) -> IpAddr {
    IpAddr::from([10, 20, (pod >> 8) as u8, pod as u8])
}

/// Both ends of veth pairs are interfaces of pods here: what is counted is what the node's side costs.
fn batch() -> String {
    let mut lines = String::new();
    for pair in (0..PODS).step_by(2) {
        let other = pair + 1;
        let ends = [(pair, format!("pod{pair}")), (other, format!("pod{other}"))];
        writeln!(
            lines,
            "link add {} type veth peer name {}",
            ends[0].1, ends[1].1
        )
        .unwrap();
        for (pod, name) in ends {
            writeln!(lines, "link set {name} up").unwrap();
            writeln!(lines, "route add {}/32 dev {name}", address(pod)).unwrap();
        }
    }
    lines
}

fn burst_plan() -> NodePlan {
    let mut plan = plan("n1", "n2");
    let set = plan.pods[&IpAddr::from([10, 10, 1, 2])];
    plan.pods.extend((0..PODS).map(|pod| (address(pod), set)));
    plan
}

#[test]
fn a_pod_that_appears_has_its_program_from_the_event_and_not_from_an_audit() {
    for attachment in [Attachment::Tcx, Attachment::Clsact] {
        let mut network = Network::new();
        network.attachment = attachment;
        network.apply_all("n2");
        let pod = "10.10.1.4";
        let (before, wanted) = (plan("n1", "n2"), network.expect_pod(pod));
        let inside = network.namespace(pod);
        let connect = network.outside("n1", move |run| {
            run(&format!(
                "ip link add veth4 type veth peer name eth0 netns {inside}"
            ));
            run("ip link set veth4 up");
            run("ip addr add 10.10.1.254/32 dev veth4");
            run(&format!("ip route add {pod}/32 dev veth4"));
        });
        let after = network.open("n1", async move |mut dataplane| {
            // As long as something fails an audit says so twice a second: here nothing does, and only an event ends the wait.
            assert_eq!(dataplane.apply(&before).await.failures, []);
            let thread = std::thread::spawn(connect);
            loop {
                let change = tokio::time::timeout(Duration::from_secs(10), dataplane.changed());
                change.await.expect("the kernel tells of a route");
                let told = Instant::now();
                if dataplane.apply(&wanted).await.failures.is_empty() {
                    thread.join().unwrap();
                    return told.elapsed();
                }
            }
        });
        eprintln!("{attachment:?}: the program was there {after:?} after the event");
        for (name, args) in [
            (pod, "link set eth0 up".to_owned()),
            (pod, format!("addr add {pod}/32 dev eth0")),
            (pod, "route add 10.10.1.254 dev eth0".to_owned()),
            (pod, "route add default via 10.10.1.254".to_owned()),
        ] {
            network.ip(name, &args);
        }
        let seen = network.seen_by_tcp(pod, SERVER);
        assert_eq!(seen, Some(FLOATING.to_owned()), "{attachment:?}");
    }
}

#[test]
fn thousands_of_pods_that_appear_at_once_all_get_their_programs_and_others_their_turns() {
    let mut network = Network::new();
    network.attachment = Attachment::Clsact;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), batch()).unwrap();
    network.ip("n1", &format!("-batch {}", file.path().display()));
    network.open("n1", async |mut dataplane| {
        let plan = burst_plan();
        let turns = Cell::new(0u32);
        let longest = Cell::new(Duration::ZERO);
        let start = Instant::now();
        let report = {
            let others = async {
                loop {
                    let before = Instant::now();
                    tokio::task::yield_now().await;
                    longest.set(longest.get().max(before.elapsed()));
                    turns.set(turns.get() + 1);
                }
            };
            tokio::select! {
                report = dataplane.apply(&plan) => report,
                () = others => unreachable!("it never ends"),
            }
        };
        eprintln!(
            "{PODS} pods: {:?}, {} turns of others, the longest wait {:?}",
            start.elapsed(),
            turns.get(),
            longest.get()
        );
        assert_eq!(report.failures, []);
        assert!(turns.get() > u32::from(PODS), "{}", turns.get());
        let start = Instant::now();
        let again = dataplane.apply(&plan).await;
        eprintln!("again, without a change: {:?}", start.elapsed());
        assert_eq!((again.changes, again.failures), (0, vec![]));
    });
    let filters = network.exec("n1", "tc qdisc show");
    assert!(filters.matches("clsact").count() > usize::from(PODS));
}
