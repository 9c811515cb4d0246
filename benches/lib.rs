//! Inputs of the benchmarks, so that several measure the same.
#![deny(missing_docs)]

pub mod live;
pub mod rounds;

use std::net::IpAddr;

use egressnat_core::model::{
    EgressSource, Gateway, GatewayKey, Health, Labels, NamespaceName, Node, NodeName, Pod, PodKey,
    Policy, PolicyName, Source, Timestamp,
};
use egressnat_core::selector::Selector;
use egressnat_core::{Membership, Snapshot};

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

/// The peers' input for assignment: `addresses` egress IPs `1.1.a.b` with pseudo-random a and b, so that some are duplicates, each in
/// a gateway group of its own, created one second apart; `nodes` nodes of at most `capacity` floating IPs each.
///
/// # Panics
///
/// With more than 65,536 nodes.
pub fn scheduling(nodes: usize, addresses: usize, capacity: usize) -> Snapshot {
    let mut snapshot = cluster(nodes, 0);
    snapshot.gateways.clear();
    for node in snapshot.nodes.values_mut() {
        node.subnets = ["1.1.0.0/16".parse().expect("a CIDR")].into();
        node.capacity = Some(capacity);
    }
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for n in 0..addresses {
        // xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let [a, b, ..] = state.to_le_bytes();
        let mut gateway = Gateway::new([IpAddr::from([1, 1, a, b])]);
        gateway.created = Timestamp(i64::try_from(n).expect("a small number"));
        let namespace = "kube-system".parse().expect("a namespace name");
        let name = format!("egress-{n}").parse().expect("an object name");
        snapshot
            .gateways
            .insert(GatewayKey::group(namespace, name), gateway);
    }
    snapshot
}

/// A policy that translates what `source` selects.
pub fn policy(source: Source) -> Policy {
    let gateway = EgressSource::Gateway {
        namespace: "kube-system".parse().expect("a namespace name"),
        name: "default".parse().expect("an object name"),
    };
    Policy::snat([source], ["8.8.8.0/24".parse().expect("a CIDR")], gateway)
}

/// Labels from pairs.
pub fn labels<const N: usize>(pairs: [(&str, String); N]) -> Labels {
    pairs.map(|(key, value)| (key.to_owned(), value)).into()
}

/// A pod with these labels on node `n` of 1,000.
pub fn pod(n: usize, labels: Labels) -> Pod {
    let name = format!("node-{}", n % 1000).parse().expect("a node name");
    let mut pod = Pod::new(name);
    pod.labels = labels;
    pod
}

/// The name of an object that is one of many.
///
/// # Panics
///
/// If the kind of name does not allow `prefix`.
pub fn name<T: std::str::FromStr>(prefix: &str, n: usize) -> T
where
    T::Err: std::fmt::Debug,
{
    format!("{prefix}-{n}").parse().expect("a name")
}

/// Everything at once, as a cluster that starts has it: pods, namespaces, policies.
#[derive(Debug, Clone, Default)]
pub struct Initial {
    /// Namespaces with their labels.
    pub namespaces: Vec<(NamespaceName, Labels)>,
    /// Pods.
    pub pods: Vec<(PodKey, Pod)>,
    /// Policies.
    pub policies: Vec<(PolicyName, Policy)>,
}

