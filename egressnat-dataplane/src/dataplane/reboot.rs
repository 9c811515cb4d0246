//! The guard before the first plan.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::config::Config;
use crate::family::Family;
use crate::guard_file::GuardedRanges;
use crate::network::ipv6;
use crate::nft::{Elements, NftError, Owner, Ruleset, SetName};

/// Puts ranges of an earlier life into the sets of the guard, where nothing is there, as after a reboot: what was strict is,
/// until the first plan. Returns how much was written.
pub(super) fn restore_guard(
    owner: &mut Owner,
    config: &Config,
    ranges: &GuardedRanges,
) -> Result<usize, NftError> {
    let mut written = 0;
    for family in Family::ALL {
        let of_family = |ranges: &BTreeSet<IpNet>| -> BTreeSet<IpNet> {
            let ranges = ranges.iter().copied();
            ranges
                .filter(|range| Family::of_range(range) == family)
                .collect()
        };
        let sets = [
            (SetName::InternalRanges, of_family(&ranges.internal)),
            (SetName::GuardRanges, of_family(&ranges.strict)),
            (SetName::PodRanges, of_family(&ranges.pods)),
        ];
        let has_pods = !sets[2].1.is_empty();
        // A node that has lost IPv6 since carries none that would have to be guarded.
        if !has_pods || (family == Family::Ipv6 && ipv6().is_err()) {
            continue;
        }
        written += usize::from(Ruleset::new(family, config).ensure(owner)?);
        if !Ruleset::ranges(family, SetName::PodRanges)?.is_empty() {
            continue;
        }
        let elements = sets.each_ref().map(|(name, ranges)| {
            let ranges = ranges.iter().copied();
            ranges.fold(Elements::of(family, *name), Elements::range)
        });
        Ruleset::change(owner, &[], &elements, "the guard after a reboot")?;
        written += sets.iter().map(|(_, ranges)| ranges.len()).sum::<usize>();
    }
    Ok(written)
}
