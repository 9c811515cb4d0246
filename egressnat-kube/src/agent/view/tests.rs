use super::*;
use crate::index::Index;
use egressnat_core::model::Snapshot;
use egressnat_core::{Digest, effective_gateways, plan_node, resolve_policies};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

const NODE: &str = "worker1";

fn own() -> NodeName {
    NODE.parse().unwrap()
}

/// Addresses that gateways and nodes may both have.
const ADDRESSES: [&str; 4] = [
    "192.168.1.1",
    "192.168.1.100",
    "192.168.1.101",
    "192.168.1.102",
];

fn node() -> impl Strategy<Value = Value> {
    let address = select(vec![ADDRESSES[0], ADDRESSES[1], "192.168.1.2", "nonsense"]);
    (1..4u8, address).prop_map(|(number, address)| {
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("worker{number}")},
            "spec": {"podCIDR": format!("10.10.{number}.0/24")},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        })
    })
}

fn namespace() -> impl Strategy<Value = Value> {
    (select(vec!["alice", "paul"]), select(vec!["a", "b"])).prop_map(|(name, user)| {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"user": user}}})
    })
}

prop_compose! {
    fn pod()(
        namespace in select(vec!["alice", "paul"]),
        number in 0..3u8,
        node in select(vec![NODE, NODE, NODE, "worker2"]),
        role in select(vec!["frontend", "backend"]),
        host in select(vec!["2", "3", "4", "nonsense"]),
        is_host in prop::bool::weighted(0.2),
    ) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("pod-{number}"), "namespace": namespace, "labels": {"role": role}},
            "spec": {"nodeName": node, "hostNetwork": is_host},
            "status": {"podIP": format!("10.10.1.{host}")},
        })
    }
}

fn cluster() -> impl Strategy<Value = Value> {
    any::<bool>().prop_map(|is_on| {
        json!({
            "apiVersion": "baremetal.cluster.gke.io/v1", "kind": "Cluster",
            "metadata": {"name": "a", "namespace": "cluster-a"},
            "spec": {"clusterNetwork": {"advancedNetworking": is_on}},
        })
    })
}

prop_compose! {
    fn gateway()(
        namespace in select(vec!["kube-system", "kube-system", "cluster-a"]),
        name in select(vec!["default", "other"]),
        // Few lists, so that often it is the status alone that is another.
        addresses in select(vec![&ADDRESSES[1..2], &ADDRESSES[1..4], &ADDRESSES[..2]]),
        holders in prop::collection::btree_map(select(ADDRESSES.to_vec()), select(vec![NODE, "worker2"]), 0..4),
        health in select(vec!["Up", "Down"]),
        generation in 1..3u64,
        version in 0..5u8,
    ) -> Value {
        let grants: Value = holders
            .iter()
            .map(|(address, node)| ((*address).to_owned(), json!({"generation": generation, "node": node, "term": 1})))
            .collect::<serde_json::Map<_, _>>()
            .into();
        json!({
            "apiVersion": "networking.gke.io/v1", "kind": "NetworkGatewayGroup",
            "metadata": {"name": name, "namespace": namespace, "resourceVersion": version.to_string()},
            "spec": {"floatingIPs": addresses},
            "status": {"floatingIPs": holders, "nodes": {"worker2": health}, "grants": grants},
        })
    }
}

prop_compose! {
    fn policy()(
        number in 0..4u8,
        uid in 0..2u8,
        generation in 1..3i64,
        role in select(vec!["frontend", "backend"]),
        source in select(vec!["default", "other", "192.168.1.100", "192.168.1.102", "no snat", "nonsense"]),
        enforcement in select(vec!["Strict", "BestEffort"]),
        destination in select(vec!["8.8.8.0/24", "8.8.0.0/16", "10.10.1.0/24"]),
        condition in select(vec!["True", "False"]),
    ) -> Value {
        let rules = json!([{"namespaceSelector": {"matchLabels": {"user": "a"}}, "podSelector": {"matchLabels": {"role": role}}}]);
        let spec = match source {
            "no snat" => json!({"action": "NoSNAT", "destinations": [{"cidr": destination}]}),
            "nonsense" => json!({"action": source}),
            "default" | "other" => json!({
                "sources": rules, "action": "SNAT", "destinations": [{"cidr": destination}],
                "gatewayRef": {"name": source, "namespace": "kube-system"},
            }),
            address => json!({"egress": rules, "destinationCIDRs": [destination], "egressSourceIP": address}),
        };
        json!({
            "apiVersion": "networking.gke.io/v1", "kind": "EgressNATPolicy",
            "metadata": {
                "name": format!("egress-{number}"), "uid": format!("uid-{uid}"), "generation": generation,
                "annotations": {"egressnat.io/enforcement": enforcement},
            },
            "spec": spec, "status": {"conditions": [{"type": "Programmed", "status": condition}]},
        })
    }
}

/// An object that is there, or is gone.
fn told() -> impl Strategy<Value = (Object, bool)> {
    let object = prop_oneof![
        2 => node(),
        1 => namespace(),
        4 => pod(),
        1 => cluster(),
        4 => gateway(),
        6 => policy(),
    ];
    (object, prop::bool::weighted(0.8))
        .prop_map(|(value, is_there)| (Object::from_value(value).unwrap(), is_there))
}

