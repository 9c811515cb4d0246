//! What others remove or alter is back within a second, and told.

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use egressnat_core::{NodePlan, Resource, Restored};
use egressnat_dataplane::{Attachment, Config, Dataplane, TableOwnership};
use tokio::sync::oneshot;

use crate::network::{FLOATING, Network, SERVER, eventually, plan, runtime};

/// A packet path that is kept as its agent keeps it, until this is dropped.
pub(crate) struct Keeper {
    stop: Option<oneshot::Sender<()>>,
    restored: mpsc::Receiver<Vec<Restored>>,
    thread: Option<JoinHandle<()>>,
}

impl Network {
    /// Keeps a node's packet path. Has applied the plan once when it returns.
    pub(crate) fn keep(&self, node: &str, config: Config, plan: NodePlan) -> Keeper {
        let (stop, mut stopped) = oneshot::channel();
        let (tell, restored) = mpsc::channel();
        let namespace = self.namespace(node);
        let thread = std::thread::spawn(move || {
            let file = std::fs::File::open(format!("/run/netns/{namespace}")).unwrap();
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            runtime().block_on(async {
                let mut dataplane = Dataplane::open(config).await.unwrap();
                let mut failures = Vec::new();
                loop {
                    let report = dataplane.apply(&plan).await;
                    // What is taken away just while a plan is applied may fail that, and not the next.
                    let told = report.failures;
                    assert!(
                        told.is_empty() || failures.is_empty(),
                        "{failures:?} {told:?}"
                    );
                    failures = told;
                    if tell.send(report.restored).is_err() {
                        return;
                    }
                    tokio::select! {
                        _ = &mut stopped => return,
                        () = dataplane.changed() => {}
                    }
                }
            });
        });
        let keeper = Keeper {
            stop: Some(stop),
            restored,
            thread: Some(thread),
        };
        assert_eq!(keeper.next(), [], "the first plan restores nothing");
        keeper
    }
}

impl Keeper {
    /// Waits until it is told that an object of this kind is back.
    pub(crate) fn wait_for(&self, resource: Resource) {
        while !self.next().iter().any(|one| one.resource == resource) {}
    }

    /// How often the plan is applied within some time.
    pub(crate) fn applied_within(&self, time: Duration) -> usize {
        let start = Instant::now();
        let next = || {
            let rest = time.saturating_sub(start.elapsed());
            self.restored.recv_timeout(rest)
        };
        std::iter::from_fn(|| next().ok()).count()
    }

    fn next(&self) -> Vec<Restored> {
        self.restored
            .recv_timeout(Duration::from_secs(30))
            .expect("the plan is applied again")
    }

    /// Does something, and waits until it is told that an object of this kind is back.
    pub(crate) fn restores(
        &self,
        resource: Resource,
        what: &str,
        sabotage: impl FnOnce(),
    ) -> Vec<Restored> {
        // What happened before has been seen to.
        while self
            .restored
            .recv_timeout(Duration::from_millis(100))
            .is_ok()
        {}
        let start = Instant::now();
        sabotage();
        loop {
            let restored = self.next();
            let waited = start.elapsed();
            if restored.iter().any(|one| one.resource == resource) {
                eprintln!("{what}: {resource} back after {waited:?}");
                // A second is the promise; other tests take their part of the machine.
                assert!(waited < Duration::from_secs(3), "{what}: {waited:?}");
                let is_table = |one: &Restored| one.resource == Resource::Table;
                let more = resource != Resource::Table && restored.iter().any(is_table);
                assert!(!more, "{what}: {restored:?}");
                return restored;
            }
            assert_eq!(restored, [], "{what}");
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            ended.unwrap().unwrap();
        }
    }
}

/// As on a kernel that protects no tables.
fn unowned(mut config: Config) -> Config {
    config.table_ownership = TableOwnership::Never;
    config
}

