//! Floating IPs, followed from one plan to the next: of ten thousand mostly one has changed, and what costs something is that one.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::applicable::ends;
use super::kept::Kept;
use crate::family::Family;

/// What was wanted the last time and what came of it.
#[derive(Default)]
pub(super) struct Followed {
    /// Those of the last plan that could be applied.
    wanted: BTreeSet<IpAddr>,
    /// Those of which what is kept and what is wanted may differ.
    differing: BTreeSet<IpAddr>,
    /// Those in use: on the uplink, translated to, and before their deadline if they have one.
    usable: Arc<BTreeSet<IpAddr>>,
    /// Those whose deadline had come the last time.
    expired: BTreeSet<IpAddr>,
}

impl Followed {
    /// The floating IPs of a plan that are of these families. To be given back with [`settle`](Self::settle): they are not copied.
    pub(super) fn want(
        &mut self,
        planned: &BTreeSet<IpAddr>,
        families: &BTreeSet<Family>,
    ) -> BTreeSet<IpAddr> {
        let mut wanted = std::mem::take(&mut self.wanted);
        let has_family = |address: &IpAddr| families.contains(&Family::of(*address));
        let mut follow = |planned: &BTreeSet<IpAddr>| {
            let changed: Vec<IpAddr> = wanted.symmetric_difference(planned).copied().collect();
            for address in changed {
                if !wanted.remove(&address) {
                    wanted.insert(address);
                }
                self.differing.insert(address);
            }
        };
        match ends(planned).all(has_family) {
            true => follow(planned),
            false => follow(&planned.iter().copied().filter(has_family).collect()),
        }
        wanted
    }

    /// The floating IPs of which what is kept and what is wanted may differ, as long as nothing is in doubt.
    pub(super) fn differing(&self, kept: &Kept) -> BTreeSet<IpAddr> {
        let halves = kept.halves().iter();
        self.differing.iter().chain(halves).copied().collect()
    }

    /// Notes what came of what was wanted. Returns those that were counted anew, with whether they are usable.
    pub(super) fn settle(
        &mut self,
        wanted: BTreeSet<IpAddr>,
        kept: &mut Kept,
        expired: BTreeSet<IpAddr>,
    ) -> Vec<(IpAddr, bool)> {
        let mut counted = kept.take_counted();
        self.differing.extend(&counted);
        let held = &kept.plan.floating_ips;
        self.differing
            .retain(|address| held.contains(address) != wanted.contains(address));
        self.wanted = wanted;
        counted.extend(expired.iter().chain(&self.expired));
        self.expired = expired;
        let is_usable = |address| kept.is_whole(address) && !self.expired.contains(&address);
        let counted = counted.into_iter();
        let counted: Vec<(IpAddr, bool)> = counted.map(|ip| (ip, is_usable(ip))).collect();
        for (address, is_usable) in &counted {
            if *is_usable != self.usable.contains(address) {
                // Copied only where somebody still has the last report.
                let usable = Arc::make_mut(&mut self.usable);
                match is_usable {
                    true => usable.insert(*address),
                    false => usable.remove(address),
                };
            }
        }
        debug_assert!(
            self.usable
                .iter()
                .eq(held.iter().filter(|ip| is_usable(**ip)))
        );
        counted
    }

    /// Those in use.
    pub(super) fn usable(&self) -> Arc<BTreeSet<IpAddr>> {
        Arc::clone(&self.usable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floating_ips_follow_the_plan_and_the_families_of_the_node() {
        let addresses = |texts: &[&str]| -> BTreeSet<IpAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let (both, ipv4) = (BTreeSet::from(Family::ALL), [Family::Ipv4].into());
        let mut followed = Followed::default();
        for (families, planned, want) in [
            (
                &both,
                &["10.0.0.1", "fd00::1"][..],
                &["10.0.0.1", "fd00::1"][..],
            ),
            (&both, &["10.0.0.2", "fd00::1"], &["10.0.0.2", "fd00::1"]),
            (&ipv4, &["10.0.0.2", "fd00::1"], &["10.0.0.2"]),
            (&ipv4, &["fd00::1"], &[]),
            (&ipv4, &["10.0.0.1"], &["10.0.0.1"]),
            (&both, &["10.0.0.1", "fd00::1"], &["10.0.0.1", "fd00::1"]),
            (&both, &[], &[]),
        ] {
            let wanted = followed.want(&addresses(planned), families);
            assert_eq!(wanted, addresses(want), "{families:?}");
            followed.settle(wanted, &mut Kept::default(), BTreeSet::new());
        }
    }
}
