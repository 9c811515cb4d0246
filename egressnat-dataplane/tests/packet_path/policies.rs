//! What each policy sent and what it blocked, as the wire has it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use egressnat_core::model::{EgressSource, PolicyName, Snapshot};
use egressnat_core::{NodePlan, Report};
use egressnat_dataplane::{Counters, PolicyCounters};

use crate::network::{FLOATING, Network, OTHER_SERVER, SERVER, eventually, planned, snapshot};
use crate::traffic::{address, ask};
use crate::wire::Packet;

const POD: &str = "10.10.1.2";

/// The cluster with a second policy for the same pods and by the same gateway group.
fn two_policies() -> Snapshot {
    let mut snapshot = snapshot();
    let mut other = snapshot.policies[&name("egress")].clone();
    other.destinations = [format!("{OTHER_SERVER}/32").parse().unwrap()].into();
    snapshot.policies.insert(name("other"), other);
    snapshot
}

fn name(text: &str) -> PolicyName {
    text.parse().unwrap()
}

fn plan(snapshot: &Snapshot, node: &str) -> NodePlan {
    planned(snapshot, node, &[(FLOATING, "n2")])
}

impl Network {
    fn apply_snapshot(&self, snapshot: &Snapshot) {
        for node in ["n1", "n2"] {
            let report = self.apply(node, plan(snapshot, node));
            assert_eq!(report.failures, [], "{node}");
        }
    }

    /// What a policy counted on `n1`.
    pub(crate) fn policy(&self, policy: &str) -> PolicyCounters {
        let counted = self.read_counters("n1").policies;
        counted.get(&name(policy)).copied().unwrap_or_default()
    }

    /// The counters of a node as a process of its own reads them, whether there is an agent or not.
    pub(crate) fn read_counters(&self, node: &str) -> Counters {
        let config = self.config(node);
        self.enter(node, move || Counters::read(&config).unwrap())
    }
}

#[test]
fn two_policies_with_one_egress_ip_count_apart_what_the_wire_has() {
    let network = Network::new();
    network.apply_snapshot(&two_policies());
    for (counter, server) in [("egress", SERVER), ("other", OTHER_SERVER)] {
        let matches = format!("ip saddr {FLOATING} ip daddr {server}");
        network.count("out", counter, &matches);
    }
    for _ in 0..3 {
        let seen = network.seen_by_udp(POD, SERVER);
        assert_eq!(seen.as_deref(), Some(FLOATING));
    }
    for _ in 0..2 {
        let seen = network.seen_by_tcp(POD, OTHER_SERVER);
        assert_eq!(seen.as_deref(), Some(FLOATING));
    }
    for policy in ["egress", "other"] {
        // What is left of a connection goes on for a moment.
        let difference = || {
            let wire = network.counted("out", "watch", policy);
            wire.abs_diff(network.policy(policy).sent.packets)
        };
        eventually(0, difference);
    }
    let (egress, other) = (network.policy("egress"), network.policy("other"));
    assert!(
        egress.sent.packets >= 3 && egress.sent.bytes >= 3 * 43,
        "{egress:?}"
    );
    assert_eq!((egress.connections, egress.blocked), (3, 0));
    assert!(other.sent.packets >= 2 * 4, "{other:?}");
    assert_eq!((other.connections, other.blocked), (2, 0));

    // As the agent reads it, and beside it.
    let config = network.config("n1");
    let both = network.open("n1", async move |dataplane| {
        [
            dataplane.counters().unwrap(),
            Counters::read(&config).unwrap(),
        ]
    });
    assert_eq!(both[0], both[1]);
    let floating: IpAddr = FLOATING.parse().unwrap();
    let steered = both[0].egress[&floating].steered;
    assert_eq!(steered.packets, egress.sent.packets + other.sent.packets);
    assert_eq!(steered.bytes, egress.sent.bytes + other.sent.bytes);
    // On the gateway node no pod of it has sent anything.
    let gateway: BTreeMap<_, _> = network.read_counters("n2").policies;
    assert!(
        gateway
            .values()
            .all(|counted| *counted == PolicyCounters::default())
    );
}

