//! Which gateway groups are effective, and which floating IPs each of them owns.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

use crate::cidr::is_usable_source;
use crate::finding::{Finding, Reason, Subject};
use crate::hash::{Map, fnv1a32};
use crate::model::{Gateway, GatewayKey, NamespaceName, NodeName, Snapshot};

/// The namespace in which gateway groups are effective (E7).
pub const SYSTEM_NAMESPACE: &str = "kube-system";

/// The id of an egress IP on the wire: the VXLAN network identifier of its tunnel packets (24 bits).
///
/// Derived from the address alone, so that nodes agree on it without talking. For IPv4 it is the low 24 bits
/// (`192.168.1.100` is `0xa80164`), which a person can read in a capture; for IPv6 the folded FNV-1a hash. Two floating
/// IPs with one id cannot both be used; the later group is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EgressId(u32);

impl EgressId {
    /// The id of `address`.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self(u32::from(v4) & 0x00ff_ffff),
            IpAddr::V6(v6) => {
                let hash = fnv1a32(v6.octets().into_iter());
                Self((hash >> 24) ^ (hash & 0x00ff_ffff))
            }
        }
    }

    /// The id as a number below 2^24.
    pub fn vni(self) -> u32 {
        self.0
    }
}

impl fmt::Display for EgressId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#08x}", self.0)
    }
}

/// The gateway groups as they take effect, all in `kube-system`, and what kept others from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EffectiveGateways {
    /// By their key in `kube-system`; those that come from a cluster namespace have `mirror_of` set.
    pub gateways: BTreeMap<GatewayKey, Gateway>,
    /// Which group owns which floating IP: each address once (E23).
    pub owners: BTreeMap<IpAddr, GatewayKey>,
    /// Groups and addresses without effect.
    pub findings: Vec<Finding>,
}

/// Works out the effective gateway groups of a snapshot (E7, E23).
///
/// # Guarantees
///
/// No floating IP has two owners, none is a node's own address, and no two have the same [`EgressId`]. Which of two
/// claims wins depends on age, then key, never on the order of input.
pub fn effective_gateways(snapshot: &Snapshot) -> EffectiveGateways {
    let mut effective = EffectiveGateways::default();
    place_in_system_namespace(snapshot, &mut effective);
    give_addresses(snapshot, &mut effective);
    effective.findings.sort();
    // An address that stands twice in a group is told once.
    effective.findings.dedup();
    effective
}

fn place_in_system_namespace(snapshot: &Snapshot, effective: &mut EffectiveGateways) {
    let mut natives = Vec::new();
    let mut originals = Vec::new();
    for (key, gateway) in &snapshot.gateways {
        match &gateway.mirror_of {
            // A copy says nothing of its own: it is made anew from the original.
            Some(_) => {}
            None if key.namespace.as_str() == SYSTEM_NAMESPACE => {
                natives.push((key.clone(), gateway.clone()));
            }
            None if is_switched_on(snapshot, &key.namespace) => originals.push((key, gateway)),
            None => effective.findings.push(Finding::new(
                Subject::Gateway(key.clone()),
                Reason::ClusterSwitchOff,
                format!(
                    "namespace {ns} has no Cluster object that switches network gateways on: set \
                     spec.clusterNetwork.advancedNetworking: true on the Cluster in {ns}, or write the gateway in \
                     {SYSTEM_NAMESPACE}",
                    ns = key.namespace
                ),
            )),
        }
    }
    effective.gateways = natives.into_iter().collect();
    // Oldest first, so that the older of two originals with one name gets it.
    originals.sort_by_key(|(key, gateway)| (gateway.created, *key));
    for (key, gateway) in originals {
        let Ok(namespace) = SYSTEM_NAMESPACE.parse() else {
            continue;
        };
        let place = GatewayKey {
            namespace,
            ..key.clone()
        };
        if let Some(holder) = effective.gateways.get(&place) {
            let holder = holder.mirror_of.as_ref().unwrap_or(&place.namespace);
            effective.findings.push(Finding::new(
                Subject::Gateway(key.clone()),
                Reason::GatewayNameTaken,
                format!(
                    "{place} is taken by the one written in namespace {holder}: rename this gateway"
                ),
            ));
            continue;
        }
        let copy = Gateway {
            mirror_of: Some(key.namespace.clone()),
            ..gateway.clone()
        };
        effective.gateways.insert(place, copy);
    }
}

fn is_switched_on(snapshot: &Snapshot, namespace: &NamespaceName) -> bool {
    snapshot
        .clusters
        .iter()
        .any(|(key, cluster)| &key.namespace == namespace && cluster.is_enabled())
}

fn give_addresses(snapshot: &Snapshot, effective: &mut EffectiveGateways) {
    let hosts: Map<IpAddr, &NodeName> = snapshot
        .nodes
        .iter()
        .flat_map(|(name, node)| node.addresses.iter().map(move |address| (*address, name)))
        .collect();
    let mut by_age: Vec<_> = effective.gateways.iter().collect();
    by_age.sort_by_key(|(key, gateway)| (gateway.created, *key));
    let mut ids: Map<EgressId, IpAddr> = Map::default();
    let mut owners: Map<IpAddr, &GatewayKey> = Map::default();
    for (key, gateway) in by_age {
        let mut refuse = |reason, message| {
            let finding = Finding::new(Subject::Gateway(key.clone()), reason, message);
            effective.findings.push(finding);
        };
        for &address in &gateway.floating_ips {
            let owner = owners.get(&address).copied();
            if owner == Some(key) {
                continue;
            }
            if !is_usable_source(address) {
                refuse(
                    Reason::InvalidFloatingIp,
                    format!(
                        "floating IP {address} is no address that a host can send with: use a unicast address of the nodes' \
                         network, an IPv4 address in IPv4 form"
                    ),
                );
            } else if let Some(owner) = owner {
                refuse(
                    Reason::DuplicateFloatingIp,
                    format!(
                        "floating IP {address} belongs to {owner}, which is older: remove it from one of the two"
                    ),
                );
            } else if let Some(node) = hosts.get(&address) {
                refuse(
                    Reason::FloatingIpIsNodeAddress,
                    format!(
                        "floating IP {address} is the address of node {node}: use an address that no host has"
                    ),
                );
            } else if let Some(other) = ids.get(&EgressId::of(address)) {
                refuse(
                    Reason::EgressIdConflict,
                    format!(
                        "floating IP {address} has the same tunnel id {} as {other}: use another address",
                        EgressId::of(address)
                    ),
                );
            } else {
                ids.insert(EgressId::of(address), address);
                owners.insert(address, key);
            }
        }
    }
    let owners = owners
        .into_iter()
        .map(|(address, key)| (address, key.clone()));
    effective.owners = owners.collect();
}

#[cfg(test)]
mod tests;
