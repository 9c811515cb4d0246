//! Whose turn it is to be announced again.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Bound::{Excluded, Unbounded};
use std::time::Duration;

/// The shortest pause between two announcements: 50 addresses a second, which is 100 small frames. Each is a broadcast that every host of the
/// segment takes in.
const SHORTEST: Duration = Duration::from_millis(20);

/// The addresses that are announced for as long as they are held, one at a time and in turn: never two at once, however many there are.
#[derive(Debug)]
pub(super) struct Rota {
    every: Duration,
    addresses: BTreeSet<IpAddr>,
    last: Option<IpAddr>,
}

impl Rota {
    /// Nobody yet. Each has its turn so often, unless there are too many for that.
    pub(super) fn new(every: Duration) -> Self {
        Self {
            every,
            addresses: BTreeSet::new(),
            last: None,
        }
    }

    pub(super) fn add(&mut self, address: IpAddr) {
        self.addresses.insert(address);
    }

    pub(super) fn remove(&mut self, address: IpAddr) {
        self.addresses.remove(&address);
    }

    /// How long until the next one has its turn, at the earliest and at the latest: nodes that began at the same time do not go on so.
    pub(super) fn pause(&self) -> [Duration; 2] {
        let count = u32::try_from(self.addresses.len()).unwrap_or(u32::MAX);
        let pause = (self.every / count.max(1)).max(SHORTEST);
        [pause * 3 / 4, pause * 5 / 4]
    }

    /// Whose turn it is.
    pub(super) fn next(&mut self) -> Option<IpAddr> {
        let after = self.last.map_or(Unbounded, Excluded);
        let later = self.addresses.range((after, Unbounded)).next();
        self.last = later.or(self.addresses.first()).copied();
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + number).to_be_bytes())
    }

    #[test]
    fn each_has_its_turn_whoever_comes_and_goes() {
        let mut rota = Rota::new(Duration::from_secs(40));
        assert_eq!(rota.next(), None);
        for number in [1, 2, 4] {
            rota.add(address(number));
        }
        assert_eq!(rota.next(), Some(address(1)));
        assert_eq!(rota.next(), Some(address(2)));
        rota.remove(address(2));
        rota.add(address(3));
        for number in [3, 4, 1, 3] {
            assert_eq!(rota.next(), Some(address(number)));
        }
        for number in [1, 3, 4] {
            rota.remove(address(number));
        }
        assert_eq!(rota.next(), None);
    }

    #[test]
    fn one_is_announced_every_so_often_and_ten_thousand_at_fifty_a_second() {
        let every = Duration::from_secs(40);
        for (count, want) in [
            (0, every),
            (1, every),
            (100, every / 100),
            (10_000, SHORTEST),
        ] {
            let mut rota = Rota::new(every);
            (0..count).for_each(|number| rota.add(address(number)));
            let [earliest, latest] = rota.pause();
            assert!(earliest < want && want < latest, "{count}");
            assert!(earliest >= want / 2 && latest <= want * 2, "{count}");
        }
    }
}
