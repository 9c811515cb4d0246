use super::*;
use crate::arbitrary;
use crate::assignment::{Move, assign};
use crate::model::{
    Gateway, GatewayKey, Health, Labels, MasqueradeMatch, Node, NodeName, Policy, Source,
};
use crate::selector::Selector;
use proptest::prelude::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pod(text: &str) -> PodKey {
    PodKey::new("alice".parse().unwrap(), text.parse().unwrap())
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

/// Two workers; pod frontend of alice on worker2; group `default`, which worker1 holds; policy `egress` for 8.8.8.0/24.
fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for n in 1..=2u8 {
        let mut node = Node::new(Health::Up);
        node.addresses.insert(IpAddr::from([192, 168, 1, n]));
        node.subnets.insert("192.168.1.0/24".parse().unwrap());
        snapshot.nodes.insert(name(&format!("worker{n}")), node);
    }
    let labels = Labels::from([("user".into(), "alice".into())]);
    snapshot.namespaces.insert("alice".parse().unwrap(), labels);
    for (n, role) in [(2, "frontend"), (3, "backend")] {
        let mut object = Pod::new(name("worker2"));
        object.ips.insert(IpAddr::from([10, 10, 2, n]));
        object.labels.insert("role".into(), role.into());
        snapshot.pods.insert(pod(role), object);
    }
    let key = GatewayKey::group("kube-system".parse().unwrap(), "default".parse().unwrap());
    let rule = Source {
        namespaces: Selector::from_labels([("user", "alice")]),
        pods: Selector::from_labels([("role", "frontend")]),
    };
    let policy = Policy::snat(
        [rule],
        ["8.8.8.0/24".parse().unwrap()],
        EgressSource::from(&key),
    );
    snapshot.policies.insert("egress".parse().unwrap(), policy);
    let gateway = Gateway::new([ip("192.168.1.100")]);
    snapshot.gateways.insert(key, gateway);
    snapshot
}

fn text(snapshot: &Snapshot, from: &str, to: &str) -> String {
    let assignment = assign(snapshot).assignment;
    explain(snapshot, &assignment, &pod(from), ip(to), None).to_string()
}

#[test]
fn a_translated_packet_is_explained_from_the_pod_to_the_wire() {
    assert_eq!(
        text(&snapshot(), "frontend", "8.8.8.8"),
        "pod alice/frontend on node worker2 sends with 10.10.2.2\n\
         EgressNATPolicy egress selects the pod by rule 0, and 8.8.8.0/24 has the destination\n\
         the egress IP of egress is 192.168.1.100, the first of its family in NetworkGatewayGroup kube-system/default; \
         node worker1 holds it\n\
         => snat to 192.168.1.100\n   \
         from the pod: 10.10.2.2 -> 8.8.8.8\n   \
         in the tunnel: 192.168.1.2 -> 192.168.1.100, VXLAN network identifier 0xa80164\n   \
         leaves node worker1: 192.168.1.100 -> 8.8.8.8\n"
    );
}

#[test]
fn a_packet_that_no_policy_translates_says_what_each_misses() {
    let mut snapshot = snapshot();
    let list = MasqueradeMatch::to("8.0.0.0/8".parse().unwrap());
    assert_eq!(
        text(&snapshot, "backend", "8.8.8.8"),
        "pod alice/backend on node worker2 sends with 10.10.2.3\n\
         EgressNATPolicy egress has the destination and does not select the pod: podSelector wants role=frontend, and role is \
         \"backend\"\n\
         no policy decides\n\
         no masquerade rule has the destination: masquerade\n\
         => masquerade\n   \
         from the pod: 10.10.2.3 -> 8.8.8.8\n   \
         leaves node worker2: 192.168.1.2 -> 8.8.8.8\n"
    );
    snapshot
        .masquerade
        .rules
        .insert(list, MasqueradeAction::Keep);
    assert!(
        text(&snapshot, "backend", "8.8.8.8")
            .contains("the masquerade rule to 8.0.0.0/8 says keep\n=> keep")
    );
    assert!(text(&snapshot, "frontend", "9.9.9.9").contains("1 other policies select the pod"));
    assert!(
        text(&snapshot, "frontend", "192.168.1.2")
            .contains("192.168.1.2/32, which is inside the cluster")
    );
    assert!(text(&snapshot, "frontend", "2001:db8::1").contains("has no IPv6 address"));
    assert!(
        text(&snapshot, "nobody", "8.8.8.8").contains("there is no pod alice/nobody\n=> no packet")
    );
}

