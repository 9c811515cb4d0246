//! Asking before a floating IP is taken, and noticing who else uses it: by ARP as in RFC 5227, by neighbor discovery as in RFC 4862.
//!
//! An address that nobody answers for is free. One that somebody answers for may be on its way here: its old holder lets go of
//! it while we ask. So we go on asking for a while, and take it as soon as it is silent; only then it is somebody else's.
//!
//! This finds accidents: a host that was given the same address. It proves nothing about hosts that keep silent.

mod arp;
mod asked;
mod groups;
mod heard;
mod socket;
mod statement;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::announce::AnnounceError;
use crate::family::Family;
use crate::jitter::jitter;
use asked::{Asked, Pause, pause};
use groups::Groups;
use heard::Heard;
use socket::Socket;

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

/// When an address that somebody else has is tried again, at the earliest and at the latest: two that ask at the same time find each
/// other, and one of them is first the next time.
const RETRY: [Duration; 2] = [Duration::from_secs(1), Duration::from_millis(1500)];

/// A link-layer address, written as usual.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mac(pub(crate) [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Why an address is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// It is about to be taken.
    Take,
    /// It was given up: nobody needs to answer, and the cluster's other nodes hear of it.
    GiveUp,
}

/// What was heard, and who waits for news.
#[derive(Clone, Default)]
struct Ledger {
    heard: Arc<Mutex<Heard>>,
    contested: Arc<Notify>,
}

impl Ledger {
    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all that has come in.
    fn take(&self, socket: &Socket) {
        while let Some(said) = socket.receive() {
            if self.heard().take(said, socket.mac()) {
                self.contested.notify_one();
            }
        }
    }
}

/// A socket, and the task that takes what comes in.
struct Listener {
    socket: Arc<Socket>,
    task: JoinHandle<()>,
}