#[test]
fn a_policys_connections_of_each_protocol_are_those_that_the_gateway_node_translates() {
    const ECHO: u16 = 5000;
    const INIT: [u8; 20] = [1, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];
    let network = Network::new();
    network.apply_snapshot(&two_policies());
    network.mirror(SERVER, ECHO);
    // Each flow has many packets, and counts once.
    for _ in 0..3 {
        let socket = network.udp(POD, 0, address(SERVER, ECHO));
        for _ in 0..4 {
            ask(&socket, 100);
        }
    }
    for _ in 0..2 {
        network.exec(POD, &format!("ping -c3 -i0.01 -W5 -q {SERVER}"));
    }
    network.inject(POD, &Packet::sctp((POD, 5000), (SERVER, 3868), 0, &INIT));
    for _ in 0..2 {
        let mut connection = network.connect(POD, OTHER_SERVER).unwrap();
        assert_eq!(connection.ask_often(5).as_deref(), Some(FLOATING));
    }
    let floating: IpAddr = FLOATING.parse().unwrap();
    eventually(3 + 2 + 1 + 2, || {
        network.read_counters("n2").egress[&floating].connections
    });
    let counted = ["egress", "other"].map(|policy| network.policy(policy));
    assert_eq!(counted.map(|counted| counted.connections), [3 + 2 + 1, 2]);
    assert!(counted[0].sent.packets > 3 * 4 + 2 * 3, "{counted:?}");

    // Another agent goes on with the flows that are known.
    let socket = network.udp(POD, 0, address(SERVER, ECHO));
    ask(&socket, 100);
    network.apply_snapshot(&two_policies());
    ask(&socket, 100);
    assert_eq!(network.policy("egress").connections, 3 + 2 + 1 + 1);
}

#[test]
fn another_policy_that_decides_the_same_counts_from_there_on_and_no_connection_notices() {
    let network = Network::new();
    let before = two_policies();
    network.apply_snapshot(&before);
    let mut connection = network.connect(POD, SERVER).unwrap();
    assert_eq!(connection.ask().as_deref(), Some(FLOATING));
    let mut after = before;
    let destinations = std::mem::take(
        &mut after
            .policies
            .get_mut(&name("egress"))
            .unwrap()
            .destinations,
    );
    let policy = after.policies.get_mut(&name("other")).unwrap();
    policy.destinations.extend(destinations);
    // The first has another destination, so that it is still applied and its pods are still those of the same policy set.
    let elsewhere = "7.7.7.0/24".parse().unwrap();
    let policy = after.policies.get_mut(&name("egress")).unwrap();
    policy.destinations.insert(elsewhere);
    let counted = network.policy("egress");
    let changed: Report = network.apply("n1", plan(&after, "n1"));
    assert_eq!(changed.failures, []);
    assert_eq!(network.apply("n1", plan(&after, "n1")).changes, 0);

    assert_eq!(connection.ask().as_deref(), Some(FLOATING));
    assert_eq!(network.policy("egress"), counted);
    let other = network.policy("other");
    assert!(other.sent.packets > 0, "{other:?}");
    assert_eq!(other.connections, 0, "it goes on");
}

#[test]
fn what_a_policy_that_is_gone_has_counted_can_still_be_read_and_goes_on_when_it_comes_back() {
    let network = Network::new();
    network.apply_snapshot(&two_policies());
    assert!(network.seen_by_udp(POD, OTHER_SERVER).is_some());
    let counted = network.policy("other");
    assert_eq!(counted.sent.packets, 1);
    network.apply_snapshot(&snapshot());
    assert!(network.seen_by_udp(POD, OTHER_SERVER).is_some());
    assert_eq!(network.policy("other"), counted);
    network.apply_snapshot(&two_policies());
    assert!(network.seen_by_udp(POD, OTHER_SERVER).is_some());
    assert_eq!(network.policy("other").sent.packets, 2);
}

#[test]
fn what_a_strict_policy_without_an_egress_ip_blocks_is_counted_for_it_e43() {
    let network = Network::new();
    let mut closed = two_policies();
    // A group of IPv6 only.
    let (key, mut group) = closed.gateways.pop_first().unwrap();
    closed.gateways.insert(key.clone(), group.clone());
    group.floating_ips = ["fd00:192:168:1::100".parse().unwrap()].into();
    let mut six = key;
    six.name = "six".parse().unwrap();
    let policy = closed.policies.get_mut(&name("other")).unwrap();
    policy.action = egressnat_core::model::Action::Snat(EgressSource::from(&six));
    closed.gateways.insert(six, group);
    network.apply("n1", plan(&closed, "n1"));
    for _ in 0..2 {
        assert_eq!(network.seen_by_udp(POD, OTHER_SERVER), None);
    }
    let other = network.policy("other");
    assert_eq!(
        other,
        PolicyCounters {
            blocked: 2,
            ..PolicyCounters::default()
        }
    );
    assert_eq!(network.policy("egress"), PolicyCounters::default());
    assert_eq!(network.read_counters("n1").blocked.dropped, 2);
}

#[test]
fn where_no_agent_has_run_that_is_said() {
    let network = Network::new();
    let config = network.config("n1");
    let error = network.enter("n1", move || Counters::read(&config).unwrap_err());
    assert!(error.to_string().contains("no agent has run"), "{error}");
}
