//! Structured input for the fuzz targets: small numbers become names, addresses and ranges that have a chance to meet.

use std::net::IpAddr;

use arbitrary::Arbitrary;
use egressnat_core::model::{
    Action, Cluster, ClusterKey, EgressSource, Enforcement, Event, Gateway, GatewayKey, GatewayKind,
    Health, Labels, MasqueradeAction, MasqueradeMatch, MasqueradeRules, NamespaceName, Node,
    NodeName, Pod, PodKey, PodPhase, Policy, Protocol, Role, Source, Timestamp,
};
use egressnat_core::selector::{Operator, Requirement, Selector};
use ipnet::IpNet;

/// A step in the life of a cluster.
#[derive(Arbitrary, Debug)]
pub enum Step {
    Node {
        name: u8,
        subnet: u8,
        control_plane: bool,
        up: bool,
        draining: bool,
        capacity: u8,
        address: u8,
    },
    RemoveNode {
        name: u8,
    },
    Gateway {
        namespace: u8,
        name: u8,
        anthos: bool,
        created: u8,
        addresses: Vec<(u8, u8)>,
    },
    RemoveGateway {
        namespace: u8,
        name: u8,
        anthos: bool,
    },
    Cluster {
        namespace: u8,
        enabled: bool,
    },
    Namespace {
        name: u8,
        label: u8,
    },
    Pod {
        namespace: u8,
        name: u8,
        node: u8,
        addresses: Vec<u8>,
        label: u8,
        host_network: bool,
        finished: bool,
    },
    RemovePod {
        namespace: u8,
        name: u8,
    },
    RemoveNamespace {
        name: u8,
    },
    Masquerade {
        rules: Vec<((u8, u8, u8), bool, bool)>,
    },
    Policy {
        name: u8,
        created: u8,
        best_effort: bool,
        rules: Vec<(Select, Select)>,
        destinations: Vec<(u8, u8, u8)>,
        action: Act,
    },
    RemovePolicy {
        name: u8,
    },
    ClusterRange {
        ranges: Vec<(u8, u8, u8)>,
    },
}

/// A selector.
#[derive(Arbitrary, Debug)]
pub enum Select {
    All,
    Label(u8),
    In(Vec<u8>),
    NotIn(Vec<u8>),
    Exists,
    DoesNotExist,
}

/// What a policy does.
#[derive(Arbitrary, Debug)]
pub enum Act {
    Gateway { namespace: u8, name: u8 },
    Address(u8, u8),
    NoSnat,
}

const NAMESPACES: [&str; 4] = ["kube-system", "cluster-a", "alice", "paul"];

fn namespace(n: u8) -> NamespaceName {
    NAMESPACES[usize::from(n) % NAMESPACES.len()]
        .parse()
        .expect("a namespace name")
}

fn node_name(n: u8) -> NodeName {
    format!("n{}", n % 8).parse().expect("a node name")
}

/// The nodes that steps are about.
pub fn nodes() -> impl Iterator<Item = NodeName> {
    (0..8).map(node_name)
}

fn address(subnet: u8, host: u8) -> IpAddr {
    if subnet % 16 == 15 {
        return IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, host.into()]);
    }
    IpAddr::from([192, 168, subnet % 4, host])
}

fn range((a, b, len): (u8, u8, u8)) -> IpNet {
    if a % 16 == 15 {
        let address = IpAddr::from([0x2001, 0xdb8, b.into(), 0, 0, 0, 0, 0]);
        return IpNet::new(address, len % 129).expect("at most 128");
    }
    let address = if a & 0x80 == 0 {
        IpAddr::from([8 + a % 4, b % 4, 0, 0])
    } else {
        IpAddr::from([10, b % 4, 0, 0])
    };
    IpNet::new(address, len % 33).expect("at most 32")
}

fn gateway(kind: bool, n: u8, name: u8) -> GatewayKey {
    let kind = if kind {
        GatewayKind::AnthosNetworkGateway
    } else {
        GatewayKind::NetworkGatewayGroup
    };
    GatewayKey {
        kind,
        namespace: namespace(n),
        name: format!("g{}", name % 3).parse().expect("a name"),
    }
}

fn selector(select: &Select) -> Selector {
    let values = |values: &[u8]| values.iter().map(|v| (v % 4).to_string()).collect();
    let operator = match select {
        Select::All => return Selector::default(),
        Select::Label(value) => return Selector::from_labels([("l", (value % 4).to_string())]),
        Select::In(list) => Operator::In(values(list)),
        Select::NotIn(list) => Operator::NotIn(values(list)),
        Select::Exists => Operator::Exists,
        Select::DoesNotExist => Operator::DoesNotExist,
    };
    Selector {
        match_labels: Labels::new(),
        match_expressions: vec![Requirement {
            key: "l".into(),
            operator,
        }],
    }
}

fn labels(n: u8) -> Labels {
    if n % 5 == 4 {
        Labels::new()
    } else {
        Labels::from([("l".into(), (n % 5).to_string())])
    }
}

fn pod_key(n: u8, name: u8) -> PodKey {
    PodKey::new(namespace(n), format!("p{}", name % 8).parse().expect("a name"))
}