#[test]
fn what_others_do_to_tables_that_nobody_protects_is_undone_within_a_second() {
    let network = Network::new();
    network.apply("n1", plan("n1", "n2"));
    let keeper = network.keep("n2", unowned(network.config("n2")), plan("n2", "n2"));
    let listed = || {
        let text = network.exec("n2", "nft -s list table ip egressnat");
        text.replace("counter packets 0 bytes 0", "counter")
    };
    let before = listed();
    for (resource, attack) in [
        (Resource::Table, "flush ruleset"),
        (Resource::Table, "delete table ip egressnat"),
        (
            Resource::Table,
            "add table ip egressnat { flags dormant ; }",
        ),
        (Resource::Table, "flush chain ip egressnat guard"),
        (Resource::Table, "insert rule ip egressnat guard accept"),
        (
            Resource::Table,
            "add rule ip egressnat masquerade_rules accept",
        ),
        (Resource::Table, "add chain ip egressnat foreign"),
        (
            Resource::Table,
            "add set ip egressnat foreign { type ipv4_addr ; }",
        ),
        (
            Resource::Table,
            "chain ip egressnat guard { policy drop ; }",
        ),
        (Resource::Entry, "flush set ip egressnat internal_ranges"),
        (
            Resource::Entry,
            "add element ip egressnat pod_ranges { 172.16.0.0/12 }",
        ),
        (Resource::Entry, "flush map ip egressnat egress_ips"),
        (Resource::Entry, "flush set ip egressnat floating_ips"),
    ] {
        keeper.restores(resource, attack, || {
            network.exec("n2", &format!("nft {attack}"));
        });
        assert_eq!(listed(), before, "{attack}");
    }
    let replace = || {
        let rules = network.exec("n2", "nft -a list chain ip egressnat guard");
        let rule = rules
            .lines()
            .find(|line| line.contains("undecided"))
            .unwrap();
        let handle = rule.rsplit(' ').next().unwrap();
        let command = format!("nft replace rule ip egressnat guard handle {handle} accept");
        network.exec("n2", &command);
    };
    keeper.restores(Resource::Table, "replace rule", replace);
    assert_eq!(listed(), before);
    assert_eq!(
        network.seen_by_tcp("10.10.1.2", SERVER).as_deref(),
        Some(FLOATING)
    );
}

#[test]
fn links_addresses_routes_rules_and_programs_come_back_within_a_second() {
    let network = Network::new();
    network.apply("n2", plan("n2", "n1"));
    let keeper = network.keep("n1", network.config("n1"), plan("n1", "n1"));
    let state = || {
        [
            "-4 addr show dev eth0",
            "rule",
            "route show table 1190",
            "-d link show dev egressnat0",
        ]
        .map(|what| {
            let text = network.ip("n1", &format!("-o {what}"));
            // A device that was deleted has another index when it is back.
            text.replace(
                |letter: char| letter.is_ascii_digit() && what.contains("link"),
                "",
            )
        })
    };
    let before = state();
    for (resource, attack) in [
        (
            Resource::Address,
            format!("addr del {FLOATING}/32 dev eth0"),
        ),
        // What networkd and others do to addresses that they think they know.
        (
            Resource::Address,
            format!("addr change {FLOATING}/32 dev eth0"),
        ),
        (
            Resource::Address,
            format!("addr change {FLOATING}/32 dev eth0 valid_lft 1 preferred_lft 1"),
        ),
        (Resource::Address, "addr flush dev egressnat0".to_owned()),
        (Resource::Device, "link del egressnat0".to_owned()),
        (Resource::Device, "link set egressnat0 down".to_owned()),
        (Resource::Route, "route flush table 1190".to_owned()),
        (
            Resource::Route,
            "route add 8.8.8.8/32 via 192.168.1.254 table 1190".to_owned(),
        ),
        (
            Resource::Route,
            "route replace default dev eth0 scope link table 1190".to_owned(),
        ),
        (Resource::RoutingRule, "rule del priority 1190".to_owned()),
    ] {
        keeper.restores(resource, &attack, || {
            network.ip("n1", &attack);
        });
        assert_eq!(state(), before, "{attack}");
    }
    keeper.restores(Resource::Setting, "rp_filter", || {
        network.sysctl("n1", "net.ipv4.conf.egressnat0.rp_filter=1");
    });
    let interface = network.exec("n1", "cat /sys/class/net/veth2/ifindex");
    let pin = network
        .pins("n1")
        .join(format!("v1/link_steer_{}", interface.trim()));
    let restored = keeper.restores(Resource::Program, "detach", || crate::guard::detach(&pin));
    assert_eq!(restored[0].object, "steer on veth2");
    keeper.restores(Resource::Program, "unpin", || {
        std::fs::remove_file(&pin).unwrap();
    });
    assert_eq!(
        network.seen_by_tcp("10.10.1.2", SERVER).as_deref(),
        Some(FLOATING)
    );
}

