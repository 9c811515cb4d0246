//! What the packet path says, and what it does not harm, when the kernel refuses.

use std::collections::BTreeSet;
use std::error::Error;
use std::net::IpAddr;
use std::time::Duration;

use egressnat_dataplane::{Config, Dataplane, TableOwnership};

use crate::container::{BPF, NET_ADMIN, NET_RAW, SYS_ADMIN, drop_capabilities};
use crate::network::{FLOATING, Network, OTHER_SERVER, SERVER, plan, runtime};
use crate::owner::can;

fn seen(address: &str) -> Option<String> {
    Some(address.to_owned())
}

/// Why the packet path cannot be opened, with all causes.
fn refusal(network: &Network, config: Config, dropped: &'static [u32]) -> String {
    refusal_of(network, config, move || drop_capabilities(dropped))
}

/// The same in a thread that something was done to.
pub(crate) fn refusal_of(
    network: &Network,
    config: Config,
    confine: impl FnOnce() + Send + 'static,
) -> String {
    let error = network.enter("n1", move || {
        confine();
        let opened = runtime().block_on(async { Dataplane::open(config).await.map(drop) });
        opened.unwrap_err()
    });
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

pub(crate) fn assert_names(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "'{part}' in: {text}");
    }
}

#[test]
fn what_is_missing_is_named() {
    let network = Network::new();
    let config = network.config("n1");
    let directory = tempfile::tempdir().unwrap();
    let mut no_bpffs = config.clone();
    no_bpffs.bpffs = directory.path().to_owned();
    let path = directory.path().display().to_string();
    let text = refusal(&network, no_bpffs, &[]);
    assert_names(&text, &[&path, "no bpffs", "mount -t bpf"]);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);

    let text = refusal(&network, config.clone(), &[BPF, SYS_ADMIN]);
    assert_names(&text, &["lacks CAP_BPF", "programs"]);
    let text = refusal(&network, config.clone(), &[NET_ADMIN]);
    assert_names(&text, &["lacks CAP_NET_ADMIN"]);
    let text = refusal(&network, config.clone(), &[NET_RAW]);
    assert_names(&text, &["lacks CAP_NET_RAW", "announcements"]);

    // None of it was harmed: it opens as soon as it may.
    assert_eq!(network.apply("n1", plan("n1", "n2")).failures, []);
}

#[test]
fn a_pinned_map_of_another_shape_is_refused_and_left_alone() {
    let network = Network::new();
    network.apply_all("n2");
    let config = network.config("n1");
    let pins = network.pins("n1").join("v1");
    // Both are of numbers to numbers.
    std::fs::rename(pins.join("vnis"), pins.join("peers")).unwrap();
    let text = refusal(&network, config.clone(), &[]);
    assert_names(
        &text,
        &["v1/peers", "1024 entries", "16384 entries", "cleanup"],
    );
    assert_eq!(network.seen_by_tcp("10.10.1.2", SERVER), seen(FLOATING));

    // As told.
    assert_eq!(network.clean("n1").failures, []);
    assert_eq!(network.apply("n1", plan("n1", "n2")).failures, []);
    assert_eq!(network.seen_by_tcp("10.10.1.2", SERVER), seen(FLOATING));
}

#[test]
fn a_map_of_pods_of_another_size_is_taken_over_with_what_it_has() {
    let network = Network::new();
    network.apply_all("n2");
    network.watch_for_leaks();
    let mut config = network.config("n1");
    let _sender = network.send_every("10.10.1.2", SERVER, Duration::from_micros(500));
    let apply = |config: Config| {
        network.open_with("n1", config, async |mut dataplane| {
            dataplane.apply(&plan("n1", "n2")).await
        })
    };
    for pods in [1 << 17, 4] {
        config.max_pods = pods;
        let report = apply(config.clone());
        assert_eq!((report.changes, report.failures), (0, vec![]), "{pods}");
        assert_eq!(network.seen_by_tcp("10.10.1.2", SERVER), seen(FLOATING));
    }
    // Where not all find room, each that does not is told.
    config.max_pods = 1;
    let report = apply(config.clone());
    assert_eq!(report.failures.len(), 1, "{report:?}");
    assert_names(&report.failures[0].message, &["map pods is full"]);
    config.max_pods = 1 << 16;
    assert_eq!(apply(config).failures, []);
    assert_eq!(network.seen_by_tcp("10.10.1.2", SERVER), seen(FLOATING));
    let pins = std::fs::read_dir(network.pins("n1").join("v1")).unwrap();
    let pins = pins.map(|pin| pin.unwrap().file_name().into_string().unwrap());
    let set_aside: Vec<String> = pins.filter(|name| name.contains("outgrown")).collect();
    assert_eq!(set_aside, [""; 0]);
    assert_eq!(network.leaked(), 0);
}

