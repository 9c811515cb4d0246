//! What leaves with the node's address and what with the pod's, where no policy decides: as the plan itself says.

use std::net::IpAddr;

use egressnat_core::model::{MasqueradeAction, MasqueradeMatch, MasqueradeRules, Protocol};
use egressnat_core::{Decision, NodePlan};

use crate::network::{FLOATING, Network, OTHER_SERVER, SERVER, plan};

fn rules(rules: &[(&str, Option<&str>, Option<Protocol>, MasqueradeAction)]) -> MasqueradeRules {
    let rule = |(destination, source, protocol, action): &(
        &str,
        Option<&str>,
        Option<Protocol>,
        MasqueradeAction,
    )| {
        let rule = MasqueradeMatch {
            destination: destination.parse().unwrap(),
            source: source.map(|range| range.parse().unwrap()),
            protocol: *protocol,
        };
        (rule, *action)
    };
    MasqueradeRules {
        rules: rules.iter().map(rule).collect(),
    }
}

/// What the server must see.
fn expected(plan: &NodePlan, pod: &str, server: &str, protocol: Protocol) -> String {
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    match plan.decide(address(pod), address(server), Some(protocol)) {
        Decision::Snat(_) => FLOATING.to_owned(),
        Decision::Keep => pod.to_owned(),
        Decision::Masquerade => "192.168.1.1".to_owned(),
        Decision::Drop => panic!("{pod} to {server} is dropped"),
    }
}

#[test]
fn the_most_specific_rule_decides_by_destination_then_source_then_protocol() {
    use MasqueradeAction::{Keep, Masquerade};
    let network = Network::new();
    network.apply_all("n2");
    let (tcp, udp) = (Some(Protocol::TCP), Some(Protocol::UDP));
    let mut seen = Vec::new();
    for masquerade in [
        rules(&[("9.9.9.0/24", None, None, Keep)]),
        // An exception from it, for one pod.
        rules(&[
            ("9.9.9.0/24", None, None, Keep),
            ("9.9.9.9/32", Some("10.10.1.3/32"), None, Masquerade),
        ]),
        // One protocol of the exception; a rule for all pods that is too short to matter.
        rules(&[
            ("9.0.0.0/8", None, udp, Keep),
            ("9.9.9.0/24", None, None, Keep),
            ("9.9.9.9/32", None, tcp, Masquerade),
        ]),
        // A longer destination comes before a longer source and a protocol.
        rules(&[
            ("9.9.0.0/16", Some("10.10.1.3/32"), tcp, Masquerade),
            ("9.9.9.0/24", None, None, Keep),
            ("9.9.9.0/25", Some("10.10.0.0/16"), udp, Masquerade),
        ]),
        // Off altogether, but for one pod's UDP.
        rules(&[
            ("0.0.0.0/0", None, None, Keep),
            ("0.0.0.0/0", Some("10.10.1.3/32"), udp, Masquerade),
        ]),
        rules(&[]),
    ] {
        let mut plan = plan("n1", "n2");
        plan.masquerade = masquerade;
        let wanted = plan.masquerade.rules.len();
        let again = plan.clone();
        let (first, second, failures) = network.open("n1", async move |mut dataplane| {
            let first = dataplane.apply(&again).await;
            let second = dataplane.apply(&again).await;
            (first.changes, second.changes, second.failures)
        });
        assert_eq!((second, failures), (0, vec![]), "{:?}", plan.masquerade);
        assert!(first > 0, "{:?}", plan.masquerade);
        let listed = network.exec("n1", "nft list chain ip egressnat masquerade_rules");
        // Behind a rule, not the chain's own.
        let rules = listed.matches(" comment ").count();
        assert_eq!(rules, 2 + wanted, "{listed}");
        for (pod, server) in [
            ("10.10.1.2", OTHER_SERVER),
            ("10.10.1.3", OTHER_SERVER),
            ("10.10.1.3", SERVER),
            ("10.10.1.2", SERVER),
        ] {
            let what = format!("{pod} to {server}: {:?}", plan.masquerade);
            let by_tcp = network.seen_by_tcp(pod, server);
            let want = expected(&plan, pod, server, Protocol::TCP);
            assert_eq!(by_tcp, Some(want.clone()), "TCP from {what}");
            seen.push(want);
            let by_udp = network.seen_by_udp(pod, server);
            let want = expected(&plan, pod, server, Protocol::UDP);
            assert_eq!(by_udp, Some(want), "UDP from {what}");
        }
    }
    // The cases tell all outcomes apart.
    for outcome in [FLOATING, "10.10.1.3", "192.168.1.1"] {
        assert!(seen.iter().any(|seen| seen == outcome), "{outcome}");
    }
}

#[test]
fn pods_without_an_entry_are_masqueraded_by_the_same_rules() {
    let network = Network::new();
    let mut plan = plan("n1", "n2");
    plan.pods.clear();
    plan.masquerade = rules(&[("9.9.9.0/24", None, None, MasqueradeAction::Keep)]);
    assert_eq!(network.apply("n1", plan.clone()).failures, []);
    let seen = network.seen_by_tcp("10.10.1.3", OTHER_SERVER);
    assert_eq!(seen, Some("10.10.1.3".to_owned()));
}

#[test]
fn a_known_pod_outside_of_the_nodes_ranges_is_masqueraded_too() {
    let network = Network::new();
    let mut plan = plan("n1", "n2");
    plan.pod_ranges.clear();
    assert_eq!(network.apply("n1", plan).failures, []);
    let seen = network.seen_by_tcp("10.10.1.3", OTHER_SERVER);
    assert_eq!(seen, Some("192.168.1.1".to_owned()));
}
