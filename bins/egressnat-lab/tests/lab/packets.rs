use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Instant;

use super::*;
use egressnat_lab::demo;

#[test]
fn the_tour_finds_everything_as_it_must_be_e1_e12_e20_e21_e30_e31_e40() {
    let lab = TestLab::new();
    let mut text = Vec::new();
    let outcome = demo::run(&lab, egressnat_lab::ObjectPlace::Directory, &mut text);
    let text = String::from_utf8(text).unwrap();
    assert!(outcome.is_ok(), "{}\n{text}", outcome.unwrap_err());
}

#[test]
fn the_wire_shows_the_tunnel_and_the_translated_packet_e40() {
    let lab = TestLab::with_policy();
    let (_, away) = lab.beside_and_away();
    let holder = Target::Node(lab.holder());
    let mut capture = lab.capture(&holder, &["-i", "eth0", "udp port 8473 or host 8.8.8.8"]);
    let seen = lab.seen(&away, Protocol::Tcp).unwrap();
    let mut lines = BufReader::new(capture.stdout.take().unwrap())
        .lines()
        .map(|line| line.unwrap());
    let mut before = Vec::new();
    let mut find = |part: &str| {
        let found = lines.by_ref().find(|line| {
            before.push(line.clone());
            line.contains(part)
        });
        assert!(found.is_some(), "{part:?} in {before:#?}");
    };
    // Source node's address to the floating IP itself, then the floating IP to the server.
    find("> 192.168.1.100.8473: UDP");
    find("IP 192.168.1.100.");
    capture.kill().unwrap();
    capture.wait().unwrap();
    assert_eq!(seen, FLOATING);
    assert!(
        !before.iter().any(|line| line.contains("IP 10.10.")),
        "an untranslated packet: {before:#?}"
    );
}

#[test]
fn what_each_policy_sent_can_be_read_while_the_agent_runs_and_when_it_does_not() {
    let lab = TestLab::with_policy();
    let (_, away) = lab.beside_and_away();
    let node = match &away {
        Target::Pod(_, name) if name == "frontend-0" => "worker1",
        _ => "worker2",
    };
    let counted = || -> Value {
        let output = lab.counters(node).unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let of_policy = |counted: &Value, number: &str| {
        let policies = counted["policies"].as_object().unwrap();
        assert_eq!(policies.len(), 1, "{policies:?}");
        policies.values().next().unwrap()[number].as_u64().unwrap()
    };
    let before = counted();
    for _ in 0..3 {
        assert_eq!(lab.seen(&away, Protocol::Tcp).unwrap(), FLOATING);
    }
    let after = counted();
    let difference = |number| of_policy(&after, number) - of_policy(&before, number);
    assert_eq!(difference("connections"), 3);
    assert!(difference("packets") >= 3 * 4, "{after}");
    assert!(
        after["egressIPs"][FLOATING.to_string()].is_object(),
        "{after}"
    );
    assert_eq!(after["blocked"]["dropped"], 0);

    // Packets go on, and so does what counts them.
    let agent = lab.agent_pid(node).unwrap().to_string();
    let killed = std::process::Command::new("kill")
        .args(["-9", &agent])
        .status();
    assert!(killed.unwrap().success());
    let ended = || lab.agent_pid(node).is_err().then_some(());
    until("the agent to end", PATIENCE, ended).unwrap();
    assert_eq!(lab.seen(&away, Protocol::Tcp).unwrap(), FLOATING);
    let without = counted();
    let connections = of_policy(&without, "connections");
    assert_eq!(connections, of_policy(&after, "connections") + 1);
}

#[test]
fn a_policy_change_reaches_the_kernel_at_once() {
    let lab = TestLab::with_policy();
    let (_, away) = lab.beside_and_away();
    let namespace = lab.namespace(&away).unwrap();
    let other = Ipv4Addr::new(9, 9, 9, 9);
    assert_ne!(
        seen_source(&namespace, other, Protocol::Udp).unwrap(),
        FLOATING
    );
    let text = std::fs::read_to_string(examples("v1").join("policy.yaml")).unwrap();
    let start = Instant::now();
    lab.apply_text(&text.replace("- cidr: 8.8.8.0/24", "- cidr: 9.9.9.0/24"));
    let as_floating = || {
        seen_source(&namespace, other, Protocol::Udp)
            .ok()
            .filter(|seen| *seen == FLOATING)
    };
    until("the policy in the kernel", PATIENCE, as_floating).unwrap();
    // Seen, not judged: how long depends on what else the machine does.
    eprintln!(
        "from apply to the server's view: {} ms",
        start.elapsed().as_millis()
    );
    lab.until_seen_as(&away, lab.node_address(&away));
}

#[test]
fn a_pod_that_comes_later_is_steered_without_a_restart() {
    let lab = TestLab::with_policy();
    lab.apply_text(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: late\n  namespace: alice\n  labels: {role: frontend}\nspec: {}\n",
    );
    lab.until_seen_as(&pod("late"), FLOATING);
}

#[test]
fn a_pod_that_starts_while_its_agent_is_frozen_does_not_leak_e43() {
    let lab = TestLab::with_policy();
    // The node that holds nothing: the floating IP stays where it is.
    let (_, away) = lab.beside_and_away();
    let Target::Pod(_, name) = &away else {
        panic!("{away} is no pod")
    };
    let node = lab.object(&ObjectKey::namespaced(Kind::Pod, "alice", name.as_str()));
    let node = node.at("/spec/nodeName").as_str().unwrap().to_owned();
    lab.freeze(&node).unwrap();
    lab.apply_text(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: late\n  namespace: alice\n  labels: {{role: frontend}}\nspec:\n  nodeName: {node}\n",
    ));
    let late = pod("late");
    let other = seen_source(
        &lab.namespace(&late).unwrap(),
        Ipv4Addr::new(9, 9, 9, 9),
        Protocol::Udp,
    );
    assert_eq!(other.unwrap(), lab.node_address(&late));
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        let seen = lab.seen(&late, protocol).ok();
        assert_eq!(seen, None, "over {protocol:?}");
    }
    assert_eq!(lab.seen(&away, Protocol::Udp).unwrap(), FLOATING);
    lab.thaw(&node).unwrap();
    lab.until_seen_as(&late, FLOATING);
}

