//! Our own hashes, so that what is derived from them is the same with every release of every library.

use core::hash::{BuildHasher, Hasher};

/// FNV-1a, 32 bits: for ids that go to the wire or into the kernel.
pub(crate) fn fnv1a32(bytes: impl Iterator<Item = u8>) -> u32 {
    bytes.fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

/// A hash table whose order never shows in any result.
pub(crate) type Map<K, V> = hashbrown::HashMap<K, V, Seed>;

/// The seed of a hash table.
///
/// Users choose labels and names, so somebody who knows the seed could choose ones that collide. Whoever runs an engine gives it a
/// seed that is not known outside; results do not depend on it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seed(pub(crate) u64);

impl BuildHasher for Seed {
    type Hasher = Fold;

    fn build_hasher(&self) -> Fold {
        Fold {
            state: self.0 ^ 0x9e37_79b9_7f4a_7c15,
        }
    }
}

/// Folded multiplication: 8 bytes a step, the full 128-bit product mixed down to 64 bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fold {
    state: u64,
}

impl Fold {
    fn mix(&mut self, word: u64) {
        // The digits of pi: an odd constant without structure.
        let product = u128::from(self.state ^ word) * 0x243f_6a88_85a3_08d3_u128;
        self.state = (product as u64) ^ ((product >> 64) as u64).rotate_left(23);
    }
}

impl Hasher for Fold {
    fn write(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            self.mix(u64::from_le_bytes(
                word.try_into().expect("chunks of eight"),
            ));
        }
        let rest = words.remainder();
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.mix(u64::from_le_bytes(last));
        }
        self.mix(bytes.len() as u64);
    }

    fn write_u8(&mut self, n: u8) {
        self.mix(n.into());
    }

    fn write_u32(&mut self, n: u32) {
        self.mix(n.into());
    }

    fn write_u64(&mut self, n: u64) {
        self.mix(n);
    }

    fn write_usize(&mut self, n: usize) {
        self.mix(n as u64);
    }

    fn finish(&self) -> u64 {
        self.state ^ (self.state >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn similar_keys_spread_over_a_table() {
        let hashes = (0..10_000u32).map(|n| Seed(1).hash_one(format!("app-{n}")));
        let slots: BTreeSet<u64> = hashes.map(|hash| hash & 0xffff).collect();
        // 10,000 balls in 65,536 bins at random fill 9,291 of them.
        assert!(slots.len() > 9_000, "{}", slots.len());
    }

    #[test]
    fn another_seed_gives_other_hashes() {
        assert_ne!(Seed(1).hash_one("a"), Seed(2).hash_one("a"));
    }
}