#[test]
fn what_a_policy_wins_by_is_said() {
    let mut snapshot = snapshot();
    let egress = snapshot.policies[&"egress".parse().unwrap()].clone();
    let mut wide = egress.clone();
    wide.destinations = ["8.0.0.0/8".parse().unwrap()].into();
    snapshot.policies.insert("wide".parse().unwrap(), wide);
    snapshot
        .policies
        .insert("later".parse().unwrap(), egress.clone());
    let mut keep = egress;
    keep.action = crate::model::Action::NoSnat;
    snapshot.policies.insert("keep".parse().unwrap(), keep);
    let text = text(&snapshot, "frontend", "8.8.8.8");
    for part in [
        "egress wins over later: its name comes first",
        "egress wins over wide: its destination is the longer prefix",
        "egress wins over keep: it translates, and the other keeps",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

#[test]
fn a_floating_ip_says_where_it_is_and_why_e30_e34() {
    let mut snapshot = snapshot();
    assert_eq!(
        explain_address(&snapshot, ip("192.168.1.100")).to_string(),
        "192.168.1.100 belongs to NetworkGatewayGroup kube-system/default\n\
         node worker1 could hold it: worker, with 0 others\n\
         node worker2 could hold it: worker, with 0 others\n\
         => placed on node worker1: workers first, then the fewest floating IPs, then by name\n"
    );
    snapshot.previous = assign(&snapshot).assignment;
    let text = |snapshot: &Snapshot| explain_address(snapshot, ip("192.168.1.100")).to_string();
    assert!(text(&snapshot).contains("=> stays on node worker1"));
    snapshot.nodes.get_mut(&name("worker1")).unwrap().draining = true;
    snapshot.nodes.get_mut(&name("worker2")).unwrap().health = Health::Down;
    assert!(text(&snapshot).contains("=> on node worker1, which is being drained"));
    snapshot.previous = Assignment::default();
    assert!(
        text(&snapshot).contains("=> on node worker1, which is being drained"),
        "better there than nowhere"
    );
    let node_address = explain_address(&snapshot, ip("192.168.1.101"));
    assert_eq!(node_address.conclusion, Conclusion::NoGateway);
}

#[test]
fn what_if_tells_moves_and_what_would_be_nowhere() {
    let snapshot = snapshot();
    let moves = |lost: &[&str], drained: &[&str]| -> Vec<String> {
        let names = |list: &[&str]| list.iter().map(|text| name(text)).collect::<Vec<_>>();
        let moves = what_if(&snapshot, &names(lost), &names(drained));
        moves.iter().map(Move::to_string).collect()
    };
    assert_eq!(moves(&[], &[]), [""; 0]);
    assert_eq!(
        moves(&["worker1"], &[]),
        ["192.168.1.100: worker1 -> worker2"]
    );
    assert_eq!(
        moves(&[], &["worker1"]),
        ["192.168.1.100: worker1 -> worker2"]
    );
    assert_eq!(
        moves(&["worker1", "worker2"], &[]),
        ["192.168.1.100: worker1 -> nowhere"]
    );
    assert_eq!(
        moves(&[], &["worker1", "worker2"]),
        [""; 0],
        "nobody can take it, so it stays"
    );
}

proptest! {
    #[test]
    fn the_explained_decision_is_that_of_the_plan(
        snapshot in arbitrary::snapshot(),
        range in arbitrary::range(),
    ) {
        let assignment = assign(&snapshot).assignment;
        let destination = range.network();
        for (key, object) in &snapshot.pods {
            let explanation = explain(&snapshot, &assignment, key, destination, None);
            let Some(Step::Sender { address, .. }) = explanation.steps.first() else {
                prop_assert_eq!(explanation.decision, None);
                continue;
            };
            let plan = plan_node(&snapshot, &assignment, &object.node).plan;
            prop_assert_eq!(explanation.decision, Some(plan.decide(*address, destination, None)));
            // The last step says what was decided.
            let said = match explanation.steps.last() {
                Some(Step::Keeps(_) | Step::Inside(_) | Step::LeftAlone) => Some(Decision::Keep),
                Some(Step::EgressIp { address, .. }) => Some(Decision::Snat(*address)),
                Some(Step::NoEgressIp { is_strict: true, .. } | Step::DoesNotFit | Step::Guarded) => Some(Decision::Drop),
                Some(Step::MasqueradeRule { action: MasqueradeAction::Keep, .. }) => Some(Decision::Keep),
                Some(Step::MasqueradeRule { .. }) => Some(Decision::Masquerade),
                _ => None,
            };
            prop_assert_eq!(said, explanation.decision, "{}", explanation);
        }
    }
}
