use super::*;
use egressnat_lab::probe::Traffic;

#[test]
fn up_twice_changes_nothing() {
    let lab = TestLab::with_policy();
    let pids = || ["worker1", "worker2", "control-plane"].map(|node| lab.agent_pid(node).unwrap());
    let (objects, agents) = (lab.objects_at_rest(), pids());
    let namespaces = || {
        let entries = std::fs::read_dir("/run/netns")
            .unwrap()
            .map(|entry| entry.unwrap());
        let ours = entries.filter(|entry| entry.file_name().to_string_lossy().contains(lab.name()));
        let mut inodes: Vec<_> = ours
            .map(|entry| {
                use std::os::unix::fs::MetadataExt;
                (
                    entry.file_name(),
                    std::fs::metadata(entry.path()).unwrap().ino(),
                )
            })
            .collect();
        inodes.sort();
        inodes
    };
    let before = namespaces();
    let options = UpOptions {
        manifests: vec![examples("v1")],
        ..UpOptions::default()
    };
    assert_eq!(lab.up(&options).unwrap(), [""; 0]);
    assert_eq!(lab.objects_at_rest(), objects);
    assert_eq!(pids(), agents);
    assert_eq!(namespaces(), before);
}

#[test]
fn a_killed_agent_loses_no_packet_and_its_successor_rewrites_nothing_e45() {
    let lab = TestLab::with_policy();
    let (_, away) = lab.beside_and_away();
    let log = |node: &str| lab.log(&format!("agent-{node}"));
    // An agent is at rest when it has written nothing from one renewal of its lease to the next.
    let at_rest = |node: &str| {
        let (lines, renewal) = (log(node).lines().count(), renewed(&lab, node));
        until("a renewal", PATIENCE, || {
            (renewed(&lab, node) != renewal).then_some(())
        })
        .unwrap();
        (log(node).lines().count() == lines).then_some(lines)
    };
    let before = ["worker1", "worker2"]
        .map(|node| until("an agent at rest", PATIENCE, || at_rest(node)).unwrap());
    let traffic = Traffic::start(&lab.namespace(&away).unwrap(), SERVER).unwrap();
    traffic.wait_for_answers(10, PATIENCE).unwrap();
    for node in ["worker1", "worker2"] {
        let old = renewed(&lab, node);
        lab.restart_agent(node).unwrap();
        // The successor has taken over when it renews the lease.
        until("a renewal", PATIENCE, || {
            (renewed(&lab, node) != old).then_some(())
        })
        .unwrap();
    }
    traffic.wait_for_answers(10, PATIENCE).unwrap();
    let observed = traffic.finish().unwrap();
    assert_eq!(observed.sent, observed.answered, "{observed:?}");
    assert_eq!(observed.sources, [FLOATING].into());
    for (node, lines) in ["worker1", "worker2"].into_iter().zip(before) {
        let log = log(node);
        let news = log.lines().skip(lines);
        // Said before anything is looked at.
        let news: Vec<&str> = news
            .filter(|line| !line.contains("probes are answered"))
            .collect();
        assert_eq!(news, [""; 0], "{node} wrote something");
    }
}

#[test]
fn a_killed_controller_loses_no_packet_and_its_successor_rewrites_nothing_e45() {
    let lab = TestLab::with_policy();
    let (_, away) = lab.beside_and_away();
    lab.objects_at_rest();
    let objects = || {
        [
            ObjectKey::cluster(Kind::EgressNatPolicy, "egress"),
            ObjectKey::namespaced(Kind::NetworkGatewayGroup, "kube-system", "default"),
            ObjectKey::namespaced(Kind::NetworkGatewayGroup, "cluster-cluster1", "default"),
        ]
        .map(|key| lab.object(&key))
    };
    let before = objects();
    let traffic = Traffic::start(&lab.namespace(&away).unwrap(), SERVER).unwrap();
    traffic.wait_for_answers(10, PATIENCE).unwrap();
    lab.restart_controller().unwrap();
    // What comes next is the successor's work.
    lab.apply_text(
        "apiVersion: networking.gke.io/v1\nkind: NetworkGatewayGroup\n\
         metadata: {name: second, namespace: kube-system}\nspec: {floatingIPs: [192.168.1.110]}\n",
    );
    let second = ObjectKey::namespaced(Kind::NetworkGatewayGroup, "kube-system", "second");
    until("the second group to be programmed", PATIENCE, || {
        (programmed(&lab.object(&second))?.0 == "True").then_some(())
    })
    .unwrap();
    traffic.wait_for_answers(10, PATIENCE).unwrap();
    let observed = traffic.finish().unwrap();
    assert_eq!(observed.sent, observed.answered, "{observed:?}");
    let seen = (observed.sources, observed.ports.len());
    assert_eq!(seen, ([FLOATING].into(), 1));
    assert_eq!(objects(), before);
}

fn renewed(lab: &TestLab, node: &str) -> Value {
    let key = ObjectKey::namespaced(Kind::Lease, "kube-system", format!("egressnat-node-{node}"));
    lab.object(&key).at("/spec/renewTime").clone()
}

#[test]
fn a_node_that_comes_back_takes_nothing_and_carries_traffic_again_e32() {
    let lab = TestLab::with_policy();
    let old = lab.holder();
    lab.power_off(&old).unwrap();
    until("another holder", PATIENCE, || {
        (lab.holder() != old).then_some(())
    })
    .unwrap();
    let new = lab.holder();
    lab.power_on(&old).unwrap();
    assert_eq!(lab.holder(), new);
    for name in ["frontend-0", "frontend-1"] {
        lab.until_seen_as(&pod(name), FLOATING);
    }
}

#[test]
fn a_frozen_agent_counts_as_down_until_it_goes_on() {
    let lab = TestLab::with_policy();
    let key = ObjectKey::namespaced(Kind::NetworkGatewayNode, "kube-system", "worker2");
    let until_health = |want: &str| {
        until(want, PATIENCE, || {
            (lab.object(&key).at("/status/health") == want).then_some(())
        })
        .unwrap();
    };
    lab.freeze("worker2").unwrap();
    until_health("Down");
    lab.thaw("worker2").unwrap();
    until_health("Up");
}

/// What it allocates: the program itself is three times as large unoptimized as it ships. What the start needs for a moment, 17 MB for the
/// kernel's type information above all, has been given back.
#[test]
fn an_agents_memory_stays_below_6_megabytes() {
    let lab = TestLab::with_policy();
    for node in ["worker1", "worker2"] {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", lab.agent_pid(node).unwrap()))
                .unwrap();
        let kilobytes = |name: &str| -> u64 {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let [resident, allocated] = [kilobytes("VmRSS:"), kilobytes("RssAnon:")];
        eprintln!("agent on {node}: {resident} kB resident, {allocated} kB of them its own");
        assert!(allocated < 6_000, "{allocated} kB");
    }
}
