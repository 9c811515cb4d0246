//! Which nodes have planned with which version of a policy, from the digests that their agents tell.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::str::FromStr;

use egressnat_core::Digest;
use egressnat_core::model::{NodeName, PolicyName};

/// What an agent puts on its lease: which policies it has planned with, and the revision of the report that belongs to that plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) policies: Digest,
    pub(crate) revision: String,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.policies, self.revision)
    }
}

impl FromStr for Mark {
    type Err = egressnat_core::digest::InvalidDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (policies, revision) = text.split_once('.').unwrap_or((text, ""));
        Ok(Self {
            policies: policies.parse()?,
            revision: revision.to_owned(),
        })
    }
}

/// How many sets of policies are remembered: an agent that is further behind than this is known to be behind.
const HISTORY: usize = 1024;

/// Counts the sets of policies that there were one after another. A policy remembers since which of them it is what it is, a
/// node which of them it has planned with last: so an edit of one policy leaves what is known of the others.
#[derive(Debug, Default)]
pub(crate) struct Confirmations {
    step: u64,
    history: VecDeque<(Digest, u64)>,
    since: BTreeMap<PolicyName, (Digest, u64)>,
    nodes: BTreeMap<NodeName, u64>,
}

impl Confirmations {
    /// Takes the policies as they are now: the digest of all, and of each, which is asked for only if they have changed.
    pub(crate) fn policies_are(
        &mut self,
        all: Digest,
        each: impl IntoIterator<Item = (PolicyName, Digest)>,
    ) {
        if self.history.back().is_some_and(|(last, _)| *last == all) {
            return;
        }
        self.step += 1;
        self.history.push_back((all, self.step));
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
        let since = |name: PolicyName, digest: Digest| {
            let known = self.since.get(&name).filter(|known| known.0 == digest);
            let step = known.map_or(self.step, |known| known.1);
            (name, (digest, step))
        };
        self.since = each
            .into_iter()
            .map(|(name, digest)| since(name, digest))
            .collect();
    }

    /// A node has planned with these policies. A set that nobody here has seen says nothing: agents see every step of several
    /// edits, and not all of them the same.
    pub(crate) fn node_has(&mut self, node: &NodeName, policies: Digest) {
        let found = self
            .history
            .iter()
            .rev()
            .find(|(digest, _)| *digest == policies);
        if let Some((_, step)) = found {
            self.nodes.insert(node.clone(), *step);
        }
    }

    /// Forgets nodes that are gone.
    pub(crate) fn retain_nodes(&mut self, is_there: impl Fn(&NodeName) -> bool) {
        self.nodes.retain(|node, _| is_there(node));
    }

    /// Since which step a policy is what it is, and of what digest.
    pub(crate) fn policy(&self, name: &PolicyName) -> Option<(Digest, u64)> {
        self.since.get(name).copied()
    }

    /// With which step's policies a node has planned last; 0 if that is not known.
    pub(crate) fn step_of(&self, node: &NodeName) -> u64 {
        self.nodes.get(node).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use egressnat_core::PolicyMeaning;
    use egressnat_core::model::Enforcement;

    fn meaning(uid: &str, generation: i64) -> PolicyMeaning<'_> {
        PolicyMeaning {
            uid,
            generation,
            resolved: None,
            enforcement: Enforcement::Strict,
            is_held: false,
        }
    }

    /// The digest of policies a and b at these generations.
    fn all(a: i64, b: i64) -> Digest {
        Digest::of_all([meaning("a", a), meaning("b", b)])
    }

    fn set(confirmations: &mut Confirmations, a: i64, b: i64) {
        let each = [("a", a), ("b", b)]
            .map(|(name, generation)| (name.parse().unwrap(), meaning(name, generation).digest()));
        confirmations.policies_are(all(a, b), each);
    }

    fn node() -> NodeName {
        "worker1".parse().unwrap()
    }

    fn has(confirmations: &Confirmations, policy: &str) -> bool {
        let (_, since) = confirmations.policy(&policy.parse().unwrap()).unwrap();
        confirmations.step_of(&node()) >= since
    }

    #[test]
    fn an_edit_of_one_policy_leaves_what_is_known_of_the_others() {
        let mut known = Confirmations::default();
        set(&mut known, 1, 1);
        assert!(!has(&known, "a"), "it has told nothing yet");
        known.node_has(&node(), all(1, 1));
        assert!(has(&known, "a") && has(&known, "b"));
        set(&mut known, 1, 2);
        assert!(has(&known, "a") && !has(&known, "b"));
        known.node_has(&node(), all(1, 2));
        assert!(has(&known, "a") && has(&known, "b"));
    }

    #[test]
    fn what_was_edited_and_edited_back_is_not_taken_for_planned() {
        let mut known = Confirmations::default();
        for (b, is_planned) in [(1, true), (2, true), (1, false)] {
            set(&mut known, 1, b);
            if is_planned {
                known.node_has(&node(), all(1, b));
            }
        }
        assert!(
            !has(&known, "b"),
            "the node has planned with the edit in between"
        );
        known.node_has(&node(), all(1, 1));
        assert!(has(&known, "b"));
    }

    #[test]
    fn a_set_of_policies_that_was_never_here_says_nothing() {
        let mut known = Confirmations::default();
        set(&mut known, 1, 1);
        known.node_has(&node(), all(1, 1));
        known.node_has(&node(), all(7, 7));
        assert!(has(&known, "a"));
        known.retain_nodes(|_| false);
        assert!(!has(&known, "a"));
    }

    #[test]
    fn a_mark_is_read_as_it_is_written() {
        let mark = Mark {
            policies: all(1, 1),
            revision: "00ff00ff00ff00ff".into(),
        };
        assert_eq!(mark.to_string().parse(), Ok(mark));
        assert!("nonsense".parse::<Mark>().is_err());
    }
}