impl Initial {
    /// 25,000 namespaces of 4 pods, 2 with app-1=scale-1 and 2 with app-2=scale-2, and 3 policies each that select all of the
    /// namespace, the first two, the last two: Antrea's InitXLargeScaleWithSmallNamespaces.
    pub fn small_namespaces(namespaces: usize) -> Self {
        let mut initial = Self::default();
        for n in 0..namespaces {
            let namespace: NamespaceName = name("namespace", n);
            let own = labels([("kubernetes.io/metadata.name", format!("namespace-{n}"))]);
            for (number, app) in [(0, 1), (1, 1), (2, 2), (3, 2)] {
                let key = format!("app-{app}");
                let labels = labels([(key.as_str(), format!("scale-{app}"))]);
                let key = PodKey::new(namespace.clone(), name("pod", number));
                initial.pods.push((key, pod(4 * n + number, labels)));
            }
            let selectors = [
                Selector::default(),
                Selector::from_labels([("app-1", "scale-1")]),
                Selector::from_labels([("app-2", "scale-2")]),
            ];
            for (number, pods) in selectors.into_iter().enumerate() {
                let source = Source {
                    namespaces: Selector::from_labels(own.clone()),
                    pods,
                };
                let policy_name = name("policy", 3 * n + number);
                initial.policies.push((policy_name, policy(source)));
            }
            initial.namespaces.push((namespace, own));
        }
        initial
    }

    /// 10,000 equal pods and 10,000 equal policies in one namespace: Antrea's InitXLargeScaleWithOneNamespace.
    pub fn one_namespace(count: usize) -> Self {
        let source = Source {
            namespaces: Selector::default(),
            pods: Selector::from_labels([("app-1", "scale-1")]),
        };
        Self::in_one_namespace(
            count,
            |_| labels([("app-1", "scale-1".to_owned())]),
            |_| source.clone(),
        )
    }

    /// 10,000 pods with a label value of their own, and 10,000 policies that select one each: Antrea's
    /// InitXLargeScaleWithNetpolPerPod.
    pub fn policy_per_pod(count: usize) -> Self {
        let source = |n| Source {
            namespaces: Selector::default(),
            pods: Selector::from_labels([("app", format!("scale-{n}"))]),
        };
        Self::in_one_namespace(count, |n| labels([("app", format!("scale-{n}"))]), source)
    }

    fn in_one_namespace(
        count: usize,
        labels: impl Fn(usize) -> Labels,
        source: impl Fn(usize) -> Source,
    ) -> Self {
        let namespace: NamespaceName = name("namespace", 0);
        let key = |n| PodKey::new(namespace.clone(), name("pod", n));
        Self {
            pods: (0..count).map(|n| (key(n), pod(n, labels(n)))).collect(),
            policies: (0..count)
                .map(|n| (name("policy", n), policy(source(n))))
                .collect(),
            namespaces: vec![(namespace.clone(), Labels::new())],
        }
    }

    /// Selects, and works out what the peers do too: for each policy the nodes that it spans.
    pub fn run(&self) -> (Membership, usize) {
        let mut membership = Membership::new(1);
        for (name, labels) in &self.namespaces {
            membership.set_namespace(name, Some(labels));
        }
        for (name, policy) in &self.policies {
            membership.set_policy(name, policy);
        }
        for (key, pod) in &self.pods {
            membership.set_pod(key, Some(pod));
        }
        let names = self.policies.iter().map(|(name, _)| name);
        let spans = names.map(|name| membership.nodes_of(name).len()).sum();
        (membership, spans)
    }
}

#[cfg(test)]
mod tests {
    use egressnat_core::{assign, plan_node};

    use super::{Initial, local_node, node_with_pods, scheduling};

    #[test]
    fn the_inputs_of_the_peers_select_what_theirs_select() {
        // All of a namespace, and two of its pods twice; each pod on another node.
        assert_eq!(Initial::small_namespaces(10).run().1, 10 * (4 + 2 + 2));
        assert_eq!(Initial::one_namespace(20).run().1, 20 * 20);
        assert_eq!(Initial::policy_per_pod(20).run().1, 20);
    }

    #[test]
    fn the_input_of_the_assignment_has_a_few_duplicates() {
        let snapshot = scheduling(1000, 1000, 10);
        let assigned = assign(&snapshot);
        let duplicates = 1000 - assigned.assignment.nodes.len();
        assert!((1..20).contains(&duplicates), "{duplicates}");
        assert_eq!(assigned.unassigned.len(), 0);
    }

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
