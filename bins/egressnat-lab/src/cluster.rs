//! The objects of a lab's cluster: the default ones, and what a scheduler and a kubelet would fill in.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};
use egressnat_kube::{Applied, Kind, Object, ObjectKey};
use ipnet::Ipv4Net;
use serde_json::{Value, json};

use crate::objects::Objects;
use crate::topology::SEGMENT;

/// A node as the topology needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodePlace {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) pods: Ipv4Net,
}

/// A pod as the topology needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodPlace {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) host_network: bool,
}

const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// A control-plane node and `workers` workers.
pub(crate) fn default_nodes(workers: usize) -> Vec<Object> {
    let node = |name: &str, labels: Value| {
        let mut object = Object::new(&ObjectKey::cluster(Kind::Node, name), json!({}));
        object.value_mut()["metadata"]["labels"] = labels;
        object
    };
    let mut nodes: Vec<Object> = (1..=workers)
        .map(|n| node(&format!("worker{n}"), json!({})))
        .collect();
    nodes.push(node("control-plane", json!({ CONTROL_PLANE: "" })));
    nodes
}

/// Namespaces alice, paul and other, with pods that the seeds' policy selects and pods that it does not.
pub(crate) fn default_pods() -> Vec<Object> {
    let mut objects = Vec::new();
    for namespace in ["alice", "paul", "other"] {
        let mut object = Object::new(&ObjectKey::cluster(Kind::Namespace, namespace), json!({}));
        object.value_mut()["metadata"]["labels"] = json!({ "user": namespace });
        objects.push(object);
    }
    for (namespace, name, role, node) in [
        ("alice", "frontend-0", "frontend", "worker1"),
        ("alice", "frontend-1", "frontend", "worker2"),
        ("alice", "backend-0", "backend", "worker1"),
        ("paul", "frontend-0", "frontend", "worker2"),
        ("other", "client-0", "frontend", "worker1"),
    ] {
        let key = ObjectKey::namespaced(Kind::Pod, namespace, name);
        let spec =
            json!({ "nodeName": node, "containers": [{ "name": "shell", "image": "none" }] });
        let mut object = Object::new(&key, json!({ "spec": spec }));
        object.value_mut()["metadata"]["labels"] = json!({ "role": role });
        objects.push(object);
    }
    objects
}

/// Applies a manifest. What the lab filled in stays where the manifest does not name it, as a scheduler's work does; a
/// node's own addresses, which are its status, are honored.
pub(crate) fn apply(store: &Objects, mut manifest: Object) -> Result<Applied> {
    let filled_in = match manifest.kind() {
        Kind::Node => "podCIDR",
        Kind::Pod => "nodeName",
        _ => return store.apply(manifest),
    };
    let key = manifest.key().clone();
    let old = store.get(&key)?;
    let kept = old.map(|old| old.at("/spec")[filled_in].clone());
    if let Some(kept) = kept.filter(|kept| !kept.is_null())
        && manifest.at("/spec")[filled_in].is_null()
    {
        manifest.value_mut()["spec"][filled_in] = kept;
    }
    let addresses = manifest.at("/status/addresses").clone();
    let applied = store.apply(manifest)?;
    if key.kind != Kind::Node || addresses.is_null() {
        return Ok(applied);
    }
    let node = store
        .get(&key)?
        .with_context(|| format!("{key} is gone again"))?;
    if *node.at("/status/addresses") == addresses {
        return Ok(applied);
    }
    store.set_status(&key, &json!({ "addresses": addresses }))?;
    Ok(match applied {
        Applied::Unchanged => Applied::Changed,
        other => other,
    })
}

/// Machines that have their place, and what is wrong with the objects of those that have none.
pub(crate) struct Placed<T> {
    pub(crate) places: Vec<T>,
    pub(crate) errors: Vec<String>,
}

/// Gives every node its address and pod range, and writes them to the objects.
pub(crate) fn place_nodes(store: &Objects) -> Result<Placed<NodePlace>> {
    let mut nodes = store.list(Kind::Node)?;
    // Workers come first, so that they have the small numbers.
    nodes.sort_by_key(|node| {
        (
            node.at("/metadata/labels").get(CONTROL_PLANE).is_some(),
            node.name().to_owned(),
        )
    });
    let mut addresses = BTreeSet::new();
    let mut ranges = BTreeSet::new();
    let mut errors = Vec::new();
    // One node that cannot be placed does not keep the others from it.
    nodes.retain(|node| match claims_of(node, &addresses, &ranges) {
        Ok((address, range)) => {
            addresses.extend(address);
            ranges.extend(range);
            true
        }
        Err(error) => {
            errors.push(format!("{error:#}"));
            false
        }
    });
    let mut places = Vec::new();
    for node in nodes {
        let address = match address_of(&node)? {
            Some(address) => address,
            None => {
                let free = SEGMENT
                    .hosts()
                    .take(90)
                    .find(|address| !addresses.contains(address));
                let address =
                    free.with_context(|| format!("no address is left for node {}", node.name()))?;
                let addresses = json!([{ "type": "InternalIP", "address": address }]);
                store.set_status(node.key(), &json!({ "addresses": addresses }))?;
                address
            }
        };
        let pods = match range_of(&node)? {
            Some(range) => range,
            None => {
                let candidates =
                    (1..=254u8).map(|n| Ipv4Net::new_assert(Ipv4Addr::new(10, 10, n, 0), 24));
                let free = candidates.into_iter().find(|range| !ranges.contains(range));
                let range =
                    free.with_context(|| format!("no pod range is left for node {}", node.name()))?;
                store.set_pod_range(node.key(), &range.to_string())?;
                range
            }
        };
        addresses.insert(address);
        ranges.insert(pods);
        places.push(NodePlace {
            name: node.name().to_owned(),
            address,
            pods,
        });
    }
    Ok(Placed { places, errors })
}

