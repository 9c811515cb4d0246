//! Clusters for property tests: few names, addresses and ranges, so that they meet.

use core::net::IpAddr;
use std::format;
use std::vec::Vec;

use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::select;

use crate::model::*;
use crate::selector::{Operator, Requirement, Selector};

fn parse<T: core::str::FromStr>(text: &str) -> T
where
    T::Err: core::fmt::Debug,
{
    text.parse().unwrap()
}

pub(crate) fn node_name() -> impl Strategy<Value = NodeName> {
    (0..7u8).prop_map(|n| parse(&format!("n{n}")))
}

fn namespace() -> impl Strategy<Value = NamespaceName> {
    select(vec!["kube-system", "cluster-a", "alice", "paul"]).prop_map(parse)
}

fn policy_name() -> impl Strategy<Value = PolicyName> {
    (0..6u8).prop_map(|n| parse(&format!("e{n}")))
}

fn created() -> impl Strategy<Value = Timestamp> {
    (0..3i64).prop_map(Timestamp)
}

/// Floating IPs, some of which are node addresses, in no subnet, not usable, or of one tunnel id.
pub(crate) fn floating_ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        8 => (0..4u8, 1..16u8).prop_map(|(subnet, host)| IpAddr::from([192, 168, subnet, host])),
        2 => (1..6u16).prop_map(|host| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, host])),
        1 => select(vec!["10.168.1.1", "224.0.0.1", "::ffff:192.168.1.1"]).prop_map(parse),
    ]
}

prop_compose! {
    pub(crate) fn node()(
        host in 0..8u8,
        subnets in prop::collection::btree_set(0..3u8, 0..3),
        has_v6 in any::<bool>(),
        pods in 0..6u8,
        is_control_plane in any::<bool>(),
        is_up in prop::bool::weighted(0.8),
        draining in prop::bool::weighted(0.15),
        capacity in prop::option::weighted(0.3, 0..4usize),
    ) -> Node {
        let mut node = Node::new(if is_up { Health::Up } else { Health::Down });
        node.addresses.insert(IpAddr::from([192, 168, 0, host]));
        node.subnets.extend(subnets.iter().map(|n| parse::<IpNet>(&format!("192.168.{n}.0/24"))));
        if subnets.contains(&0) && has_v6 {
            node.subnets.insert(parse("192.168.0.0/20"));
        }
        if has_v6 {
            node.subnets.insert(parse("fd00::/64"));
            node.pod_ranges.insert(parse(&format!("fd10:0:0:{pods}::/64")));
        }
        node.pod_ranges.insert(parse(&format!("10.10.{pods}.0/24")));
        node.role = if is_control_plane { Role::ControlPlane } else { Role::Worker };
        node.draining = draining;
        node.capacity = capacity;
        node
    }
}

fn labels() -> impl Strategy<Value = Labels> {
    prop::collection::btree_map(select(vec!["l", "m"]), 0..3u8, 0..3).prop_map(|labels| {
        let text = |(key, value): (&str, u8)| (key.into(), format!("{value}"));
        labels.into_iter().map(text).collect()
    })
}

pub(crate) fn selector() -> impl Strategy<Value = Selector> {
    let values = || {
        prop::collection::btree_set(0..3u8, 1..3)
            .prop_map(|values| values.iter().map(|v| format!("{v}")).collect())
    };
    let operator = prop_oneof![
        values().prop_map(Operator::In),
        values().prop_map(Operator::NotIn),
        Just(Operator::Exists),
        Just(Operator::DoesNotExist),
    ];
    let requirement = (select(vec!["l", "m"]), operator).prop_map(|(key, operator)| Requirement {
        key: key.into(),
        operator,
    });
    let requirements = prop::collection::vec(requirement, 0..3);
    (prop::option::weighted(0.4, labels()), requirements).prop_map(|(labels, requirements)| {
        Selector {
            match_labels: labels.unwrap_or_default(),
            match_expressions: requirements,
        }
    })
}