/// Everything that the loop asks a view for.
#[derive(Debug, PartialEq)]
struct Answers {
    planned: Planned,
    policies: Digest,
    grants: BTreeMap<IpAddr, GrantRecord>,
    up: Vec<NodeName>,
}

impl Answers {
    fn of(view: &View) -> Self {
        Self {
            planned: view.planned(),
            policies: Digest::of_all(view.meanings().into_values()),
            grants: view.grants(),
            up: view.nodes_up().map(|(name, _)| name.clone()).collect(),
        }
    }

    /// From nothing.
    fn from_nothing(objects: &BTreeMap<ObjectKey, Object>) -> Self {
        let mut index = Index::default();
        for object in objects.values() {
            // One that makes no sense counts as not there.
            let _ = index.apply(object.clone());
        }
        let snapshot: Snapshot = index.take_events().into_iter().collect();
        let gateways = effective_gateways(&snapshot);
        let assignment = index.assignment(&gateways);
        let resolved = resolve_policies(&snapshot, &gateways).policies;
        let is_held = |address: &IpAddr| assignment.nodes.contains_key(address);
        let meanings = index.meanings(&snapshot.policies, &resolved, is_held);
        let is_up = |name: &NodeName| {
            let told = gateways.gateways.keys().filter_map(|key| {
                let object = index.object(&crate::resource::object_key(key))?;
                Some(object.at("/status/nodes").get(name.as_str())? == "Up")
            });
            told.into_iter().any(|is_up| is_up)
        };
        Self {
            planned: plan_node(&snapshot, &assignment, &own()),
            policies: Digest::of_all(meanings.into_values()),
            grants: index.grants(&gateways),
            up: snapshot.nodes.into_keys().filter(is_up).collect(),
        }
    }
}

proptest! {
    #[test]
    fn after_whatever_was_told_a_view_says_what_planning_from_nothing_says(
        batches in prop::collection::vec(prop::collection::vec(told(), 1..5), 1..24),
        seed in any::<u64>(),
    ) {
        let mut view = View::new(own(), [], seed);
        let mut objects = BTreeMap::new();
        view.settle();
        let mut before = Answers::of(&view);
        for batch in batches {
            for (object, is_there) in batch {
                if is_there {
                    let _ = view.apply(&object);
                    objects.insert(object.key().clone(), object);
                } else {
                    view.delete(object.key());
                    objects.remove(object.key());
                }
            }
            let news = view.settle();
            let now = Answers::of(&view);
            prop_assert_eq!(&now, &Answers::from_nothing(&objects));
            if !news.plan {
                let held = now.planned.plan.floating_ips.clone();
                before.planned.plan.floating_ips = held;
                prop_assert_eq!((&now.planned, now.policies), (&before.planned, before.policies));
            }
            if !news.ownership {
                prop_assert_eq!((&now.grants, &now.up), (&before.grants, &before.up));
            }
            before = now;
        }
        for object in objects.values() {
            let _ = view.apply(object);
        }
        prop_assert_eq!(view.settle(), News::default(), "what is known is no news");
    }
}

/// A view of one policy and its gateway.
fn settled() -> View {
    let mut view = View::new(own(), [], 1);
    for object in [group("192.168.1.100", json!({})), egress(1, json!({}))] {
        view.apply(&object).unwrap();
    }
    view.settle();
    view
}

fn group(address: &str, status: Value) -> Object {
    let key = ObjectKey::namespaced(Kind::NetworkGatewayGroup, "kube-system", "default");
    let spec = json!({ "floatingIPs": [address] });
    Object::new(&key, json!({ "spec": spec, "status": status }))
}

fn egress(generation: i64, status: Value) -> Object {
    let key = ObjectKey::cluster(Kind::EgressNatPolicy, "egress");
    let spec = json!({
        "sources": [{"namespaceSelector": {}, "podSelector": {}}], "action": "SNAT",
        "destinations": [{"cidr": "8.8.8.0/24"}],
        "gatewayRef": {"name": "default", "namespace": "kube-system"},
    });
    let mut object = Object::new(&key, json!({ "spec": spec, "status": status }));
    object.value_mut()["metadata"]["generation"] = json!(generation);
    object
}

#[test]
fn what_the_controller_says_of_a_policy_is_no_news_to_an_agent() {
    let mut view = settled();
    let mut object = egress(1, json!({"conditions": [{"type": "Programmed"}]}));
    object.value_mut()["metadata"]["resourceVersion"] = json!("7");
    object.value_mut()["metadata"]["labels"] = json!({"team": "a"});
    view.apply(&object).unwrap();
    assert_eq!(view.settle(), News::default());
    view.apply(&egress(2, json!({}))).unwrap();
    assert!(view.settle().plan, "another text");
}

#[test]
fn which_node_holds_an_address_is_no_matter_of_other_nodes_plans() {
    let mut view = settled();
    let mut told = |node: &str| {
        let status = json!({ "floatingIPs": { "192.168.1.100": node } });
        view.apply(&group("192.168.1.100", status)).unwrap();
        let News { plan, ownership } = view.settle();
        (plan, ownership)
    };
    assert_eq!(told("worker2"), (true, true), "somebody has it now");
    assert_eq!(told("worker3"), (false, true));
    assert_eq!(told("worker3"), (false, false));
}
