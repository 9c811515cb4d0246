//! Why a packet leaves with the address it leaves with, and why a floating IP is where it is.
//!
//! For the person with a broken allow-list, and for the auditor: every step of a decision as data, with a [`Display`](core::fmt::Display)
//! that reads as text.

mod address;
mod step;
mod what_if;

pub use address::{AddressExplanation, Conclusion, NodeVerdict, explain_address};
pub use step::{Criterion, Hop, Miss, Step};
pub use what_if::what_if;

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;
use ipnet::IpNet;

use crate::assignment::Assignment;
use crate::gateway::{EffectiveGateways, EgressId, effective_gateways};
use crate::model::{EgressSource, MasqueradeAction, Pod, PodKey, PodPhase, Protocol, Snapshot};
use crate::plan::selection::{selects, usable_addresses};
use crate::plan::{Applied, Decision, PolicySetId, Steering, plan_node, table};
use crate::policy::resolve_policies;

/// What happens to a packet and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The outcome; none if the pod sends no such packet.
    pub decision: Option<Decision>,
    /// What led there, in order.
    pub steps: Vec<Step>,
    /// What the packet looks like on its way.
    pub hops: Vec<Hop>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        match self.decision {
            Some(decision) => writeln!(f, "=> {decision}")?,
            None => writeln!(f, "=> no packet")?,
        }
        for hop in &self.hops {
            writeln!(f, "   {hop}")?;
        }
        Ok(())
    }
}

/// Explains what happens to packets of a pod to a destination, given who holds which floating IP.
///
/// Without a protocol, masquerade rules for one protocol only are left out.
///
/// # Guarantees
///
/// The decision is that of the [`NodePlan`](crate::NodePlan) of the pod's node.
pub fn explain(
    snapshot: &Snapshot,
    assignment: &Assignment,
    pod: &PodKey,
    destination: IpAddr,
    protocol: Option<Protocol>,
) -> Explanation {
    let mut steps = Vec::new();
    let Some((object, source)) = sender(snapshot, pod, destination, &mut steps) else {
        return Explanation {
            decision: None,
            steps,
            hops: Vec::new(),
        };
    };
    let gateways = effective_gateways(snapshot);
    let plan = plan_node(snapshot, assignment, &object.node).plan;
    let decision = plan.decide(source, destination, protocol);

    let said = || masquerade_step(snapshot, (source, destination), protocol);
    if let Some(range) = inside(snapshot, destination) {
        steps.push(Step::Inside(range));
    } else if !plan.pods.contains_key(&source) {
        steps.push(Step::UnknownNamespace(pod.namespace.clone()));
        steps.push(match decision {
            Decision::Drop => Step::Guarded,
            _ if plan.pod_ranges.iter().any(|range| range.contains(&source)) => said(),
            _ => Step::LeftAlone,
        });
    } else {
        let winner = policies(snapshot, &gateways, (pod, object), destination, &mut steps);
        if plan.pods.get(&source) == Some(&PolicySetId::CLOSED) {
            steps.push(Step::DoesNotFit);
        } else {
            let outcome = winner.map(|(applied, prefix)| {
                let is_held = |address: &IpAddr| assignment.nodes.contains_key(address);
                (applied, prefix, table::steering(&applied, &prefix, is_held))
            });
            explain_outcome(&outcome, &gateways, assignment, &mut steps);
            if matches!(outcome, None | Some((_, _, Steering::Forward))) {
                steps.push(said());
            }
        }
    }
    let hops = hops(
        snapshot,
        assignment,
        object,
        (source, destination),
        decision,
    );
    Explanation {
        decision: Some(decision),
        steps,
        hops,
    }
}

fn masquerade_step(
    snapshot: &Snapshot,
    (source, destination): (IpAddr, IpAddr),
    protocol: Option<Protocol>,
) -> Step {
    let found = snapshot.masquerade.find(source, destination, protocol);
    Step::MasqueradeRule {
        rule: found.map(|(rule, _)| *rule),
        action: found.map_or(MasqueradeAction::Masquerade, |(_, action)| action),
    }
}

/// The pod, and the address it sends with.
fn sender<'a>(
    snapshot: &'a Snapshot,
    key: &PodKey,
    destination: IpAddr,
    steps: &mut Vec<Step>,
) -> Option<(&'a Pod, IpAddr)> {
    let mut refuse = |step| {
        steps.push(step);
        None
    };
    let Some(pod) = snapshot.pods.get(key) else {
        return refuse(Step::NoSuchPod(key.clone()));
    };
    if pod.phase == PodPhase::Finished {
        return refuse(Step::Finished(key.clone()));
    }
    if pod.host_network {
        return refuse(Step::HostNetwork(key.clone(), pod.node.clone()));
    }
    let is_of_family = |address: &IpAddr| address.is_ipv4() == destination.is_ipv4();
    let Some(source) = usable_addresses(pod).find(is_of_family) else {
        return refuse(Step::NoAddress(key.clone(), destination));
    };
    let first = snapshot.pods.iter().find(|(key, other)| {
        other.node == pod.node
            && snapshot.namespaces.contains_key(&key.namespace)
            && other.phase == PodPhase::Active
            && !other.host_network
            && other.ips.contains(&source)
    });
    if let Some((owner, _)) = first.filter(|(owner, _)| *owner != key) {
        return refuse(Step::AddressOfAnother(key.clone(), source, owner.clone()));
    }
    steps.push(Step::Sender {
        pod: key.clone(),
        node: pod.node.clone(),
        address: source,
    });
    Some((pod, source))
}

fn inside(snapshot: &Snapshot, destination: IpAddr) -> Option<IpNet> {
    let ranges: BTreeSet<IpNet> = snapshot.internal_ranges();
    let holding = ranges
        .into_iter()
        .filter(|range| range.contains(&destination));
    holding.max_by_key(|range| range.prefix_len())
}

