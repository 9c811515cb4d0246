//! The cluster of a scenario: its objects, and what no object tells.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use egressnat_core::model::{Health, MasqueradeRules, NodeName, Snapshot};
use egressnat_core::{Assignment, ClusterPlan, Planned, plan_cluster, plan_node};
use egressnat_kube::{Index, ManifestError, Object, ObjectKey, read_manifests};
use ipnet::IpNet;

use crate::order::{Must, Order, Question};
use crate::scenario::Step;

#[derive(Debug, Default)]
pub(crate) struct Cluster {
    /// Those that make sense.
    objects: BTreeMap<ObjectKey, Object>,
    index: Index,
    /// What the index has told.
    told: Snapshot,
    down: BTreeSet<NodeName>,
    ranges: BTreeSet<IpNet>,
    masquerade: MasqueradeRules,
    /// In force.
    assignment: Assignment,
}

/// What is left of a step when its objects are there.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// The documents that were refused, and why.
    pub(crate) refused: Vec<String>,
    pub(crate) questions: Vec<Question>,
    pub(crate) musts: Vec<Must>,
}

/// Everything that is planned from one snapshot.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) cluster: ClusterPlan,
    pub(crate) nodes: BTreeMap<NodeName, Planned>,
}

impl Outcome {
    pub(crate) fn of(snapshot: &Snapshot) -> Self {
        let cluster = plan_cluster(snapshot);
        let assignment = &cluster.assigned.assignment;
        let names = snapshot.nodes.keys();
        let nodes = names.map(|name| (name.clone(), plan_node(snapshot, assignment, name)));
        Self {
            nodes: nodes.collect(),
            cluster,
        }
    }
}

impl Cluster {
    /// Does what a step says.
    pub(crate) fn take(&mut self, step: &Step) -> Taken {
        let mut taken = Taken::default();
        for file in &step.manifests {
            self.apply(file, &mut taken.refused);
        }
        for order in &step.orders {
            match order.clone() {
                Order::Apply(file) => self.apply(&file, &mut taken.refused),
                Order::Delete(key) => {
                    assert!(self.objects.remove(&key).is_some(), "there is no {key}");
                    self.index.delete(&key);
                }
                Order::Down(node) => assert!(self.down.insert(node), "{order:?}: is down"),
                Order::Up(node) => assert!(self.down.remove(&node), "{order:?}: is up"),
                Order::ClusterRange(range) => {
                    self.ranges.insert(range);
                }
                Order::Masquerade(packets, action) => {
                    self.masquerade.rules.insert(packets, action);
                }
                Order::ForgetMasquerade(packets) => {
                    let gone = self.masquerade.rules.remove(&packets);
                    assert!(gone.is_some(), "there is no rule {packets}");
                }
                Order::ForgetAssignment => self.assignment = Assignment::default(),
                Order::Ask(question) => taken.questions.push(question),
                Order::Must(must) => taken.musts.push(must),
            }
        }
        for event in self.index.take_events() {
            self.told.apply(event);
        }
        taken
    }

    fn apply(&mut self, file: &Path, refused: &mut Vec<String>) {
        let manifests = read_manifests(file);
        for object in manifests.objects {
            match self.index.apply(object.clone()) {
                Ok(()) => {
                    self.objects.insert(object.key().clone(), object);
                }
                Err(error) => {
                    self.objects.remove(object.key());
                    refused.push(error.to_string());
                }
            }
        }
        refused.extend(manifests.errors.iter().map(|error| match error {
            ManifestError::Object {
                document, error, ..
            } => format!("document {document}: {error}"),
            other => panic!("{other}"),
        }));
    }

    /// The planner's input.
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.complete(self.told.clone())
    }

    /// The same from scratch, with the objects in the opposite order.
    pub(crate) fn snapshot_in_reverse(&self) -> Snapshot {
        let mut index = Index::default();
        for object in self.objects.values().rev() {
            assert_eq!(index.apply(object.clone()), Ok(()));
        }
        self.complete(index.take_events().into_iter().collect())
    }

    /// With what no object tells.
    fn complete(&self, mut snapshot: Snapshot) -> Snapshot {
        for (name, node) in &mut snapshot.nodes {
            if self.down.contains(name) {
                node.health = Health::Down;
            }
        }
        snapshot.previous = self.assignment.clone();
        snapshot.cluster_ranges = self.ranges.clone();
        snapshot.masquerade = self.masquerade.clone();
        snapshot
    }

    /// From now on this assignment is in force.
    pub(crate) fn put_in_force(&mut self, assignment: &Assignment) {
        self.assignment = assignment.clone();
    }
}
