//! The part of a plan that can be applied on this node now.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_core::model::{MasqueradeMatch, MasqueradeRules};
use egressnat_core::{Failure, NodePlan, PolicySetId, Steering};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::family::Family;
use crate::ports::PodInterfaces;

/// Whether a plan wants anything of a family. The ranges of the cluster alone are nothing to do.
pub(super) fn asks_for(plan: &NodePlan, family: Family) -> bool {
    let is_of = |address: &IpAddr| Family::of(*address) == family;
    ends(&plan.floating_ips).any(is_of)
        || plan.pods.keys().any(is_of)
        || plan
            .pod_ranges
            .iter()
            .any(|range| Family::of_range(range) == family)
}

/// What a node goes without that lacks a family, if that is anything.
pub(super) fn missed(plan: &NodePlan, family: Family) -> Option<String> {
    let is_of = |address: &IpAddr| Family::of(*address) == family;
    let floating_ips = plan.floating_ips.iter().filter(|address| is_of(address));
    let floating_ips: Vec<String> = floating_ips.map(IpAddr::to_string).collect();
    let selected =
        |(address, set): &(&IpAddr, &PolicySetId)| is_of(address) && **set != PolicySetId::EMPTY;
    let selected = plan.pods.iter().filter(selected).count();
    let mut missed = Vec::new();
    if !floating_ips.is_empty() {
        missed.push(format!(
            "cannot hold the floating IPs {}",
            floating_ips.join(", ")
        ));
    }
    if selected > 0 {
        missed.push(format!(
            "does not steer the {family} addresses of {selected} selected pods"
        ));
    }
    (!missed.is_empty()).then(|| format!("this node {}", missed.join(" and ")))
}

/// The part of a plan that can be applied now: the families that this node has, pods that have an interface, ranges without
/// overlap. `floating_ips` are those of the plan that are of these families.
pub(super) fn applicable(
    plan: &NodePlan,
    floating_ips: BTreeSet<IpAddr>,
    families: &BTreeSet<Family>,
    interfaces: &PodInterfaces,
    findings: &mut Vec<Failure>,
) -> NodePlan {
    let has_family = |address: &IpAddr| families.contains(&Family::of(*address));
    let is_here =
        |address: &IpAddr| has_family(address) && interfaces.by_address.contains_key(address);
    let is_contested = |address: &IpAddr| interfaces.contested.contains_key(address);
    for (address, text) in &interfaces.contested {
        findings.push(Failure {
            object: format!("pod {address}"),
            message: text.clone(),
        });
    }
    for (address, set) in &plan.pods {
        // Without a guard, a pod that nothing selects misses nothing.
        let matters = *set != PolicySetId::EMPTY || !plan.guard_ranges.is_empty();
        if has_family(address) && matters && !is_here(address) && !is_contested(address) {
            findings.push(Failure {
                object: format!("pod {address}"),
                message: "it has no route of its own and is at no bridge yet: until its interface is there, it does \
                          not reach the destinations of strict policies"
                    .to_owned(),
            });
        }
    }
    // A packet and its egress IP are of one family.
    let fits = |prefix: &IpNet, steering: &Steering| match steering {
        Steering::Snat(address) => Family::of(*address) == Family::of_range(prefix),
        Steering::Forward | Steering::Keep | Steering::Drop => true,
    };
    let destinations: BTreeMap<(PolicySetId, IpNet), Steering> = plan
        .destinations
        .iter()
        .filter(|((_, prefix), steering)| has_family(&prefix.addr()) && fits(prefix, steering))
        .map(|(key, steering)| (*key, *steering))
        .collect();
    // Mostly those of all of them.
    let mut deciders = plan.deciders.clone();
    if destinations.len() < plan.destinations.len() {
        deciders.retain(|key, _| destinations.contains_key(key));
    }
    let ranges = |ranges: &BTreeSet<IpNet>| without_overlap(ranges, families);
    NodePlan {
        pods: plan
            .pods
            .iter()
            .filter(|(address, _)| is_here(address))
            .map(|(address, set)| (*address, *set))
            .collect(),
        destinations,
        deciders,
        floating_ips,
        peers: plan.peers.iter().copied().filter(has_family).collect(),
        pod_ranges: ranges(&plan.pod_ranges),
        internal_ranges: ranges(&plan.internal_ranges),
        guard_ranges: ranges(&plan.guard_ranges),
        masquerade: rules_of(&plan.masquerade, families),
    }
}