#[test]
fn of_more_pods_than_the_map_takes_the_others_are_steered_and_each_is_told() {
    let mut network = Network::new();
    network.add_pod("10.10.1.4");
    network.add_pod("10.10.1.5");
    let mut config = network.config("n1");
    config.max_pods = 2;
    let mut wanted = plan("n1", "n2");
    let set = wanted.pods[&IpAddr::from([10, 10, 1, 2])];
    for host in [4, 5] {
        wanted.pods.insert(IpAddr::from([10, 10, 1, host]), set);
    }
    network.apply("n2", plan("n2", "n2"));
    let mut fewer = wanted.clone();
    fewer.pods.retain(|address, _| {
        [IpAddr::from([10, 10, 1, 4]), IpAddr::from([10, 10, 1, 5])].contains(address)
    });
    let (full, again, after) = network.enter("n1", move || {
        runtime().block_on(async {
            let mut dataplane = Dataplane::open(config).await.unwrap();
            let full = dataplane.apply(&wanted).await;
            let again = dataplane.apply(&wanted).await;
            (full, again, dataplane.apply(&fewer).await)
        })
    });
    // In the order of their addresses: the last ones find no room.
    for report in [&full, &again] {
        let told: Vec<&str> = report.failures.iter().map(|f| f.object.as_str()).collect();
        assert_eq!(told.len(), 2, "{report:?}");
        for (object, pod) in told.iter().zip(["10.10.1.4", "10.10.1.5"]) {
            assert!(object.contains(pod), "{told:?}");
        }
        assert_names(&report.failures[0].message, &["map pods is full"]);
    }
    assert_eq!(again.changes, 0, "all else was done the first time");
    // What did not fit comes once there is room.
    assert_eq!(after.failures.len(), 0, "{after:?}");
    for pod in ["10.10.1.4", "10.10.1.5"] {
        assert_eq!(network.seen_by_tcp(pod, SERVER), seen(FLOATING), "{pod}");
    }
}

#[test]
fn an_interface_that_vanishes_meanwhile_harms_no_other_pod() {
    let mut network = Network::new();
    network.apply_all("n2");
    let pod = "10.10.1.4";
    let mut wanted = network.expect_pod(pod);
    let inside = network.namespace(pod);
    let come_and_go = network.outside("n1", move |run| {
        for _ in 0..20 {
            run(&format!(
                "ip link add veth4 type veth peer name eth0 netns {inside}"
            ));
            run("ip link set veth4 up");
            run(&format!("ip route add {pod}/32 dev veth4"));
            run("ip link del veth4");
        }
    });
    let told = network.open("n1", async move |mut dataplane| {
        let thread = std::thread::spawn(come_and_go);
        let mut told = Vec::new();
        while !thread.is_finished() {
            told.extend(dataplane.apply(&wanted).await.failures);
        }
        thread.join().unwrap();
        wanted.pods.remove(&pod.parse::<IpAddr>().unwrap());
        let last = dataplane.apply(&wanted).await;
        assert_eq!(last.failures, []);
        told
    });
    for failure in told {
        let is_about_it = failure.object.contains("veth4") || failure.object.contains(pod);
        assert!(is_about_it, "{failure:?}");
    }
    assert_eq!(network.seen_by_tcp("10.10.1.2", SERVER), seen(FLOATING));
    assert_eq!(
        network.seen_by_tcp("10.10.1.2", OTHER_SERVER),
        seen("192.168.1.1")
    );
}

/// How many messages found no room in this namespace's sockets for what rtnetlink tells.
fn lost_events() -> u64 {
    let sockets = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
    let fields = sockets.lines().skip(1).map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Protocol and drops.
        (fields[1] == "0", fields[8].parse().unwrap_or(0))
    });
    let rtnetlink = fields.filter(|(is_rtnetlink, _)| *is_rtnetlink);
    rtnetlink.map(|(_, drops)| drops).sum()
}

