//! Nodes and clusters with one of the two families, or with both in another shape.

use super::*;

#[test]
fn nothing_of_ipv6_is_made_for_a_cluster_of_ipv4() {
    let network = Network::dual_stack();
    network.apply_all("n1");
    assert_eq!(
        network.exec("n1", "nft list tables"),
        "table ip egressnat\n"
    );
    assert!(!network.ip("n1", "-6 rule show").contains("1190"));
    let routes = network.ip("n1", "-6 route show table all");
    assert!(!routes.contains("egressnat0 table 1190"), "{routes}");
}

#[test]
fn an_address_of_ipv6_behind_a_bridge_is_steered_at_the_port_that_leads_to_it() {
    let mut network = Network::dual_stack();
    network.ip("n1", "link add cni0 type bridge");
    network.ip("n1", "addr add fd00:10:10:1:1::1/80 dev cni0 nodad");
    network.ip("n1", "link set cni0 up");
    let addresses = ["fd00:10:10:1:1::2", "fd00:10:10:1:1::3"];
    for (pod, address) in ["bridged2", "bridged3"].into_iter().zip(addresses) {
        network.add_namespace(pod);
        let [inside, outside] = [pod, "n1"].map(|name| network.namespace(name));
        crate::network::run(&format!(
            "ip link add eth0 netns {inside} type veth peer name {pod} netns {outside}"
        ));
        network.ip("n1", &format!("link set {pod} master cni0 up"));
        network.ip(pod, "link set eth0 up");
        network.ip(pod, &format!("addr add {address}/80 dev eth0 nodad"));
        network.ip(pod, "route add default via fd00:10:10:1:1::1");
    }
    let mut wanted = plan("n1", "n2");
    let set = wanted.pods[&address6(PODS[0]).parse::<IpAddr>().unwrap()];
    let [selected, other] = addresses.map(|address| address.parse().unwrap());
    wanted.pods.insert(selected, set);
    wanted.pods.insert(other, PolicySetId::EMPTY);
    assert_eq!(network.apply("n1", wanted.clone()).failures, []);
    assert_eq!(network.apply("n2", plan("n2", "n2")).failures, []);
    assert_eq!(network.seen_by_tcp("bridged2", SERVER6), seen(FLOATING6));
    assert_eq!(network.seen_by_tcp("bridged3", SERVER6), seen(NODES[0]));
    assert!(network.is_pinged("bridged3", addresses[0]), "E12");
    let again = network.apply("n1", wanted);
    assert_eq!((again.changes, again.failures), (0, vec![]));
}

#[test]
fn a_cluster_of_ipv6_alone_needs_nothing_of_ipv4() {
    let network = Network::dual_stack();
    for node in ["n1", "n2"] {
        // The uplink is the one of the default route: now of that of IPv6.
        network.ip(node, "route del default");
        network.sysctl(node, "net.ipv4.ip_forward=0");
        let report = network.apply(node, of_ipv6(plan(node, "n2")));
        assert_eq!(report.failures, [], "{node}");
    }
    for pod in PODS {
        assert_eq!(network.seen_by_tcp(pod, SERVER6), seen(FLOATING6), "{pod}");
    }
    let node = network.seen_by_tcp(OTHER_PODS[1], SERVER6);
    assert_eq!(node, seen(NODES[1]));
}

#[test]
fn an_agent_that_knew_ipv4_only_is_taken_over_under_its_connections() {
    let network = Network::dual_stack();
    // As it left the kernel: the maps of IPv4, and nothing else.
    network.apply_all("n1");
    for node in ["n1", "n2"] {
        for map in ["pods6", "destinations6", "egress_ips6", "peers6"] {
            std::fs::remove_file(network.pins(node).join("v1").join(map)).unwrap();
        }
    }
    let mut connection = network.connect(PODS[1], SERVER).unwrap();
    assert_eq!(connection.ask(), seen(FLOATING));
    network.apply_both("n1");
    assert_eq!(connection.ask(), seen(FLOATING), "E45");
    for pod in PODS {
        assert_eq!(network.seen_by_tcp(pod, SERVER), seen(FLOATING), "{pod}");
        assert_eq!(network.seen_by_tcp(pod, SERVER6), seen(FLOATING6), "{pod}");
    }
}

#[test]
fn a_node_without_ipv6_carries_ipv4_and_says_what_it_misses() {
    let network = Network::dual_stack();
    network.apply_both("n2");
    network.sysctl("n1", "net.ipv6.conf.all.disable_ipv6=1");
    let report = network.apply("n1", plan("n1", "n1"));
    let [failure] = report.failures.as_slice() else {
        panic!("{report:?}");
    };
    assert_eq!(failure.object, "IPv6");
    for part in [
        "sysctl -w net.ipv6.conf.all.disable_ipv6=0",
        FLOATING6,
        "1 selected pods",
    ] {
        assert!(failure.message.contains(part), "{}", failure.message);
    }
    assert_eq!(*report.floating_ips, [FLOATING.parse().unwrap()].into());
    for pod in PODS {
        assert_eq!(network.seen_by_tcp(pod, SERVER), seen(FLOATING), "{pod}");
    }
}

#[test]
fn a_node_that_does_not_forward_ipv6_says_which_switch_is_off() {
    let network = Network::dual_stack();
    network.sysctl("n1", "net.ipv6.conf.all.forwarding=0");
    let report = network.apply("n1", plan("n1", "n1"));
    let objects: Vec<&str> = report.failures.iter().map(|f| f.object.as_str()).collect();
    assert_eq!(objects, ["sysctl net.ipv6.conf.all.forwarding"]);
    // A cluster of IPv4 does not need it.
    let network = Network::new();
    let report = network.apply("n1", crate::network::plan("n1", "n1"));
    assert_eq!(report.failures, []);
}

#[test]
fn an_address_of_ipv6_that_somebody_else_put_on_the_uplink_is_not_taken_over() {
    let network = Network::dual_stack();
    network.ip("n1", &format!("addr add {FLOATING6}/128 dev eth0 nodad"));
    let report = network.apply("n1", plan("n1", "n1"));
    assert_eq!(report.failures.len(), 1, "{report:?}");
    let config = network.config("n1");
    network.enter("n1", move || runtime().block_on(cleanup(&config)));
    assert!(network.ip("n1", "addr show dev eth0").contains(FLOATING6));
}
