use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;
use ipnet::IpNet;

use crate::finding::{Finding, some_of};
use crate::gateway::EgressId;
use crate::model::{
    Action, GatewayKey, MasqueradeAction, MasqueradeMatch, NamespaceName, NodeName, PodKey,
    PolicyName,
};
use crate::plan::Applied;
use crate::selector::Mismatch;

/// One step of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// There is no such pod.
    NoSuchPod(PodKey),
    /// The pod has finished: its address may be another pod's by now.
    Finished(PodKey),
    /// The pod shares its node's network (E15).
    HostNetwork(PodKey, NodeName),
    /// The pod has no (usable) address of the destination's family.
    NoAddress(PodKey, IpAddr),
    /// Another pod of the node tells the same address, and comes first by name.
    AddressOfAnother(PodKey, IpAddr, PodKey),
    /// Who sends.
    Sender {
        /// The pod.
        pod: PodKey,
        /// Its node.
        node: NodeName,
        /// Its address of the destination's family.
        address: IpAddr,
    },
    /// The destination is inside the cluster: never egress (E12).
    Inside(IpNet),
    /// The pod's namespace is not known, so that nobody can tell which rules select it.
    UnknownNamespace(NamespaceName),
    /// The destination is one of a strict policy, and it is not known whether that selects the pod (E43).
    Guarded,
    /// The address is in none of its node's pod ranges: it is not translated.
    LeftAlone,
    /// A policy has the destination and is not applied.
    NotApplied {
        /// Which.
        policy: PolicyName,
        /// What is wrong with it.
        why: Option<Finding>,
    },
    /// A policy has the destination and does not select the pod.
    NotSelected {
        /// Which.
        policy: PolicyName,
        /// What each of its rules misses.
        rules: Vec<Miss>,
    },
    /// A policy has the destination and selects the pod.
    Selected {
        /// Which.
        policy: PolicyName,
        /// The first of its rules that does, from 0; none for a policy that selects all pods.
        rule: Option<usize>,
        /// Its longest prefix that contains the destination.
        prefix: IpNet,
    },
    /// So many policies select the pod for other destinations.
    OtherDestinations(usize),
    /// Of two policies one wins (E16).
    Wins {
        /// Which.
        winner: PolicyName,
        /// Over which.
        loser: PolicyName,
        /// By what.
        by: Criterion,
    },
    /// No policy decides.
    NoPolicy,
    /// The policy keeps the pod's address (E5).
    Keeps(PolicyName),
    /// The policy has an egress IP for it (E20).
    EgressIp {
        /// Which policy.
        policy: PolicyName,
        /// The egress IP.
        address: IpAddr,
        /// The gateway group it belongs to.
        gateway: Option<GatewayKey>,
        /// Whether it was chosen as the first of the group; otherwise the policy names it.
        is_first: bool,
        /// Which node holds it.
        holder: Option<NodeName>,
    },
    /// The policy has no egress IP of the destination's family.
    NoEgressIp {
        /// Which policy.
        policy: PolicyName,
        /// Whether it is strict, so that the packet is dropped (E43).
        is_strict: bool,
    },
    /// The policy is `BestEffort`, and nobody holds its egress IP (E43).
    FallsBack {
        /// Which policy.
        policy: PolicyName,
        /// Its egress IP.
        address: IpAddr,
    },
    /// The policies of the node's pods have more destinations than fit, and this pod's are among those left out.
    DoesNotFit,
    /// What the masquerade rules say.
    MasqueradeRule {
        /// The rule that decides; none if no rule matches.
        rule: Option<MasqueradeMatch>,
        /// What it does.
        action: MasqueradeAction,
    },
}

/// What a rule of a policy misses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Miss {
    /// The labels of the namespace.
    Namespace(Mismatch),
    /// The labels of the pod.
    Pod(Mismatch),
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Miss::Namespace(mismatch) => write!(f, "namespaceSelector {mismatch}"),
            Miss::Pod(mismatch) => write!(f, "podSelector {mismatch}"),
        }
    }
}

/// By what one policy wins over another (E16).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Criterion {
    /// Its destination is the longer prefix.
    LongerPrefix,
    /// It translates, and the other keeps.
    Translates,
    /// It is older.
    Older,
    /// Its name comes first.
    Name,
}

impl Criterion {
    pub(super) fn between(winner: (&Applied<'_>, &IpNet), loser: (&Applied<'_>, &IpNet)) -> Self {
        let keeps = |applied: &Applied<'_>| applied.policy.action == Action::NoSnat;
        if winner.1.prefix_len() != loser.1.prefix_len() {
            Self::LongerPrefix
        } else if keeps(winner.0) != keeps(loser.0) {
            Self::Translates
        } else if winner.0.policy.created != loser.0.policy.created {
            Self::Older
        } else {
            Self::Name
        }
    }
}

