//! The allocator, told to keep little: an agent runs on every node, and what it needs for a moment is not to stay with it.

use std::time::Duration;

/// How often memory is given back that is free between what is in use. It takes 10 µs where there is none, and 2 ms after much was freed.
const EVERY: Duration = Duration::from_secs(1);

/// Lets large blocks be mappings of their own, which go when they are freed, and all threads share one heap. To be called first.
pub(crate) fn configure() {
    glibc::configure();
}

/// Gives memory back from time to time, for ever.
pub(crate) async fn give_back() {
    let mut interval = tokio::time::interval(EVERY);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        glibc::trim();
    }
}

#[cfg(target_env = "gnu")]
mod glibc {
    use libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, c_int};

    /// In bytes. Setting it keeps glibc from raising it, up to 32 MB, whenever a larger block is freed.
    const LARGE: c_int = 128 << 10;

    pub(super) fn configure() {
        for (parameter, value) in [
            (M_MMAP_THRESHOLD, LARGE),
            (M_TRIM_THRESHOLD, LARGE),
            // One thread does nearly everything.
            (M_ARENA_MAX, 1),
        ] {
            // SAFETY: it takes two numbers and touches no memory but the allocator's own, under its lock. One that it does not take
            // leaves things as they are.
            unsafe { libc::mallopt(parameter, value) };
        }
    }

    pub(super) fn trim() {
        // SAFETY: it gives back pages in which nothing is allocated, under the allocator's lock.
        unsafe { libc::malloc_trim(0) };
    }
}

/// Other allocators see to it themselves.
#[cfg(not(target_env = "gnu"))]
mod glibc {
    pub(super) fn configure() {}
    pub(super) fn trim() {}
}
