//! What this machine's clock shows, as core's ownership wants it.

use std::time::{Duration, Instant};

use egressnat_core::ownership::Time;
use nix::time::{ClockId, clock_gettime};

/// What a clock shows that goes on while the machine sleeps.
pub(crate) fn now() -> Time {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
    Time(time.expect("every Linux since 2.6.39 has this clock"))
}

/// When the clock will show `time`, as tokio and the standard library count.
pub(crate) fn instant(time: Time) -> Instant {
    Instant::now() + time.0.saturating_sub(now().0)
}

/// What the clock shows at `instant`.
pub(crate) fn time(instant: Instant) -> Time {
    now().after(instant.saturating_duration_since(Instant::now()))
}