impl Listener {
    fn open(family: Family, ifindex: u32, mac: Mac, ledger: &Ledger) -> io::Result<Self> {
        let socket = Arc::new(Socket::open(family, ifindex, mac)?);
        let task = {
            let (socket, ledger) = (Arc::clone(&socket), ledger.clone());
            tokio::spawn(async move {
                while socket.readable().await {
                    ledger.take(&socket);
                }
            })
        };
        Ok(Self { socket, task })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Asks for addresses on the uplink, and listens who claims them.
pub(crate) struct Prober {
    ifindex: u32,
    mac: Mac,
    ledger: Ledger,
    arp: Listener,
    /// Since an address of IPv6 was first of interest.
    neighbor_discovery: Option<Listener>,
    /// When the last question was over, unless nobody was asked.
    asked: Option<Instant>,
    /// What somebody else had, or was about to take, when it was last asked for.
    taken: BTreeSet<IpAddr>,
    retry: Option<tokio::time::Instant>,
}

impl Prober {
    pub(crate) fn open(ifindex: u32, mac: [u8; 6]) -> Result<Self, AnnounceError> {
        let (mac, ledger) = (Mac(mac), Ledger::default());
        let arp = Listener::open(Family::Ipv4, ifindex, mac, &ledger).map_err(AnnounceError)?;
        Ok(Self {
            ifindex,
            mac,
            ledger,
            arp,
            neighbor_discovery: None,
            asked: None,
            taken: BTreeSet::new(),
            retry: None,
        })
    }

    /// Notes that the interface has another link-layer address now.
    pub(crate) fn follow(&mut self, mac: [u8; 6]) {
        self.mac = Mac(mac);
        for socket in self.sockets() {
            socket.set_mac(self.mac);
        }
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
            () = self.ledger.contested.notified() => {}
            () = retry => {}
        }
    }

    /// Says what to listen for: the addresses that are held here, of which it is said again whether they are for those that may have changed,
    /// and those that other nodes may hold.
    pub(crate) fn listen_for(&mut self, counted: Vec<(IpAddr, bool)>, others: BTreeSet<IpAddr>) {
        let held = counted.iter().map(|(address, _)| address);
        self.listen_in_families_of(held.chain(&others));
        self.ledger.heard().follow_only(counted, others);
    }

    /// Says that an address is held here from now on: what was said of it before was about its old holder.
    pub(crate) fn hold(&mut self, address: IpAddr) {
        self.listen_in_families_of([&address]);
        self.ledger.heard().hold(address);
    }

    /// Says that an address is held here no more, to the cluster's other nodes too.
    pub(crate) fn let_go(&mut self, address: IpAddr) {
        self.listen_in_families_of([&address]);
        self.ledger.heard().let_go(address);
        if let Err(error) = self.ask(address, Purpose::GiveUp) {
            tracing::debug!(%address, %error, "the next holder is not told, and asks for longer");
        }
    }

    /// Who claims an address that is held here.
    pub(crate) fn claims(&self) -> BTreeMap<IpAddr, Mac> {
        self.ledger.heard().claims()
    }

    /// The socket and what is heard on it, for questions beside those of a plan.
    pub(crate) fn ears(&self) -> Ears {
        Ears {
            socket: Arc::clone(&self.arp.socket),
            ledger: self.ledger.clone(),
        }
    }

    /// Asks for all of `addresses` at once, and gives those that somebody else has. `last_holder` says who had an address by what
    /// this node knows, `is_node` whether that is a node of the cluster: then what has to be seen is only that it let go.
    pub(crate) async fn probe(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
        settings: Probes,
        last_holder: impl Fn(IpAddr) -> Option<Mac>,
        is_node: impl Fn(Mac) -> bool,
    ) -> BTreeMap<IpAddr, Mac> {
        (self.retry, self.asked) = (None, None);
        let is_ethernet = self.mac != Mac([0; 6]);
        if settings.count == 0 || !is_ethernet {
            return BTreeMap::new();
        }
        self.listen_in_families_of(addresses);
        let _member = Groups::join(self.ifindex, addresses);
        let mut asked: BTreeMap<IpAddr, Asked> = {
            // What came before is about what was before.
            self.take_all();
            let mut heard = self.ledger.heard();
            heard.follow(addresses);
            let was_clusters = |address: IpAddr| {
                heard.is_of_cluster(address) || last_holder(address).is_some_and(&is_node)
            };
            // Who was there a moment ago, and does not say that it let go, may only be slow to answer.
            let knows = |address: IpAddr| {
                heard.is_given_up(address)
                    || (was_clusters(address) && !self.taken.contains(&address))
            };
            let state = |address: &IpAddr| (*address, Asked::new(settings, knows(*address)));
            addresses.iter().map(state).collect()
        };
        let start = Instant::now();
        while asked.values().any(|asked| !asked.is_over(start.elapsed())) {
            let round = Instant::now();
            let is_open = |(_, asked): &(&IpAddr, &Asked)| !asked.is_over(start.elapsed());
            let open = asked.iter().filter(is_open);
            let addresses: Vec<(IpAddr, Pause)> =
                open.map(|(ip, asked)| (*ip, asked.pause)).collect();
            for (address, _) in &addresses {
                if let Err(error) = self.ask(*address, Purpose::Take) {
                    tracing::warn!(%address, %error, "probe not sent");
                }
            }
            tokio::time::sleep(pause(settings, &addresses)).await;
            // The listeners may not have had their turn.
            self.take_all();
            let heard = self.ledger.heard();
            for (address, _) in &addresses {
                if let Some(asked) = asked.get_mut(address) {
                    asked.take(heard.contested_since(*address, round));
                }
            }
        }
        let taken = asked
            .into_iter()
            .filter_map(|(address, asked)| Some((address, asked.answered?)));
        let taken = taken.collect();
        self.asked = Some(Instant::now());
        self.taken.clear();
        self.try_again_for(&taken);
        taken
    }

    /// Those of `addresses` that somebody has claimed, or asked for too, since they were asked for: about to be taken, they are not
    /// answered for yet, so whoever asks later finds nobody.
    pub(crate) fn contested(&mut self, addresses: &[IpAddr]) -> BTreeMap<IpAddr, Mac> {
        let Some(asked) = self.asked else {
            return BTreeMap::new();
        };
        self.take_all();
        let contested = {
            let heard = self.ledger.heard();
            let by = |address: &IpAddr| heard.contested_since(*address, asked);
            let addresses = addresses.iter();
            let contested = addresses.filter_map(|address| Some((*address, by(address)?)));
            contested.collect()
        };
        self.try_again_for(&contested);
        contested
    }

    fn try_again_for(&mut self, taken: &BTreeMap<IpAddr, Mac>) {
        if !taken.is_empty() {
            let [earliest, latest] = RETRY;
            self.retry = Some(tokio::time::Instant::now() + jitter(earliest, latest, []));
            self.taken.extend(taken.keys());
        }
    }

    /// Opens what is missing to hear of these addresses.
    fn listen_in_families_of<'a>(&mut self, addresses: impl IntoIterator<Item = &'a IpAddr>) {
        let mut addresses = addresses.into_iter();
        if self.neighbor_discovery.is_some() || !addresses.any(IpAddr::is_ipv6) {
            return;
        }
        match Listener::open(Family::Ipv6, self.ifindex, self.mac, &self.ledger) {
            Ok(listener) => self.neighbor_discovery = Some(listener),
            Err(error) => tracing::warn!(%error, "nobody is asked for addresses of IPv6"),
        }
    }

    fn sockets(&self) -> impl Iterator<Item = &Socket> {
        let listeners = [Some(&self.arp), self.neighbor_discovery.as_ref()];
        listeners
            .into_iter()
            .flatten()
            .map(|listener| &*listener.socket)
    }

    fn ask(&self, address: IpAddr, purpose: Purpose) -> io::Result<()> {
        let mut of_family = self.sockets();
        match of_family.find(|socket| socket.family() == Family::of(address)) {
            Some(socket) => socket.ask(address, purpose),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn take_all(&self) {
        for socket in self.sockets() {
            self.ledger.take(socket);
        }
    }
}

/// Asks for single addresses of IPv4.
#[derive(Clone)]
pub(crate) struct Ears {
    socket: Arc<Socket>,
    ledger: Ledger,
}

impl Ears {
    /// Asks who has an address, and notes who says that it has it from now on.
    pub(crate) fn ask(&self, address: Ipv4Addr) {
        let address = IpAddr::V4(address);
        self.ledger.heard().follow(&[address].into());
        if let Err(error) = self.socket.ask(address, Purpose::Take) {
            tracing::debug!(%address, %error, "question not sent");
        }
    }

    /// Whether somebody has said since then that it has an address.
    pub(crate) fn have_heard(&self, address: Ipv4Addr, since: Instant) -> bool {
        // The listener may not have had its turn.
        self.ledger.take(&self.socket);
        let heard = self.ledger.heard();
        heard.claimed_since(address.into(), since).is_some()
    }
}
