//! What was heard on the uplink.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::Mac;
use super::statement::{Kind, Statement};

/// Of so many addresses is kept that they are the cluster's.
const MOST: usize = 4096;

/// For how long a claim counts that was not repeated.
const CLAIM_AGE: Duration = Duration::from_secs(60);

/// Who said what about which address, as far as it is of interest.
#[derive(Default)]
pub(super) struct Heard {
    /// The floating IPs that are on this node. Who claims one of them is told at once.
    held: BTreeSet<IpAddr>,
    /// The other addresses that claims are kept of.
    others: BTreeSet<IpAddr>,
    /// The last to claim an address, and when.
    claims: BTreeMap<IpAddr, (Mac, Instant)>,
    /// The addresses that an agent of the cluster was the last to announce or to give up, and its link-layer address.
    of_cluster: BTreeMap<IpAddr, Mac>,
    /// Those of them that were given up.
    given_up: BTreeSet<IpAddr>,
    /// The last to ask for an address as we do before we take it.
    probes: BTreeMap<IpAddr, (Mac, Instant)>,
}

impl Heard {
    /// Returns whether it is news about an address that we hold.
    pub(super) fn take(&mut self, said: Statement, own: Mac) -> bool {
        let Statement { by, address, .. } = said;
        if by == own {
            return false;
        }
        let now = Instant::now();
        if said.is_of_cluster {
            if self.of_cluster.len() < MOST || self.of_cluster.contains_key(&address) {
                self.of_cluster.insert(address, by);
                match said.kind {
                    Kind::Probe => self.given_up.insert(address),
                    Kind::Claim | Kind::Announcement => self.given_up.remove(&address),
                };
            }
        } else if said.kind == Kind::Announcement
            && self.of_cluster.get(&address).is_some_and(|mac| *mac != by)
        {
            self.of_cluster.remove(&address);
            self.given_up.remove(&address);
        }
        let is_of_interest = self.is_of_interest(&address);
        if said.kind == Kind::Probe {
            if !said.is_of_cluster && is_of_interest {
                self.probes.insert(address, (by, now));
            }
            return false;
        }
        if !is_of_interest {
            return false;
        }
        let before = self.claims.insert(address, (by, now));
        let is_known =
            before.is_some_and(|(mac, at)| mac == by && now.duration_since(at) < CLAIM_AGE);
        self.held.contains(&address) && !is_known
    }

    fn is_of_interest(&self, address: &IpAddr) -> bool {
        self.held.contains(address) || self.others.contains(address)
    }

    /// Keeps what is said about these addresses from now on, beside that about others.
    pub(super) fn follow(&mut self, addresses: &BTreeSet<IpAddr>) {
        self.others.extend(addresses);
    }

    /// Keeps what is said about the addresses that are held here, of which these are counted anew, and about these others, and about none
    /// else.
    pub(super) fn follow_only(&mut self, counted: Vec<(IpAddr, bool)>, others: BTreeSet<IpAddr>) {
        for (address, is_held) in counted {
            match is_held {
                true => self.held.insert(address),
                false => self.held.remove(&address),
            };
        }
        self.others = others;
        let mut claims = std::mem::take(&mut self.claims);
        claims.retain(|address, _| self.is_of_interest(address));
        self.claims = claims;
        self.probes.clear();
    }

    /// Notes that an address is held here from now on: what was said of it before was about its old holder.
    pub(super) fn hold(&mut self, address: IpAddr) {
        if self.held.insert(address) {
            self.claims.remove(&address);
        }
    }

    /// Notes that an address is held here no more.
    pub(super) fn let_go(&mut self, address: IpAddr) {
        self.held.remove(&address);
        // Who has it next is worth knowing.
        self.others.insert(address);
    }

    /// Whether a node of the cluster was the last to have an address, as far as was told.
    pub(super) fn is_of_cluster(&self, address: IpAddr) -> bool {
        self.of_cluster.contains_key(&address)
    }

    /// Whether a node of the cluster was the last to have an address, and said that it gave it up.
    pub(super) fn is_given_up(&self, address: IpAddr) -> bool {
        self.given_up.contains(&address)
    }

