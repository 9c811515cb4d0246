//! What the kernel has.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_core::gateway::EgressId;
use egressnat_core::{NodePlan, PolicySetId, Report, Steering};

use super::{Dataplane, ObserveError};
use crate::family::Family;
use crate::maps::{DROP, FORWARD, KEEP};
use crate::nft::{Fence, Ruleset, SetName};

impl Dataplane {
    /// What the kernel has, as a plan.
    pub(super) async fn observe(
        &mut self,
        desired: &NodePlan,
        routes: &BTreeMap<IpAddr, u32>,
        report: &mut Report,
    ) -> Result<NodePlan, ObserveError> {
        let mut observed = NodePlan::default();
        for pod in self.maps.pods()? {
            if routes.get(&pod.address) == Some(&pod.ifindex) {
                observed.pods.insert(pod.address, PolicySetId(pod.set));
            } else {
                // The address is on another interface now, or on none.
                self.maps.remove_pod(pod.address, pod.ifindex)?;
                report.changes += 1;
            }
        }
        for (set, prefix, value) in self.maps.destinations()? {
            let steering = match value {
                FORWARD => Steering::Forward,
                KEEP => Steering::Keep,
                DROP => Steering::Drop,
                index => match self.egress.address(index) {
                    Some(address) => Steering::Snat(address),
                    None => Steering::Forward,
                },
            };
            let key = (PolicySetId(set), prefix);
            observed.destinations.insert(key, steering);
        }
        observed.peers = self.maps.peers()?.into_iter().collect();
        for family in self.families.iter().copied() {
            let ranges = |name| Ruleset::ranges(family, name);
            observed.pod_ranges.extend(ranges(SetName::PodRanges)?);
            let internal = ranges(SetName::InternalRanges)?;
            observed.internal_ranges.extend(internal);
            observed.guard_ranges.extend(ranges(SetName::GuardRanges)?);
            let masquerade = Ruleset::masquerade(family)?.rules;
            observed.masquerade.rules.extend(masquerade);
        }
        let (addresses, translated) = self.held().await?;
        // Half of a floating IP is none, when it is wanted, and one, when it is not.
        let whole = addresses.intersection(&translated);
        let unwanted = addresses
            .union(&translated)
            .filter(|address| !desired.floating_ips.contains(address));
        observed.floating_ips = whole.chain(unwanted).copied().collect();
        Ok(observed)
    }

    /// The floating IPs that are in use: on the uplink, translated to, and before their deadline if they have one.
    pub(super) async fn usable(&self) -> Result<BTreeSet<IpAddr>, ObserveError> {
        let (addresses, translated) = self.held().await?;
        let mut usable = &addresses & &translated;
        for family in &self.families {
            let expired = Fence::expired(*family)?;
            usable.retain(|address| !expired.contains(address));
        }
        Ok(usable)
    }

    /// The floating IPs that are on the uplink, and those that are translated to.
    async fn held(&self) -> Result<(BTreeSet<IpAddr>, BTreeSet<IpAddr>), ObserveError> {
        let addresses = self.network.floating_ips(self.uplink.index).await?;
        let has_family = |address: &IpAddr| self.families.contains(&Family::of(*address));
        let addresses = addresses.into_iter().filter(has_family).collect();
        Ok((addresses, self.translated()?))
    }

    /// The floating IPs that everything is in place for but the address itself: an agent may have been killed in between.
    pub(super) fn translated(&self) -> Result<BTreeSet<IpAddr>, ObserveError> {
        let mut translated = BTreeSet::new();
        for family in self.families.iter().copied() {
            let guarded = Ruleset::addresses(family, SetName::FloatingIps)?;
            let mapped = Ruleset::mappings(family, SetName::EgressIps)?;
            let is_whole = |(mark, address): &(u32, IpAddr)| {
                let vni = EgressId::of(*address).vni();
                let index = self.maps.vnis.get(&vni, 0).ok();
                self.egress.mark(*address) == Some(*mark)
                    && index == self.egress.index(*address)
                    && guarded.contains(address)
            };
            let whole = mapped.into_iter().filter(is_whole);
            translated.extend(whole.map(|(_, address)| address));
        }
        Ok(translated)
    }
}
