use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use ipnet::IpNet;

/// A set to which a member may be added several times.
#[derive(Debug, Clone)]
pub(super) struct Counted<T>(BTreeMap<T, usize>);

impl<T> Default for Counted<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Ord> Counted<T> {
    /// Says whether it was not there.
    pub(super) fn add(&mut self, member: T) -> bool {
        let count = self.0.entry(member).or_default();
        *count += 1;
        *count == 1
    }

    /// Says whether it is there no more.
    pub(super) fn remove(&mut self, member: &T) -> bool {
        let Some(count) = self.0.get_mut(member) else {
            return false;
        };
        *count -= 1;
        if *count > 0 {
            return false;
        }
        self.0.remove(member);
        true
    }

    pub(super) fn has(&self, member: &T) -> bool {
        self.0.contains_key(member)
    }

    /// How many different members there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// CIDRs that are added several times, and what they cover: those that lie in no other.
#[derive(Debug, Clone, Default)]
pub(super) struct CountedCover {
    all: Counted<IpNet>,
    cover: BTreeSet<IpNet>,
}

impl CountedCover {
    /// Returns the ranges that are in the cover now and were not, or the other way.
    pub(super) fn add(&mut self, range: IpNet) -> Vec<IpNet> {
        if !self.all.add(range) {
            return Vec::new();
        }
        let before = self.cover.range(..=range).next_back();
        if before.is_some_and(|outer| outer.contains(&range)) {
            return Vec::new();
        }
        let mut flipped = inside(self.cover.range(range..), range);
        for inner in &flipped {
            self.cover.remove(inner);
        }
        self.cover.insert(range);
        flipped.push(range);
        flipped
    }

    /// Returns the ranges that are in the cover now and were not, or the other way.
    pub(super) fn remove(&mut self, range: IpNet) -> Vec<IpNet> {
        if !self.all.remove(&range) || !self.cover.remove(&range) {
            return Vec::new();
        }
        let mut flipped = Vec::new();
        for inner in inside(self.all.0.range(range..).map(|(range, _)| range), range) {
            if flipped
                .last()
                .is_none_or(|last: &IpNet| !last.contains(&inner))
            {
                flipped.push(inner);
                self.cover.insert(inner);
            }
        }
        flipped.push(range);
        flipped
    }

    /// Whether the range is in the cover itself.
    pub(super) fn has(&self, range: &IpNet) -> bool {
        self.cover.contains(range)
    }
}

/// In the order of networks, what lies in a range comes right after it.
fn inside<'a>(from: impl Iterator<Item = &'a IpNet>, range: IpNet) -> Vec<IpNet> {
    from.take_while(|inner| range.contains(*inner))
        .copied()
        .collect()
}

/// Whether some member of `ranges`, which are truncated, holds or lies in `range`.
pub(super) fn touches(ranges: &BTreeSet<IpNet>, range: &IpNet) -> bool {
    let inner = ranges.range(range..).next();
    if inner.is_some_and(|inner| range.contains(inner)) {
        return true;
    }
    let outer = |length| IpNet::new(range.network(), length).map(|outer| outer.trunc());
    (0..range.prefix_len())
        .filter_map(|length| outer(length).ok())
        .any(|outer| ranges.contains(&outer))
}
