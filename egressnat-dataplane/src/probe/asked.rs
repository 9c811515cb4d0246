//! How an address is asked for: what is left to be waited for, and whether it is free.

use std::net::IpAddr;
use std::time::Duration;

use super::{Mac, Probes};
use crate::jitter::jitter;

/// The pause behind a probe for an address that a node of the cluster had, or that somebody just answered for: what has to be
/// seen is that it is silent now. Packets to the address wait meanwhile.
const HANDOVER: Duration = Duration::from_millis(10);
/// How many of these pauses without an answer are silence behind one that was answered.
const SILENT: u32 = 2;

/// For how long an address that is answered for is asked for again.
const PATIENCE: Duration = Duration::from_millis(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pause {
    Random,
    Handover,
}

/// One address that is asked for.
pub(super) struct Asked {
    /// Pauses without an answer that are still to come.
    left: u32,
    pub(super) pause: Pause,
    /// Who answered last; nobody any more once it is silent.
    pub(super) answered: Option<Mac>,
}

impl Asked {
    pub(super) fn new(settings: Probes, was_ours: bool) -> Self {
        let (left, pause) = match was_ours {
            true => (1, Pause::Handover),
            false => (settings.count, Pause::Random),
        };
        Self {
            left,
            pause,
            answered: None,
        }
    }

    pub(super) fn take(&mut self, answer: Option<Mac>) {
        if answer.is_some() {
            (self.left, self.pause, self.answered) = (SILENT, Pause::Handover, answer);
            return;
        }
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            self.answered = None;
        }
    }

    pub(super) fn is_over(&self, elapsed: Duration) -> bool {
        self.left == 0 || (self.answered.is_some() && elapsed > PATIENCE)
    }
}

/// The pause behind one probe for each of these addresses.
pub(super) fn pause(settings: Probes, addresses: &[(IpAddr, Pause)]) -> Duration {
    if addresses.iter().all(|(_, pause)| *pause == Pause::Handover) {
        return HANDOVER;
    }
    let addresses = addresses.iter().map(|(address, _)| *address);
    jitter(settings.shortest, settings.longest, addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOMEBODY: Mac = Mac([2, 0, 0, 0, 0, 1]);

    /// The pauses until an address is free, and whether it is, when these rounds are answered.
    fn rounds(was_ours: bool, answers: &[bool]) -> (usize, bool) {
        let mut asked = Asked::new(Probes::default(), was_ours);
        let mut answers = answers.iter().copied().chain(std::iter::repeat(false));
        let mut count = 0;
        while !asked.is_over(Duration::ZERO) {
            asked.take(answers.next().unwrap_or_default().then_some(SOMEBODY));
            count += 1;
        }
        (count, asked.answered.is_none())
    }

    #[test]
    fn an_address_is_free_after_silence_and_sooner_where_the_cluster_had_it() {
        assert_eq!(rounds(false, &[]), (3, true));
        assert_eq!(rounds(true, &[]), (1, true));
        assert_eq!(rounds(false, &[true]), (3, true), "who answered is gone");
        assert_eq!(rounds(true, &[true, false, true]), (5, true));
    }

    #[test]
    fn who_goes_on_answering_has_it() {
        let mut asked = Asked::new(Probes::default(), true);
        asked.take(Some(SOMEBODY));
        assert!(!asked.is_over(PATIENCE));
        assert!(asked.is_over(PATIENCE + Duration::from_millis(1)));
        assert_eq!(asked.answered, Some(SOMEBODY));
    }

    #[test]
    fn pauses_are_within_their_bounds_and_probing_is_over_within_a_second() {
        let settings = Probes::default();
        for last in 0..=255 {
            let address = IpAddr::from([10, 0, 0, last]);
            let pause = pause(settings, &[(address, Pause::Random)]);
            assert!(pause >= settings.shortest && pause <= settings.longest);
            let handed_over = (address, Pause::Handover);
            assert_eq!(super::pause(settings, &[handed_over]), HANDOVER);
        }
        let worst = settings.longest * settings.count + PATIENCE + HANDOVER * SILENT;
        assert!(worst < Duration::from_secs(1));
    }
}
