//! Longest prefix match in memory.

use alloc::vec::Vec;
use core::net::IpAddr;
use ipnet::IpNet;

/// Prefixes of both families with a value each.
///
/// A trie with a stride of 8 bits. The prefixes that end in a node are a bit set of all 511 that can, in the order of a binary tree,
/// so that the ancestors of a leaf are found by halving its number; values and children lie packed beside it. An IPv4 lookup visits
/// at most four nodes, however many prefixes there are.
#[derive(Debug, Clone)]
pub(crate) struct PrefixTable<V> {
    nodes: Vec<Node<V>>,
}

const ROOT_V4: usize = 0;
const ROOT_V6: usize = 1;

#[derive(Debug, Clone)]
struct Node<V> {
    prefixes: Bits<8>,
    values: Vec<V>,
    octets: Bits<4>,
    children: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Bits<const WORDS: usize>([u64; WORDS]);

impl<const WORDS: usize> Bits<WORDS> {
    fn has(&self, bit: usize) -> bool {
        self.0[bit >> 6] >> (bit & 63) & 1 == 1
    }

    fn set(&mut self, bit: usize) {
        self.0[bit >> 6] |= 1 << (bit & 63);
    }

    /// How many bits below this one are set: the place of what belongs to it.
    fn rank(&self, bit: usize) -> usize {
        let below = self.0[..bit >> 6].iter().map(|word| word.count_ones());
        let within = self.0[bit >> 6] & ((1 << (bit & 63)) - 1);
        (below.sum::<u32>() + within.count_ones()) as usize
    }
}

impl<V> Node<V> {
    fn new() -> Self {
        Self {
            prefixes: Bits([0; 8]),
            values: Vec::new(),
            octets: Bits([0; 4]),
            children: Vec::new(),
        }
    }

    /// The value of the longest prefix that ends here and contains an address with this octet.
    fn longest(&self, octet: u8) -> Option<&V> {
        if self.values.is_empty() {
            return None;
        }
        let mut number = 256 + usize::from(octet);
        while number > 0 {
            if self.prefixes.has(number) {
                return self.values.get(self.prefixes.rank(number));
            }
            number >>= 1;
        }
        None
    }
}

impl<V> PrefixTable<V> {
    pub(crate) fn new() -> Self {
        Self {
            nodes: alloc::vec![Node::new(), Node::new()],
        }
    }

    /// Sets the value of a prefix.
    pub(crate) fn insert(&mut self, prefix: &IpNet, value: V) {
        let (octets, root) = octets(&prefix.network());
        let length = usize::from(prefix.prefix_len());
        // The node in which it ends has the octet of its last bit.
        let depth = length.saturating_sub(1) / 8;
        let mut index = root;
        for octet in &octets[..depth] {
            index = self.child(index, *octet);
        }
        let bits = length - depth * 8;
        let number = (1 << bits) + (usize::from(octets[depth]) >> (8 - bits));
        let node = &mut self.nodes[index];
        let place = node.prefixes.rank(number);
        if node.prefixes.has(number) {
            node.values[place] = value;
        } else {
            node.prefixes.set(number);
            node.values.insert(place, value);
        }
    }

    fn child(&mut self, index: usize, octet: u8) -> usize {
        let octet = usize::from(octet);
        let next = u32::try_from(self.nodes.len()).expect("memory ends before four billion nodes");
        let node = &mut self.nodes[index];
        let place = node.octets.rank(octet);
        if node.octets.has(octet) {
            return node.children[place] as usize;
        }
        node.octets.set(octet);
        node.children.insert(place, next);
        self.nodes.push(Node::new());
        next as usize
    }

    /// The value of the longest prefix that contains `address`.
    pub(crate) fn find(&self, address: IpAddr) -> Option<&V> {
        let (octets, root) = octets(&address);
        let width = if address.is_ipv4() { 4 } else { 16 };
        let mut node = &self.nodes[root];
        let mut best = None;
        for octet in &octets[..width] {
            best = node.longest(*octet).or(best);
            let octet = usize::from(*octet);
            if !node.octets.has(octet) {
                break;
            }
            node = &self.nodes[node.children[node.octets.rank(octet)] as usize];
        }
        best
    }
}

/// The octets of an address, and where its family begins.
fn octets(address: &IpAddr) -> ([u8; 16], usize) {
    match address {
        IpAddr::V4(v4) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&v4.octets());
            (octets, ROOT_V4)
        }
        IpAddr::V6(v6) => (v6.octets(), ROOT_V6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix() -> impl Strategy<Value = IpNet> {
        let v4 = (0..4u32, 0..=32u8).prop_map(|(n, len)| {
            let address = core::net::Ipv4Addr::from(n.wrapping_mul(0x4924_9249));
            IpNet::new(address.into(), len).unwrap().trunc()
        });
        let v6 = (0..4u128, 0..=128u8).prop_map(|(n, len)| {
            let address = core::net::Ipv6Addr::from(n.wrapping_mul(0x4924_9249_2492_4924_9249));
            IpNet::new(address.into(), len).unwrap().trunc()
        });
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn the_longest_prefix_is_found(
            prefixes in prop::collection::btree_map(prefix(), any::<u8>(), 0..30),
            near in prop::collection::vec(prefix(), 1..10),
        ) {
            let mut table = PrefixTable::new();
            for (prefix, value) in &prefixes {
                table.insert(prefix, 255 - value);
                table.insert(prefix, *value);
            }
            for address in near.iter().flat_map(|near| [near.addr(), near.network(), near.broadcast()]) {
                let matching = prefixes.iter().filter(|(prefix, _)| prefix.contains(&address));
                let longest = matching.max_by_key(|(prefix, _)| prefix.prefix_len());
                prop_assert_eq!(table.find(address), longest.map(|(_, value)| value));
            }
        }
    }
}