prop_compose! {
    fn pod()(
        node in node_name(),
        hosts in prop::collection::btree_set((0..6u8, 1..9u8, any::<bool>()), 0..3),
        labels in labels(),
        host_network in prop::bool::weighted(0.1),
        is_finished in prop::bool::weighted(0.1),
    ) -> Pod {
        let mut pod = Pod::new(node);
        pod.ips = hosts
            .into_iter()
            .map(|(third, fourth, is_v4)| match is_v4 {
                true => IpAddr::from([10, 10, third, fourth]),
                false => IpAddr::from([0xfd10, 0, 0, third.into(), 0, 0, 0, fourth.into()]),
            })
            .collect();
        pod.labels = labels;
        pod.host_network = host_network;
        pod.phase = if is_finished { PodPhase::Finished } else { PodPhase::Active };
        pod
    }
}

/// Ranges that hold, lie in and lie beside each other and the cluster's.
pub(crate) fn range() -> impl Strategy<Value = IpNet> {
    let v4 = (
        select(vec![8u8, 9, 10]),
        8..12u8,
        select(vec![0u8, 7, 8, 16, 22, 24, 32]),
    )
        .prop_map(|(a, b, len)| IpNet::new(IpAddr::from([a, b, 0, 0]), len).unwrap());
    let v6 = select(vec![
        "::/0",
        "2001:db8::/32",
        "2001:db8:1::/48",
        "fd10::/16",
        "::ffff:8.8.8.0/120",
    ]);
    prop_oneof![4 => v4, 1 => v6.prop_map(parse)]
}

fn gateway_key() -> impl Strategy<Value = GatewayKey> {
    let kinds = vec![
        GatewayKind::NetworkGatewayGroup,
        GatewayKind::AnthosNetworkGateway,
    ];
    (select(kinds), namespace(), 0..2u8).prop_map(|(kind, namespace, n)| GatewayKey {
        kind,
        namespace,
        name: parse(&format!("g{n}")),
    })
}

prop_compose! {
    fn gateway()(
        created in created(),
        floating_ips in prop::collection::vec(floating_ip(), 0..6),
        mirror_of in prop::option::weighted(0.1, namespace()),
    ) -> Gateway {
        Gateway { created, floating_ips, mirror_of }
    }
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        5 => (0..3u8).prop_map(|n| Action::Snat(EgressSource::Gateway {
            namespace: parse("kube-system"),
            name: parse(&format!("g{n}")),
        })),
        3 => floating_ip().prop_map(|ip| Action::Snat(EgressSource::Address(ip))),
        2 => Just(Action::NoSnat),
    ]
}

prop_compose! {
    fn policy()(
        created in created(),
        sources in prop::collection::vec((selector(), selector()), 0..3),
        destinations in prop::collection::btree_set(range(), 0..4),
        action in action(),
        is_strict in prop::bool::weighted(0.7),
        is_invalid in prop::bool::weighted(0.05),
    ) -> Policy {
        let mut sources: Vec<Source> = sources
            .into_iter()
            .map(|(namespaces, pods)| Source { namespaces, pods })
            .collect();
        if is_invalid {
            sources.push(Source { pods: Selector::from_labels([("a b", "c")]), ..Source::default() });
        }
        let enforcement = if is_strict { Enforcement::Strict } else { Enforcement::BestEffort };
        Policy { created, sources, destinations, action, enforcement }
    }
}

pub(crate) fn masquerade() -> impl Strategy<Value = MasqueradeRules> {
    let source = prop::option::weighted(
        0.3,
        (0..6u8).prop_map(|n| parse(&format!("10.10.{n}.0/24"))),
    );
    let protocol = prop::option::weighted(0.3, select(vec![Protocol::TCP, Protocol::UDP]));
    let rule =
        (range(), source, protocol).prop_map(|(destination, source, protocol)| MasqueradeMatch {
            destination: destination.trunc(),
            source,
            protocol,
        });
    let action = select(vec![MasqueradeAction::Keep, MasqueradeAction::Masquerade]);
    prop::collection::btree_map(rule, action, 0..4).prop_map(|rules| MasqueradeRules { rules })
}

