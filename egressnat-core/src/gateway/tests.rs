use super::*;
use crate::model::{Cluster, ClusterKey, Health, Node, Timestamp};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn group(namespace: &str, name: &str) -> GatewayKey {
    GatewayKey::group(namespace.parse().unwrap(), name.parse().unwrap())
}

fn gateway(created: i64, addresses: &[&str]) -> Gateway {
    Gateway {
        created: Timestamp(created),
        ..Gateway::new(addresses.iter().map(|a| ip(a)))
    }
}

fn cluster_key() -> ClusterKey {
    ClusterKey {
        namespace: "cluster-cluster1".parse().unwrap(),
        name: "cluster1".parse().unwrap(),
    }
}

fn reasons(effective: &EffectiveGateways) -> Vec<(Reason, String)> {
    effective
        .findings
        .iter()
        .map(|f| (f.reason, f.subject.to_string()))
        .collect()
}

#[test]
fn a_gateway_of_a_cluster_namespace_needs_the_cluster_switch_e7() {
    let mut snapshot = Snapshot::default();
    let original = group("cluster-cluster1", "default");
    snapshot
        .gateways
        .insert(original.clone(), gateway(1, &["192.168.1.100"]));

    let off = effective_gateways(&snapshot);
    assert!(off.gateways.is_empty());
    assert_eq!(reasons(&off)[0].0, Reason::ClusterSwitchOff);

    for switch in [
        Cluster {
            anthos_network_gateway: true,
            ..Cluster::default()
        },
        Cluster {
            advanced_networking: true,
            ..Cluster::default()
        },
    ] {
        snapshot.clusters.insert(cluster_key(), switch);
        let on = effective_gateways(&snapshot);
        let copy = &on.gateways[&group("kube-system", "default")];
        assert_eq!(copy.mirror_of.as_ref(), Some(&original.namespace));
        assert_eq!(
            on.owners[&ip("192.168.1.100")],
            group("kube-system", "default")
        );
        assert_eq!(on.findings, []);
    }
}

#[test]
fn a_copy_without_its_original_has_no_effect_e7() {
    let mut snapshot = Snapshot::default();
    let copy = Gateway {
        mirror_of: Some("cluster-cluster1".parse().unwrap()),
        ..gateway(1, &["192.168.1.100"])
    };
    snapshot
        .gateways
        .insert(group("kube-system", "default"), copy);
    assert_eq!(effective_gateways(&snapshot), EffectiveGateways::default());
}

#[test]
fn a_gateway_written_in_kube_system_keeps_its_name_e7() {
    let mut snapshot = Snapshot::default();
    snapshot.clusters.insert(
        cluster_key(),
        Cluster {
            advanced_networking: true,
            ..Cluster::default()
        },
    );
    snapshot.gateways.insert(
        group("cluster-cluster1", "default"),
        gateway(1, &["192.168.1.100"]),
    );
    snapshot.gateways.insert(
        group("kube-system", "default"),
        gateway(2, &["192.168.1.101"]),
    );
    let effective = effective_gateways(&snapshot);
    assert_eq!(
        effective.owners.keys().copied().collect::<Vec<_>>(),
        [ip("192.168.1.101")]
    );
    assert_eq!(
        reasons(&effective),
        [(
            Reason::GatewayNameTaken,
            "NetworkGatewayGroup cluster-cluster1/default".into()
        )]
    );
}

#[test]
fn a_duplicate_floating_ip_is_refused_at_the_later_gateway_e23() {
    let mut snapshot = Snapshot::default();
    snapshot.gateways.insert(
        group("kube-system", "a"),
        gateway(2, &["192.168.1.100", "192.168.1.101"]),
    );
    snapshot
        .gateways
        .insert(group("kube-system", "b"), gateway(1, &["192.168.1.100"]));
    let effective = effective_gateways(&snapshot);
    assert_eq!(
        effective.owners[&ip("192.168.1.100")],
        group("kube-system", "b")
    );
    assert_eq!(
        effective.owners[&ip("192.168.1.101")],
        group("kube-system", "a")
    );
    assert_eq!(
        reasons(&effective),
        [(
            Reason::DuplicateFloatingIp,
            "NetworkGatewayGroup kube-system/a".into()
        )]
    );
}

#[test]
fn addresses_that_cannot_be_floating_ips_are_refused_and_the_rest_works() {
    let mut snapshot = Snapshot::default();
    let mut node = Node::new(Health::Up);
    node.addresses.insert(ip("192.168.1.1"));
    snapshot.nodes.insert("worker1".parse().unwrap(), node);
    let addresses = [
        "192.168.1.1",
        "192.168.1.100",
        "10.168.1.100",
        "192.168.1.100",
    ];
    snapshot
        .gateways
        .insert(group("kube-system", "a"), gateway(1, &addresses));
    let effective = effective_gateways(&snapshot);
    assert_eq!(
        effective.owners.keys().copied().collect::<Vec<_>>(),
        [ip("192.168.1.100")]
    );
    let reasons: Vec<_> = effective.findings.iter().map(|f| f.reason).collect();
    assert_eq!(
        reasons,
        [Reason::FloatingIpIsNodeAddress, Reason::EgressIdConflict]
    );
}

#[test]
fn egress_ids_are_readable_and_fit_a_vni() {
    assert_eq!(EgressId::of(ip("192.168.1.100")).to_string(), "0xa80164");
    for address in [
        "255.255.255.255",
        "2001:db8::1",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ] {
        assert!(EgressId::of(ip(address)).vni() < 1 << 24);
    }
}
