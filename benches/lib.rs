//! Inputs of the benchmarks, so that several measure the same.
#![deny(missing_docs)]

use std::net::IpAddr;

use egressnat_core::Snapshot;
use egressnat_core::model::{Gateway, GatewayKey, Health, Node};

/// A cluster of `nodes` workers in 10.0.0.0/8 and one gateway group with `addresses` floating IPs there.
///
/// # Panics
///
/// With more than 65,536 of either.
pub fn cluster(nodes: usize, addresses: usize) -> Snapshot {
    let address = |second: u8, n: usize| {
        let n = u16::try_from(n).expect("at most 65,536");
        let [third, fourth] = n.to_be_bytes();
        IpAddr::from([10, second, third, fourth])
    };
    let mut snapshot = Snapshot::default();
    for n in 0..nodes {
        let mut node = Node::new(Health::Up);
        node.addresses.insert(address(0, n));
        node.subnets.insert("10.0.0.0/8".parse().expect("a CIDR"));
        let name = format!("node-{n}").parse().expect("a node name");
        snapshot.nodes.insert(name, node);
    }
    let namespace = "kube-system".parse().expect("a namespace name");
    let key = GatewayKey::group(namespace, "default".parse().expect("an object name"));
    snapshot
        .gateways
        .insert(key, Gateway::new((0..addresses).map(|n| address(1, n))));
    snapshot
}
