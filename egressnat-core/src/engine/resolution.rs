//! What gateways and policies come to, kept up to date (E7, E20–E23).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::net::IpAddr;

use crate::gateway::{EffectiveGateways, effective_gateways};
use crate::model::{
    Action, EgressSource, Event, GatewayKey, Name, NamespaceName, Policy, PolicyName, Snapshot,
    Timestamp,
};
use crate::policy::{ResolvedPolicy, egress_source_ip, resolve};

/// Everything but pods and namespaces, and what it comes to.
#[derive(Debug, Clone, Default)]
pub(super) struct Resolution {
    /// Without pods and namespaces.
    pub(super) objects: Snapshot,
    pub(super) gateways: EffectiveGateways,
    pub(super) policies: BTreeMap<PolicyName, ResolvedPolicy>,
    by_gateway: BTreeMap<(NamespaceName, Name), BTreeSet<PolicyName>>,
    /// In the order in which they claim the address.
    by_address: BTreeMap<IpAddr, BTreeSet<(Timestamp, PolicyName)>>,
}

/// What an event came to.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    /// Floating IPs that have an owner now and had none.
    pub(super) gained: Vec<IpAddr>,
    /// Floating IPs that had an owner and have none now.
    pub(super) lost: Vec<IpAddr>,
    /// Policies that are, or are not, applied now, or to another egress IP; and the one that was changed.
    pub(super) policies: BTreeSet<PolicyName>,
    /// Whether the event said anything new.
    pub(super) is_news: bool,
}

impl Resolution {
    /// Takes an event that is about neither pods nor namespaces.
    pub(super) fn apply(&mut self, event: Event) -> Resolved {
        let mut resolved = Resolved::default();
        if self.objects.is_as(&event) {
            return resolved;
        }
        resolved.is_news = true;
        match event {
            Event::Policy(name, policy) => {
                let policy = policy.map(truncated);
                if let Some(before) = self.objects.policies.get(&name) {
                    let before = before.clone();
                    self.unlist(&name, &before);
                    self.resolve_claims(egress_source_ip(&before), &mut resolved);
                }
                if let Some(policy) = &policy {
                    self.list(&name, policy);
                }
                self.objects.apply(Event::Policy(name.clone(), policy));
                self.resolve_policy(&name, &mut resolved);
                resolved.policies.insert(name);
            }
            Event::Node(name, node) => {
                let addresses = |objects: &Snapshot| {
                    let node = objects.nodes.get(&name);
                    node.map(|node| node.addresses.clone()).unwrap_or_default()
                };
                let before = addresses(&self.objects);
                self.objects.apply(Event::Node(name.clone(), node));
                // A floating IP may be no node's address; all others are nothing to gateways.
                let after = addresses(&self.objects);
                let mut changed = before.symmetric_difference(&after);
                if changed.any(|address| self.is_floating(address)) {
                    self.resolve_gateways(&mut resolved);
                }
            }
            event @ (Event::Gateway(..) | Event::Cluster(..)) => {
                self.objects.apply(event);
                self.resolve_gateways(&mut resolved);
            }
            event @ (Event::ClusterRanges(_) | Event::Masquerade(_)) => {
                self.objects.apply(event);
            }
            Event::Pod(..) | Event::Namespace(..) => {}
        }
        resolved
    }

    /// Whether any gateway names this address, effective or not.
    fn is_floating(&self, address: &IpAddr) -> bool {
        let mut gateways = self.objects.gateways.values();
        gateways.any(|gateway| gateway.floating_ips.contains(address))
    }

    fn list(&mut self, name: &PolicyName, policy: &Policy) {
        if let Action::Snat(EgressSource::Gateway {
            namespace,
            name: gateway,
        }) = &policy.action
        {
            let key = (namespace.clone(), gateway.clone());
            self.by_gateway.entry(key).or_default().insert(name.clone());
        }
        if let Some(address) = egress_source_ip(policy) {
            let claims = self.by_address.entry(address).or_default();
            claims.insert((policy.created, name.clone()));
        }
    }

