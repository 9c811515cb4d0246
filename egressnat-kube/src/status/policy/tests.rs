use super::*;
use crate::status::{NodeReport, Participant, Problem};
use egressnat_core::PolicyMeaning;
use egressnat_core::model::Enforcement;

const ADDRESS: &str = "192.168.1.100";
const OUTDATED: &str = "0000000000000000";

/// A policy that is what it is since step 5, with its egress IP on worker2 whose kernel has it.
struct World {
    invalid: Option<String>,
    is_applied: bool,
    findings: Vec<(Reason, &'static str)>,
    holders: BTreeMap<IpAddr, NodeName>,
    nodes: BTreeMap<NodeName, (u64, NodeReport)>,
}

fn address() -> IpAddr {
    ADDRESS.parse().unwrap()
}

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn digest() -> Digest {
    PolicyMeaning {
        uid: "1",
        generation: 1,
        resolved: None,
        enforcement: Enforcement::Strict,
        is_held: false,
    }
    .digest()
}

fn told(pods: usize) -> PolicyReport {
    PolicyReport {
        name: "egress".into(),
        uid: "1".into(),
        generation: 1,
        digest: digest().to_string(),
        pods,
        programmed: true,
        problems: vec![],
    }
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            invalid: None,
            is_applied: true,
            findings: vec![],
            holders: [(address(), node("worker2"))].into(),
            nodes: BTreeMap::new(),
        };
        world.add("worker1", 5, vec![told(2)]);
        world.add("worker2", 5, vec![]);
        world
            .nodes
            .get_mut(&node("worker2"))
            .unwrap()
            .1
            .floating_ips = [address()].into();
        world
    }

    fn add(&mut self, name: &str, step: u64, policies: Vec<PolicyReport>) {
        let report = NodeReport {
            policies,
            ..NodeReport::default()
        };
        self.nodes.insert(node(name), (step, report));
    }

    fn status(&self) -> PolicyStatus {
        let facts = PolicyFacts {
            name: "egress",
            uid: "1",
            invalid: self.invalid.clone(),
            resolved: self
                .is_applied
                .then(|| ResolvedPolicy::Snat(address().into())),
            findings: self.findings.clone(),
            version: Some((digest(), 5)),
            is_for_all_pods: false,
        };
        let participants = self.nodes.iter().map(|(name, (step, report))| Participant {
            name,
            report,
            step: *step,
        });
        policy_status(&facts, &self.holders, &participants.collect())
    }

    fn condition(&self, kind: &str) -> Option<(bool, &'static str, String)> {
        let status = self.status();
        let mut conditions = status.conditions.into_iter();
        let found = conditions.find(|condition| condition.kind == kind)?;
        Some((found.is_true, found.reason, found.message))
    }

    #[track_caller]
    fn assert_programmed(&self, is_true: bool, reason: &str, text: &str) {
        let found = self.condition("Programmed").unwrap();
        assert_eq!((found.0, found.1), (is_true, reason), "{}", found.2);
        assert!(found.2.contains(text), "{text:?} in {}", found.2);
    }
}

#[test]
fn a_policy_is_programmed_when_the_source_nodes_and_the_gateway_have_it() {
    let status = World::new().status();
    assert_eq!(status.egress_ips, [address()]);
    assert_eq!(status.nodes, [node("worker2")]);
    assert_eq!(status.selected_pods, 2);
    assert_eq!(status.told, []);
    let conditions: Vec<_> = status
        .conditions
        .iter()
        .map(|c| (c.kind, c.is_true))
        .collect();
    let want = [
        ("Accepted", true),
        ("ResolvedRefs", true),
        ("Programmed", true),
    ];
    assert_eq!(conditions, want);
}

#[test]
fn a_node_that_has_not_planned_with_the_policy_keeps_it_pending_and_is_named() {
    let mut world = World::new();
    world.add("worker3", 4, vec![]);
    world.assert_programmed(false, "Pending", "node worker3");
    // It need not have planned with everything, as long as it tells of this policy.
    world.add("worker3", 4, vec![told(1)]);
    world.assert_programmed(true, "Programmed", "kernels");
    let mut outdated = told(1);
    outdated.digest = OUTDATED.into();
    world.add("worker3", 5, vec![outdated]);
    world.assert_programmed(false, "Pending", "node worker3");
}

#[test]
fn a_message_does_not_change_with_each_of_many_nodes() {
    let mut world = World::new();
    let messages: BTreeSet<String> = (3..10)
        .map(|number| {
            world.add(&format!("worker{number}"), 4, vec![]);
            world.condition("Programmed").unwrap().2
        })
        .collect();
    assert_eq!(messages.len(), 4, "one, two, three and more: {messages:?}");
}

#[test]
fn the_gateway_must_have_told_that_it_has_the_address() {
    let mut world = World::new();
    world
        .nodes
        .get_mut(&node("worker2"))
        .unwrap()
        .1
        .floating_ips
        .clear();
    world.assert_programmed(false, "Pending", "node worker2");
    world.nodes.remove(&node("worker2"));
    world.assert_programmed(false, "Pending", "node worker2");
}

