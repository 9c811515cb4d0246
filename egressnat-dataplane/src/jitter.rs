//! Pauses of random length.

use std::net::IpAddr;
use std::time::Duration;

use crate::family::octets;

/// A time between two: nodes that ask at the same time do not go on doing so. Which one needs no good random numbers, so it is made
/// of the time and the addresses.
pub(crate) fn jitter(
    shortest: Duration,
    longest: Duration,
    addresses: impl IntoIterator<Item = IpAddr>,
) -> Duration {
    let clock = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap_or_default();
    let mut seed = clock.subsec_nanos();
    for octet in addresses.into_iter().flat_map(octets) {
        seed = seed.rotate_left(5) ^ u32::from(octet);
    }
    let seed = seed.wrapping_mul(0x9e37_79b9) >> 16;
    let range = longest.saturating_sub(shortest);
    shortest + range * seed / 0xffff
}