#[test]
fn more_events_than_the_socket_takes_lead_to_reading_all_anew() {
    let mut network = Network::new();
    network.apply_all("n2");
    let pod = "10.10.1.4";
    let wanted = network.expect_pod(pod);
    // Many times what a socket's buffer takes, and the pod's interface in the middle of them.
    let routes = |range: std::ops::Range<u16>, verb: &str| -> String {
        let line = |n: u16| format!("route {verb} 172.20.{}.{}/32 dev lo\n", n >> 8, n & 255);
        range.map(line).collect()
    };
    let flood = routes(0..20_000, "add") + &routes(0..20_000, "del");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), flood).unwrap();
    let batch = format!("ip -batch {}", file.path().display());
    let inside = network.namespace(pod);
    let flood = network.outside("n1", move |run| {
        run(&batch);
        run(&format!(
            "ip link add veth4 type veth peer name eth0 netns {inside}"
        ));
        run("ip link set veth4 up");
        run("ip addr add 10.10.1.254/32 dev veth4");
        run(&format!("ip route add {pod}/32 dev veth4"));
        run(&batch);
    });
    let later = network.outside("n1", |run| run("ip route add 172.21.0.1/32 dev lo"));
    network.open("n1", async move |mut dataplane| {
        dataplane.apply(&wanted).await;
        // Nobody reads meanwhile.
        std::thread::spawn(flood).join().unwrap();
        assert!(lost_events() > 0, "all found room: that is no flood");
        let deadline = Duration::from_secs(10);
        let changed = tokio::time::timeout(deadline, dataplane.changed()).await;
        changed.expect("lost events are told");
        assert_eq!(dataplane.apply(&wanted).await.failures, []);
        // And it goes on listening.
        while tokio::time::timeout(Duration::from_millis(300), dataplane.changed())
            .await
            .is_ok()
        {}
        let thread = std::thread::spawn(later);
        let changed = tokio::time::timeout(deadline, dataplane.changed()).await;
        changed.expect("later events are told");
        thread.join().unwrap();
    });
}

#[test]
fn of_a_batch_that_is_refused_half_way_all_else_is_written_and_the_rest_is_told() {
    let network = Network::new();
    network.apply("n2", plan("n2", "n1"));
    let mut config = network.config("n1");
    config.table_ownership = TableOwnership::Never;
    let namespace = network.namespace("n1");
    // Others may change a table that nobody owns: the kernel then takes so many mappings and no more (Linux 6.5).
    let limit = move |most: usize| {
        let map = format!("{{ type mark : ipv4_addr ; counter ; size {most} ; }}");
        assert!(can(
            &namespace,
            &format!("nft add map ip egressnat egress_ips {map}")
        ));
    };
    let host = |host: u8| IpAddr::from([192, 168, 1, host]);
    network.open_with("n1", config, async move |mut dataplane| {
        let mut wanted = plan("n1", "n2");
        assert_eq!(dataplane.apply(&wanted).await.failures, []);
        limit(2);
        // The mappings are in the middle of what is new.
        wanted.floating_ips = (100..=103).map(host).collect();
        wanted.peers.insert(host(3));
        wanted.pod_ranges.insert("10.10.9.0/24".parse().unwrap());
        let report = dataplane.apply(&wanted).await;
        let told: BTreeSet<&str> = report.failures.iter().map(|f| f.object.as_str()).collect();
        for refused in [102, 103].map(host) {
            let (snat, address) = (
                format!("+ snat to {refused}"),
                format!("+ address {refused}"),
            );
            assert!(told.contains(snat.as_str()), "{told:?}");
            assert!(told.contains(address.as_str()), "{told:?}");
        }
        assert_eq!(told.len(), 4, "{told:?}");
        let text = &report.failures[0].message;
        assert_names(text, &["nf_tables refused snat to 192.168.1.102"]);
        // None is announced that is not translated to.
        assert_eq!(*report.floating_ips, [100, 101].map(host).into());

        let again = dataplane.apply(&wanted).await;
        assert_eq!(again.failures, report.failures);
        assert_eq!(again.changes, 0, "all else was done the first time");
        limit(100);
        let after = dataplane.apply(&wanted).await;
        assert_eq!(after.failures, []);
        assert_eq!(*after.floating_ips, wanted.floating_ips);
        assert_eq!(after.restored, []);
    });
    let addresses = network.ip("n1", "addr show dev eth0");
    assert!(addresses.contains("192.168.1.103"), "{addresses}");
    assert_eq!(network.seen_by_tcp("10.10.1.2", SERVER), seen(FLOATING));
}
