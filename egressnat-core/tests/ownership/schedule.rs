//! What happens in a schedule, and what is assumed in it.

use std::time::Duration;

use egressnat_core::ownership::Timing;

/// Where a schedule takes its choices from.
pub trait Choices {
    /// A number below `n`, which is at least 1.
    fn below(&mut self, n: u64) -> u64;
}

/// A schedule by number.
pub struct Dice(u64);

impl Dice {
    /// The schedule with this number.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }
}

impl Choices for Dice {
    fn below(&mut self, n: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// A schedule from the bytes of a fuzzer; calm when they end.
pub struct Bytes<'a>(pub &'a [u8]);

impl Choices for Bytes<'_> {
    fn below(&mut self, n: u64) -> u64 {
        let (taken, rest) = self.0.split_at(self.0.len().min(2));
        self.0 = rest;
        let number = taken
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte));
        number % n
    }
}

/// What the machines assume, and what is true.
#[derive(Clone, Copy)]
pub struct Setting {
    /// What holders and candidates are told.
    pub holder: Timing,
    /// How long nodes say that they hold by a renewal.
    pub told: Duration,
    /// What the clocks' rates are really off by at most, in millionths.
    pub rate_error: u32,
    /// From when nodes count a renewal.
    pub counted_from: CountedFrom,
    /// What goes wrong.
    pub faults: Faults,
    /// Whether nodes ask each other while the store does not answer.
    pub segment: Segment,
}

/// Whether nodes ask each other while the store does not answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Segment {
    /// They do not, and what a probe finds is nothing to rely on.
    Silent,
    /// They do, and single nodes are cut off from the store alone, too. Whoever is asked and can be reached answers; the segment does not
    /// fall into parts of several nodes.
    Answers,
}

/// From when nodes count a renewal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum CountedFrom {
    /// As they must.
    Sent,
    /// The mistake that is easily made.
    Answered,
}

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Faults {
    /// Everything.
    All,
    /// Nothing.
    None,
}

/// A lease of one second and clocks that are off by 2 % at most.
pub const TIMING: Timing = Timing {
    duration: Duration::from_secs(1),
    rate_error: 20_000,
};

/// What holds under the assumptions.
pub const SOUND: Setting = Setting {
    holder: TIMING,
    told: TIMING.duration,
    rate_error: 20_000,
    counted_from: CountedFrom::Sent,
    faults: Faults::All,
    segment: Segment::Silent,
};