/// The address and pod range that a node's object names, if no other node has them.
fn claims_of(
    node: &Object,
    addresses: &BTreeSet<Ipv4Addr>,
    ranges: &BTreeSet<Ipv4Net>,
) -> Result<(Option<Ipv4Addr>, Option<Ipv4Net>)> {
    let (address, range) = (address_of(node)?, range_of(node)?);
    if let Some(address) = address.filter(|address| addresses.contains(address)) {
        bail!(
            "{}: status.addresses: {address} is another node's: use a free address of {SEGMENT}",
            node.key()
        );
    }
    if let Some(range) = range.filter(|range| ranges.contains(range)) {
        bail!(
            "{}: spec.podCIDR: {range} is another node's: use a range of its own, or leave it out",
            node.key()
        );
    }
    Ok((address, range))
}

fn address_of(node: &Object) -> Result<Option<Ipv4Addr>> {
    let addresses = node
        .at("/status/addresses")
        .as_array()
        .cloned()
        .unwrap_or_default();
    let Some(text) = addresses
        .iter()
        .find(|a| a["type"] == "InternalIP")
        .and_then(|a| a["address"].as_str())
    else {
        return Ok(None);
    };
    let address: Ipv4Addr = text
        .parse()
        .with_context(|| format!("{}: InternalIP {text:?}", node.key()))?;
    if !SEGMENT.contains(&address) {
        bail!(
            "{}: status.addresses: {address} is not in the lab's segment: use an address of {SEGMENT}",
            node.key()
        );
    }
    Ok(Some(address))
}

fn range_of(node: &Object) -> Result<Option<Ipv4Net>> {
    let Some(text) = node.at("/spec/podCIDR").as_str() else {
        return Ok(None);
    };
    Ok(Some(text.parse().with_context(|| {
        format!("{}: spec.podCIDR {text:?}", node.key())
    })?))
}

/// Puts every pod on a node and gives it its address, and writes both to the objects.
pub(crate) fn place_pods(store: &Objects, nodes: &[NodePlace]) -> Result<Placed<PodPlace>> {
    let mut places: Vec<PodPlace> = Vec::new();
    let mut errors = Vec::new();
    let (placed, open): (Vec<Object>, Vec<Object>) = store
        .list(Kind::Pod)?
        .into_iter()
        .partition(|pod| pod.at("/status/podIP").is_string());
    for pod in placed.into_iter().chain(open) {
        // One pod that cannot be placed does not keep the others from it.
        match place_pod(store, nodes, &places, &pod) {
            Ok(place) => places.push(place),
            Err(error) => errors.push(format!("{error:#}")),
        }
    }
    places.sort_by_key(|pod| (pod.namespace.clone(), pod.name.clone()));
    Ok(Placed { places, errors })
}

fn place_pod(
    store: &Objects,
    nodes: &[NodePlace],
    places: &[PodPlace],
    pod: &Object,
) -> Result<PodPlace> {
    let host_network = pod.at("/spec/hostNetwork").as_bool().unwrap_or(false);
    let node = match pod.at("/spec/nodeName").as_str() {
        Some(name) => nodes
            .iter()
            .find(|node| node.name == name)
            .with_context(|| {
                format!(
                    "{}: spec.nodeName: there is no node {name:?}: name one of {}",
                    pod.key(),
                    names(nodes)
                )
            })?,
        None => {
            let count =
                |node: &NodePlace| places.iter().filter(|pod| pod.node == node.name).count();
            let node = nodes
                .iter()
                .min_by_key(|node| count(node))
                .context("there is no node for pods")?;
            store.bind(pod.key(), &node.name)?;
            node
        }
    };
    let address = match pod.at("/status/podIP").as_str() {
        Some(text) => text
            .parse()
            .with_context(|| format!("{}: status.podIP {text:?}", pod.key()))?,
        None => {
            let is_free = |address: &Ipv4Addr| places.iter().all(|pod| pod.address != *address);
            // The first is the node's own by custom.
            let free = node.pods.hosts().skip(1).find(is_free);
            let free = if host_network {
                Some(node.address)
            } else {
                free
            };
            let address = free.with_context(|| {
                format!("no address is left in {} for {}", node.pods, pod.key())
            })?;
            let text = address.to_string();
            let status = json!({ "phase": "Running", "podIP": text, "podIPs": [{ "ip": text }] });
            store.set_status(pod.key(), &status)?;
            address
        }
    };
    Ok(PodPlace {
        namespace: pod.namespace().unwrap_or_default().to_owned(),
        name: pod.name().to_owned(),
        node: node.name.clone(),
        address,
        host_network,
    })
}

fn names(nodes: &[NodePlace]) -> String {
    nodes
        .iter()
        .map(|node| node.name.as_str())
        .collect::<Vec<_>>()
        .join(", ")
}
