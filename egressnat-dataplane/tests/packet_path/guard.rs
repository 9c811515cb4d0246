//! E43: what is not decided does not reach the destinations of strict policies, whatever is missing.

use std::ffi::CString;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use egressnat_core::{NodePlan, Steering};

use crate::network::{FLOATING, Network, OTHER_SERVER, SERVER, eventually, plan};

const NODE: &str = "192.168.1.1";

fn seen(address: &str) -> Option<String> {
    Some(address.to_owned())
}

/// A node's plan that does not know a pod.
fn without(mut plan: NodePlan, pod: &str) -> NodePlan {
    plan.pods.remove(&pod.parse::<IpAddr>().unwrap());
    plan
}

impl Network {
    /// Counts what comes to the server from another address than the floating IP.
    pub(crate) fn watch_for_leaks(&self) {
        let to_server = format!("ip daddr {SERVER}");
        self.count(
            "out",
            "leaked",
            &format!("{to_server} ip saddr != {FLOATING}"),
        );
        self.count(
            "out",
            "translated",
            &format!("{to_server} ip saddr {FLOATING}"),
        );
    }

    pub(crate) fn leaked(&self) -> u64 {
        self.counted("out", "watch", "leaked")
    }

    pub(crate) fn undecided(&self) -> u64 {
        self.counted("n1", "egressnat", "undecided")
    }
}

#[test]
fn an_unknown_pod_reaches_all_but_strict_destinations_and_is_counted() {
    let network = Network::new();
    network.apply_all("n2");
    // Known, and not selected.
    assert_eq!(network.seen_by_tcp("10.10.1.3", SERVER), seen(NODE));
    assert_eq!(network.undecided(), 0);

    network.apply("n1", without(plan("n1", "n2"), "10.10.1.3"));
    assert_eq!(network.seen_by_udp("10.10.1.3", SERVER), None);
    assert_eq!(network.seen_by_tcp("10.10.1.3", SERVER), None);
    assert!(!network.is_pinged("10.10.1.3", SERVER));
    let told = network.open("n1", async |dataplane| {
        dataplane.counters().unwrap().blocked.undecided
    });
    assert_eq!(told, network.undecided());
    assert!(told >= 3, "{told}");
    for to in [OTHER_SERVER, "10.10.2.3"] {
        assert!(network.is_pinged("10.10.1.3", to), "{to}");
    }
    assert_eq!(network.seen_by_tcp("10.10.1.3", OTHER_SERVER), seen(NODE));

    // Without a strict policy nothing is guarded.
    let mut unguarded = without(plan("n1", "n2"), "10.10.1.3");
    unguarded.guard_ranges.clear();
    network.apply("n1", unguarded);
    assert_eq!(network.seen_by_tcp("10.10.1.3", SERVER), seen(NODE));
}

#[test]
fn inside_of_the_cluster_nothing_is_guarded() {
    let network = Network::new();
    let mut everything = without(plan("n1", "n2"), "10.10.1.3");
    everything.guard_ranges = ["0.0.0.0/0".parse().unwrap()].into();
    assert_eq!(network.apply("n1", everything).failures, []);
    network.apply("n2", plan("n2", "n2"));
    for (to, want) in [
        ("10.10.2.3", true),
        ("10.10.1.2", true),
        ("192.168.1.2", true),
        (OTHER_SERVER, false),
    ] {
        assert_eq!(network.is_pinged("10.10.1.3", to), want, "{to}");
    }
}

#[test]
fn the_guard_sees_where_a_packet_really_goes() {
    let network = Network::new();
    network.apply_all("n2");
    // As kube-proxy translates a service whose endpoint is outside.
    for command in [
        "add table ip foreign",
        "add chain ip foreign services { type nat hook prerouting priority -100 ; }",
        "add rule ip foreign services ip daddr 9.9.9.9 dnat to 8.8.8.8",
    ] {
        network.exec("n1", &format!("nft {command}"));
    }
    assert_eq!(network.seen_by_tcp("10.10.1.3", OTHER_SERVER), seen(NODE));
    network.apply("n1", without(plan("n1", "n2"), "10.10.1.3"));
    network.watch_for_leaks();
    assert_eq!(network.seen_by_tcp("10.10.1.3", OTHER_SERVER), None);
    assert_eq!(network.leaked(), 0);
}

