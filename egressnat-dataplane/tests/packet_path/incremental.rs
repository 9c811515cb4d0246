//! Applying costs what changes: the kernel is read when others touched it, and many floating IPs at once are one batch.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use egressnat_core::{NodePlan, Resource};
use egressnat_dataplane::{Dataplane, TableOwnership};

use crate::network::{FLOATING, Network, SERVER, plan};
use crate::owner::can;

/// As many as a mark has room for, less some for others.
const MANY: u32 = 1_000;

fn with_many(mut plan: NodePlan) -> NodePlan {
    let first = u32::from(Ipv4Addr::new(192, 168, 200, 0));
    let many = (first..first + MANY).map(|address| IpAddr::from(Ipv4Addr::from(address)));
    plan.floating_ips.extend(many);
    plan
}

/// Counts the batches that nf_tables takes, between marks of its own: chains `mark1`, `mark2` and so on.
struct Monitor {
    child: Child,
    namespace: String,
    told: String,
    marks: usize,
}

impl Monitor {
    fn start(namespace: &str) -> Self {
        let child = Command::new("ip")
            .args(["netns", "exec", namespace, "nft", "monitor"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.as_ref().unwrap();
        let flags = nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(stdout, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
        let mut monitor = Self {
            child,
            namespace: namespace.to_owned(),
            told: String::new(),
            marks: 0,
        };
        assert!(can(namespace, "nft add table ip seen"));
        // What comes before it listens is not told.
        let start = Instant::now();
        while !monitor.told.contains("new generation") {
            assert!(start.elapsed() < Duration::from_secs(10));
            assert!(can(namespace, "nft add chain ip seen early"));
            assert!(can(namespace, "nft delete chain ip seen early"));
            monitor.listen();
        }
        monitor.batches();
        monitor
    }

    fn listen(&mut self) {
        let mut bytes = vec![0; 1 << 20];
        let stdout = self.child.stdout.as_mut().unwrap();
        while let Ok(length @ 1..) = stdout.read(&mut bytes) {
            self.told += &String::from_utf8_lossy(&bytes[..length]);
        }
    }

    /// How many there were since it was asked last.
    fn batches(&mut self) -> usize {
        self.marks += 1;
        let mark = format!("mark{}", self.marks);
        let command = format!("nft add chain ip seen {mark}");
        assert!(can(&self.namespace, &command));
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < Duration::from_secs(10), "{}", self.told);
            self.listen();
            if let Some((before, after)) = self.told.split_once(&mark)
                && let Some((_, rest)) = after.split_once("new generation")
            {
                let count = before.matches("new generation").count();
                self.told = rest.to_owned();
                return count;
            }
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether anything asks for another apply, within some time.
async fn is_asked_again(dataplane: &mut Dataplane) -> bool {
    let quiet = Duration::from_millis(300);
    tokio::time::timeout(quiet, dataplane.changed())
        .await
        .is_ok()
}

#[test]
fn a_thousand_floating_ips_come_and_go_in_one_batch_each_and_what_is_written_is_no_news() {
    let network = Network::new();
    network.apply("n2", plan("n2", "n1"));
    // Link-local addresses come by themselves, a while after their links, and would be news.
    for of in ["all", "default"] {
        network.sysctl("n1", &format!("net.ipv6.conf.{of}.disable_ipv6=1"));
    }
    let namespace = network.namespace("n1");
    network.open("n1", async move |mut dataplane| {
        let few = plan("n1", "n1");
        assert_eq!(dataplane.apply(&few).await.failures, []);
        while is_asked_again(&mut dataplane).await {
            assert_eq!(dataplane.apply(&few).await.failures, []);
        }
        let mut monitor = Monitor::start(&namespace);
        for (wanted, what) in [(with_many(few.clone()), "come"), (few, "go")] {
            monitor.batches();
            let start = Instant::now();
            let report = dataplane.apply(&wanted).await;
            eprintln!("{MANY} floating IPs {what}: {:?}", start.elapsed());
            assert_eq!(report.failures, []);
            assert_eq!(*report.floating_ips, wanted.floating_ips);
            assert_eq!(monitor.batches(), 1, "{what}");
            // One by one it would be minutes.
            assert!(start.elapsed() < Duration::from_secs(60), "{what}");

            assert!(!is_asked_again(&mut dataplane).await, "{what}");
            let again = dataplane.apply(&wanted).await;
            assert_eq!((again.changes, again.failures), (0, vec![]), "{what}");
        }
    });
    assert_eq!(
        network.seen_by_tcp("10.10.2.2", SERVER).as_deref(),
        Some(FLOATING)
    );
}

#[test]
fn one_event_is_one_batch_at_most_and_as_few_writes_however_much_there_is() {
    let network = Network::new();
    network.apply("n2", plan("n2", "n1"));
    let namespace = network.namespace("n1");
    network.open("n1", async move |mut dataplane| {
        let mut wanted = with_many(plan("n1", "n1"));
        assert_eq!(dataplane.apply(&wanted).await.failures, []);
        let mut monitor = Monitor::start(&namespace);
        let pod = |host: u8| IpAddr::from([10, 10, 1, host]);
        let set = wanted.pods[&pod(2)];
        let policy = wanted.deciders.values().next().unwrap().clone();
        let network = "7.7.7.0/24".parse().unwrap();
        let steering = *wanted.destinations.values().next().unwrap();
        type Event<'a> = (&'a str, &'a dyn Fn(&mut NodePlan), usize, usize);
        let events: [Event<'_>; 5] = [
            (
                "a pod is selected",
                &|plan| {
                    plan.pods.insert(pod(3), set);
                },
                0,
                1,
            ),
            (
                "a destination",
                &|plan| {
                    plan.destinations.insert((set, network), steering);
                    plan.deciders.insert((set, network), policy.clone());
                    plan.guard_ranges.insert(network);
                },
                1,
                2,
            ),
            (
                "a node",
                &|plan| {
                    plan.peers.insert(IpAddr::from([192, 168, 1, 3]));
                },
                0,
                1,
            ),
            (
                "a floating IP more",
                &|plan| {
                    plan.floating_ips.insert(IpAddr::from([192, 168, 1, 101]));
                },
                1,
                5,
            ),
            (
                "a floating IP less",
                &|plan| {
                    plan.floating_ips.remove(&IpAddr::from([192, 168, 1, 101]));
                },
                1,
                5,
            ),
        ];
        for (what, event, batches, writes) in events {
            event(&mut wanted);
            monitor.batches();
            let report = dataplane.apply(&wanted).await;
            assert_eq!(report.failures, [], "{what}");
            assert_eq!(monitor.batches(), batches, "{what}");
            let range = 1..=writes;
            assert!(range.contains(&report.changes), "{what}: {report:?}");
        }
    });
}

#[test]
fn what_others_do_between_two_applies_is_seen_by_the_second() {
    let network = Network::new();
    network.apply("n2", plan("n2", "n1"));
    let mut config = network.config("n1");
    config.table_ownership = TableOwnership::Never;
    let namespace = network.namespace("n1");
    network.open_with("n1", config, async move |mut dataplane| {
        let wanted = plan("n1", "n1");
        let first = dataplane.apply(&wanted).await;
        assert_eq!(first.failures, []);
        for (resource, attack) in [
            (
                Resource::Address,
                format!("ip addr del {FLOATING}/32 dev eth0"),
            ),
            (
                Resource::Entry,
                "nft flush map ip egressnat egress_ips".to_owned(),
            ),
            (
                Resource::Entry,
                "nft flush set ip egressnat guard_ranges".to_owned(),
            ),
            (Resource::Table, "nft delete table ip egressnat".to_owned()),
            (Resource::Route, "ip route flush table 1190".to_owned()),
            (
                Resource::RoutingRule,
                "ip rule del priority 1190".to_owned(),
            ),
            (Resource::Device, "ip link del egressnat0".to_owned()),
        ] {
            assert!(can(&namespace, &attack), "{attack}");
            let report = dataplane.apply(&wanted).await;
            let is_restored = report.restored.iter().any(|one| one.resource == resource);
            assert!(is_restored, "{attack}: {report:?}");
            assert_eq!(report.failures, [], "{attack}");
            assert_eq!(*report.floating_ips, wanted.floating_ips, "{attack}");
            let again = dataplane.apply(&wanted).await;
            let outcome = (again.changes, again.failures, again.restored);
            assert_eq!(outcome, (0, vec![], vec![]), "{attack}");
        }
    });
    assert_eq!(
        network.seen_by_tcp("10.10.1.2", SERVER).as_deref(),
        Some(FLOATING)
    );
}