impl fmt::Display for Criterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Criterion::LongerPrefix => "its destination is the longer prefix",
            Criterion::Translates => "it translates, and the other keeps the pod's address",
            Criterion::Older => "it is older",
            Criterion::Name => "its name comes first",
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::NoSuchPod(pod) => write!(f, "there is no pod {pod}"),
            Step::Finished(pod) => write!(f, "pod {pod} has finished"),
            Step::HostNetwork(pod, node) => write!(
                f,
                "pod {pod} has hostNetwork: true: its packets are those of node {node}, and no policy selects it"
            ),
            Step::NoAddress(pod, destination) => {
                let family = if destination.is_ipv4() { "IPv4" } else { "IPv6" };
                write!(f, "pod {pod} has no {family} address to reach {destination} with")
            }
            Step::AddressOfAnother(pod, address, owner) => write!(
                f,
                "pod {pod} says that it has {address}, and so does pod {owner}, for which it counts"
            ),
            Step::Sender { pod, node, address } => {
                write!(f, "pod {pod} on node {node} sends with {address}")
            }
            Step::Inside(range) => write!(
                f,
                "the destination lies in {range}, which is inside the cluster: never egress traffic"
            ),
            Step::UnknownNamespace(namespace) => {
                write!(f, "namespace {namespace} is not known (yet), so that nobody can tell what selects its pods")
            }
            Step::Guarded => f.write_str(
                "the destination is one of a strict policy: until it is known whether that selects the pod, nothing leaves",
            ),
            Step::LeftAlone => {
                f.write_str("the address is in none of the pod ranges of its node: it is left alone")
            }
            Step::NotApplied { policy, why } => {
                let why = why.as_ref().map_or(String::new(), |why| why.to_string());
                write!(f, "EgressNATPolicy {policy} has the destination and is not applied: {why}")
            }
            Step::NotSelected { policy, rules } => {
                let misses: Vec<String> = rules.iter().map(Miss::to_string).collect();
                let misses = some_of(misses.iter());
                write!(f, "EgressNATPolicy {policy} has the destination and does not select the pod: {misses}")
            }
            Step::Selected { policy, rule, prefix } => match rule {
                Some(rule) => {
                    write!(f, "EgressNATPolicy {policy} selects the pod by rule {rule}, and {prefix} has the destination")
                }
                None => write!(f, "EgressNATPolicy {policy} selects all pods, and {prefix} has the destination"),
            },
            Step::OtherDestinations(count) => {
                write!(f, "{count} other policies select the pod, for other destinations")
            }
            Step::Wins { winner, loser, by } => {
                write!(f, "EgressNATPolicy {winner} wins over {loser}: {by}")
            }
            Step::NoPolicy => f.write_str("no policy decides"),
            Step::Keeps(policy) => write!(f, "EgressNATPolicy {policy} keeps the pod's address (NoSNAT)"),
            Step::EgressIp { policy, address, gateway, is_first, holder } => {
                let how = if *is_first { "the first of its family in" } else { "named by the policy, of" };
                write!(f, "the egress IP of {policy} is {address}, {how} ")?;
                match gateway {
                    Some(gateway) => write!(f, "{gateway}; ")?,
                    None => f.write_str("no gateway; ")?,
                }
                match holder {
                    Some(node) => write!(f, "node {node} holds it"),
                    None => f.write_str("no node holds it"),
                }
            }
            Step::NoEgressIp { policy, is_strict } => {
                let then = if *is_strict { "is strict, so the packet is dropped" } else { "is BestEffort" };
                write!(f, "EgressNATPolicy {policy} has no egress IP of the destination's family and {then}")
            }
            Step::FallsBack { policy, address } => {
                write!(f, "no node holds {address}, the egress IP of {policy}, which is BestEffort")
            }
            Step::DoesNotFit => f.write_str(
                "the policies of the node's pods have more destinations than fit, and one of this pod's is strict: nothing \
                 leaves the cluster",
            ),
            Step::MasqueradeRule { rule: Some(rule), action } => {
                write!(f, "the masquerade rule {rule} says {action}")
            }
            Step::MasqueradeRule { rule: None, action } => {
                write!(f, "no masquerade rule has the destination: {action}")
            }
        }
    }
}

/// What a packet looks like on one part of its way.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hop {
    /// As the pod sends it.
    FromPod {
        /// The pod's address.
        source: IpAddr,
        /// Where to.
        destination: IpAddr,
    },
    /// Between nodes, in the tunnel.
    Tunneled {
        /// The address of the pod's node.
        from: Option<IpAddr>,
        /// The egress IP itself: whoever holds it answers.
        to: IpAddr,
        /// The VXLAN network identifier.
        egress: EgressId,
    },
    /// As it leaves a node for its destination.
    Leaves {
        /// Which node.
        node: NodeName,
        /// With which address; none if the node's is not known.
        source: Option<IpAddr>,
        /// Where to.
        destination: IpAddr,
    },
    /// It does not leave its node.
    Dropped {
        /// The pod's node.
        node: NodeName,
    },
    /// Nobody answers for the egress IP, so that the packet goes nowhere.
    Unanswered(IpAddr),
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_unknown = |address: &Option<IpAddr>| {
            address.map_or_else(|| "(unknown)".to_string(), |address| address.to_string())
        };
        match self {
            Hop::FromPod {
                source,
                destination,
            } => write!(f, "from the pod: {source} -> {destination}"),
            Hop::Tunneled { from, to, egress } => {
                write!(
                    f,
                    "in the tunnel: {} -> {to}, VXLAN network identifier {egress}",
                    or_unknown(from)
                )
            }
            Hop::Leaves {
                node,
                source,
                destination,
            } => {
                write!(
                    f,
                    "leaves node {node}: {} -> {destination}",
                    or_unknown(source)
                )
            }
            Hop::Dropped { node } => write!(f, "dropped on node {node}"),
            Hop::Unanswered(address) => {
                write!(f, "goes nowhere until a node holds {address}")
            }
        }
    }
}
