//! Several controllers: one of them writes.

use serde_json::json;

use crate::cluster::{Cluster, group, until};
use crate::wire::State;

const GROUP: [&str; 3] = ["ngg", "default", "--namespace=kube-system"];

#[test]
fn one_of_two_controllers_writes_and_the_other_takes_over_when_it_dies_e45() {
    let cluster = Cluster::start();
    let _agent = cluster.agent("worker1", None);
    let first = cluster.controller("first", None);
    until("a leader", || cluster.leader());
    let second = cluster.controller("second", None);
    cluster.apply(&group("default", &["192.168.1.100"]));
    let want = json!({"nodes": {"worker1": "Up"}, "floatingIPs": {"192.168.1.100": "worker1"}});
    cluster.until_status(&GROUP, &want);
    let before = cluster.at_rest();
    assert_eq!(cluster.leader().unwrap().0, "first");
    drop(first);
    until("the other to lead", || {
        let (leader, _) = cluster.leader()?;
        (leader == "second").then_some(())
    });
    cluster.await_renewals(3);
    assert_eq!(
        cluster.versions(),
        before,
        "what is right is not written again"
    );
    cluster.apply(&group("default", &["192.168.1.100", "192.168.1.101"]));
    let want = json!({
        "nodes": {"worker1": "Up"},
        "floatingIPs": {"192.168.1.100": "worker1", "192.168.1.101": "worker1"},
    });
    cluster.until_status(&GROUP, &want);
    assert!(second.is_running());
}

#[test]
fn a_leader_that_was_cut_off_writes_no_more_when_it_is_back_e45() {
    let cluster = Cluster::start();
    let _agent = cluster.agent("worker1", None);
    let wire = cluster.wire();
    let first = cluster.controller("first", Some(&wire));
    until("a leader", || cluster.leader());
    let _second = cluster.controller("second", None);
    cluster.apply(&group("default", &["192.168.1.100"]));
    let want = json!({"nodes": {"worker1": "Up"}, "floatingIPs": {"192.168.1.100": "worker1"}});
    cluster.until_status(&GROUP, &want);
    // What it sends now arrives when another leads.
    wire.set(State::Silent);
    until("the other to lead", || {
        let (leader, _) = cluster.leader()?;
        (leader == "second").then_some(())
    });
    cluster.apply(&group("default", &["192.168.1.101"]));
    let want = json!({"nodes": {"worker1": "Up"}, "floatingIPs": {"192.168.1.101": "worker1"}});
    cluster.until_status(&GROUP, &want);
    let before = cluster.at_rest();
    wire.set(State::Open);
    cluster.await_renewals(5);
    assert_eq!(cluster.leader().unwrap().0, "second");
    assert_eq!(cluster.versions(), before);
    assert!(first.is_running());
}
