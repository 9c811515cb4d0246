//! Asking before a floating IP is taken, and noticing who else uses it (RFC 5227, for IPv4).
//!
//! An address that nobody answers for is free. One that somebody answers for may be on its way here: its old holder lets go of
//! it while we ask. So we go on asking for a while, and take it as soon as it is silent; only then it is somebody else's.
//!
//! This finds accidents: a host that was given the same address. It proves nothing about hosts that keep silent.

mod arp;
mod socket;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::announce::AnnounceError;
use arp::{Arp, Purpose};
use socket::ArpSocket;

/// How the network is asked before a floating IP is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probes {
    /// How many times. 0 takes addresses unasked.
    pub count: u32,
    /// The shortest pause behind each, in which an answer is waited for.
    pub shortest: Duration,
    /// The longest pause; how long each is, is random.
    pub longest: Duration,
}

impl Default for Probes {
    /// At most 150 ms, where RFC 5227 takes up to 7 seconds: who uses the address on the same Ethernet answers within one.
    fn default() -> Self {
        Self {
            count: 3,
            shortest: Duration::from_millis(20),
            longest: Duration::from_millis(50),
        }
    }
}

/// The pause behind a probe for an address that a node of the cluster had, or that somebody just answered for: what has to be
/// seen is that it is silent now. Packets to the address wait meanwhile.
const HANDOVER: Duration = Duration::from_millis(10);
/// How many of these pauses without an answer are silence behind one that was answered.
const SILENT: u32 = 2;

/// For how long an address that is answered for is asked for again.
const PATIENCE: Duration = Duration::from_millis(300);

/// When an address that somebody else has is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Of so many addresses is kept that they are the cluster's.
const MOST: usize = 4096;

/// For how long a claim counts that was not repeated.
const CLAIM_AGE: Duration = Duration::from_secs(60);

/// A link-layer address, written as usual.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mac(pub(crate) [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What was heard on the uplink.
#[derive(Default)]
struct Heard {
    /// The floating IPs that are on this node. Who claims one of them is told at once.
    held: BTreeSet<Ipv4Addr>,
    /// The addresses that claims are kept of.
    of_interest: BTreeSet<Ipv4Addr>,
    /// The last to claim an address, and when.
    claims: BTreeMap<Ipv4Addr, (Mac, Instant)>,
    /// The addresses that an agent of the cluster was the last to announce or to give up.
    of_cluster: BTreeSet<Ipv4Addr>,
    /// The last to ask for an address as we do before we take it.
    probes: BTreeMap<Ipv4Addr, (Mac, Instant)>,
}

impl Heard {
    /// Returns whether it is news about an address that we hold.
    fn take(&mut self, packet: &Arp, own: Mac) -> bool {
        if packet.sender_mac == own {
            return false;
        }
        let now = Instant::now();
        if packet.is_of_cluster {
            if self.of_cluster.len() < MOST {
                self.of_cluster.insert(packet.target);
            }
        } else if packet.sender == packet.target {
            self.of_cluster.remove(&packet.target);
        }
        if packet.is_probe() {
            if !packet.is_of_cluster && self.of_interest.contains(&packet.target) {
                self.probes.insert(packet.target, (packet.sender_mac, now));
            }
            return false;
        }
        if !self.of_interest.contains(&packet.sender) {
            return false;
        }
        let before = self.claims.insert(packet.sender, (packet.sender_mac, now));
        let is_known = before.is_some_and(|(mac, at)| {
            mac == packet.sender_mac && now.duration_since(at) < CLAIM_AGE
        });
        self.held.contains(&packet.sender) && !is_known
    }
}

