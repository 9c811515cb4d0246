//! Which egress IP a policy resolves to, or why to none.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use ipnet::IpNet;

use crate::cidr::{Cover, is_v4_mapped};
use crate::finding::{Finding, Reason, Subject, some_of};
use crate::gateway::EffectiveGateways;
use crate::model::{
    Action, EgressSource, Enforcement, Gateway, GatewayKey, GatewayKind, Policy, PolicyName,
    Snapshot,
};

/// The egress IPs of a policy: at most one of each family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EgressIps {
    /// For IPv4 destinations.
    pub v4: Option<Ipv4Addr>,
    /// For IPv6 destinations.
    pub v6: Option<Ipv6Addr>,
}

impl EgressIps {
    /// The one for destinations in `prefix`.
    pub fn of_family(&self, prefix: &IpNet) -> Option<IpAddr> {
        match prefix {
            IpNet::V4(_) => self.v4.map(IpAddr::V4),
            IpNet::V6(_) => self.v6.map(IpAddr::V6),
        }
    }

    /// Both, as far as they are there.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.map(IpAddr::V4);
        v4.into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

impl From<IpAddr> for EgressIps {
    fn from(address: IpAddr) -> Self {
        let mut ips = Self::default();
        match address {
            IpAddr::V4(v4) => ips.v4 = Some(v4),
            IpAddr::V6(v6) => ips.v6 = Some(v6),
        }
        ips
    }
}

/// What a policy does to the traffic it selects, its references resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResolvedPolicy {
    /// Leave with the egress IP of the destination's family.
    Snat(EgressIps),
    /// Keep the pod IP (E5).
    Keep,
}

/// The policies that are applied, and findings for the ones that are not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvedPolicies {
    /// Applied policies. A policy that is missing here selects nothing.
    pub policies: BTreeMap<PolicyName, ResolvedPolicy>,
    /// Why others are not applied, and which parts of the applied ones have no effect.
    pub findings: Vec<Finding>,
}

/// Resolves every policy of a snapshot against the effective gateways (E20–E22).
///
/// An invalid policy stops only itself.
pub fn resolve_policies(snapshot: &Snapshot, gateways: &EffectiveGateways) -> ResolvedPolicies {
    let internal = Cover::new(&snapshot.internal_ranges());
    let mut resolved = ResolvedPolicies::default();
    // Oldest first: of two v1alpha1 policies with one egressSourceIP the older keeps it (E20).
    let mut by_age: Vec<_> = snapshot.policies.iter().collect();
    by_age.sort_by_key(|(name, policy)| (policy.created, *name));
    let mut users: BTreeMap<IpAddr, &PolicyName> = BTreeMap::new();
    for (name, policy) in by_age {
        let user = egress_source_ip(policy).and_then(|address| users.get(&address).copied());
        let findings = &mut resolved.findings;
        let mut find = |(reason, message)| {
            findings.push(Finding::new(Subject::Policy(name.clone()), reason, message))
        };
        match resolve(policy, gateways, user) {
            Ok(action) => {
                if let Some(address) = egress_source_ip(policy) {
                    users.insert(address, name);
                }
                notes(policy, &action, &internal).into_iter().for_each(find);
                resolved.policies.insert(name.clone(), action);
            }
            Err(refusal) => find(refusal),
        }
    }
    resolved.findings.sort();
    resolved
}

/// The address that a v1alpha1 policy names, and that no other may name.
pub(crate) fn egress_source_ip(policy: &Policy) -> Option<IpAddr> {
    match policy.action {
        Action::Snat(EgressSource::Address(address)) => Some(address),
        Action::Snat(EgressSource::Gateway { .. }) | Action::NoSnat => None,
    }
}

/// What is to be told about a policy: the reason, and the value and the fix.
pub(crate) type Note = (Reason, String);