#[test]
fn a_node_that_is_down_counts_neither_for_a_policy_nor_against_it() {
    let mut world = World::new();
    world.nodes.remove(&node("worker1"));
    assert_eq!(world.status().selected_pods, 0);
    world.assert_programmed(true, "NoPodsSelected", "labels");
    world.nodes.clear();
    world.assert_programmed(false, "Pending", "no agent");
}

#[test]
fn what_a_node_could_not_do_is_told_with_its_reason() {
    for reason in ["NodeFailed", "PlanTooLarge"] {
        let mut world = World::new();
        let mut failed = told(2);
        failed.programmed = false;
        failed.problems = vec![Problem {
            reason: reason.into(),
            message: "no room".into(),
        }];
        world.add("worker1", 5, vec![failed.clone()]);
        world.assert_programmed(false, reason, "node worker1: no room");
        let events = world.status().told;
        assert_eq!(events.len(), 1);
        assert_eq!((events[0].0, events[0].1), (Severity::Warning, reason));
        // What it says of an older policy is no news.
        failed.digest = OUTDATED.into();
        world.add("worker1", 5, vec![failed]);
        world.assert_programmed(false, "Pending", "worker1");
    }
}

#[test]
fn nobody_to_hold_the_address_is_told_e21() {
    let mut world = World::new();
    world.holders.clear();
    world.findings = vec![(Reason::UnknownEgressIp, "is on no gateway node")];
    world.assert_programmed(false, "UnknownEgressIP", "no gateway node");
    assert!(world.condition("ResolvedRefs").unwrap().0);
    assert_eq!(world.status().nodes, []);
}

#[test]
fn each_reason_not_to_apply_a_policy_has_its_condition_e20_e21_e22() {
    let cases = [
        (Reason::IncompletePolicy, "Accepted"),
        (Reason::InvalidSelector, "Accepted"),
        (Reason::DuplicateEgressSourceIp, "Accepted"),
        (Reason::UnknownEgressIp, "ResolvedRefs"),
        (Reason::InvalidGatewayRef, "ResolvedRefs"),
    ];
    for (reason, kind) in cases {
        let mut world = World::new();
        world.is_applied = false;
        world.findings = vec![(reason, "why")];
        let want = (false, reason.as_str(), "why".to_owned());
        assert_eq!(world.condition(kind), Some(want));
        world.assert_programmed(false, "NotApplied", "other conditions");
        assert_eq!(world.status().egress_ips, Vec::<IpAddr>::new());
    }
}

#[test]
fn an_object_that_makes_no_sense_is_told_in_a_condition_and_an_event_e22() {
    let mut world = World::new();
    world.is_applied = false;
    world.invalid = Some("spec.gatewayRef.name: wrong".into());
    let (is_true, reason, message) = world.condition("Accepted").unwrap();
    assert_eq!((is_true, reason), (false, "Invalid"));
    assert!(message.contains("gatewayRef"));
    assert_eq!(world.condition("ResolvedRefs"), None, "nobody can say");
    assert_eq!(world.status().told.len(), 1);
}

#[test]
fn the_loser_of_an_overlap_names_the_winner_and_excluded_pods_are_told_e15_e16() {
    let mut world = World::new();
    let mut loser = told(2);
    let problem = |reason: &str, message: &str| Problem {
        reason: reason.into(),
        message: message.into(),
    };
    loser.problems = vec![
        problem("HostNetworkPod", "alice/host"),
        problem("Overlap", "EgressNATPolicy older wins 8.8.8.0/24"),
    ];
    world.add("worker1", 5, vec![loser.clone()]);
    world.add("worker3", 5, vec![loser]);
    let (is_true, reason, message) = world.condition("Overlapped").unwrap();
    assert_eq!((is_true, reason), (true, "Overlap"));
    assert_eq!(message, "EgressNATPolicy older wins 8.8.8.0/24", "once");
    let (is_true, reason, _) = world.condition("PodsExcluded").unwrap();
    assert_eq!((is_true, reason), (true, "HostNetworkPod"));
    world.assert_programmed(true, "Programmed", "kernels");
    let events: Vec<_> = world.status().told.iter().map(|told| told.1).collect();
    assert_eq!(events, ["Overlap", "HostNetworkPod"]);
}

#[test]
fn parts_without_effect_are_told_beside_the_rest_e12() {
    let mut world = World::new();
    world.findings = vec![
        (Reason::InternalDestination, "10.10.1.0/24"),
        (Reason::NoEgressIpOfFamily, "fd00::/64"),
    ];
    let (is_true, reason, message) = world.condition("PartiallyInvalid").unwrap();
    assert_eq!((is_true, reason), (true, "InternalDestination"));
    assert_eq!(message, "10.10.1.0/24; fd00::/64");
    world.assert_programmed(true, "Programmed", "kernels");
}

#[test]
fn a_report_that_was_cut_short_proves_nothing_about_what_it_does_not_list() {
    let mut world = World::new();
    world.add("worker3", 5, vec![]);
    world.nodes.get_mut(&node("worker3")).unwrap().1.omitted = 7;
    world.assert_programmed(false, "Pending", "node worker3");
}
