//! What a change costs in a large cluster, counted in writes.

use super::*;
use crate::controller::decision::Decision;
use crate::status::PolicyReport;
use egressnat_core::ownership::{Generation, Grant, GrantRecord, Term};

const NODES: usize = 1000;
const POLICIES: usize = 50;

/// A cluster whose objects are in an index only; each policy selects one pod on each of two nodes.
struct World {
    /// As they are in the store.
    objects: BTreeMap<ObjectKey, Object>,
    index: Index,
    decision: Decision,
    telling: Telling,
}

fn node(number: usize) -> String {
    format!("worker{number:04}")
}

fn policy(number: usize, generation: i64) -> Object {
    let key = ObjectKey::cluster(Kind::EgressNatPolicy, format!("policy{number:02}"));
    let mut object = Object::new(
        &key,
        json!({"spec": {
            "sources": [{"namespaceSelector": {}, "podSelector": {}}], "action": "SNAT",
            "destinations": [{"cidr": "8.8.8.0/24"}],
            "gatewayRef": {"name": "default", "namespace": "kube-system"},
        }}),
    );
    object.value_mut()["metadata"]["generation"] = json!(generation);
    object.value_mut()["metadata"]["uid"] = json!(format!("uid-{number}"));
    object
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            objects: BTreeMap::new(),
            index: Index::default(),
            decision: Decision::default(),
            telling: Telling::default(),
        };
        for number in 0..NODES {
            let key = ObjectKey::cluster(Kind::Node, node(number));
            world.apply(Object::new(&key, json!({})));
            let spec = json!({"spec": {"subnets": ["192.168.0.0/16"]}});
            let key = ObjectKey::namespaced(Kind::NetworkGatewayNode, "kube-system", node(number));
            world.apply(Object::new(&key, spec));
        }
        let key = ObjectKey::namespaced(Kind::NetworkGatewayGroup, "kube-system", "default");
        let group = Object::new(&key, json!({"spec": {"floatingIPs": ["192.168.1.100"]}}));
        world.apply(group);
        for number in 0..POLICIES {
            world.apply(policy(number, 1));
        }
        world
    }

    fn apply(&mut self, object: Object) {
        self.index.apply(object.clone()).unwrap();
        self.objects.insert(object.key().clone(), object);
    }

    fn plan(&mut self) -> ClusterPlan {
        let alive = (0..NODES).map(|number| node(number).parse().unwrap());
        let index = &mut self.index;
        let events = index.take_events();
        let told = |gateways: &_| index.assignment(gateways);
        let plan = self.decision.make(events, &alive.collect(), told);
        self.decision.stand();
        plan
    }

    /// One run of the controller. Returns the policies that were written.
    fn run(&mut self) -> Vec<String> {
        let plan = self.plan();
        let objects = self.decision.objects();
        self.telling.learn(&self.index, objects, &plan);
        let granted = plan
            .assigned
            .assignment
            .nodes
            .iter()
            .map(|(address, node)| {
                let grant = Grant {
                    node: node.clone(),
                    term: Term(0),
                    is_withdrawn: false,
                    is_handed_over: false,
                };
                let record = GrantRecord {
                    generation: Generation(1),
                    grant: Some(grant),
                    ..GrantRecord::default()
                };
                (*address, record)
            });
        let grants = granted.collect();
        let wanted = self.telling.wanted(&self.index, objects, &plan, &grants);
        let names = wanted.policies.iter();
        let names = names.map(|object| object.name().to_owned()).collect();
        let all = [wanted.gateways, wanted.nodes, wanted.policies].concat();
        for object in all {
            let mut known = self.objects[object.key()].clone();
            for (field, value) in object.at("/status").as_object().unwrap() {
                known.value_mut()["status"][field] = value.clone();
            }
            self.apply(known);
        }
        names
    }

    /// What the agents of some nodes tell, who have planned with everything. Returns how many of them had to write a report.
    fn tell(&mut self, nodes: impl Iterator<Item = usize>) -> usize {
        let plan = self.plan();
        let policies = &self.decision.objects().policies;
        let holder = plan.assigned.assignment.nodes.values().next().cloned();
        let held: BTreeSet<IpAddr> = plan.assigned.gateways.owners.keys().copied().collect();
        let meanings = self.index.meanings(policies, &plan.policies, |_| true);
        let mut told = Vec::new();
        for number in nodes {
            let name: NodeName = node(number).parse().unwrap();
            let is_selected = |(index, _): &(usize, _)| number / 2 == *index;
            let selected = meanings.iter().enumerate().filter(is_selected);
            let policies = selected.map(|(_, (name, meaning))| PolicyReport {
                name: name.to_string(),
                uid: meaning.uid.to_owned(),
                generation: meaning.generation,
                digest: meaning.digest().to_string(),
                pods: 1,
                programmed: true,
                problems: vec![],
            });
            let mut report = NodeReport {
                policies: policies.collect(),
                ..NodeReport::default()
            };
            if holder.as_ref() == Some(&name) {
                report.floating_ips.clone_from(&held);
            }
            let report = report.seal();
            let mark = Mark {
                policies: Digest::of_all(meanings.values().copied()),
                revision: report.revision.clone(),
            };
            told.push((name, report, mark));
        }
        let mut written = 0;
        for (name, report, mark) in told {
            if self.index.report(&name) != Some(&report) {
                written += 1;
                let key = node_key(Kind::NetworkGatewayNode, &name);
                let mut object = self.objects[&key].clone();
                object.value_mut()["status"]["report"] = json!(report);
                self.apply(object);
            }
            self.telling.saw(&name, Some(mark), Instant::now());
        }
        written
    }

    fn is_programmed(&self, number: usize) -> bool {
        let object = self.index.object(policy(number, 1).key()).unwrap();
        let conditions = object.at("/status/conditions").as_array().unwrap();
        let mut conditions = conditions.iter();
        conditions.any(|one| one["type"] == "Programmed" && one["status"] == "True")
    }

    /// Everything told and written.
    fn settle(&mut self) {
        self.run();
        self.tell(0..NODES);
        self.run();
        assert!(self.is_programmed(0));
        assert_eq!(
            self.run(),
            Vec::<String>::new(),
            "at rest nothing is written"
        );
    }
}