/// Resolves one policy. `user` is the older policy that has its `egressSourceIP` already.
pub(crate) fn resolve(
    policy: &Policy,
    gateways: &EffectiveGateways,
    user: Option<&PolicyName>,
) -> Result<ResolvedPolicy, Note> {
    if policy.destinations.is_empty() {
        return Err((
            Reason::IncompletePolicy,
            "the policy has no destinations: list at least one CIDR".into(),
        ));
    }
    for (index, source) in policy.sources.iter().enumerate() {
        for (side, selector) in [
            ("namespaceSelector", &source.namespaces),
            ("podSelector", &source.pods),
        ] {
            if let Err(error) = selector.validate() {
                return Err((
                    Reason::InvalidSelector,
                    format!("{side} of source {index}: {error}"),
                ));
            }
        }
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
        EgressSource::Address(address) => address_of_its_own(*address, gateways, user),
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
            first_addresses(&key, gateway, gateways)
        }
    }
}

/// E20: `egressSourceIP` is a floating IP, and no other policy's.
fn address_of_its_own(
    address: IpAddr,
    gateways: &EffectiveGateways,
    user: Option<&PolicyName>,
) -> Result<ResolvedPolicy, Note> {
    if !gateways.owners.contains_key(&address) {
        return Err((
            Reason::UnknownEgressIp,
            format!(
                "egressSourceIP {address} is no floating IP of any gateway: add it to spec.floatingIPs of a \
                 NetworkGatewayGroup or AnthosNetworkGateway, or use one that is listed there"
            ),
        ));
    }
    match user {
        Some(user) => Err((
            Reason::DuplicateEgressSourceIp,
            format!(
                "egressSourceIP {address} is used by EgressNATPolicy {user}, which is older: give each v1alpha1 policy its \
                 own address, or share one through the gatewayRef of v1 policies"
            ),
        )),
        None => Ok(ResolvedPolicy::Snat(address.into())),
    }
}

/// E20: the first entry counts, of each family; the others are ignored by the policy.
fn first_addresses(
    key: &GatewayKey,
    gateway: &Gateway,
    gateways: &EffectiveGateways,
) -> Result<ResolvedPolicy, Note> {
    let refuse = |message| Err((Reason::InvalidGatewayRef, message));
    if gateway.floating_ips.is_empty() {
        return refuse(format!(
            "{key} has no floatingIPs: add at least one address"
        ));
    }
    let mut ips = EgressIps::default();
    for family in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
        let Some(address) = gateway.floating_ips.iter().find(|address| family(address)) else {
            continue;
        };
        if gateways.owners.get(address) != Some(key) {
            return refuse(format!(
                "{address}, the first of the floatingIPs of {key}, is refused there: see the events of that gateway"
            ));
        }
        match address {
            IpAddr::V4(v4) => ips.v4 = Some(*v4),
            IpAddr::V6(v6) => ips.v6 = Some(*v6),
        }
    }
    Ok(ResolvedPolicy::Snat(ips))
}

/// Which parts of an applied policy have no effect: one note per reason, however many destinations there are.
pub(crate) fn notes(policy: &Policy, resolved: &ResolvedPolicy, internal: &Cover) -> Vec<Note> {
    let all: BTreeSet<IpNet> = policy.destinations.iter().map(IpNet::trunc).collect();
    let mut notes = Vec::new();
    let mut note = |reason, which: &dyn Fn(&&IpNet) -> bool, text: &str| {
        let found: Vec<&IpNet> = all.iter().filter(which).collect();
        if !found.is_empty() {
            notes.push((reason, format!("{}: {text}", some_of(found.into_iter()))));
        }
    };
    note(
        Reason::InvalidDestination,
        &|prefix| is_v4_mapped(prefix),
        "no packet has such a destination: write IPv4 ranges in IPv4 form",
    );
    note(
        Reason::InternalDestination,
        &|prefix| internal.covers(prefix),
        "destinations inside the cluster are never egress traffic: remove them, NetworkPolicy is what governs traffic between \
         pods",
    );
    if let ResolvedPolicy::Snat(ips) = resolved {
        let outcome = match policy.enforcement {
            Enforcement::Strict => "is dropped",
            Enforcement::BestEffort => "leaves with the node's address",
        };
        let text = format!(
            "the policy has no egress IP of that family, so selected traffic {outcome}: add a floating IP of that family to \
             the gateway, or remove the destinations"
        );
        note(
            Reason::NoEgressIpOfFamily,
            &|prefix| ips.of_family(prefix).is_none() && !is_v4_mapped(prefix),
            &text,
        );
    }
    notes
}

#[cfg(test)]
mod tests;