#[test]
fn answers_to_connections_from_outside_pass_the_guard_e14() {
    let network = Network::new();
    network.serve("10.10.1.3", "10.10.1.3");
    network.apply("n1", without(plan("n1", "n2"), "10.10.1.3"));
    network.ip(
        "out",
        "route replace 10.10.1.0/24 via 192.168.1.1 src 8.8.8.8",
    );
    assert_eq!(network.seen_by_tcp("out", "10.10.1.3"), seen(SERVER));
    assert_eq!(network.seen_by_udp("out", "10.10.1.3"), seen(SERVER));
    assert_eq!(network.undecided(), 0);
}

#[test]
fn a_pod_that_sends_from_its_first_instruction_is_seen_as_the_floating_ip_only() {
    for (holder, is_guarded) in [("n2", true), ("n1", true), ("n2", false)] {
        let mut network = Network::new();
        network.apply_all(holder);
        let (pod, address) = ("10.10.1.4", IpAddr::from([10, 10, 1, 4]));
        let mut before = plan("n1", holder);
        let mut wanted = before.clone();
        wanted
            .pods
            .insert(address, before.pods[&IpAddr::from([10, 10, 1, 2])]);
        if !is_guarded {
            before.guard_ranges.clear();
            wanted.guard_ranges.clear();
        }
        network.apply("n1", before);
        network.watch_for_leaks();
        network.add_namespace(pod);
        let sender = network.send(pod, SERVER);
        network.connect_pod(pod);
        // Its packets are there before anybody knows it.
        eventually(true, || network.undecided() + network.leaked() > 0);
        assert_eq!(network.apply("n1", wanted).failures, []);
        eventually(true, || network.counted("out", "watch", "translated") > 0);
        drop(sender);
        assert_eq!(network.leaked() == 0, is_guarded, "held by {holder}");
    }
}

#[test]
fn the_guard_holds_without_an_agent() {
    let mut network = Network::new();
    network.apply_all("n2");
    network.watch_for_leaks();
    // Nobody is there to see it.
    network.add_pod("10.10.1.4");
    assert_eq!(network.seen_by_udp("10.10.1.4", SERVER), None);
    assert_eq!(network.seen_by_tcp("10.10.1.4", OTHER_SERVER), seen(NODE));
    // A pod that has another one's address is not that pod.
    network.ip("10.10.1.4", "addr add 10.10.1.2/32 dev eth0");
    network.ip("n1", "route replace 10.10.1.2/32 dev veth4");
    network.ip(
        "10.10.1.4",
        "route replace default via 10.10.1.254 src 10.10.1.2",
    );
    assert_eq!(network.seen_by_udp("10.10.1.4", SERVER), None);
    assert_eq!(
        (
            network.leaked(),
            network.counted("out", "watch", "translated")
        ),
        (0, 0)
    );
    // The agent comes back, and sees where the address is.
    network.apply("n1", plan("n1", "n2"));
    assert_eq!(network.seen_by_udp("10.10.1.4", SERVER), seen(FLOATING));
}

