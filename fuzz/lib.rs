//! Structured input for the fuzz targets: small numbers become names, addresses and ranges that have a chance to meet.

use std::net::IpAddr;

use arbitrary::Arbitrary;
use egressnat_core::Snapshot;
use egressnat_core::model::{
    Action, Cluster, ClusterKey, EgressSource, Gateway, GatewayKey, GatewayKind, Health, Labels,
    NamespaceName, Node, NodeName, Pod, PodKey, PodPhase, Policy, Role, Source, Timestamp,
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
    Policy {
        name: u8,
        created: u8,
        rules: Vec<(Select, Select)>,
        destinations: Vec<(u8, u8, u8)>,
        action: Act,
    },
    RemovePolicy {
        name: u8,
    },
    ClusterRange {
        range: (u8, u8, u8),
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

fn node(n: u8) -> NodeName {
    format!("n{}", n % 8).parse().expect("a node name")
}

fn address(subnet: u8, host: u8) -> IpAddr {
    IpAddr::from([192, 168, subnet % 4, host])
}

fn range((a, b, len): (u8, u8, u8)) -> IpNet {
    let address = if a & 0x80 == 0 {
        IpAddr::from([8 + a % 4, b % 4, 0, 0])
    } else {
        IpAddr::from([10, b % 4, 0, 0])
    };
    IpNet::new(address, len % 33).expect("at most 32").trunc()
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

/// Does one step.
pub fn take(snapshot: &mut Snapshot, step: Step) {
    match step {
        Step::Node {
            name,
            subnet,
            control_plane,
            up,
            address: host,
        } => {
            let mut made = Node::new(if up { Health::Up } else { Health::Down });
            made.role = if control_plane {
                Role::ControlPlane
            } else {
                Role::Worker
            };
            made.subnets
                .insert(IpNet::new(address(subnet, 0), 24).expect("a prefix length"));
            made.addresses.insert(address(subnet, host));
            made.pod_ranges.insert(
                IpNet::new(IpAddr::from([10, 10, name % 8, 0]), 24).expect("a prefix length"),
            );
            snapshot.nodes.insert(node(name), made);
        }
        Step::RemoveNode { name } => drop(snapshot.nodes.remove(&node(name))),
        Step::Gateway {
            namespace: n,
            name,
            anthos,
            created,
            addresses,
        } => {
            let mut made = Gateway::new(
                addresses
                    .into_iter()
                    .map(|(subnet, host)| address(subnet, host)),
            );
            made.created = Timestamp(created.into());
            snapshot.gateways.insert(gateway(anthos, n, name), made);
        }
        Step::RemoveGateway {
            namespace: n,
            name,
            anthos,
        } => drop(snapshot.gateways.remove(&gateway(anthos, n, name))),
        Step::Cluster {
            namespace: n,
            enabled,
        } => {
            let key = ClusterKey {
                namespace: namespace(n),
                name: "cluster".parse().expect("a name"),
            };
            snapshot.clusters.insert(
                key,
                Cluster {
                    advanced_networking: enabled,
                    ..Cluster::default()
                },
            );
        }
        Step::Namespace { name, label } => {
            drop(snapshot.namespaces.insert(namespace(name), labels(label)))
        }
        Step::Pod {
            namespace: n,
            name,
            node: on,
            addresses,
            label,
            host_network,
            finished,
        } => {
            let mut pod = Pod::new(node(on));
            pod.ips = addresses
                .into_iter()
                .map(|host| IpAddr::from([10, 10, on % 8, host]))
                .collect();
            pod.labels = labels(label);
            pod.host_network = host_network;
            pod.phase = if finished {
                PodPhase::Finished
            } else {
                PodPhase::Active
            };
            let key = PodKey::new(
                namespace(n),
                format!("p{}", name % 8).parse().expect("a name"),
            );
            snapshot.pods.insert(key, pod);
        }
        Step::Policy {
            name,
            created,
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
            };
            snapshot
                .policies
                .insert(format!("e{}", name % 6).parse().expect("a name"), policy);
        }
        Step::RemovePolicy { name } => {
            let name = format!("e{}", name % 6).parse().expect("a name");
            snapshot.policies.remove(&name);
        }
        Step::ClusterRange { range: given } => drop(snapshot.cluster_ranges.insert(range(given))),
    }
}
