//! Which policies select a pod (E10).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;
use core::net::IpAddr;

use super::Applied;
use crate::cidr::is_usable_source;
use crate::finding::{Finding, Reason, Subject};
use crate::model::{Labels, NodeName, Pod, PodKey, PodPhase, Policy, PolicyName, Snapshot};

/// The pods of a node by what selects them.
#[derive(Debug, Default)]
pub(crate) struct Selected {
    /// Policy set, as indices into the applied policies → addresses of its pods. The empty set has the pods that nothing selects.
    pub(crate) addresses_by_set: BTreeMap<Vec<usize>, Vec<IpAddr>>,
    /// How many pods each policy selects.
    pub(crate) counts: BTreeMap<PolicyName, usize>,
    /// Pods on the node's own network that a policy would select (E15).
    pub(crate) host_network: HostNetworkPods,
}

/// Per policy, the pods that it would select if they had a network of their own (E15).
pub(crate) type HostNetworkPods = BTreeMap<PolicyName, BTreeSet<PodKey>>;

/// Selects the pods of `node`.
pub(crate) fn select(snapshot: &Snapshot, node: &NodeName, applied: &[Applied<'_>]) -> Selected {
    let mut selected = Selected::default();
    let mut claimed = BTreeSet::new();
    for (key, pod) in &snapshot.pods {
        if &pod.node != node || pod.phase == PodPhase::Finished {
            continue;
        }
        // While its namespace is not known, nothing can be said about a pod: the guard treats it as one that is not known.
        let Some(namespace) = snapshot.namespaces.get(&key.namespace) else {
            continue;
        };
        let set: Vec<usize> = (0..applied.len())
            .filter(|index| selects(applied[*index].policy, namespace, &pod.labels))
            .collect();
        if pod.host_network {
            for index in set
                .iter()
                .filter(|index| !applied[**index].policy.is_for_all_pods())
            {
                let pods = selected
                    .host_network
                    .entry(applied[*index].name.clone())
                    .or_default();
                pods.insert(key.clone());
            }
            continue;
        }
        // While two pods tell the same address, it counts for the first by name.
        let addresses = usable_addresses(pod).filter(|address| claimed.insert(*address));
        let addresses: Vec<IpAddr> = addresses.collect();
        if addresses.is_empty() {
            continue;
        }
        for index in &set {
            *selected
                .counts
                .entry(applied[*index].name.clone())
                .or_default() += 1;
        }
        selected
            .addresses_by_set
            .entry(set)
            .or_default()
            .extend(addresses);
    }
    selected
}

/// The addresses of a pod that packets can have.
pub(crate) fn usable_addresses(pod: &Pod) -> impl Iterator<Item = IpAddr> + '_ {
    pod.ips
        .iter()
        .copied()
        .filter(|address| is_usable_source(*address))
}

/// E10: any rule, and within a rule both selectors. `NoSNAT` without sources selects every pod (E5).
pub(crate) fn selects(policy: &Policy, namespace: &Labels, pod: &Labels) -> bool {
    policy.is_for_all_pods()
        || policy
            .sources
            .iter()
            .any(|source| source.namespaces.matches(namespace) && source.pods.matches(pod))
}

/// One finding per policy, however many pods there are.
pub(crate) fn host_network_findings(pods: &HostNetworkPods) -> impl Iterator<Item = Finding> + '_ {
    pods.iter().map(|(name, pods)| {
        let pods = crate::finding::some_of(pods.iter());
        Finding::new(
            Subject::Policy(name.clone()),
            Reason::HostNetworkPod,
            format!(
                "not selected, although the labels match: {pods}. With hostNetwork: true the traffic of a pod cannot be told \
                 from its node's and leaves with the node's address; run the pod without hostNetwork, or exclude it by its \
                 labels"
            ),
        )
    })
}