    fn unlist(&mut self, name: &PolicyName, policy: &Policy) {
        if let Action::Snat(EgressSource::Gateway {
            namespace,
            name: gateway,
        }) = &policy.action
        {
            let key = (namespace.clone(), gateway.clone());
            if let Some(users) = self.by_gateway.get_mut(&key) {
                users.remove(name);
                if users.is_empty() {
                    self.by_gateway.remove(&key);
                }
            }
        }
        if let Some(address) = egress_source_ip(policy)
            && let Some(claims) = self.by_address.get_mut(&address)
        {
            claims.remove(&(policy.created, name.clone()));
            if claims.is_empty() {
                self.by_address.remove(&address);
            }
        }
    }

    fn resolve_gateways(&mut self, resolved: &mut Resolved) {
        let now = effective_gateways(&self.objects);
        let before = core::mem::replace(&mut self.gateways, now);
        let now = &self.gateways;
        let mut keys: BTreeSet<&GatewayKey> = BTreeSet::new();
        let all = before.gateways.keys().chain(now.gateways.keys());
        keys.extend(all.filter(|key| before.gateways.get(*key) != now.gateways.get(*key)));
        let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
        for (address, owner) in &before.owners {
            let after = now.owners.get(address);
            if after != Some(owner) {
                keys.extend([owner].into_iter().chain(after));
                addresses.insert(*address);
            }
            if after.is_none() {
                resolved.lost.push(*address);
            }
        }
        for (address, owner) in &now.owners {
            if !before.owners.contains_key(address) {
                keys.insert(owner);
                addresses.insert(*address);
                resolved.gained.push(*address);
            }
        }
        let users = keys.into_iter().filter_map(|key| {
            let key = (key.namespace.clone(), key.name.clone());
            self.by_gateway.get(&key)
        });
        let users: BTreeSet<PolicyName> = users.flatten().cloned().collect();
        for name in users {
            self.resolve_policy(&name, resolved);
        }
        for address in addresses {
            self.resolve_claims(Some(address), resolved);
        }
    }

    fn resolve_policy(&mut self, name: &PolicyName, resolved: &mut Resolved) {
        match self.objects.policies.get(name).map(egress_source_ip) {
            None => self.set(name, None, resolved),
            Some(Some(address)) => self.resolve_claims(Some(address), resolved),
            Some(None) => {
                let policy = &self.objects.policies[name];
                let outcome = resolve(policy, &self.gateways, None).ok();
                self.set(name, outcome, resolved);
            }
        }
    }

    /// Who of those that name an address gets it: the first that could be applied (E20).
    fn resolve_claims(&mut self, address: Option<IpAddr>, resolved: &mut Resolved) {
        let claims = address.and_then(|address| self.by_address.get(&address));
        let claims: Vec<PolicyName> = claims
            .into_iter()
            .flatten()
            .map(|(_, name)| name.clone())
            .collect();
        let mut user: Option<PolicyName> = None;
        for name in claims {
            let outcome = self
                .objects
                .policies
                .get(&name)
                .and_then(|policy| resolve(policy, &self.gateways, user.as_ref()).ok());
            if outcome.is_some() {
                user = Some(name.clone());
            }
            self.set(&name, outcome, resolved);
        }
    }

    fn set(&mut self, name: &PolicyName, now: Option<ResolvedPolicy>, resolved: &mut Resolved) {
        let before = match now {
            Some(now) => self.policies.insert(name.clone(), now),
            None => self.policies.remove(name),
        };
        if before != now {
            resolved.policies.insert(name.clone());
        }
    }
}

fn truncated(mut policy: Policy) -> Policy {
    policy.destinations = policy
        .destinations
        .iter()
        .map(ipnet::IpNet::trunc)
        .collect();
    policy
}
