//! What the objects mean, worked out a second time.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;
use ipnet::IpNet;

use crate::gateway::{EgressId, SYSTEM_NAMESPACE};
use crate::model::{
    Action, EgressSource, GatewayKey, GatewayKind, Labels, Policy, PolicyName, Snapshot,
};
use crate::selector::{Operator, Selector};

/// What a policy comes to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Means {
    Keep,
    /// The egress IPs for IPv4 and IPv6.
    Snat(Option<IpAddr>, Option<IpAddr>),
}

/// Who owns which floating IP, and what each policy comes to.
pub(super) struct World<'a> {
    pub(super) owners: BTreeMap<IpAddr, GatewayKey>,
    pub(super) policies: Vec<(&'a PolicyName, &'a Policy, Means)>,
}

pub(super) fn world(snapshot: &Snapshot) -> World<'_> {
    let effective = effective(snapshot);
    let owners = owners(snapshot, &effective);
    let mut by_age: Vec<(&PolicyName, &Policy)> = snapshot.policies.iter().collect();
    by_age.sort_by_key(|(name, policy)| (policy.created.0, name.as_str()));
    let mut used = Vec::new();
    let mut policies = Vec::new();
    for (name, policy) in by_age {
        if let Some(means) = means(policy, &effective, &owners, &mut used) {
            policies.push((name, policy, means));
        }
    }
    World { owners, policies }
}

/// The groups in force under the key they have there, oldest first.
fn effective(snapshot: &Snapshot) -> Vec<(GatewayKey, Vec<IpAddr>)> {
    let mut claims = Vec::new();
    for (key, gateway) in &snapshot.gateways {
        let is_native = key.namespace.as_str() == SYSTEM_NAMESPACE;
        let is_on = snapshot.clusters.iter().any(|(cluster, switches)| {
            cluster.namespace == key.namespace
                && (switches.anthos_network_gateway || switches.advanced_networking)
        });
        if gateway.mirror_of.is_none() && (is_native || is_on) {
            claims.push((!is_native, gateway.created.0, key, gateway));
        }
    }
    claims.sort_by_key(|(is_copy, created, key, _)| (*is_copy, *created, *key));
    let mut groups: Vec<(i64, GatewayKey, Vec<IpAddr>)> = Vec::new();
    for (_, created, key, gateway) in claims {
        let is_taken = groups
            .iter()
            .any(|(_, other, _)| other.kind == key.kind && other.name == key.name);
        if !is_taken {
            let place = GatewayKey {
                kind: key.kind,
                namespace: SYSTEM_NAMESPACE.parse().expect("a name"),
                name: key.name.clone(),
            };
            groups.push((created, place, gateway.floating_ips.clone()));
        }
    }
    groups.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    groups.into_iter().map(|(_, key, ips)| (key, ips)).collect()
}

fn owners(
    snapshot: &Snapshot,
    groups: &[(GatewayKey, Vec<IpAddr>)],
) -> BTreeMap<IpAddr, GatewayKey> {
    let mut owners: BTreeMap<IpAddr, GatewayKey> = BTreeMap::new();
    for (key, ips) in groups {
        for ip in ips {
            let is_of_node = snapshot
                .nodes
                .values()
                .any(|node| node.addresses.contains(ip));
            let has_taken_id = owners
                .keys()
                .any(|other| EgressId::of(*other) == EgressId::of(*ip));
            if is_unicast(*ip) && !is_of_node && !has_taken_id {
                owners.insert(*ip, key.clone());
            }
        }
    }
    owners
}

pub(super) fn is_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            !v4.is_unspecified()
                && a != 127
                && !(224..240).contains(&a)
                && (a, b) != (169, 254)
                && !v4.is_broadcast()
        }
        IpAddr::V6(v6) => {
            let bits = u128::from(v6);
            let is_mapped = bits >> 32 == 0xffff;
            bits > 1 && !is_mapped && bits >> 120 != 0xff && bits >> 118 != 0x3fa
        }
    }
}

fn means(
    policy: &Policy,
    groups: &[(GatewayKey, Vec<IpAddr>)],
    owners: &BTreeMap<IpAddr, GatewayKey>,
    used: &mut Vec<IpAddr>,
) -> Option<Means> {
    let is_valid = |selector: &Selector| selector.validate().is_ok();
    if policy.destinations.is_empty()
        || policy
            .sources
            .iter()
            .any(|rule| !is_valid(&rule.namespaces) || !is_valid(&rule.pods))
    {
        return None;
    }
    match &policy.action {
        Action::NoSnat => Some(Means::Keep),
        Action::Snat(_) if policy.sources.is_empty() => None,
        Action::Snat(EgressSource::Address(ip)) => {
            if !owners.contains_key(ip) || used.contains(ip) {
                return None;
            }
            used.push(*ip);
            let ip = Some(*ip);
            Some(Means::Snat(
                ip.filter(IpAddr::is_ipv4),
                ip.filter(IpAddr::is_ipv6),
            ))
        }
        Action::Snat(EgressSource::Gateway { namespace, name }) => {
            let of_kind = |kind| {
                groups.iter().find(|(key, _)| {
                    key.kind == kind && key.namespace == *namespace && key.name == *name
                })
            };
            let (key, ips) = of_kind(GatewayKind::NetworkGatewayGroup)
                .or_else(|| of_kind(GatewayKind::AnthosNetworkGateway))?;
            let v4 = ips.iter().find(|ip| ip.is_ipv4());
            let v6 = ips.iter().find(|ip| ip.is_ipv6());
            let all_owned = v4
                .iter()
                .chain(v6.iter())
                .all(|ip| owners.get(*ip) == Some(key));
            ((v4.is_some() || v6.is_some()) && all_owned)
                .then_some(Means::Snat(v4.copied(), v6.copied()))
        }
    }
}

/// Whether a policy selects pods with these labels.
pub(super) fn selects(policy: &Policy, namespace: &Labels, pod: &Labels) -> bool {
    if policy.sources.is_empty() {
        return policy.action == Action::NoSnat;
    }
    policy
        .sources
        .iter()
        .any(|rule| satisfies(&rule.namespaces, namespace) && satisfies(&rule.pods, pod))
}

fn satisfies(selector: &Selector, labels: &Labels) -> bool {
    for (key, value) in &selector.match_labels {
        if labels.get(key).map(String::as_str) != Some(value.as_str()) {
            return false;
        }
    }
    for requirement in &selector.match_expressions {
        let is_met = match (&requirement.operator, labels.get(&requirement.key)) {
            (Operator::Exists | Operator::NotIn(_), None) => {
                matches!(requirement.operator, Operator::NotIn(_))
            }
            (Operator::Exists, Some(_)) | (Operator::DoesNotExist, None) => true,
            (Operator::DoesNotExist, Some(_)) | (Operator::In(_), None) => false,
            (Operator::In(values), Some(value)) => values.iter().any(|v| v == value),
            (Operator::NotIn(values), Some(value)) => values.iter().all(|v| v != value),
        };
        if !is_met {
            return false;
        }
    }
    true
}

/// Whether the leading bits of `address` are those of `range`.
pub(super) fn covers(range: &IpNet, address: IpAddr) -> bool {
    let shift = |width: u32| width - u32::from(range.prefix_len());
    match (range.addr(), address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            (u32::from(a) ^ u32::from(b))
                .checked_shr(shift(32))
                .unwrap_or(0)
                == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            (u128::from(a) ^ u128::from(b))
                .checked_shr(shift(128))
                .unwrap_or(0)
                == 0
        }
        _ => false,
    }
}
