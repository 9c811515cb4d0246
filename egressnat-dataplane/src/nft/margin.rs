//! Telling the kernel how much time is left until a deadline, though it counts from when it gets to hear it.

use std::time::{Duration, Instant};

/// By how much the kernel's deadline is earlier than ours at first: so long writing may take, so that it is never later.
const MARGIN: Duration = Duration::from_millis(100);

/// Writes how much time is left until `deadline`, less a margin for writing it, and once more with a larger margin where it took longer
/// than that: the kernel may then have counted from too late. Returns when the kernel's deadline comes, at the earliest.
///
/// A margin that stayed as it is would never be kept on a machine that is slow for a while, such as one with seven processes for each
/// processor: it would be written again and again until no time is left, which ends the use of what others wait for, although its
/// agent is alive and well in time.
pub(super) fn write_ahead<E>(
    deadline: Instant,
    mut write: impl FnMut(Duration) -> Result<(), E>,
) -> Result<Instant, E> {
    let mut margin = MARGIN;
    loop {
        let start = Instant::now();
        let left = deadline.saturating_duration_since(start + margin);
        write(left)?;
        let took = start.elapsed();
        if left.is_zero() || took <= margin {
            return Ok(start + left);
        }
        margin = 2 * took;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes by a machine on which each takes so long, and returns when the kernel's deadline comes, and how many there were.
    fn written(deadline: Instant, takes: &[Duration]) -> (Instant, usize) {
        let (mut until, mut writes) = (Instant::now(), 0);
        let outcome = write_ahead(deadline, |left| {
            let took = takes[writes.min(takes.len() - 1)];
            std::thread::sleep(took);
            // It hears of it at the last moment.
            until = Instant::now() + left;
            writes += 1;
            Ok::<(), ()>(())
        });
        assert!(outcome.unwrap() <= until, "at the earliest");
        (until, writes)
    }

    #[test]
    fn what_takes_longer_than_the_margin_is_written_again_and_in_time_e33() {
        let deadline = Instant::now() + Duration::from_secs(5);
        let slow = 2 * MARGIN;
        // A machine that was busy, and one that is.
        for (takes, most) in [(&[Duration::ZERO][..], 1), (&[slow, Duration::ZERO], 2)] {
            let (until, writes) = written(deadline, takes);
            assert_eq!(writes, most);
            assert!(until <= deadline);
        }
        let (until, writes) = written(deadline, &[slow]);
        assert!(until <= deadline, "{:?} too late", until - deadline);
        // Had it gone on until no time is left, nothing could be used by now. A test that has to wait itself only needs more.
        assert!(writes <= 4, "{writes}");
        assert!(until > Instant::now() + Duration::from_secs(2));
    }

    #[test]
    fn a_deadline_that_has_passed_is_written_once_e33() {
        let deadline = Instant::now();
        let (until, writes) = written(deadline, &[2 * MARGIN]);
        assert_eq!(writes, 1);
        assert!(until <= Instant::now(), "no time is left");
    }
}
