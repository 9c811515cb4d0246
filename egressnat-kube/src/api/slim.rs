//! What is kept of an object: memory goes with what is used.

use serde_json::{Map, Value, json};

use crate::kind::Kind;

/// The object as its manifest says it: large, and of no use to us.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Fields that are used of kinds that we only read; others are kept, for we write them back.
fn used(kind: Kind) -> Option<&'static [&'static str]> {
    match kind {
        Kind::Node => Some(&[
            "/spec/unschedulable",
            "/spec/podCIDR",
            "/spec/podCIDRs",
            "/status/addresses",
        ]),
        Kind::Pod => Some(&[
            "/spec/nodeName",
            "/spec/hostNetwork",
            "/status/phase",
            "/status/podIP",
            "/status/podIPs",
        ]),
        Kind::Namespace => Some(&[]),
        Kind::Cluster => Some(&["/spec/clusterNetwork/advancedNetworking"]),
        _ => None,
    }
}

/// Fields of the metadata that are used of kinds that we only read. No version: an object that differs in nothing else has not
/// changed for us.
const METADATA: [&str; 4] = ["name", "namespace", "labels", "creationTimestamp"];

/// Annotations of such kinds that are used end like this, before the slash.
const ANNOTATIONS: [&str; 2] = ["egressnat.io", "gke.io"];

/// The object with what is used of it, and with kind and version, which lists leave out.
pub(super) fn slim(kind: Kind, mut value: Value) -> Value {
    let mut slim = match used(kind) {
        Some(fields) => {
            let mut slim = json!({ "metadata": metadata(&value) });
            for field in fields {
                if let Some(found) = value.pointer_mut(field) {
                    put(&mut slim, field, found.take());
                }
            }
            slim
        }
        None => {
            if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("managedFields");
            }
            value
        }
    };
    slim["apiVersion"] = json!(kind.api_versions()[0]);
    slim["kind"] = json!(kind.as_str());
    slim
}

fn metadata(value: &Value) -> Value {
    let metadata = &value["metadata"];
    let mut slim = Map::new();
    for field in METADATA {
        if let Some(found) = metadata.get(field) {
            slim.insert(field.to_owned(), found.clone());
        }
    }
    let annotations = metadata["annotations"].as_object().into_iter().flatten();
    let used: Map<String, Value> = annotations
        .filter(|(key, _)| key.as_str() != LAST_APPLIED)
        .filter(|(key, _)| {
            let domain = key.split('/').next().unwrap_or_default();
            ANNOTATIONS.iter().any(|used| domain.ends_with(used))
        })
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if !used.is_empty() {
        slim.insert("annotations".to_owned(), Value::Object(used));
    }
    Value::Object(slim)
}

/// Puts a value where a pointer says, with the objects on the way.
fn put(document: &mut Value, pointer: &str, value: Value) {
    let place = pointer
        .split('/')
        .skip(1)
        .fold(document, |place, field| &mut place[field]);
    *place = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_pod_only_what_the_planner_uses_is_kept() {
        let pod = json!({
            "metadata": {
                "name": "frontend-1", "namespace": "alice", "labels": {"role": "frontend"}, "uid": "1", "resourceVersion": "7",
                "managedFields": [{"manager": "kubelet"}], "annotations": {LAST_APPLIED: "{}", "other.example.com/a": "b"},
            },
            "spec": {"nodeName": "worker1", "containers": [{"name": "c", "env": []}]},
            "status": {"podIP": "10.10.1.2", "podIPs": [{"ip": "10.10.1.2"}], "conditions": [{}]},
        });
        let want = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "frontend-1", "namespace": "alice", "labels": {"role": "frontend"}},
            "spec": {"nodeName": "worker1"},
            "status": {"podIP": "10.10.1.2", "podIPs": [{"ip": "10.10.1.2"}]},
        });
        assert_eq!(slim(Kind::Pod, pod), want);
    }

    #[test]
    fn of_a_cluster_the_two_switches_are_kept_e7() {
        let switch = "baremetal.cluster.gke.io/enable-anthos-network-gateway";
        let cluster = json!({
            "metadata": {"name": "c", "namespace": "cluster-c", "annotations": {switch: "true"}},
            "spec": {"type": "hybrid", "clusterNetwork": {"advancedNetworking": true, "pods": {}}},
        });
        let slim = slim(Kind::Cluster, cluster);
        assert_eq!(slim["metadata"]["annotations"][switch], "true");
        assert_eq!(
            slim["spec"],
            json!({"clusterNetwork": {"advancedNetworking": true}})
        );
    }

    #[test]
    fn an_object_that_is_written_back_loses_nothing_but_managed_fields() {
        let group = json!({
            "metadata": {"name": "default", "namespace": "kube-system", "resourceVersion": "7", "finalizers": ["a/b"],
                "annotations": {LAST_APPLIED: "{}"}, "managedFields": [{}]},
            "spec": {"floatingIPs": ["192.168.1.100"]},
        });
        let mut want = group.clone();
        want["metadata"]
            .as_object_mut()
            .unwrap()
            .remove("managedFields");
        want["kind"] = json!("NetworkGatewayGroup");
        want["apiVersion"] = json!("networking.gke.io/v1");
        assert_eq!(slim(Kind::NetworkGatewayGroup, group), want);
    }
}