#[test]
fn packets_come_out_of_the_tunnel_whatever_the_host_begins_to_check_of_sources() {
    let network = Network::new();
    network.apply("n1", plan("n1", "n2"));
    let _keeper = network.keep("n2", network.config("n2"), plan("n2", "n2"));
    // The larger one of this and the device's own counts.
    for (all, own) in [(0, "0"), (2, "2"), (0, "0"), (1, "2")] {
        network.sysctl("n2", &format!("net.ipv4.conf.all.rp_filter={all}"));
        eventually(own.to_owned(), || {
            let now = network.exec("n2", "cat /proc/sys/net/ipv4/conf/egressnat0/rp_filter");
            now.trim().to_owned()
        });
        let seen = network.seen_by_tcp("10.10.1.2", SERVER);
        assert_eq!(seen.as_deref(), Some(FLOATING), "{all}");
    }
}

#[test]
fn a_tunnel_device_that_others_alter_is_as_it_was_within_a_second() {
    let network = Network::new();
    network.apply("n2", plan("n2", "n2"));
    network.ip("n1", "link add br0 type bridge");
    let keeper = network.keep("n1", network.config("n1"), plan("n1", "n2"));
    let state = || {
        [
            "-d link show dev egressnat0",
            "-4 addr show dev egressnat0",
            "route show table 1190",
        ]
        .map(|what| network.told("n1", &format!("ip -o {what}")))
    };
    let before = state();
    for (attack, want) in [
        ("link set egressnat0 mtu 1200", "had another MTU"),
        ("link set egressnat0 arp on", "asked for neighbors"),
        (
            "link set egressnat0 address 02:00:00:00:00:07",
            "had another MAC address",
        ),
        (
            "link set egressnat0 master br0",
            "was a port of another interface",
        ),
        ("link set egressnat0 name stolen0", "was called stolen0"),
    ] {
        let restored = keeper.restores(Resource::Device, attack, || {
            network.ip("n1", attack);
        });
        let is_told = |one: &Restored| one.object == format!("egressnat0, which {want}");
        assert!(restored.iter().any(is_told), "{attack}: {restored:?}");
        assert_eq!(state(), before, "{attack}");
        assert_eq!(
            network.seen_by_tcp("10.10.1.2", SERVER).as_deref(),
            Some(FLOATING),
            "{attack}"
        );
    }
}

#[test]
fn pins_that_somebody_deletes_are_back_within_a_second_and_the_next_run_takes_over_from_them() {
    for attachment in [Attachment::Tcx, Attachment::Clsact] {
        let mut network = Network::new();
        network.attachment = attachment;
        network.apply("n2", plan("n2", "n2"));
        let config = network.config("n1");
        let keeper = network.keep("n1", config.clone(), plan("n1", "n2"));
        let pinned = || {
            let pins = std::fs::read_dir(network.pins("n1").join("v1")).unwrap();
            let names = pins.map(|pin| pin.unwrap().file_name().into_string().unwrap());
            // Who made the queueing disciplines is not known any more.
            names
                .filter(|name| !name.starts_with("qdisc"))
                .collect::<BTreeSet<String>>()
        };
        let before = pinned();
        let restored = keeper.restores(Resource::Map, "rm -r egressnat", || {
            std::fs::remove_dir_all(network.pins("n1")).unwrap();
        });
        let maps = restored.iter().filter(|one| one.resource == Resource::Map);
        assert!(maps.count() > 5, "{restored:?}");
        drop(keeper);
        assert_eq!(pinned(), before, "{attachment:?}");
        assert_eq!(
            network.seen_by_tcp("10.10.1.2", SERVER).as_deref(),
            Some(FLOATING)
        );
        // Maps and programs are those of before.
        let report = network.apply("n1", plan("n1", "n2"));
        assert_eq!(
            (report.changes, report.failures),
            (0, vec![]),
            "{attachment:?}"
        );
    }
}
