//! The types and reasons of conditions, which are an API: people select by them and alert on them. `docs/status.md` says what
//! to do about each.
//!
//! A condition may also carry the reason of a finding: [`egressnat_core::Reason`].

/// Type: the object makes sense, and nothing keeps all of it from taking effect.
pub const ACCEPTED: &str = "Accepted";

/// Type, of policies: the gateway group or address that the policy names is there.
pub const RESOLVED_REFS: &str = "ResolvedRefs";

/// Type: the kernels have it. Of a policy: those of the nodes that run selected pods, and of the gateway nodes. Of a gateway
/// group: those of the nodes that its floating IPs are assigned to.
pub const PROGRAMMED: &str = "Programmed";

/// Type, of gateway groups: each floating IP is on a node where it may stay.
pub const ASSIGNED: &str = "Assigned";

/// Type, only while it is true: parts of the object have no effect, the rest has.
pub const PARTIALLY_INVALID: &str = "PartiallyInvalid";

/// Type, of policies, only while it is true: another policy wins a destination (E16).
pub const OVERLAPPED: &str = "Overlapped";

/// Type, of policies, only while it is true: pods whose labels match are not selected (E15).
pub const PODS_EXCLUDED: &str = "PodsExcluded";

/// Every type of a condition of a policy.
pub const OF_POLICIES: [&str; 6] = [
    ACCEPTED,
    RESOLVED_REFS,
    PROGRAMMED,
    PARTIALLY_INVALID,
    OVERLAPPED,
    PODS_EXCLUDED,
];

/// Every type of a condition of a gateway group.
pub const OF_GATEWAYS: [&str; 4] = [ACCEPTED, ASSIGNED, PROGRAMMED, PARTIALLY_INVALID];

/// Reason of `ResolvedRefs`: what the policy names is there, or it names nothing.
pub const RESOLVED: &str = "ResolvedRefs";

/// Reason of `Accepted`: a field does not make sense, and the message says which.
pub const INVALID: &str = "Invalid";

/// Reason: it has no effect at all, for the reason that `Accepted` or `ResolvedRefs` gives.
pub const NOT_APPLIED: &str = "NotApplied";

/// Reason of `Programmed`: agents have not told yet that their kernels have it.
pub const PENDING: &str = "Pending";

/// Reason of `Programmed`: a node tried, and its kernel did not do all of it.
pub const NODE_FAILED: &str = "NodeFailed";

/// Reason of `Programmed`, which is true then: no pod is selected now, so nothing was to be done on any source node.
pub const NO_PODS_SELECTED: &str = "NoPodsSelected";

/// Reason of an event: somebody else had written a part of a status that is ours; it was taken back.
pub const STATUS_OVERWRITTEN: &str = "StatusOverwritten";

/// Reason of an event: somebody had edited the copy of a gateway group; it was made anew from its original (E7).
pub const COPY_OVERWRITTEN: &str = "CopyOverwritten";

/// Reason of an event: the policies of a node's pods have more destinations than its packet path can hold.
pub const PLAN_TOO_LARGE: &str = "PlanTooLarge";
