use super::*;

#[test]
fn bad_manifests_are_told_with_file_field_and_fix_and_the_rest_works() {
    let lab = TestLab::with_policy();
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let garbage = write("garbage.yaml", "kind: [unclosed\n: }");
    let mixed = write(
        "mixed.yaml",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n---\n\
         apiVersion: networking.gke.io/v1\nkind: NetworkGatewayGroup\nmetadata: {name: bad, namespace: kube-system}\n\
         spec: {floatingIPs: [192.168.1.110, none]}\n---\n\
         apiVersion: networking.gke.io/v1\nkind: NetworkGatewayGroup\nmetadata: {name: good, namespace: kube-system}\n\
         spec: {floatingIPs: [192.168.1.120]}\n",
    );
    let outcome = lab.apply(&garbage).unwrap();
    assert_eq!(outcome.errors.len(), 1, "{:?}", outcome.errors);
    assert!(
        outcome.errors[0].contains("garbage.yaml"),
        "{}",
        outcome.errors[0]
    );

    let outcome = lab.apply(&mixed).unwrap();
    let [kind, address] = outcome.errors.as_slice() else {
        panic!("two errors: {:?}", outcome.errors)
    };
    for part in [
        "mixed.yaml",
        "document 1",
        "kind",
        "Deployment",
        "NetworkGatewayGroup",
    ] {
        assert!(kind.contains(part), "{part:?} in {kind}");
    }
    for part in [
        "mixed.yaml",
        "document 2",
        "spec.floatingIPs[1]",
        "none",
        "write one such as",
    ] {
        assert!(address.contains(part), "{part:?} in {address}");
    }
    let good = ObjectKey::namespaced(Kind::NetworkGatewayGroup, "kube-system", "good");
    let is_assigned = || {
        lab.object(&good)
            .at("/status/floatingIPs/192.168.1.120")
            .is_string()
            .then_some(())
    };
    until("the good gateway to be assigned", PATIENCE, is_assigned).unwrap();
    assert_eq!(
        lab.seen(&pod("frontend-0"), Protocol::Tcp).unwrap(),
        FLOATING
    );
}

#[test]
fn garbage_in_the_directory_itself_is_told_and_harms_nothing() {
    let lab = TestLab::with_policy();
    std::fs::write(lab.directory().join("objects/mine.yaml"), "kind: [").unwrap();
    until("the controller to tell", PATIENCE, || {
        lab.log("controller").contains("mine.yaml").then_some(())
    })
    .unwrap();
    assert_eq!(
        lab.seen(&pod("frontend-0"), Protocol::Tcp).unwrap(),
        FLOATING
    );
}

#[test]
fn what_the_node_and_pod_objects_say_is_honored() {
    let lab = TestLab::new();
    let directory = tempfile::tempdir().unwrap();
    let text = "apiVersion: v1\nkind: Node\nmetadata: {name: big}\nspec: {podCIDR: 10.10.77.0/24}\n\
                status: {addresses: [{type: InternalIP, address: 192.168.1.77}]}\n---\n\
                apiVersion: v1\nkind: Namespace\nmetadata: {name: alice, labels: {user: alice}}\n---\n\
                apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: alice, labels: {role: frontend}}\n\
                spec: {nodeName: big}\n";
    std::fs::write(directory.path().join("cluster.yaml"), text).unwrap();
    let manifests = vec![directory.path().to_owned(), examples("v1")];
    assert_eq!(
        lab.up(&UpOptions {
            manifests,
            ..UpOptions::default()
        })
        .unwrap(),
        [""; 0]
    );
    let web = lab.object(&ObjectKey::namespaced(Kind::Pod, "alice", "web"));
    assert!(
        web.at("/status/podIP")
            .as_str()
            .unwrap()
            .starts_with("10.10.77."),
        "{:?}",
        web.value()
    );
    lab.until_seen_as(&pod("web"), FLOATING);
    let other = seen_source(
        &lab.namespace(&pod("web")).unwrap(),
        Ipv4Addr::new(9, 9, 9, 9),
        Protocol::Tcp,
    )
    .unwrap();
    assert_eq!(other, Ipv4Addr::new(192, 168, 1, 77));
}

#[test]
fn one_pod_that_cannot_be_placed_stops_no_other_and_is_told_on_the_command_line() {
    let lab = TestLab::new();
    let directory = tempfile::tempdir().unwrap();
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: lost}\nspec: {nodeName: nowhere}\n---\n\
                apiVersion: v1\nkind: Pod\nmetadata: {name: found}\nspec: {}\n";
    std::fs::write(directory.path().join("pods.yaml"), text).unwrap();
    let up = lab.cli(&["up", "--manifests", directory.path().to_str().unwrap()]);
    assert!(!up.status.success());
    let errors = String::from_utf8(up.stderr).unwrap();
    for part in ["Pod default/lost", "spec.nodeName", "nowhere", "worker1"] {
        assert!(errors.contains(part), "{part:?} in {errors}");
    }
    let found = lab.cli(&[
        "exec",
        "found",
        "--",
        "sh",
        "-c",
        "curl -s http://8.8.8.8/; exit 7",
    ]);
    assert_eq!(found.status.code(), Some(7));
    let seen = String::from_utf8(found.stdout).unwrap();
    assert!(seen.starts_with("client 192.168.1."), "{seen}");
    let table = String::from_utf8(lab.cli(&["get", "pods"]).stdout).unwrap();
    assert!(
        table.contains("found") && table.contains("Running"),
        "{table}"
    );
}
