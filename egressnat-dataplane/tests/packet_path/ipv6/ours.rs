//! What is ours stays ours in IPv6 too.

use egressnat_core::{Resource, Steering};
use egressnat_dataplane::TableOwnership;

use super::*;
use crate::owner::can;

/// Translates whatever leaves, as others do for their ranges.
fn masquerades_at(priority: i32) -> String {
    format!(
        "table ip6 late {{\nchain every {{\ntype nat hook postrouting priority {priority}; policy accept;\n\
         ip6 saddr fd00:10:10::/48 ip6 daddr != ff00::/8 counter masquerade\n}}\n}}"
    )
}

#[test]
fn who_masquerades_before_or_behind_us_does_not_translate_what_is_decided_in_ipv6() {
    for priority in [100, -198] {
        let network = Network::dual_stack();
        for node in ["n1", "n2"] {
            network.load(node, &masquerades_at(priority));
        }
        for holder in ["n2", "n1"] {
            network.apply_both(holder);
            for pod in PODS {
                let what = format!("{pod}, held by {holder}, masqueraded at {priority}");
                assert_eq!(network.seen_by_tcp(pod, SERVER6), seen(FLOATING6), "{what}");
                assert_eq!(network.seen_by_udp(pod, SERVER6), seen(FLOATING6), "{what}");
            }
        }
        // What a policy keeps has its own address.
        let mut keeps = plan("n1", "n2");
        for steering in keeps.destinations.values_mut() {
            *steering = Steering::Keep;
        }
        assert_eq!(network.apply("n1", keeps).failures, []);
        let kept = network.seen_by_tcp(PODS[0], SERVER6);
        assert_eq!(
            kept,
            seen(&address6(PODS[0])),
            "kept, masqueraded at {priority}"
        );
    }
}

#[test]
fn while_an_agent_lives_nobody_else_changes_its_table_of_ipv6() {
    let network = Network::dual_stack();
    network.apply_both("n2");
    let namespace = network.namespace("n2");
    network.open("n2", async move |mut dataplane| {
        let plan = plan("n2", "n2");
        assert_eq!(dataplane.apply(&plan).await.failures, []);
        let soon = Instant::now() + Duration::from_secs(60);
        // By the socket that the tables belong to.
        let deadlines = dataplane.deadlines();
        deadlines
            .hold_until(&[FLOATING6.parse().unwrap()], soon)
            .unwrap();
        for attack in [
            "nft delete table ip6 egressnat",
            "nft flush chain ip6 egressnat guard",
            "nft insert rule ip6 egressnat guard accept",
        ] {
            assert!(!can(&namespace, attack), "{attack}");
        }
        assert!(can(&namespace, "nft flush ruleset"));
        let again = dataplane.apply(&plan).await;
        assert_eq!((again.changes, again.failures), (0, vec![]));
    });
    assert_eq!(network.seen_by_tcp(PODS[0], SERVER6), seen(FLOATING6));
}

#[test]
fn what_others_do_to_a_table_of_ipv6_that_nobody_protects_is_undone_within_a_second() {
    let network = Network::dual_stack();
    network.apply_both("n2");
    let mut config = network.config("n2");
    config.table_ownership = TableOwnership::Never;
    let keeper = network.keep("n2", config, plan("n2", "n2"));
    for attack in [
        "delete table ip6 egressnat",
        "flush chain ip6 egressnat guard",
        "insert rule ip6 egressnat decided accept",
    ] {
        keeper.restores(Resource::Table, attack, || {
            network.exec("n2", &format!("nft {attack}"));
        });
        assert_eq!(
            network.seen_by_tcp(PODS[0], SERVER6),
            seen(FLOATING6),
            "{attack}"
        );
    }
}

#[test]
fn the_end_of_a_deadline_restores_nothing() {
    let network = Network::dual_stack();
    network.apply_both("n2");
    let mut config = network.config("n2");
    config.table_ownership = TableOwnership::Never;
    network.open_with("n2", config, async |mut dataplane| {
        let plan = plan("n2", "n2");
        assert_eq!(dataplane.apply(&plan).await.failures, []);
        let deadlines = dataplane.deadlines();
        let address = FLOATING6.parse().unwrap();
        deadlines
            .hold_until(&[address], Instant::now() + Duration::from_millis(300))
            .unwrap();
        let report = loop {
            let report = dataplane.apply(&plan).await;
            assert_eq!(report.restored, []);
            if report.floating_ips.is_empty() {
                break report;
            }
        };
        assert_eq!((report.changes, report.failures), (0, vec![]));
        deadlines
            .hold_until(&[address], Instant::now() + Duration::from_secs(60))
            .unwrap();
        let report = dataplane.apply(&plan).await;
        assert_eq!((report.changes, report.restored), (0, vec![]));
        assert_eq!(*report.floating_ips, [address].into());
    });
}

#[test]
fn packets_and_new_connections_are_counted_for_an_egress_ip_of_ipv6() {
    let network = Network::dual_stack();
    network.apply_both("n2");
    network.count6(
        "arrived",
        &format!("ip6 saddr {FLOATING6} ip6 daddr {SERVER6} udp dport 80"),
    );
    for _ in 0..5 {
        assert_eq!(network.seen_by_udp(PODS[0], SERVER6), seen(FLOATING6));
    }
    let arrived = network.counted6("arrived");
    assert!(arrived >= 5);
    let floating: IpAddr = FLOATING6.parse().unwrap();
    let source = network.counters("n1").egress[&floating];
    assert_eq!(source.steered.packets, arrived);
    let gateway = network.counters("n2").egress[&floating];
    assert_eq!(gateway.received.packets, arrived);
    assert_eq!(gateway.connections, 5, "a socket each time");

    let mut closed = plan("n1", "n2");
    for steering in closed.destinations.values_mut() {
        *steering = Steering::Drop;
    }
    network.apply("n1", closed);
    assert_eq!(network.seen_by_udp(PODS[0], SERVER6), None);
    assert!(network.counters("n1").blocked.dropped > 0);
}

#[test]
fn nothing_of_ipv6_leaks_after_a_reboot_before_the_first_plan() {
    let network = Network::dual_stack();
    network.apply_both("n2");
    let directory = tempfile::tempdir().unwrap();
    let mut config = network.config("n1");
    config.guard_file = Some(directory.path().join("guard"));
    drop(network.keep("n1", config.clone(), plan("n1", "n2")));
    network.watch_for_leaks6();
    network.reboot("n1");
    network.open_with("n1", config.clone(), async |_unplanned| {});
    assert_eq!(network.seen_by_udp(PODS[0], SERVER6), None);
    assert!(network.counted_in("n1", "ip6 egressnat", "undecided") > 0);
    let other = network.seen_by_tcp(OTHER_PODS[0], OTHER_SERVER6);
    assert_eq!(other, seen(NODES[0]));
    let _keeper = network.keep("n1", config, plan("n1", "n2"));
    eventually(seen(FLOATING6), || network.seen_by_udp(PODS[0], SERVER6));
    assert_eq!(network.counted6("leaked"), 0);
}