#[test]
fn an_edit_costs_as_many_writes_as_there_are_nodes_with_its_pods() {
    let mut world = World::new();
    world.settle();
    let known = world.objects[policy(7, 1).key()].clone();
    let mut edited = policy(7, 2);
    edited.value_mut()["status"] = known.at("/status").clone();
    world.apply(edited);
    let mut policies = world.run();
    assert!(!world.is_programmed(7));
    let mut reports = 0;
    // The agents' renewals come little by little.
    for start in (0..NODES).step_by(20) {
        reports += world.tell(start..start + 20);
        policies.extend(world.run());
    }
    assert!(world.is_programmed(7));
    assert_eq!(reports, 2, "the nodes that have pods of it");
    assert!(policies.len() <= 4, "{policies:?}");
    assert!(
        policies.iter().all(|name| name == "policy07"),
        "{policies:?}"
    );
}

#[test]
fn a_node_that_joins_makes_no_policy_pending_before_it_has_told_anything() {
    let mut world = World::new();
    world.settle();
    let spec = json!({"spec": {"subnets": ["192.168.0.0/16"]}});
    let key = ObjectKey::namespaced(Kind::NetworkGatewayNode, "kube-system", "worker9999");
    world.apply(Object::new(&key, spec));
    let key = ObjectKey::cluster(Kind::Node, "worker9999");
    world.apply(Object::new(&key, json!({})));
    assert_eq!(world.run(), Vec::<String>::new());
}

#[test]
fn a_mark_that_comes_before_its_report_says_nothing() {
    let mut world = World::new();
    world.run();
    // All agents have planned with everything, and of worker0014 the report is on its way.
    world.tell(0..NODES);
    let key = node_key(Kind::NetworkGatewayNode, &node(14).parse().unwrap());
    let mut object = world.objects[&key].clone();
    object.value_mut()["status"]["report"] = json!(NodeReport::default().seal());
    world.apply(object);
    world.run();
    assert!(
        !world.is_programmed(7),
        "it may have pods that nobody has told of"
    );
    world.tell(14..15);
    world.run();
    assert!(world.is_programmed(7));
}

#[test]
fn reports_are_gathered_and_looked_at_together() {
    let (mut telling, start) = (Telling::default(), Instant::now());
    assert_eq!(telling.due(), None);
    telling.heard(start);
    telling.heard(start + Duration::from_millis(50));
    assert_eq!(telling.due(), Some(start + GATHER));
    assert!(!telling.take_due(start + Duration::from_millis(99)));
    assert!(telling.take_due(start + GATHER) && !telling.take_due(start + GATHER));
    telling.took = Duration::from_secs(1);
    telling.heard(start);
    assert_eq!(telling.due(), Some(start + SHARE * Duration::from_secs(1)));
}
