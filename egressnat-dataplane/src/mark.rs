//! The bits of the packet mark that are ours.

use std::fmt;

use thiserror::Error;

use crate::maps::DROP;

/// A mask that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("mark mask {0:#x} needs at least 4 bits in one piece: use a mask such as {default}", default = MarkMask::DEFAULT)]
pub struct InvalidMarkMask(u32);

/// The bits of the packet mark that egressnat uses; all others stay as they are.
///
/// The highest bit says "into the tunnel", the others are a small index that means something on this node only: 0 is no
/// decision, 1 keeps the pod's address, from 2 on one per egress IP, and the two largest leave the packet to the node's routes
/// and the masquerade rules: the last if no policy selects the pod, the one before if none decides about the destination.
///
/// The default `0x07ff0000` has room for 1,020 egress IPs a node. It leaves kube-proxy's `0x4000` and `0x8000` alone, and
/// the low bits that CNIs and meshes like. Calico's and Cilium's defaults reach into the upper half: give a mask that
/// they are told to leave free. Each bit more doubles the room: `0x3fff0000` is enough for 8,188 egress IPs, `0x7fff0000` for 16,380, and
/// 18 bits for the 65,533 that a node can have at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkMask(u32);

impl MarkMask {
    /// See the type.
    pub const DEFAULT: MarkMask = MarkMask(0x07ff_0000);

    /// A mask of one piece with at least 4 bits.
    ///
    /// # Errors
    ///
    /// Fewer bits, or bits with a gap.
    pub fn new(mask: u32) -> Result<Self, InvalidMarkMask> {
        let bits = mask.count_ones();
        let in_one_piece = bits + mask.leading_zeros() + mask.trailing_zeros() == u32::BITS;
        if bits >= 4 && in_one_piece {
            Ok(Self(mask))
        } else {
            Err(InvalidMarkMask(mask))
        }
    }

    /// All our bits.
    pub fn mask(self) -> u32 {
        self.0
    }

    /// The bit that sends a packet into the tunnel.
    pub fn tunnel(self) -> u32 {
        1 << (u32::BITS - 1 - self.0.leading_zeros())
    }

    pub(crate) fn shift(self) -> u32 {
        self.0.trailing_zeros()
    }

    /// The mark of packets whose address a policy keeps.
    pub(crate) fn keep(self) -> u32 {
        self.of_index(u32::from(crate::maps::KEEP))
    }

    /// The mark, without the tunnel bit, of an egress index.
    pub(crate) fn of_index(self, index: u32) -> u32 {
        index << self.shift()
    }

    /// The mark of packets of known pods that no policy selects.
    pub(crate) fn forward(self) -> u32 {
        self.0 & !self.tunnel()
    }

    /// The mark of packets of pods that policies select, to a destination that none of them decides about.
    pub(crate) fn passed(self) -> u32 {
        self.forward() & self.left_to_node()
    }

    /// All our bits but the one in which [`forward`](Self::forward) and [`passed`](Self::passed) differ.
    pub(crate) fn left_to_node(self) -> u32 {
        self.0 & !(1 << self.shift())
    }

    /// The largest index of an egress IP: those above it are [`passed`](Self::passed) and [`forward`](Self::forward), and such as a
    /// destination has no room for.
    pub(crate) fn max_index(self) -> u32 {
        ((1 << self.index_bits()) - 3).min(u32::from(DROP) - 1)
    }

    /// How many entries a map by index has.
    pub(crate) fn indices(self) -> u32 {
        (1 << self.index_bits()).min(u32::from(DROP) + 1)
    }

    fn index_bits(self) -> u32 {
        self.0.count_ones() - 1
    }
}

impl Default for MarkMask {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for MarkMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_one_piece_of_at_least_four_bits() {
        for mask in [0x07ff_0000, 0xf, 0xf000_0000, u32::MAX] {
            assert!(MarkMask::new(mask).is_ok(), "{mask:#x}");
        }
        for mask in [0, 0x7, 0xf0f0, 0x8000_0001] {
            assert!(MarkMask::new(mask).is_err(), "{mask:#x}");
        }
    }

    #[test]
    fn the_default_has_a_tunnel_bit_and_1020_egress_ips() {
        let mark = MarkMask::default();
        assert_eq!(mark.tunnel(), 0x0400_0000);
        assert_eq!(mark.max_index() - u32::from(crate::maps::KEEP), 1020);
        assert_eq!(mark.indices(), 1024);
        assert_eq!(mark.of_index(2), 0x0002_0000);
        assert_eq!(mark.forward(), mark.of_index(mark.max_index() + 2));
        assert_eq!(
            mark.forward() & mark.left_to_node(),
            mark.passed() & mark.left_to_node()
        );
    }

    #[test]
    fn a_wider_mask_has_room_for_more_up_to_what_a_destination_can_name() {
        for (mask, most, entries) in [
            (0xf, 4, 8),
            (0x3fff_0000, 8_188, 8_192),
            (0x7fff_0000, 16_380, 16_384),
            (0x0001_ffff, 65_532, 65_536),
            (0x0003_ffff, 65_533, 65_536),
            (u32::MAX, 65_533, 65_536),
        ] {
            let mark = MarkMask::new(mask).unwrap();
            assert_eq!(mark.max_index() - u32::from(crate::maps::KEEP), most);
            assert_eq!(mark.indices(), entries, "{mark}");
            assert!(mark.max_index() < mark.indices().min(u32::from(DROP)));
            // What no index stands for.
            let last = mark.of_index(mark.max_index());
            assert!(last < mark.passed() && mark.passed() < mark.forward());
            assert!(mark.forward() < mark.tunnel(), "{mark}");
        }
    }
}
