//! Pods behind a bridge, as with the bridge CNI or Docker: an address is at one port, whatever the others send.

use std::net::IpAddr;
use std::time::Duration;

use egressnat_core::{NodePlan, PolicySetId, Report};

use crate::network::{FLOATING, Network, OTHER_SERVER, SERVER, eventually, plan};

const NODE: &str = "192.168.1.1";
pub(crate) const POD: &str = "10.10.1.130";
pub(crate) const OTHER: &str = "10.10.1.131";

fn seen(address: &str) -> Option<String> {
    Some(address.to_owned())
}

fn address(pod: &str) -> IpAddr {
    pod.parse().unwrap()
}

/// The plan of n1 with a selected pod behind the bridge, and one that nothing selects.
fn bridge_plan(holder: &str) -> NodePlan {
    let mut plan = plan("n1", holder);
    let set = plan.pods[&address("10.10.1.2")];
    plan.pods.insert(address(POD), set);
    plan.pods.insert(address(OTHER), PolicySetId::EMPTY);
    plan
}

impl Network {
    /// A network whose node n1 has a bridge `cni0` for the second half of its pod range, with two pods.
    fn with_bridge() -> Self {
        let mut network = Network::new();
        network.add_bridge();
        network
    }

    pub(crate) fn add_bridge(&mut self) {
        self.ip("n1", "link add cni0 type bridge");
        self.ip("n1", "addr add 10.10.1.129/25 dev cni0");
        self.ip("n1", "link set cni0 up");
        self.add_bridge_pod(POD);
        self.add_bridge_pod(OTHER);
    }

    /// A pod at a port of the bridge that is called after the last octet.
    fn add_bridge_pod(&mut self, pod: &str) {
        self.add_namespace(pod);
        self.connect_to_bridge(pod);
        self.ip(pod, &format!("addr add {pod}/25 dev eth0"));
        self.ip(pod, "route add default via 10.10.1.129");
    }

    /// The veth pair of a pod whose other end is a port, without an address.
    fn connect_to_bridge(&self, pod: &str) {
        let port = port(pod);
        let [inside, outside] = [pod, "n1"].map(|name| self.namespace(name));
        crate::network::run(&format!(
            "ip link add eth0 netns {inside} type veth peer name {port} netns {outside}"
        ));
        self.ip("n1", &format!("link set {port} master cni0 up"));
        self.ip(pod, "link set eth0 up");
    }

    fn apply_bridge(&self, holder: &str) -> Report {
        // Who gives the floating IP away is first.
        if holder == "n1" {
            self.apply("n2", plan("n2", holder));
        }
        let report = self.apply("n1", bridge_plan(holder));
        self.apply("n2", plan("n2", holder));
        report
    }
}

/// What the port of a pod is called.
pub(crate) fn port(pod: &str) -> String {
    format!("port{}", pod.rsplit('.').next().unwrap())
}

#[test]
fn a_pod_behind_a_bridge_is_steered_and_its_neighbor_is_not() {
    let network = Network::with_bridge();
    for setting in ["0", "1"] {
        // Says whether bridged frames pass iptables, where the module for it is loaded.
        let path = "/proc/sys/net/bridge/bridge-nf-call-iptables";
        let set = format!("test ! -e {path} || echo {setting} > {path}");
        network.shell("n1", &set);
        for holder in ["n2", "n1"] {
            assert_eq!(network.apply_bridge(holder).failures, []);
            let with = format!("held by {holder}, bridge-nf {setting}");
            assert_eq!(network.seen_by_tcp(POD, SERVER), seen(FLOATING), "{with}");
            assert_eq!(network.seen_by_udp(POD, SERVER), seen(FLOATING), "{with}");
            assert!(network.is_pinged(POD, SERVER), "{with}");
            assert_eq!(network.seen_by_tcp(POD, OTHER_SERVER), seen(NODE), "{with}");
            assert_eq!(network.seen_by_tcp(OTHER, SERVER), seen(NODE), "{with}");
            for (from, to) in [(POD, OTHER), (OTHER, "10.10.1.2"), ("10.10.1.2", POD)] {
                assert!(network.is_pinged(from, to), "{from} to {to}, {with} (E12)");
            }
            let again = network.apply("n1", bridge_plan(holder));
            assert_eq!((again.changes, again.failures), (0, vec![]), "{with}");
        }
    }
}

