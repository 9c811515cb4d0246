//! Pods behind a bridge, by their addresses of IPv6.

use super::*;
use crate::bridge::{OTHER, POD, port};

/// Of the node, on the bridge.
const GATEWAY: &str = "fd00:10:10:1::129";

/// The network of both families, with a bridge on n1 and two pods behind it, which have addresses of IPv6 too.
fn with_bridge() -> Network {
    let mut network = Network::dual_stack();
    network.add_bridge();
    network.ip("n1", &format!("addr add {GATEWAY}/120 dev cni0 nodad"));
    for pod in [POD, OTHER] {
        let address = address6(pod);
        network.ip(pod, &format!("addr add {address}/120 dev eth0 nodad"));
        network.ip(pod, &format!("route add default via {GATEWAY}"));
    }
    network
}

/// The plan of n1 with a selected pod behind the bridge, and one that nothing selects.
fn bridge_plan() -> NodePlan {
    let mut plan = plan("n1", "n2");
    let address = |pod| -> IpAddr { address6(pod).parse().unwrap() };
    let set = plan.pods[&address(PODS[0])];
    plan.pods.insert(address(POD), set);
    plan.pods.insert(address(OTHER), PolicySetId::EMPTY);
    plan
}

#[test]
fn a_pod_does_not_get_anothers_egress_ip_of_ipv6_by_claiming_its_address_e40() {
    let network = with_bridge();
    network.apply("n2", plan("n2", "n2"));
    let report = network.apply("n1", bridge_plan());
    assert_eq!(report.failures, []);
    assert_eq!(network.seen_by_udp(POD, SERVER6), seen(FLOATING6));
    assert_eq!(network.seen_by_udp(OTHER, SERVER6), seen(NODES[0]));

    // The pod is quiet; the other one answers for it, and sends with its address.
    for command in [
        "add table ip6 quiet",
        "add chain ip6 quiet in { type filter hook input priority 0 ; policy drop ; }",
    ] {
        network.exec(POD, &format!("nft {command}"));
    }
    let claimed = address6(POD);
    network.ip(OTHER, &format!("addr add {claimed}/128 dev eth0 nodad"));
    let route = format!("-6 route replace default via {GATEWAY} src {claimed}");
    network.ip(OTHER, &route);
    network.ip("n1", "-6 neigh flush dev cni0");
    assert!(network.is_pinged("n1", &claimed), "the other one answers");
    network.count6(
        "stolen",
        &format!("ip6 saddr {FLOATING6} ip6 daddr {SERVER6}"),
    );
    let stolen = || {
        assert_eq!(network.seen_by_udp(OTHER, SERVER6), None);
        assert!(!network.is_pinged(OTHER, SERVER6));
        network.counted6("stolen")
    };
    assert_eq!(stolen(), 0);
    let report = network.apply("n1", bridge_plan());
    let [failure] = report.failures.as_slice() else {
        panic!("{report:?}");
    };
    assert_eq!(failure.object, format!("pod {claimed}"));
    for part in [port(POD), port(OTHER), "keeps it".to_owned()] {
        assert!(failure.message.contains(&part), "{}", failure.message);
    }
    assert_eq!(stolen(), 0);

    // An agent that has not seen who was first trusts neither, and tells so.
    network.reboot("n1");
    let report = network.apply("n1", bridge_plan());
    let message = report.failures.first().map(|failure| &failure.message);
    let is_told = message.is_some_and(|message| message.contains("none gets its decisions"));
    assert!(is_told, "{report:?}");
    assert_eq!(stolen(), 0);

    // The thief is gone.
    network.ip("n1", &format!("link del {}", port(OTHER)));
    network.exec(POD, "nft delete table ip6 quiet");
    // The bridge has the lowest MAC address of its ports, so that it may have another now. Kernels ask again by themselves after some
    // seconds.
    network.ip("n1", "-6 neigh flush dev cni0");
    network.ip(POD, "-6 neigh flush dev eth0");
    network.apply("n1", bridge_plan());
    eventually(seen(FLOATING6), || network.seen_by_udp(POD, SERVER6));
}
