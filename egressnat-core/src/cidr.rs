//! Sets of CIDRs that lie in one another.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::net::IpAddr;
use ipnet::IpNet;

/// The members of `ranges` that lie in some member of `covers`, or are equal to one.
///
/// Both must be truncated and in order. Costs one pass over both.
pub(crate) fn nested_in<'a>(
    ranges: impl IntoIterator<Item = &'a IpNet>,
    covers: impl IntoIterator<Item = &'a IpNet>,
) -> Vec<IpNet> {
    // In the order of networks, a range comes after all that it lies in; CIDRs never cross. So the last cover that is in no
    // other one is all there is to know.
    let mut covers = covers.into_iter().peekable();
    let mut outermost: Option<&IpNet> = None;
    let mut nested = Vec::new();
    for range in ranges {
        while let Some(cover) = covers.next_if(|cover| *cover <= range) {
            if outermost.is_none_or(|outer| !outer.contains(cover)) {
                outermost = Some(cover);
            }
        }
        if outermost.is_some_and(|outer| outer.contains(range)) {
            nested.push(*range);
        }
    }
    nested
}

/// What a set of CIDRs covers: those of them that lie in no other one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cover(BTreeSet<IpNet>);

impl Cover {
    /// The cover of `ranges`, which must be truncated and in order.
    pub(crate) fn new<'a>(ranges: impl IntoIterator<Item = &'a IpNet>) -> Self {
        let mut outer: Vec<IpNet> = Vec::new();
        for range in ranges {
            if outer.last().is_none_or(|last| !last.contains(range)) {
                outer.push(*range);
            }
        }
        Self(outer.into_iter().collect())
    }

    /// Whether all of `range`, which must be truncated, is covered by one member.
    pub(crate) fn covers(&self, range: &IpNet) -> bool {
        let before = self.0.range(..=range).next_back();
        before.is_some_and(|outer| outer.contains(range))
    }

    /// The ranges themselves.
    pub(crate) fn into_ranges(self) -> BTreeSet<IpNet> {
        self.0
    }
}

/// Whether a host may send with the address: not a range of its own (multicast, loopback, …), and no IPv4 address in the
/// clothes of IPv6 (`::ffff:192.0.2.1`), which the packet paths of the two families would treat differently.
pub(crate) fn is_usable_source(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_unspecified()
                || v4.is_loopback()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_link_local())
        }
        IpAddr::V6(v6) => {
            !(v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || v6.to_ipv4_mapped().is_some())
        }
    }
}

/// Whether a range lies in `::ffff:0:0/96`: IPv4 addresses in the clothes of IPv6, which no packet carries.
pub(crate) fn is_v4_mapped(range: &IpNet) -> bool {
    match range {
        IpNet::V4(_) => false,
        IpNet::V6(v6) => v6.prefix_len() >= 96 && v6.network().to_ipv4_mapped().is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range() -> impl Strategy<Value = IpNet> {
        let v4 = (any::<u8>(), 0..=16u8).prop_map(|(a, len)| {
            IpNet::new(IpAddr::from([10, a, 0, 0]), len)
                .unwrap()
                .trunc()
        });
        let v6 = (any::<u8>(), 0..=24u8).prop_map(|(a, len)| {
            let address = IpAddr::from([0x2001, u16::from(a), 0, 0, 0, 0, 0, 0]);
            IpNet::new(address, len).unwrap().trunc()
        });
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn one_pass_finds_what_trying_all_finds(
            ranges in prop::collection::btree_set(range(), 0..20),
            covers in prop::collection::btree_set(range(), 0..20),
        ) {
            let found: BTreeSet<IpNet> = nested_in(&ranges, &covers).into_iter().collect();
            let tried = ranges.iter().copied().filter(|range| covers.iter().any(|cover| cover.contains(range)));
            let tried: BTreeSet<IpNet> = tried.collect();
            prop_assert_eq!(&found, &tried);
            let cover = Cover::new(&covers);
            for range in ranges {
                prop_assert_eq!(cover.covers(&range), tried.contains(&range));
            }
        }
    }

    #[test]
    fn addresses_that_no_host_sends_with_are_told_apart() {
        for (text, want) in [
            ("192.168.1.100", true),
            ("2001:db8::1", true),
            ("0.0.0.0", false),
            ("127.0.0.1", false),
            ("224.0.0.1", false),
            ("169.254.1.1", false),
            ("255.255.255.255", false),
            ("::", false),
            ("fe80::1", false),
            ("::ffff:192.168.1.100", false),
        ] {
            assert_eq!(is_usable_source(text.parse().unwrap()), want, "{text}");
        }
        assert!(is_v4_mapped(&"::ffff:8.8.8.0/120".parse().unwrap()));
        assert!(!is_v4_mapped(&"::/0".parse().unwrap()));
    }
}