#[test]
fn a_flow_outlives_the_death_of_its_gateway_with_its_address_and_port_e42() {
    let lab = TestLab::with_policy();
    let (_, away) = lab.beside_and_away();
    let traffic =
        egressnat_lab::probe::Traffic::start(&lab.namespace(&away).unwrap(), SERVER).unwrap();
    traffic.wait_for_answers(10, PATIENCE).unwrap();
    lab.power_off(&lab.holder()).unwrap();
    let wait = traffic.wait_for_answers(10, PATIENCE);
    let observed = traffic.finish().unwrap();
    wait.unwrap();
    assert_eq!(
        observed.sources,
        [FLOATING].into(),
        "the same flow, never with another address"
    );
    assert_eq!(observed.ports.len(), 1, "{observed:?}");
}

#[test]
fn edits_of_policies_break_no_flow_that_they_do_not_concern_e44() {
    let lab = TestLab::with_policy();
    let (_, away) = lab.beside_and_away();
    let namespace = lab.namespace(&away).unwrap();
    let policy = |role: &str, range: &str| {
        let gateway = "gatewayRef: {name: default, namespace: kube-system}";
        let source =
            format!("{{namespaceSelector: {{}}, podSelector: {{matchLabels: {{role: {role}}}}}}}");
        let spec = format!(
            "sources: [{source}], action: SNAT, destinations: [{{cidr: {range}}}], {gateway}"
        );
        format!(
            "apiVersion: networking.gke.io/v1\nkind: EgressNATPolicy\nmetadata: {{name: other}}\nspec: {{{spec}}}\n"
        )
    };
    let traffic = egressnat_lab::probe::Traffic::start(&namespace, SERVER).unwrap();
    traffic.wait_for_answers(10, PATIENCE).unwrap();
    let seen_by_other = |pod: &Target, want: Ipv4Addr| {
        let namespace = lab.namespace(pod).unwrap();
        let other = Ipv4Addr::new(9, 9, 9, 9);
        until(&format!("{pod} to be seen as {want}"), PATIENCE, || {
            let seen = seen_source(&namespace, other, Protocol::Udp).ok()?;
            (seen == want).then_some(())
        })
        .unwrap();
    };
    let backend = pod("backend-0");
    let (of_backend, of_away) = (lab.node_address(&backend), lab.node_address(&away));
    // For another pod, for this one, for other destinations of it, and gone again.
    lab.apply_text(&policy("backend", "9.9.9.0/24"));
    seen_by_other(&backend, FLOATING);
    lab.apply_text(&policy("frontend", "9.9.9.0/24"));
    seen_by_other(&away, FLOATING);
    seen_by_other(&backend, of_backend);
    lab.apply_text(&policy("frontend", "9.9.0.0/24"));
    seen_by_other(&away, of_away);
    // The flow's own policy, but not what it says of the flow.
    let text = std::fs::read_to_string(examples("v1").join("policy.yaml")).unwrap();
    let wider = "- cidr: 8.8.8.0/24\n    - cidr: 9.9.9.0/24";
    lab.apply_text(&text.replace("- cidr: 8.8.8.0/24", wider));
    seen_by_other(&away, FLOATING);
    lab.apply_text(&text);
    seen_by_other(&away, of_away);
    traffic.wait_for_answers(10, PATIENCE).unwrap();
    let observed = traffic.finish().unwrap();
    assert_eq!(observed.sent, observed.answered, "{observed:?}");
    let seen = (observed.sources, observed.ports.len());
    assert_eq!(seen, ([FLOATING].into(), 1));
}