/// The event that a step is.
pub fn event(step: Step) -> Event {
    match step {
        Step::Node {
            name,
            subnet,
            control_plane,
            up,
            draining,
            capacity,
            address: host,
        } => {
            let mut made = Node::new(if up { Health::Up } else { Health::Down });
            if control_plane {
                made.role = Role::ControlPlane;
            }
            made.draining = draining;
            made.capacity = (capacity < 8).then_some(capacity.into());
            made.subnets
                .insert(IpNet::new(address(subnet % 4, 0), 24).expect("a prefix length"));
            made.subnets
                .insert(IpNet::new(address(15, 0), 64).expect("a prefix length"));
            made.addresses.insert(address(subnet % 4, host));
            made.pod_ranges.insert(
                IpNet::new(IpAddr::from([10, 10, name % 8, 0]), 24).expect("a prefix length"),
            );
            Event::Node(node_name(name), Some(made))
        }
        Step::RemoveNode { name } => Event::Node(node_name(name), None),
        Step::Gateway {
            namespace: n,
            name,
            anthos,
            created,
            addresses,
        } => {
            let addresses = addresses.into_iter();
            let mut made = Gateway::new(addresses.map(|(subnet, host)| address(subnet, host)));
            made.created = Timestamp(created.into());
            Event::Gateway(gateway(anthos, n, name), Some(made))
        }
        Step::RemoveGateway {
            namespace: n,
            name,
            anthos,
        } => Event::Gateway(gateway(anthos, n, name), None),
        Step::Cluster {
            namespace: n,
            enabled,
        } => {
            let key = ClusterKey {
                namespace: namespace(n),
                name: "cluster".parse().expect("a name"),
            };
            let cluster = Cluster {
                advanced_networking: enabled,
                ..Cluster::default()
            };
            Event::Cluster(key, Some(cluster))
        }
        Step::Namespace { name, label } => Event::Namespace(namespace(name), Some(labels(label))),
        Step::RemoveNamespace { name } => Event::Namespace(namespace(name), None),
        Step::Pod {
            namespace: n,
            name,
            node: on,
            addresses,
            label,
            host_network,
            finished,
        } => {
            let mut pod = Pod::new(node_name(on));
            let v4 = |host: u8| IpAddr::from([10, 10, on % 8, host]);
            let v6 = |host: u8| IpAddr::from([0xfd10, 0, 0, 0, 0, 0, 0, host.into()]);
            pod.ips = addresses
                .into_iter()
                .map(|host| if host % 8 == 7 { v6(host) } else { v4(host) })
                .collect();
            pod.labels = labels(label);
            pod.host_network = host_network;
            if finished {
                pod.phase = PodPhase::Finished;
            }
            Event::Pod(pod_key(n, name), Some(pod))
        }
        Step::RemovePod { namespace: n, name } => Event::Pod(pod_key(n, name), None),
        Step::Policy {
            name,
            created,
            best_effort,
            rules,
            destinations,
            action,
        } => {
            let rule = |(n, p): &(Select, Select)| Source {
                namespaces: selector(n),
                pods: selector(p),
            };
            let action = match action {
                Act::Gateway { namespace: n, name } => {
                    Action::Snat(EgressSource::from(&gateway(false, n, name)))
                }
                Act::Address(subnet, host) => {
                    Action::Snat(EgressSource::Address(address(subnet, host)))
                }
                Act::NoSnat => Action::NoSnat,
            };
            let policy = Policy {
                created: Timestamp(created.into()),
                sources: rules.iter().map(rule).collect(),
                destinations: destinations.into_iter().map(range).collect(),
                action,
                enforcement: if best_effort {
                    Enforcement::BestEffort
                } else {
                    Enforcement::Strict
                },
            };
            let name = format!("e{}", name % 6).parse().expect("a name");
            Event::Policy(name, Some(policy))
        }
        Step::RemovePolicy { name } => {
            let name = format!("e{}", name % 6).parse().expect("a name");
            Event::Policy(name, None)
        }
        Step::ClusterRange { ranges } => Event::ClusterRanges(ranges.into_iter().map(range).collect()),
        Step::Masquerade { rules } => {
            let rule = |(destination, is_tcp, keeps): ((u8, u8, u8), bool, bool)| {
                let rule = MasqueradeMatch {
                    protocol: is_tcp.then_some(Protocol::TCP),
                    ..MasqueradeMatch::to(range(destination))
                };
                let action = if keeps {
                    MasqueradeAction::Keep
                } else {
                    MasqueradeAction::Masquerade
                };
                (rule, action)
            };
            Event::Masquerade(MasqueradeRules {
                rules: rules.into_iter().map(rule).collect(),
            })
        }
    }
}

#[path = "../egressnat-core/tests/ownership/controller.rs"]
mod controller;
#[path = "../egressnat-core/tests/ownership/message.rs"]
mod message;
#[path = "../egressnat-core/tests/ownership/node.rs"]
mod node;
/// What happens in a schedule.
#[path = "../egressnat-core/tests/ownership/schedule.rs"]
pub mod schedule;
/// Nodes, controllers and a store in virtual time: the simulator of the core's own tests.
#[path = "../egressnat-core/tests/ownership/simulator.rs"]
pub mod simulator;
