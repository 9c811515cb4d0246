//! What others remove or alter of IPv6 is back within a second, and told.

use egressnat_core::Resource;
use egressnat_dataplane::TableOwnership;

use super::*;

#[test]
fn what_others_do_to_addresses_routes_rules_and_settings_of_ipv6_is_undone_within_a_second() {
    let network = Network::dual_stack();
    network.apply("n2", plan("n2", "n1"));
    let keeper = network.keep("n1", network.config("n1"), plan("n1", "n1"));
    let state = || {
        [
            "-6 addr show dev eth0",
            "-6 rule",
            "-6 route show table 1190",
        ]
        .map(|what| network.ip("n1", &format!("-o {what}")))
    };
    // The settings of a tunnel device that was IPv4's alone until now.
    eventually(true, || state()[2].contains("egressnat0"));
    let before = state();
    for (resource, attack) in [
        (
            Resource::Address,
            format!("-6 addr del {FLOATING6}/128 dev eth0"),
        ),
        (
            Resource::Address,
            format!("-6 addr change {FLOATING6}/128 dev eth0"),
        ),
        (Resource::Route, "-6 route flush table 1190".to_owned()),
        (
            Resource::Route,
            "-6 route add 2001:db8:8::8/128 via fd00:192:168:1::254 table 1190".to_owned(),
        ),
        (
            Resource::Route,
            "-6 route replace default dev eth0 table 1190".to_owned(),
        ),
        (
            Resource::RoutingRule,
            "-6 rule del priority 1190".to_owned(),
        ),
    ] {
        keeper.restores(resource, &attack, || {
            network.ip("n1", &attack);
        });
        assert_eq!(state(), before, "{attack}");
    }
    keeper.restores(Resource::Setting, "disable_ipv6", || {
        network.sysctl("n1", "net.ipv6.conf.egressnat0.disable_ipv6=1");
    });
    eventually(before[2].clone(), || state()[2].clone());
    for pod in PODS {
        assert_eq!(network.seen_by_tcp(pod, SERVER6), seen(FLOATING6), "{pod}");
    }
}

#[test]
fn what_others_do_to_sets_of_ipv6_that_nobody_protects_is_undone_within_a_second() {
    let network = Network::dual_stack();
    network.apply("n1", plan("n1", "n2"));
    let mut config = network.config("n2");
    config.table_ownership = TableOwnership::Never;
    let keeper = network.keep("n2", config, plan("n2", "n2"));
    let listed = || {
        let text = network.exec("n2", "nft -s list table ip6 egressnat");
        text.replace("counter packets 0 bytes 0", "counter")
    };
    let before = listed();
    for (resource, attack) in [
        (Resource::Entry, "flush set ip6 egressnat internal_ranges"),
        (
            Resource::Entry,
            "add element ip6 egressnat pod_ranges { fd99::/16 }",
        ),
        (Resource::Entry, "flush map ip6 egressnat egress_ips"),
        (Resource::Entry, "flush set ip6 egressnat floating_ips"),
        (Resource::Entry, "flush set ip6 egressnat guard_ranges"),
        (Resource::Entry, "flush set ip6 egressnat translated"),
        (Resource::Table, "add chain ip6 egressnat foreign"),
        (
            Resource::Table,
            "chain ip6 egressnat guard { policy drop ; }",
        ),
    ] {
        keeper.restores(resource, attack, || {
            network.exec("n2", &format!("nft {attack}"));
        });
        assert_eq!(listed(), before, "{attack}");
    }
    assert_eq!(network.seen_by_tcp(PODS[0], SERVER6), seen(FLOATING6));
}
