//! What the nodes of a cluster have told of their kernels, arranged by policy.

use std::collections::BTreeMap;

use egressnat_core::model::NodeName;

use super::node_report::{NodeReport, PolicyReport};

/// A node that takes part: it is up, and its agent has told what it planned with. One that is down counts neither for a policy
/// nor against it: its pods are as good as gone, and nobody can say what its kernel does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Participant<'a> {
    pub(crate) name: &'a NodeName,
    pub(crate) report: &'a NodeReport,
    /// With which step's policies it has planned: see [`Confirmations`](super::Confirmations).
    pub(crate) step: u64,
}

/// All of them. What is asked about a policy costs as much as there are nodes with its pods, and nodes that are behind.
#[derive(Debug, Default)]
pub(crate) struct Sources<'a> {
    nodes: BTreeMap<&'a NodeName, &'a NodeReport>,
    /// Those that are behind most first.
    by_step: Vec<(u64, &'a NodeName)>,
    by_policy: BTreeMap<&'a str, Vec<(&'a NodeName, &'a PolicyReport)>>,
}

impl<'a> FromIterator<Participant<'a>> for Sources<'a> {
    fn from_iter<T: IntoIterator<Item = Participant<'a>>>(participants: T) -> Self {
        let mut sources = Self::default();
        for Participant { name, report, step } in participants {
            sources.nodes.insert(name, report);
            sources.by_step.push((step, name));
            for policy in &report.policies {
                let told = sources.by_policy.entry(&policy.name).or_default();
                told.push((name, policy));
            }
        }
        sources.by_step.sort_unstable();
        sources
    }
}

impl<'a> Sources<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// What a node has told.
    pub(crate) fn report(&self, node: &NodeName) -> Option<&'a NodeReport> {
        self.nodes.get(node).copied()
    }

    /// What nodes tell of a policy.
    pub(crate) fn told(&self, policy: &str) -> &[(&'a NodeName, &'a PolicyReport)] {
        self.by_policy.get(policy).map_or(&[], Vec::as_slice)
    }

    /// The nodes that have not planned yet with what there was at a step.
    pub(crate) fn behind(&self, step: u64) -> impl Iterator<Item = &'a NodeName> + '_ {
        let end = self.by_step.partition_point(|(reached, _)| *reached < step);
        self.by_step[..end].iter().map(|(_, node)| *node)
    }

    /// The nodes whose report had no room for all their policies.
    pub(crate) fn cut_short(&self) -> impl Iterator<Item = &'a NodeName> + '_ {
        let nodes = self.nodes.iter();
        nodes
            .filter(|(_, report)| report.omitted > 0)
            .map(|(node, _)| *node)
    }
}