    /// Who claims an address that is held here.
    pub(super) fn claims(&self) -> BTreeMap<IpAddr, Mac> {
        let is_fresh = |(address, (_, at)): &(&IpAddr, &(Mac, Instant))| {
            self.held.contains(address) && at.elapsed() < CLAIM_AGE
        };
        let claims = self.claims.iter().filter(is_fresh);
        claims.map(|(address, (mac, _))| (*address, *mac)).collect()
    }

    /// Who has said since then that it has an address.
    pub(super) fn claimed_since(&self, address: IpAddr, since: Instant) -> Option<Mac> {
        after(self.claims.get(&address), since)
    }

    /// Who has said since then that it has an address, or is about to take it too (RFC 5227, section 2.1.1; RFC 4862, section 5.4.3).
    pub(super) fn contested_since(&self, address: IpAddr, since: Instant) -> Option<Mac> {
        let claimed = self.claimed_since(address, since);
        claimed.or(after(self.probes.get(&address), since))
    }
}

fn after(entry: Option<&(Mac, Instant)>, since: Instant) -> Option<Mac> {
    entry.filter(|(_, at)| *at >= since).map(|(mac, _)| *mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 9]);
    const SOMEBODY: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const ANOTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn said(by: Mac, address: IpAddr, kind: Kind) -> Statement {
        Statement {
            by,
            address,
            kind,
            is_of_cluster: false,
        }
    }

    #[test]
    fn only_claims_of_others_to_what_is_held_are_news_and_once() {
        for (held, other) in [
            ("192.168.1.100", "192.168.1.1"),
            ("fd00:192:168:1::100", "fd00:192:168:1::1"),
        ] {
            let [held, other]: [IpAddr; 2] = [held, other].map(|ip| ip.parse().unwrap());
            let mut heard = Heard::default();
            heard.hold(held);
            assert!(!heard.take(said(OWN, held, Kind::Claim), OWN));
            assert!(!heard.take(said(SOMEBODY, other, Kind::Claim), OWN));
            let asks = said(SOMEBODY, held, Kind::Probe);
            assert!(!heard.take(asks, OWN), "who asks claims nothing");
            assert!(heard.take(said(SOMEBODY, held, Kind::Claim), OWN));
            let again = said(SOMEBODY, held, Kind::Announcement);
            assert!(!heard.take(again, OWN), "told already");
            assert_eq!(heard.claims(), [(held, SOMEBODY)].into());
        }
    }

    #[test]
    fn who_asks_at_the_same_time_contests_an_address_and_who_gives_it_up_does_not() {
        let address: IpAddr = "fd00::100".parse().unwrap();
        let start = Instant::now();
        let mut heard = Heard::default();
        heard.follow(&[address].into());
        let mut given_up = said(SOMEBODY, address, Kind::Probe);
        given_up.is_of_cluster = true;
        heard.take(given_up, OWN);
        assert_eq!(heard.contested_since(address, start), None);
        heard.take(said(OWN, address, Kind::Probe), OWN);
        assert_eq!(heard.contested_since(address, start), None, "ourselves");
        heard.take(said(SOMEBODY, address, Kind::Probe), OWN);
        assert_eq!(heard.contested_since(address, start), Some(SOMEBODY));
        assert_eq!(heard.claimed_since(address, start), None);
        assert_eq!(heard.contested_since(address, Instant::now()), None);
    }

    #[test]
    fn an_address_is_the_clusters_until_another_host_announces_it() {
        let address: IpAddr = "fd00::100".parse().unwrap();
        let mut heard = Heard::default();
        let mut announced = said(SOMEBODY, address, Kind::Announcement);
        announced.is_of_cluster = true;
        let mut given_up = said(SOMEBODY, address, Kind::Probe);
        given_up.is_of_cluster = true;
        for (word, is_given_up) in [(announced, false), (given_up, true), (announced, false)] {
            heard.take(word, OWN);
            assert_eq!(heard.is_given_up(address), is_given_up);
        }
        // Its kernel answers without the word.
        heard.take(said(SOMEBODY, address, Kind::Announcement), OWN);
        assert!(heard.is_of_cluster(address));
        heard.take(said(ANOTHER, address, Kind::Announcement), OWN);
        assert!(!heard.is_of_cluster(address));
    }
}
