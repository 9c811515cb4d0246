//! The roles: what the programs may do, and that they may do no more. That it is enough is shown by all other tests of the loops.

use crate::cluster::Cluster;

#[test]
fn the_accounts_may_do_nothing_that_they_do_not_need() {
    let cluster = Cluster::start();
    let may = |account: &str, question: &[&str]| {
        let user = format!("--as=system:serviceaccount:kube-system:{account}");
        let told = cluster
            .server
            .kubectl(&[&["auth", "can-i", &user], question].concat());
        told.stdout.trim() == "yes"
    };
    let (controller, agent) = ("egressnat-controller", "egressnat-agent");
    let refused: [(&str, &[&str]); 19] = [
        (controller, &["list", "pods", "--all-namespaces"]),
        (controller, &["get", "secrets", "--namespace=kube-system"]),
        (controller, &["update", "nodes"]),
        (controller, &["update", "egressnatpolicies"]),
        (
            controller,
            &["update", "networkgatewaygroups", "--namespace=default"],
        ),
        (
            controller,
            &[
                "delete",
                "networkgatewaygroups",
                "--namespace=cluster-cluster1",
            ],
        ),
        (controller, &["delete", "leases", "--namespace=kube-system"]),
        (controller, &["update", "leases", "--namespace=default"]),
        (controller, &["list", "leases", "--all-namespaces"]),
        (controller, &["patch", "egressnatpolicies"]),
        (controller, &["patch", "nodes", "--subresource=status"]),
        (
            agent,
            &["patch", "egressnatpolicies", "--subresource=status"],
        ),
        (
            agent,
            &[
                "patch",
                "networkgatewaynodes",
                "--subresource=status",
                "--namespace=default",
            ],
        ),
        (agent, &["get", "secrets", "--namespace=kube-system"]),
        (agent, &["update", "pods", "--all-namespaces"]),
        (
            agent,
            &[
                "update",
                "networkgatewaygroups",
                "--subresource=status",
                "--namespace=kube-system",
            ],
        ),
        (agent, &["create", "events"]),
        (agent, &["delete", "leases", "--namespace=kube-system"]),
        (
            agent,
            &["update", "networkgatewaynodes", "--namespace=default"],
        ),
    ];
    for (account, question) in refused {
        assert!(!may(account, question), "{account} may {question:?}");
    }
    assert!(may(
        controller,
        &[
            "update",
            "leases/egressnat-controller",
            "--namespace=kube-system"
        ]
    ));
    assert!(may(agent, &["watch", "pods", "--all-namespaces"]));
    let status = ["--subresource=status", "--namespace=kube-system"];
    assert!(may(
        agent,
        &[&["patch", "networkgatewaynodes"], &status[..]].concat()
    ));
    assert!(may(
        controller,
        &["patch", "egressnatpolicies", "--subresource=status"]
    ));
}