/// The first address and the last: IPv4 is before IPv6, so all families are among them.
pub(super) fn ends(addresses: &BTreeSet<IpAddr>) -> impl Iterator<Item = &IpAddr> {
    addresses.first().into_iter().chain(addresses.last())
}

/// The rules that packets of these families can match.
fn rules_of(rules: &MasqueradeRules, families: &BTreeSet<Family>) -> MasqueradeRules {
    let matching = rules.rules.iter().filter_map(|(rule, action)| {
        let family = Family::of_range(&rule.destination);
        let is_of_family = |range: &IpNet| Family::of_range(range) == family;
        let can_match = families.contains(&family) && rule.source.as_ref().is_none_or(is_of_family);
        let rule = MasqueradeMatch {
            destination: rule.destination.trunc(),
            source: rule.source.map(|range| range.trunc()),
            ..*rule
        };
        can_match.then_some((rule, *action))
    });
    MasqueradeRules {
        rules: matching.collect(),
    }
}

/// The ranges of these families, merged: an interval set takes no overlap.
fn without_overlap(ranges: &BTreeSet<IpNet>, families: &BTreeSet<Family>) -> BTreeSet<IpNet> {
    let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
    for range in ranges
        .iter()
        .filter(|range| families.contains(&Family::of_range(range)))
    {
        match range.trunc() {
            IpNet::V4(range) => ipv4.push(range),
            IpNet::V6(range) => ipv6.push(range),
        }
    }
    let ipv4 = Ipv4Net::aggregate(&ipv4).into_iter().map(IpNet::V4);
    let ipv6 = Ipv6Net::aggregate(&ipv6).into_iter().map(IpNet::V6);
    ipv4.chain(ipv6).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(texts: &[&str]) -> BTreeSet<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn ranges_are_merged_within_their_family() {
        let all = ranges(&["10.0.0.0/9", "10.128.0.0/9", "fd00::/9", "fd80::/9", "::/0"]);
        let both = BTreeSet::from(Family::ALL);
        assert_eq!(
            without_overlap(&all, &both),
            ranges(&["10.0.0.0/8", "::/0"])
        );
        let ipv4 = BTreeSet::from([Family::Ipv4]);
        assert_eq!(without_overlap(&all, &ipv4), ranges(&["10.0.0.0/8"]));
    }

    #[test]
    fn a_destination_with_an_egress_ip_of_the_other_family_is_left_out() {
        let set = PolicySetId(1);
        let mut plan = NodePlan::default();
        for (prefix, egress_ip) in [
            ("8.8.8.0/24", "192.168.1.100"),
            ("9.9.9.0/24", "fd00::100"),
            ("2001:db8::/32", "192.168.1.100"),
            ("2001:db9::/32", "fd00::100"),
        ] {
            let steering = Steering::Snat(egress_ip.parse().unwrap());
            plan.destinations
                .insert((set, prefix.parse().unwrap()), steering);
        }
        let kept = |families: &[Family]| {
            let families = families.iter().copied().collect();
            let applied = applicable(
                &plan,
                BTreeSet::new(),
                &families,
                &PodInterfaces::default(),
                &mut Vec::new(),
            );
            let prefixes = applied.destinations.into_keys();
            prefixes.map(|(_, prefix)| prefix).collect::<BTreeSet<_>>()
        };
        assert_eq!(kept(&Family::ALL), ranges(&["8.8.8.0/24", "2001:db9::/32"]));
        assert_eq!(kept(&[Family::Ipv4]), ranges(&["8.8.8.0/24"]));
    }

    #[test]
    fn what_a_node_without_ipv6_misses_is_said_in_one_sentence() {
        let mut plan = NodePlan {
            pod_ranges: ranges(&["10.10.1.0/24", "fd00:10::/64"]),
            ..NodePlan::default()
        };
        assert!(asks_for(&plan, Family::Ipv6));
        assert_eq!(missed(&plan, Family::Ipv6), None);
        let pod = |text: &str| text.parse::<IpAddr>().unwrap();
        plan.pods.insert(pod("fd00:10::2"), PolicySetId(1));
        plan.pods.insert(pod("fd00:10::3"), PolicySetId::EMPTY);
        plan.floating_ips.insert(pod("fd00::100"));
        assert_eq!(
            missed(&plan, Family::Ipv6).unwrap(),
            "this node cannot hold the floating IPs fd00::100 and does not steer the IPv6 addresses of 1 selected pods"
        );
    }
}