/// Every policy that has something to do with the destination, and the one that wins.
fn policies<'a>(
    snapshot: &'a Snapshot,
    gateways: &EffectiveGateways,
    (key, pod): (&PodKey, &Pod),
    destination: IpAddr,
    steps: &mut Vec<Step>,
) -> Option<(Applied<'a>, IpNet)> {
    let resolved = resolve_policies(snapshot, gateways);
    let namespace = snapshot.namespaces.get(&key.namespace)?;
    let mut candidates: Vec<(Applied<'a>, IpNet)> = Vec::new();
    let mut elsewhere = 0;
    for (name, policy) in &snapshot.policies {
        let covering = table::prefixes(policy);
        let covering = covering.filter(|prefix| prefix.contains(&destination));
        let Some(prefix) = covering.max_by_key(IpNet::prefix_len) else {
            elsewhere += usize::from(selects(policy, namespace, &pod.labels));
            continue;
        };
        let Some(action) = resolved.policies.get(name) else {
            let about = crate::finding::Subject::Policy(name.clone());
            let why = resolved
                .findings
                .iter()
                .find(|finding| finding.subject == about);
            steps.push(Step::NotApplied {
                policy: name.clone(),
                why: why.cloned(),
            });
            continue;
        };
        if !selects(policy, namespace, &pod.labels) {
            let miss = |source: &crate::model::Source| {
                let of_namespace = source.namespaces.mismatch(namespace).map(Miss::Namespace);
                of_namespace.or_else(|| source.pods.mismatch(&pod.labels).map(Miss::Pod))
            };
            steps.push(Step::NotSelected {
                policy: name.clone(),
                rules: policy.sources.iter().filter_map(miss).collect(),
            });
            continue;
        }
        let matches = |source: &crate::model::Source| {
            source.namespaces.matches(namespace) && source.pods.matches(&pod.labels)
        };
        let rule = policy.sources.iter().position(matches);
        steps.push(Step::Selected {
            policy: name.clone(),
            rule,
            prefix,
        });
        candidates.push((
            Applied {
                name,
                policy,
                resolved: *action,
            },
            prefix,
        ));
    }
    if elsewhere > 0 {
        steps.push(Step::OtherDestinations(elsewhere));
    }
    candidates.sort_by_key(|(applied, prefix)| {
        (u8::MAX - prefix.prefix_len(), table::precedence(applied))
    });
    let (winner, prefix) = *candidates.first()?;
    for (loser, lost) in &candidates[1..] {
        steps.push(Step::Wins {
            winner: winner.name.clone(),
            loser: loser.name.clone(),
            by: Criterion::between((&winner, &prefix), (loser, lost)),
        });
    }
    Some((winner, prefix))
}

fn explain_outcome(
    outcome: &Option<(Applied<'_>, IpNet, Steering)>,
    gateways: &EffectiveGateways,
    assignment: &Assignment,
    steps: &mut Vec<Step>,
) {
    let Some((applied, prefix, steering)) = outcome else {
        steps.push(Step::NoPolicy);
        return;
    };
    let policy = applied.name.clone();
    match steering {
        Steering::Keep => steps.push(Step::Keeps(policy)),
        Steering::Drop => steps.push(Step::NoEgressIp {
            policy,
            is_strict: true,
        }),
        Steering::Snat(address) => steps.push(Step::EgressIp {
            policy,
            address: *address,
            gateway: gateways.owners.get(address).cloned(),
            is_first: matches!(
                applied.policy.action,
                crate::model::Action::Snat(EgressSource::Gateway { .. })
            ),
            holder: assignment.nodes.get(address).cloned(),
        }),
        Steering::Forward => {
            let address = match applied.resolved {
                crate::policy::ResolvedPolicy::Snat(ips) => ips.of_family(prefix),
                crate::policy::ResolvedPolicy::Keep => None,
            };
            steps.push(match address {
                Some(address) => Step::FallsBack { policy, address },
                None => Step::NoEgressIp {
                    policy,
                    is_strict: false,
                },
            });
        }
    }
}

/// What the packet looks like from the pod to where it leaves the cluster.
fn hops(
    snapshot: &Snapshot,
    assignment: &Assignment,
    pod: &Pod,
    (source, destination): (IpAddr, IpAddr),
    decision: Decision,
) -> Vec<Hop> {
    let is_of_family = |address: &&IpAddr| address.is_ipv4() == destination.is_ipv4();
    let node_address = snapshot
        .nodes
        .get(&pod.node)
        .and_then(|node| node.addresses.iter().find(is_of_family))
        .copied();
    let mut hops = alloc::vec![Hop::FromPod {
        source,
        destination
    }];
    match decision {
        Decision::Drop => hops.push(Hop::Dropped {
            node: pod.node.clone(),
        }),
        Decision::Keep => hops.push(Hop::Leaves {
            node: pod.node.clone(),
            source: Some(source),
            destination,
        }),
        Decision::Masquerade => hops.push(Hop::Leaves {
            node: pod.node.clone(),
            source: node_address,
            destination,
        }),
        Decision::Snat(address) => {
            let holder = assignment.nodes.get(&address);
            if holder != Some(&pod.node) {
                hops.push(Hop::Tunneled {
                    from: node_address,
                    to: address,
                    egress: EgressId::of(address),
                });
            }
            hops.push(match holder {
                Some(node) => Hop::Leaves {
                    node: node.clone(),
                    source: Some(address),
                    destination,
                },
                None => Hop::Unanswered(address),
            });
        }
    }
    hops
}

#[cfg(test)]
mod tests;
