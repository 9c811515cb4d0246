//! Inputs of the benchmarks, so that several measure the same.
#![deny(missing_docs)]

use std::net::IpAddr;

use egressnat_core::Snapshot;
use egressnat_core::model::{
    EgressSource, Gateway, GatewayKey, Health, Labels, NamespaceName, Node, NodeName, Pod, PodKey,
    Policy, Source,
};
use egressnat_core::selector::Selector;

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

/// The node that the pods of [`node_with_pods`] run on.
pub fn local_node() -> NodeName {
    "node-0".parse().expect("a node name")
}

/// A cluster of ten workers with one floating IP each, `pods` pods of one namespace on [`local_node`], and `policies` policies,
/// of which policy n selects the pods with the label `app=n`, where pod n has the label `app=n` too. More policies than pods
/// leaves the rest without pods, as on a node of a large cluster.
///
/// # Panics
///
/// With more than 65,536 of either.
pub fn node_with_pods(pods: usize, policies: usize) -> Snapshot {
    let mut snapshot = cluster(10, 10);
    let namespace: NamespaceName = "shop".parse().expect("a namespace name");
    snapshot.namespaces.insert(namespace.clone(), Labels::new());
    for n in 0..pods {
        let mut pod = Pod::new(local_node());
        let [third, fourth] = u16::try_from(n).expect("at most 65,536").to_be_bytes();
        pod.ips.insert(IpAddr::from([10, 2, third, fourth]));
        pod.labels.insert("app".to_owned(), n.to_string());
        let name = format!("pod-{n}").parse().expect("an object name");
        snapshot
            .pods
            .insert(PodKey::new(namespace.clone(), name), pod);
    }
    for n in 0..policies {
        let sources = [Source {
            namespaces: Selector::default(),
            pods: Selector::from_labels([("app".to_owned(), n.to_string())]),
        }];
        let [third, fourth] = u16::try_from(n).expect("at most 65,536").to_be_bytes();
        let destination = format!("100.{third}.{fourth}.0/24");
        let policy = Policy::snat(
            sources,
            [destination.parse().expect("a CIDR")],
            EgressSource::Gateway {
                namespace: "kube-system".parse().expect("a namespace name"),
                name: "default".parse().expect("an object name"),
            },
        );
        let name = format!("policy-{n}").parse().expect("a policy name");
        snapshot.policies.insert(name, policy);
    }
    snapshot
}

#[cfg(test)]
mod tests {
    use egressnat_core::{assign, plan_node};

    use super::{local_node, node_with_pods};

    /// Else the benchmark would measure a plan of nothing.
    #[test]
    fn every_pod_of_the_benchmark_has_one_policy_and_nothing_is_wrong() {
        let snapshot = node_with_pods(20, 30);
        let assigned = assign(&snapshot);
        let planned = plan_node(&snapshot, &assigned.assignment, &local_node());
        assert_eq!(planned.findings, []);
        assert_eq!(planned.plan.pods.len(), 20);
        assert_eq!(planned.plan.destinations.len(), 20);
    }
}