#[test]
fn a_pod_does_not_get_anothers_egress_ip_by_claiming_its_address() {
    let network = Network::with_bridge();
    assert_eq!(network.apply_bridge("n2").failures, []);
    network.count(
        "out",
        "leaked",
        &format!("ip daddr {SERVER} ip saddr {FLOATING}"),
    );
    // The pod is quiet; the other one answers for it, and sends with its address.
    network.ip(POD, "link set eth0 down");
    network.ip(OTHER, &format!("addr add {POD}/32 dev eth0"));
    network.ip(OTHER, "route del default");
    network.ip(
        OTHER,
        &format!("route add default via 10.10.1.129 src {POD}"),
    );
    let stolen = |network: &Network| {
        assert_eq!(network.seen_by_udp(OTHER, SERVER), None);
        assert!(!network.is_pinged(OTHER, SERVER));
        network.counted("out", "watch", "leaked")
    };
    assert_eq!(stolen(&network), 0);
    let report = network.apply("n1", bridge_plan("n2"));
    let [failure] = report.failures.as_slice() else {
        panic!("{report:?}");
    };
    assert_eq!(failure.object, format!("pod {POD}"));
    for part in [port(POD), port(OTHER), "keeps it".to_owned()] {
        assert!(failure.message.contains(&part), "{}", failure.message);
    }
    assert_eq!(stolen(&network), 0);

    // An agent that has not seen who was first trusts neither, and tells so.
    let config = network.config("n1");
    network.enter("n1", move || {
        crate::network::runtime().block_on(egressnat_dataplane::cleanup(&config))
    });
    let report = network.apply("n1", bridge_plan("n2"));
    assert!(
        report.failures[0]
            .message
            .contains("none gets its decisions"),
        "{report:?}"
    );
    assert_eq!(stolen(&network), 0);

    // The thief is gone.
    network.ip("n1", &format!("link del {}", port(OTHER)));
    network.apply("n1", bridge_plan("n2"));
    network.ip(POD, "link set eth0 up");
    network.ip(POD, "route replace default via 10.10.1.129");
    eventually(seen(FLOATING), || network.seen_by_udp(POD, SERVER));
}

#[test]
fn a_new_port_has_its_program_before_its_pod_has_an_address_and_the_pod_is_found_when_it_asks() {
    let mut network = Network::with_bridge();
    assert_eq!(network.apply_bridge("n2").failures, []);
    let pod = "10.10.1.132";
    network.add_namespace(pod);
    let mut wanted = bridge_plan("n2");
    let set = wanted.pods[&address(POD)];
    wanted.pods.insert(address(pod), set);
    let inside = network.namespace(pod);
    let add_port = network.outside("n1", move |run| {
        run(&format!(
            "ip link add port132 type veth peer name eth0 netns {inside}"
        ));
        run("ip link set port132 master cni0 up");
    });
    let add_address = network.outside(pod, move |run| {
        run("ip link set eth0 up");
        run(&format!("ip addr add {pod}/25 dev eth0"));
        run("ip route add default via 10.10.1.129");
        // Nobody tells us of the address: what the pod sends does.
        run("timeout 1 ping -c1 -W1 8.8.8.8");
    });
    let (before, after) = network.open("n1", async move |mut dataplane| {
        let first = dataplane.apply(&wanted).await;
        assert_eq!(first.failures.len(), 1, "{first:?}");
        let attached = |report: &Report| report.changes == 1;
        let port = std::thread::spawn(add_port);
        let before = loop {
            changed(&mut dataplane).await;
            let report = dataplane.apply(&wanted).await;
            if attached(&report) {
                break report;
            }
        };
        port.join().unwrap();
        let pod = std::thread::spawn(add_address);
        loop {
            changed(&mut dataplane).await;
            let report = dataplane.apply(&wanted).await;
            if report.failures.is_empty() {
                pod.join().unwrap();
                return (before, report);
            }
        }
    });
    assert_eq!(before.failures[0].object, format!("pod {pod}"));
    assert_eq!((after.changes, after.failures), (1, vec![]));
    assert_eq!(network.seen_by_tcp(pod, SERVER), seen(FLOATING));
}

async fn changed(dataplane: &mut egressnat_dataplane::Dataplane) {
    let change = tokio::time::timeout(Duration::from_secs(10), dataplane.changed());
    change.await.expect("the kernel tells of what appears");
}

#[test]
fn a_machine_whose_namespace_shows_no_address_is_found_by_its_neighbor_entry() {
    let mut network = Network::with_bridge();
    // As a virtual machine: who answers for the address behind the port is no interface of the port's other end.
    let machine = "10.10.1.140";
    network.add_namespace(machine);
    network.connect_to_bridge(machine);
    network.ip(machine, "link add inner link eth0 type macvlan mode bridge");
    network.ip(machine, "link set inner up");
    network.ip(machine, &format!("addr add {machine}/25 dev inner"));
    network.ip(machine, "route add default via 10.10.1.129");
    let mut wanted = bridge_plan("n2");
    let set = wanted.pods[&address(POD)];
    wanted.pods.insert(address(machine), set);
    let plan_of_node = wanted.clone();
    // It says nothing by itself: the kernel asks for it.
    network.open("n1", async move |mut dataplane| {
        while !dataplane.apply(&plan_of_node).await.failures.is_empty() {
            changed(&mut dataplane).await;
        }
    });
    network.apply("n2", plan("n2", "n2"));
    assert_eq!(network.seen_by_tcp(machine, SERVER), seen(FLOATING));

    // A pod with an address of its own that answers for the machine is not believed.
    network.ip(machine, "link set eth0 down");
    network.ip(OTHER, &format!("addr add {machine}/32 dev lo"));
    network.ip("n1", "neigh flush dev cni0");
    network.is_pinged("n1", machine);
    let told = network.open("n1", async move |mut dataplane| {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            let report = dataplane.apply(&wanted).await;
            if !report.failures.is_empty() {
                return report.failures;
            }
            assert!(tokio::time::Instant::now() < deadline, "it is believed");
            let _ = tokio::time::timeout(Duration::from_secs(1), dataplane.changed()).await;
        }
    });
    assert!(told[0].message.contains("not believed"), "{told:?}");
}