/// Asks for addresses on the uplink, and listens who claims them.
pub(crate) struct Prober {
    socket: Arc<ArpSocket>,
    heard: Arc<Mutex<Heard>>,
    contested: Arc<Notify>,
    listener: JoinHandle<()>,
    retry: Option<tokio::time::Instant>,
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl Prober {
    pub(crate) fn open(ifindex: u32, mac: [u8; 6]) -> Result<Self, AnnounceError> {
        let socket = Arc::new(ArpSocket::open(ifindex, Mac(mac)).map_err(AnnounceError)?);
        let heard = Arc::new(Mutex::new(Heard::default()));
        let contested = Arc::new(Notify::new());
        let listener = {
            let (socket, heard, contested) = (socket.clone(), heard.clone(), contested.clone());
            tokio::spawn(async move {
                while socket.readable().await {
                    listen(&socket, &heard, &contested);
                }
            })
        };
        Ok(Self {
            socket,
            heard,
            contested,
            listener,
            retry: None,
        })
    }

    /// Waits until somebody claims an address that is held here, or until one that somebody has wants to be tried again. Cancel
    /// safe.
    pub(crate) async fn changed(&self) {
        let retry = async {
            match self.retry {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.contested.notified() => {}
            () = retry => {}
        }
    }

    /// Says what to listen for: the addresses that are held here, and those that other nodes may hold.
    pub(crate) fn listen_for(&mut self, held: BTreeSet<Ipv4Addr>, others: BTreeSet<Ipv4Addr>) {
        let mut heard = lock(&self.heard);
        heard.of_interest = &held | &others;
        heard.held = held;
        let Heard {
            of_interest,
            claims,
            probes,
            ..
        } = &mut *heard;
        claims.retain(|address, _| of_interest.contains(address));
        probes.clear();
    }

    /// Says that an address is held here from now on: what was said of it before was about its old holder.
    pub(crate) fn hold(&mut self, address: Ipv4Addr) {
        let mut heard = lock(&self.heard);
        heard.of_interest.insert(address);
        if heard.held.insert(address) {
            heard.claims.remove(&address);
        }
    }

    /// Says that an address is held here no more, to the cluster's other nodes too.
    pub(crate) fn let_go(&mut self, address: Ipv4Addr) {
        lock(&self.heard).held.remove(&address);
        if let Err(error) = self.socket.ask(address, Purpose::GiveUp) {
            tracing::debug!(%address, %error, "the next holder is not told, and asks for longer");
        }
    }

    /// Who claims an address that is held here.
    pub(crate) fn claims(&self) -> BTreeMap<Ipv4Addr, Mac> {
        let heard = lock(&self.heard);
        let is_fresh = |(address, (_, at)): &(&Ipv4Addr, &(Mac, Instant))| {
            heard.held.contains(address) && at.elapsed() < CLAIM_AGE
        };
        let claims = heard.claims.iter().filter(is_fresh);
        claims.map(|(address, (mac, _))| (*address, *mac)).collect()
    }

    /// The socket and what is heard on it, for questions beside those of a plan.
    pub(crate) fn ears(&self) -> Ears {
        Ears {
            socket: Arc::clone(&self.socket),
            heard: Arc::clone(&self.heard),
            contested: Arc::clone(&self.contested),
        }
    }

    /// Asks for all of `addresses` at once, and gives those that somebody else has. `last_holder` says who had an address by what
    /// this node knows, `is_node` whether that is a node of the cluster: then what has to be seen is only that it let go.
    pub(crate) async fn probe(
        &mut self,
        addresses: &BTreeSet<Ipv4Addr>,
        settings: Probes,
        last_holder: impl Fn(Ipv4Addr) -> Option<Mac>,
        is_node: impl Fn(Mac) -> bool,
    ) -> BTreeMap<Ipv4Addr, Mac> {
        self.retry = None;
        if settings.count == 0 || !self.socket.is_ethernet() {
            return BTreeMap::new();
        }
        let mut asked: BTreeMap<Ipv4Addr, Asked> = {
            // What came before is about what was before.
            listen(&self.socket, &self.heard, &self.contested);
            let mut heard = lock(&self.heard);
            heard.of_interest.extend(addresses);
            let knows = |address: &Ipv4Addr| {
                heard.of_cluster.contains(address) || last_holder(*address).is_some_and(&is_node)
            };
            let state = |address: &Ipv4Addr| (*address, Asked::new(settings, knows(address)));
            addresses.iter().map(state).collect()
        };
        let start = Instant::now();
        while asked.values().any(|asked| !asked.is_over(start.elapsed())) {
            let round = Instant::now();
            let is_open = |(_, asked): &(&Ipv4Addr, &Asked)| !asked.is_over(start.elapsed());
            let open = asked.iter().filter(is_open);
            let addresses: Vec<(Ipv4Addr, Pause)> =
                open.map(|(ip, asked)| (*ip, asked.pause)).collect();
            for (address, _) in &addresses {
                if let Err(error) = self.socket.ask(*address, Purpose::Take) {
                    tracing::warn!(%address, %error, "probe not sent");
                }
            }
            let handover = addresses.iter().all(|(_, pause)| *pause == Pause::Handover);
            let pause = if handover {
                HANDOVER
            } else {
                jitter(settings, &addresses)
            };
            tokio::time::sleep(pause).await;
            // The listener may not have had its turn.
            listen(&self.socket, &self.heard, &self.contested);
            let heard = lock(&self.heard);
            for (address, _) in &addresses {
                let after = |entry: Option<&(Mac, Instant)>| {
                    entry.filter(|(_, at)| *at >= round).map(|(mac, _)| *mac)
                };
                // Who else asks as we do is about to take it (RFC 5227, section 2.1.1).
                let answer = after(heard.claims.get(address)).or(after(heard.probes.get(address)));
                if let Some(asked) = asked.get_mut(address) {
                    asked.take(answer);
                }
            }
        }
        let taken = asked
            .into_iter()
            .filter_map(|(address, asked)| Some((address, asked.answered?)));
        let taken: BTreeMap<Ipv4Addr, Mac> = taken.collect();
        if !taken.is_empty() {
            self.retry = Some(tokio::time::Instant::now() + RETRY);
        }
        taken
    }
}

/// Asks for single addresses.
#[derive(Clone)]
pub(crate) struct Ears {
    socket: Arc<ArpSocket>,
    heard: Arc<Mutex<Heard>>,
    contested: Arc<Notify>,
}

impl Ears {
    /// Asks who has an address, and notes who says that it has it from now on.
    pub(crate) fn ask(&self, address: Ipv4Addr) {
        lock(&self.heard).of_interest.insert(address);
        if let Err(error) = self.socket.ask(address, Purpose::Take) {
            tracing::debug!(%address, %error, "question not sent");
        }
    }

    /// Whether somebody has said since then that it has an address.
    pub(crate) fn have_heard(&self, address: Ipv4Addr, since: Instant) -> bool {
        // The listener may not have had its turn.
        listen(&self.socket, &self.heard, &self.contested);
        let heard = lock(&self.heard);
        heard
            .claims
            .get(&address)
            .is_some_and(|(_, at)| *at >= since)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    Random,
    Handover,
}

/// One address that is asked for.
struct Asked {
    /// Pauses without an answer that are still to come.
    left: u32,
    pause: Pause,
    /// Who answered last; nobody any more once it is silent.
    answered: Option<Mac>,
}

impl Asked {
    fn new(settings: Probes, was_ours: bool) -> Self {
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

    fn take(&mut self, answer: Option<Mac>) {
        if answer.is_some() {
            (self.left, self.pause, self.answered) = (SILENT, Pause::Handover, answer);
            return;
        }
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            self.answered = None;
        }
    }

    fn is_over(&self, elapsed: Duration) -> bool {
        self.left == 0 || (self.answered.is_some() && elapsed > PATIENCE)
    }
}

/// A pause between the shortest and the longest: nodes that ask at the same time do not go on doing so. Which one needs no
/// good random numbers, so it is made of the time and the addresses.
fn jitter(settings: Probes, addresses: &[(Ipv4Addr, Pause)]) -> Duration {
    let clock = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap_or_default();
    let mut seed = clock.subsec_nanos();
    for (address, _) in addresses {
        seed = seed.rotate_left(5) ^ address.to_bits();
    }
    let seed = seed.wrapping_mul(0x9e37_79b9) >> 16;
    let range = settings.longest.saturating_sub(settings.shortest);
    settings.shortest + range * seed / 0xffff
}

fn lock(heard: &Mutex<Heard>) -> std::sync::MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes all that has come in.
fn listen(socket: &ArpSocket, heard: &Mutex<Heard>, contested: &Notify) {
    while let Some(packet) = socket.receive() {
        if lock(heard).take(&packet, socket.mac()) {
            contested.notify_one();
        }
    }
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
            let pause = jitter(settings, &[(Ipv4Addr::new(10, 0, 0, last), Pause::Random)]);
            assert!(pause >= settings.shortest && pause <= settings.longest);
        }
        let worst = settings.longest * settings.count + PATIENCE + HANDOVER * SILENT;
        assert!(worst < Duration::from_secs(1));
    }

    #[test]
    fn only_claims_of_others_to_what_is_held_are_news_and_once() {
        let own = Mac([2, 0, 0, 0, 0, 9]);
        let address = Ipv4Addr::new(192, 168, 1, 100);
        let mut heard = Heard {
            held: [address].into(),
            of_interest: [address].into(),
            ..Heard::default()
        };
        let claim = |mac, sender| Arp {
            sender_mac: mac,
            sender,
            target: address,
            is_of_cluster: false,
        };
        assert!(!heard.take(&claim(own, address), own));
        assert!(!heard.take(&claim(SOMEBODY, Ipv4Addr::new(192, 168, 1, 1)), own));
        assert!(
            !heard.take(&claim(SOMEBODY, Ipv4Addr::UNSPECIFIED), own),
            "who asks claims nothing"
        );
        assert!(heard.take(&claim(SOMEBODY, address), own));
        assert!(!heard.take(&claim(SOMEBODY, address), own), "told already");
    }
}
