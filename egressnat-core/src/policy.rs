//! Which egress IP a policy resolves to, or why to none.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec::Vec;
use core::net::IpAddr;

use crate::finding::{Finding, Reason, Subject};
use crate::gateway::EffectiveGateways;
use crate::model::{
    Action, EgressSource, Gateway, GatewayKey, GatewayKind, Policy, PolicyName, Snapshot,
};

/// What a policy does to the traffic it selects, its references resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResolvedPolicy {
    /// Leave with this egress IP.
    Snat(IpAddr),
    /// Keep the pod IP (E5).
    Keep,
}

/// The policies that are applied, and findings for the ones that are not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvedPolicies {
    /// Applied policies. A policy that is missing here selects nothing.
    pub policies: BTreeMap<PolicyName, ResolvedPolicy>,
    /// Why others are not applied.
    pub findings: Vec<Finding>,
}

/// Resolves every policy of a snapshot against the effective gateways (E20–E22).
///
/// An invalid policy stops only itself.
pub fn resolve_policies(snapshot: &Snapshot, gateways: &EffectiveGateways) -> ResolvedPolicies {
    let mut resolved = ResolvedPolicies::default();
    // Oldest first: of two v1alpha1 policies with one egressSourceIP the older keeps it (E20).
    let mut by_age: Vec<_> = snapshot.policies.iter().collect();
    by_age.sort_by_key(|(name, policy)| (policy.created, *name));
    let mut users: BTreeMap<IpAddr, &PolicyName> = BTreeMap::new();
    for (name, policy) in by_age {
        let outcome = resolve(policy, gateways).and_then(|action| match egress_source_ip(policy) {
            Some(address) => match users.get(&address) {
                Some(user) => Err((
                    Reason::DuplicateEgressSourceIp,
                    format!(
                        "egressSourceIP {address} is used by EgressNATPolicy {user}, which is older: give each v1alpha1 \
                         policy its own address, or share one through the gatewayRef of v1 policies"
                    ),
                )),
                None => {
                    users.insert(address, name);
                    Ok(action)
                }
            },
            None => Ok(action),
        });
        match outcome {
            Ok(action) => {
                resolved.policies.insert(name.clone(), action);
            }
            Err((reason, message)) => {
                resolved
                    .findings
                    .push(Finding::new(Subject::Policy(name.clone()), reason, message))
            }
        }
    }
    resolved.findings.sort();
    resolved
}

fn egress_source_ip(policy: &Policy) -> Option<IpAddr> {
    match policy.action {
        Action::Snat(EgressSource::Address(address)) => Some(address),
        _ => None,
    }
}

type Refusal = (Reason, alloc::string::String);

fn resolve(policy: &Policy, gateways: &EffectiveGateways) -> Result<ResolvedPolicy, Refusal> {
    if policy.destinations.is_empty() {
        return Err((
            Reason::IncompletePolicy,
            "the policy has no destinations: list at least one CIDR".into(),
        ));
    }
    let source = match &policy.action {
        Action::NoSnat => return Ok(ResolvedPolicy::Keep),
        Action::Snat(source) => source,
    };
    if policy.sources.is_empty() {
        return Err((
            Reason::IncompletePolicy,
            "the policy has no sources: give at least one rule with namespaceSelector and podSelector".into(),
        ));
    }
    match source {
        EgressSource::Address(address) => {
            if gateways.owners.contains_key(address) {
                Ok(ResolvedPolicy::Snat(*address))
            } else {
                Err((
                    Reason::UnknownEgressIp,
                    format!(
                        "egressSourceIP {address} is no floating IP of any gateway: add it to spec.floatingIPs of a \
                         NetworkGatewayGroup or AnthosNetworkGateway, or use one that is listed there"
                    ),
                ))
            }
        }
        EgressSource::Gateway { namespace, name } => {
            let find = |kind| {
                let key = GatewayKey {
                    kind,
                    namespace: namespace.clone(),
                    name: name.clone(),
                };
                let gateway = gateways.gateways.get(&key)?;
                Some((key, gateway))
            };
            let Some((key, gateway)) = find(GatewayKind::NetworkGatewayGroup)
                .or_else(|| find(GatewayKind::AnthosNetworkGateway))
            else {
                return Err((
                    Reason::InvalidGatewayRef,
                    format!(
                        "gatewayRef names {namespace}/{name}, and there is no such effective NetworkGatewayGroup: create \
                         it, or correct gatewayRef.name and gatewayRef.namespace (effective gateways are in kube-system)"
                    ),
                ));
            };
            first_address(&key, gateway, gateways)
        }
    }
}

/// E20: the first entry counts, the others are ignored by the policy.
fn first_address(
    key: &GatewayKey,
    gateway: &Gateway,
    gateways: &EffectiveGateways,
) -> Result<ResolvedPolicy, Refusal> {
    let refuse = |message| Err((Reason::InvalidGatewayRef, message));
    match gateway.floating_ips.first() {
        None => refuse(format!(
            "{key} has no floatingIPs: add at least one address"
        )),
        Some(address) if gateways.owners.get(address) == Some(key) => {
            Ok(ResolvedPolicy::Snat(*address))
        }
        Some(address) => refuse(format!(
            "{address}, the first of the floatingIPs of {key}, is refused there: see the events of that gateway"
        )),
    }
}

#[cfg(test)]
mod tests;
