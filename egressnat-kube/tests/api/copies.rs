//! Gateways of cluster namespaces and their copies in `kube-system` (E7): whatever is deleted first, nothing is stuck.

use serde_json::{Value, json};

use crate::cluster::{Agent, Cluster, until};

const COPY: [&str; 3] = ["ngg", "default", "--namespace=kube-system"];
const ORIGINAL: [&str; 3] = ["ngg", "default", "--namespace=cluster-cluster1"];

/// The published manifests, and an agent.
fn cluster() -> (Cluster, Agent) {
    let cluster = Cluster::start();
    let agent = cluster.agent("worker1", None);
    cluster.apply_examples("v1");
    (cluster, agent)
}

fn until_gone(cluster: &Cluster, object: &[&str]) {
    until("the object to go", || {
        cluster.find(object).is_none().then_some(())
    });
}

/// Deletes without waiting, as somebody who does not mind the order.
fn delete(cluster: &Cluster, object: &[&str]) {
    let wait = ["--wait=false"];
    cluster
        .server
        .ok(&[&["delete"], object, &wait[..]].concat());
}

#[test]
fn the_original_is_told_what_its_copy_is_told_e7() {
    let (cluster, _agent) = cluster();
    let _controller = cluster.controller("first", None);
    for object in [&COPY, &ORIGINAL] {
        cluster.until_programmed(object);
    }
    let status = |object: &[&str]| {
        let mut status = cluster.find(object).unwrap()["status"].take();
        // Who may use an address is said in one place, by which nodes go.
        status.as_object_mut().unwrap().remove("grants");
        for condition in status["conditions"].as_array_mut().unwrap() {
            condition["lastTransitionTime"] = Value::Null;
            condition["observedGeneration"] = Value::Null;
        }
        status
    };
    assert_eq!(status(&ORIGINAL), status(&COPY));
    let switch = |value: bool| {
        let patch = json!({"spec": {"clusterNetwork": {"advancedNetworking": value}}});
        let patch = format!("--patch={patch}");
        let cluster_object = "clusters.baremetal.cluster.gke.io";
        let namespace = "--namespace=cluster-cluster1";
        cluster.server.ok(&[
            "patch",
            cluster_object,
            "cluster1",
            namespace,
            "--type=merge",
            &patch,
        ]);
    };
    switch(false);
    let off = ("False", "ClusterSwitchOff");
    cluster.until_condition(&ORIGINAL, "Accepted", off);
    until_gone(&cluster, &COPY);
    switch(true);
    cluster.until_programmed(&ORIGINAL);
}

#[test]
fn an_edit_of_the_original_follows_and_an_edit_of_the_copy_is_taken_back_and_told_e7() {
    let (cluster, _agent) = cluster();
    let _controller = cluster.controller("first", None);
    cluster.until_programmed(&COPY);
    let edit = |object: &[&str; 3], addresses: &[&str]| {
        let patch = json!({"spec": {"floatingIPs": addresses}});
        let patch = format!("--patch={patch}");
        let options = ["--type=merge", patch.as_str()];
        cluster
            .server
            .ok(&[&["patch"], &object[..], &options].concat());
    };
    let addresses = |object: &[&str]| {
        let mut object = cluster.find(object)?;
        Some(object["spec"]["floatingIPs"].take())
    };
    edit(&ORIGINAL, &["192.168.1.110"]);
    until("the edit to follow", || {
        (addresses(&COPY)? == json!(["192.168.1.110"])).then_some(())
    });
    cluster.at_rest();
    let told = "--field-selector=reason=CopyOverwritten";
    let events = cluster.find(&["events", "--all-namespaces", told]).unwrap();
    assert_eq!(
        events["items"],
        json!([]),
        "an edit of the original is no edit of the copy"
    );
    edit(&COPY, &["192.168.1.111"]);
    until("the copy to be restored", || {
        (addresses(&COPY)? == json!(["192.168.1.110"])).then_some(())
    });
    let event = cluster.until_event("CopyOverwritten", "default");
    let message = event["message"].as_str().unwrap();
    assert!(
        message.contains("edit NetworkGatewayGroup cluster-cluster1/default"),
        "{message}"
    );
    // A copy that is deleted alone is made anew.
    let uid = cluster.find(&COPY).unwrap()["metadata"]["uid"].take();
    delete(&cluster, &COPY);
    until("another copy", || {
        let copy = cluster.find(&COPY)?;
        (copy["metadata"]["uid"] != uid).then_some(())
    });
}

#[test]
fn deletions_in_any_order_are_never_stuck_and_leave_nothing_e7() {
    let (cluster, _agent) = cluster();
    let switch = [
        "clusters.baremetal.cluster.gke.io",
        "cluster1",
        "--namespace=cluster-cluster1",
    ];
    let orders: [&[&[&str]]; 3] = [
        &[&ORIGINAL, &switch],
        &[&switch, &ORIGINAL],
        &[&COPY, &switch, &ORIGINAL],
    ];
    for order in orders {
        for is_running in [true, false] {
            cluster.apply_examples("v1");
            let mut controller = Some(cluster.controller("one", None));
            cluster.until_programmed(&COPY);
            if !is_running {
                controller = None;
            }
            for object in order {
                delete(&cluster, object);
            }
            // At once, controller or not: nothing is held back by a finalizer.
            for object in [&ORIGINAL, &switch] {
                assert_eq!(cluster.find(object), None, "{order:?}");
            }
            let controller = controller.unwrap_or_else(|| cluster.controller("next", None));
            until_gone(&cluster, &COPY);
            assert!(controller.is_running());
        }
    }
}