fn or_gone<T: core::fmt::Debug>(
    strategy: impl Strategy<Value = T>,
) -> impl Strategy<Value = Option<T>> {
    prop::option::weighted(0.8, strategy)
}

/// One step in the life of a cluster.
pub(crate) fn event() -> impl Strategy<Value = Event> {
    let pod_key = (namespace(), 0..8u8)
        .prop_map(|(namespace, n)| PodKey::new(namespace, parse(&format!("p{n}"))));
    let cluster_key = namespace().prop_map(|namespace| ClusterKey {
        namespace,
        name: parse("c"),
    });
    let cluster = (any::<bool>(), any::<bool>()).prop_map(|(a, b)| Cluster {
        anthos_network_gateway: a,
        advanced_networking: b,
    });
    prop_oneof![
        6 => (node_name(), or_gone(node())).prop_map(|(key, node)| Event::Node(key, node)),
        3 => (namespace(), or_gone(labels())).prop_map(|(key, labels)| Event::Namespace(key, labels)),
        8 => (pod_key, or_gone(pod())).prop_map(|(key, pod)| Event::Pod(key, pod)),
        5 => (gateway_key(), or_gone(gateway())).prop_map(|(key, gateway)| Event::Gateway(key, gateway)),
        6 => (policy_name(), or_gone(policy())).prop_map(|(key, policy)| Event::Policy(key, policy)),
        1 => (cluster_key, or_gone(cluster)).prop_map(|(key, cluster)| Event::Cluster(key, cluster)),
        1 => prop::collection::btree_set(range(), 0..3).prop_map(Event::ClusterRanges),
        1 => masquerade().prop_map(Event::Masquerade),
    ]
}

/// A cluster, with a previous assignment that may or may not make sense.
pub(crate) fn snapshot() -> impl Strategy<Value = Snapshot> {
    let previous = prop::collection::btree_map(floating_ip(), node_name(), 0..12);
    (prop::collection::vec(event(), 0..50), previous).prop_map(|(events, previous)| {
        let mut snapshot = Snapshot::default();
        for event in events {
            snapshot.apply(event);
        }
        snapshot.previous.nodes = previous;
        snapshot
    })
}

/// A pod of a large cluster; its label is its own.
pub(crate) fn large_pod(node: &NodeName, n: u16) -> (PodKey, Pod) {
    let [third, fourth] = n.to_be_bytes();
    let mut pod = Pod::new(node.clone());
    pod.ips.insert(IpAddr::from([10, 9, third, fourth]));
    pod.labels.insert("app".into(), format!("{n}"));
    let key = PodKey::new(parse("shop"), parse(&format!("pod-{n}")));
    (key, pod)
}

/// A node with pods of which each is selected by a policy of its own, and as many policies again for pods that are not there.
pub(crate) fn large(node: &NodeName, pods: u16) -> Vec<Event> {
    let gateway = GatewayKey::group(parse("kube-system"), parse("default"));
    let mut events = std::vec![
        Event::Namespace(parse("shop"), Some(Labels::new())),
        Event::Gateway(
            gateway.clone(),
            Some(Gateway::new([parse("192.168.1.100")]))
        ),
    ];
    for n in 0..pods * 3 {
        let rule = Source {
            pods: Selector::from_labels([("app", format!("{n}"))]),
            ..Source::default()
        };
        let destination = parse(&format!("100.{}.{}.0/24", n >> 8, n & 0xff));
        let policy = Policy::snat([rule], [destination], EgressSource::from(&gateway));
        events.push(Event::Policy(parse(&format!("policy-{n}")), Some(policy)));
    }
    for n in 0..pods {
        let (key, pod) = large_pod(node, n);
        events.push(Event::Pod(key, Some(pod)));
    }
    events
}