#[test]
fn a_floating_ip_takes_no_new_connections_and_answers_no_stranger_e47() {
    let lab = TestLab::with_policy();
    let ping = lab
        .output(
            &Target::Outside,
            &["ping", "-c", "1", "-W", "1", "192.168.1.100"],
        )
        .unwrap();
    assert!(
        !ping.status.success(),
        "{}",
        String::from_utf8_lossy(&ping.stdout)
    );
    let connect = lab
        .output(
            &Target::Outside,
            &["curl", "-s", "-m", "1", "http://192.168.1.100/"],
        )
        .unwrap();
    assert_eq!(connect.status.code(), Some(28), "a time-out, not a refusal");
}

#[test]
fn no_pod_address_is_ever_seen_outside_of_the_cluster() {
    let lab = TestLab::with_policy();
    let (beside, away) = lab.beside_and_away();
    let mut capture = lab.capture(&Target::Router, &["-i", "out0", "src net 10.10.0.0/16"]);
    for target in [&beside, &away, &pod("backend-0")] {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Http] {
            lab.seen(target, protocol).unwrap();
        }
    }
    lab.power_off(&lab.holder()).unwrap();
    lab.until_seen_as(&away, FLOATING);
    capture.kill().unwrap();
    let leaked = capture.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&leaked.stdout), "");
}

impl TestLab {
    /// A running tcpdump that listens already.
    pub(super) fn capture(&self, at: &Target, arguments: &[&str]) -> Child {
        let mut capture = self
            .command(at, "tcpdump")
            .unwrap()
            .args(["-l", "-n"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut messages = BufReader::new(capture.stderr.take().unwrap()).lines();
        assert!(messages.any(|line| line.unwrap().starts_with("listening on")));
        capture
    }

    /// The address of the node that a pod of alice's runs on.
    fn node_address(&self, target: &Target) -> Ipv4Addr {
        let Target::Pod(namespace, name) = target else {
            panic!("{target} is no pod")
        };
        let pod = self.object(&ObjectKey::namespaced(Kind::Pod, namespace, name));
        let node = self.object(&ObjectKey::cluster(
            Kind::Node,
            pod.at("/spec/nodeName").as_str().unwrap(),
        ));
        node.at("/status/addresses/0/address")
            .as_str()
            .unwrap()
            .parse()
            .unwrap()
    }
}
