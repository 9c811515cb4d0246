use super::*;
use crate::directory::DirectoryStore;
use egressnat_core::model::Enforcement;
use egressnat_core::{Finding, NodePlan, PolicySetId};

const POD: &str = "10.10.1.2";

fn name(text: &str) -> PolicyName {
    text.parse().unwrap()
}

/// Policy "a" selects the pod, policy "b" another.
fn planned() -> Planned {
    let plan = NodePlan {
        pods: [
            (POD.parse().unwrap(), PolicySetId(1)),
            ("10.10.1.3".parse().unwrap(), PolicySetId(2)),
        ]
        .into(),
        ..NodePlan::default()
    };
    Planned {
        plan,
        selected: [(name("a"), 1), (name("b"), 1)].into(),
        policies: [
            (PolicySetId(1), [name("a")].into()),
            (PolicySetId(2), [name("b")].into()),
        ]
        .into(),
        ..Planned::default()
    }
}

fn meanings<'a>(
    names: &'a [PolicyName],
    generation: i64,
) -> BTreeMap<&'a PolicyName, PolicyMeaning<'a>> {
    let meaning = |name: &'a PolicyName| PolicyMeaning {
        uid: name.as_str(),
        generation,
        resolved: None,
        enforcement: Enforcement::Strict,
        is_held: false,
    };
    names.iter().map(|name| (name, meaning(name))).collect()
}

fn failure(object: &str) -> Failure {
    Failure {
        object: object.into(),
        message: "the kernel would not".into(),
    }
}

/// Which policies are programmed after these failures.
fn programmed(planned: &Planned, failures: &[Failure]) -> Vec<(String, bool)> {
    let names = [name("a"), name("b"), name("c")];
    let failures: Vec<&Failure> = failures.iter().collect();
    let report = node_report(planned, &BTreeSet::new(), &failures, &meanings(&names, 1));
    let policies = report.policies.into_iter();
    policies
        .map(|policy| (policy.name, policy.programmed))
        .collect()
}

#[test]
fn a_failure_counts_for_the_policies_that_it_concerns() {
    let cases = [
        ("pod 10.10.1.2", [false, true]),
        ("pod 10.10.1.9", [true, true]),
        ("+ address 192.168.1.100", [true, true]),
        ("+ snat to 192.168.1.100", [true, true]),
        ("table ip egressnat", [false, false]),
    ];
    for (object, [a, b]) in cases {
        let found = programmed(&planned(), &[failure(object)]);
        assert_eq!(found, [("a".into(), a), ("b".into(), b)], "{object}");
    }
}

#[test]
fn findings_about_policies_are_told_with_them_also_of_those_without_pods_e15_e16() {
    let mut planned = planned();
    let policy = |name: &PolicyName| Subject::Policy(name.clone());
    planned.findings = vec![
        Finding::new(policy(&name("a")), Reason::Overlap, "b wins"),
        Finding::new(policy(&name("c")), Reason::HostNetworkPod, "alice/host"),
    ];
    planned.refused = [name("b")].into();
    let names = [name("a"), name("b"), name("c")];
    let report = node_report(&planned, &BTreeSet::new(), &[], &meanings(&names, 1));
    let told: Vec<_> = report
        .policies
        .iter()
        .map(|policy| {
            let reasons = policy.problems.iter().map(|one| one.reason.as_str());
            (policy.pods, policy.programmed, reasons.collect::<Vec<_>>())
        })
        .collect();
    let want = [
        (1, true, vec!["Overlap"]),
        (1, false, vec!["PlanTooLarge"]),
        (0, true, vec!["HostNetworkPod"]),
    ];
    assert_eq!(told, want);
}

#[test]
fn a_report_has_an_end() {
    let names: Vec<PolicyName> = (0..POLICIES_AT_MOST + 3)
        .map(|number| name(&format!("p{number:04}")))
        .collect();
    let planned = Planned {
        selected: names.iter().map(|name| (name.clone(), 1)).collect(),
        ..Planned::default()
    };
    let report = node_report(&planned, &BTreeSet::new(), &[], &meanings(&names, 1));
    assert_eq!(
        (report.policies.len(), report.omitted),
        (POLICIES_AT_MOST, 3)
    );
}

#[tokio::test]
async fn the_mark_follows_the_report_and_what_is_told_again_is_not_written_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path()).unwrap();
    let node = "worker1".parse().unwrap();
    let key = gateway_node_key(&node);
    let (_seen, seen) = watch::channel(None);
    let (mut reporter, writer, mut mark) = channel(store.clone(), &node, seen);
    let task = tokio::spawn(writer.write());
    let names = [name("a"), name("b")];
    reporter.tell(&planned(), &Report::default(), &meanings(&names, 1));
    // It is a part of the node's description, and waits for that.
    store.apply(Object::new(&key, json!({}))).unwrap();
    let wait = Duration::from_secs(20);
    tokio::time::timeout(wait, mark.changed())
        .await
        .unwrap()
        .unwrap();
    let first = mark.borrow_and_update().clone().unwrap();
    let written = store.get(&key).unwrap().unwrap();
    let report = NodeReport::read(written.at("/status/report")).unwrap();
    assert_eq!(report.revision, first.revision);
    assert_eq!(report.policies.len(), 2);

    // The same again, then an edit: what is written next is the edit.
    reporter.tell(&planned(), &Report::default(), &meanings(&names, 1));
    reporter.tell(&planned(), &Report::default(), &meanings(&names, 2));
    tokio::time::timeout(wait, mark.changed())
        .await
        .unwrap()
        .unwrap();
    let second = mark.borrow_and_update().clone().unwrap();
    assert_ne!(second.policies, first.policies);
    let version = |object: &Object| object.resource_version().unwrap().to_owned();
    let edited = store.get(&key).unwrap().unwrap();
    assert_eq!(
        (version(&written), version(&edited)),
        ("1.1".into(), "1.2".into())
    );
    task.abort();
}

#[test]
fn a_pod_that_starts_has_a_moment_until_its_policies_count_as_failed() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path()).unwrap();
    let (_seen, seen) = watch::channel(None);
    let (mut reporter, writer, _mark) = channel(store, &"worker1".parse().unwrap(), seen);
    let names = [name("a"), name("b")];
    let report = Report {
        failures: vec![failure("pod 10.10.1.2")],
        ..Report::default()
    };
    let is_programmed = |reporter: &mut Reporter| {
        reporter.tell(&planned(), &report, &meanings(&names, 1));
        let told = writer.told.borrow().clone().unwrap();
        told.report.policies[0].programmed
    };
    assert!(is_programmed(&mut reporter));
    for since in reporter.failing.values_mut() {
        *since -= STARTING;
    }
    assert!(!is_programmed(&mut reporter));
}