#[test]
fn a_pod_whose_program_somebody_takes_away_does_not_leak_and_gets_it_back() {
    let network = Network::new();
    network.apply_all("n2");
    network.watch_for_leaks();
    let interface = network.exec("n1", "cat /sys/class/net/veth2/ifindex");
    let pin = format!("v1/link_steer_{}", interface.trim());
    let pin = network.pins("n1").join(pin);

    // Under an agent that runs.
    let detached = pin.clone();
    let changes = network.open("n1", async move |mut dataplane| {
        let plan = plan("n1", "n2");
        let before = dataplane.apply(&plan).await.changes;
        detach(&detached);
        let after = dataplane.apply(&plan).await.changes;
        [before, after, dataplane.apply(&plan).await.changes]
    });
    assert_eq!(changes, [0, 1, 0]);
    assert_eq!(network.seen_by_udp("10.10.1.2", SERVER), seen(FLOATING));

    // While no agent runs.
    let ways: [fn(&Path); 2] = [detach, |pin| std::fs::remove_file(pin).unwrap()];
    for take_away in ways {
        let undecided = network.undecided();
        take_away(&pin);
        eventually(None, || network.seen_by_udp("10.10.1.2", SERVER));
        assert!(network.undecided() > undecided);
        assert_eq!(network.apply("n1", plan("n1", "n2")).changes, 1);
        assert_eq!(network.apply("n1", plan("n1", "n2")).changes, 0);
        assert_eq!(network.seen_by_udp("10.10.1.2", SERVER), seen(FLOATING));
    }
    assert_eq!(network.leaked(), 0);
}

/// Detaches a pinned link by force, as `bpftool link detach` does: the pin stays, and holds nothing.
pub(crate) fn detach(pin: &Path) {
    #[repr(C)]
    struct Attributes {
        first: u64,
        rest: [u64; 15],
    }
    const OBJ_GET: i64 = 7;
    const LINK_DETACH: i64 = 34;
    let call = |command: i64, first: u64| {
        let attributes = Attributes {
            first,
            rest: [0; 15],
        };
        // SAFETY: the attributes are as large as we say, and so is the path that one of them points to.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command,
                &raw const attributes,
                size_of_val(&attributes),
            )
        };
        assert!(result >= 0, "{}", std::io::Error::last_os_error());
        result
    };
    let path = CString::new(pin.as_os_str().as_bytes()).unwrap();
    let link = call(OBJ_GET, path.as_ptr() as u64);
    call(LINK_DETACH, link.cast_unsigned());
    // SAFETY: ours, and closed once.
    unsafe { libc::close(link as i32) };
}

#[test]
fn what_a_strict_policy_cannot_translate_is_dropped() {
    let network = Network::new();
    network.apply_all("n2");
    network.watch_for_leaks();
    let mut closed = plan("n1", "n2");
    for steering in closed.destinations.values_mut() {
        *steering = Steering::Drop;
    }
    assert_eq!(network.apply("n1", closed).failures, []);
    assert_eq!(network.seen_by_udp("10.10.1.2", SERVER), None);
    assert_eq!(network.seen_by_tcp("10.10.1.2", SERVER), None);
    assert_eq!(network.seen_by_tcp("10.10.1.2", OTHER_SERVER), seen(NODE));
    assert_eq!((network.leaked(), network.undecided()), (0, 0));
    assert_eq!(network.seen_by_tcp("10.10.1.3", SERVER), seen(NODE));
}

#[test]
fn foreign_bits_of_the_mark_stay_and_ours_do_not_outlive_the_decision() {
    let network = Network::new();
    for command in [
        "add table ip foreign",
        "add chain ip foreign first { type filter hook prerouting priority -300 ; }",
        "add rule ip foreign first meta mark set meta mark or 0x80008001",
        "add chain ip foreign last { type filter hook postrouting priority 300 ; }",
        "add counter ip foreign clean",
        "add counter ip foreign seen",
        "add rule ip foreign last ip daddr 9.9.9.9 counter name seen",
        "add rule ip foreign last ip daddr 9.9.9.9 meta mark 0x80008001 counter name clean",
    ] {
        network.exec("n1", &format!("nft {command}"));
    }
    network.apply_all("n2");
    for pod in ["10.10.1.2", "10.10.1.3"] {
        assert_eq!(network.seen_by_tcp(pod, OTHER_SERVER), seen(NODE));
    }
    assert_eq!(network.seen_by_tcp("10.10.1.2", SERVER), seen(FLOATING));
    let counted = |counter| network.counted("n1", "foreign", counter);
    assert!(counted("seen") > 6);
    assert_eq!(counted("clean"), counted("seen"));
}
