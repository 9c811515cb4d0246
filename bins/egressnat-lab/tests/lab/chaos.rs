//! E33, E43, E31 with everything at once: nodes are cut off from the store, from each other and from everybody, agents are frozen and
//! killed, controllers are killed, interfaces switched off, in random order. On the wire, at no instant two nodes use a floating IP; no pod
//! is ever seen with another address; and when all is mended everything flows.
//!
//! Left out is what `docs/design/0017` tells of as its price: nodes that do not reach each other while one of them has lost the store alone.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use egressnat_lab::Cut;
use egressnat_lab::probe::Traffic;
use fastrand::Rng;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::*;

/// What the random numbers begin with, to see once more what was seen before.
const SEED: &str = "EGRESSNAT_SEED";

const NODES: [&str; 3] = ["worker1", "worker2", "control-plane"];

/// Who uses an address uses it at least so often: its own pods send every 20 ms.
const SILENCE: Duration = Duration::from_millis(500);

/// When an address was used on the segment, and by which node.
struct Wire {
    uses: Arc<Mutex<Vec<(Instant, usize)>>>,
    is_over: Arc<AtomicBool>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// From the first to the last packet of a node with an address, without a silence in between.
#[derive(Debug, Clone, Copy)]
struct Use {
    node: usize,
    from: Instant,
    to: Instant,
}

impl Wire {
    /// Listens on the segment itself: also to what is lost there.
    fn listen(lab: &TestLab) -> Self {
        let nodes = NODES.map(|node| {
            let mac = lab.mac(node);
            let octets = mac.split(':');
            let octets = octets.map(|octet| u8::from_str_radix(octet, 16).unwrap());
            octets.collect::<Vec<u8>>()
        });
        let fabric = format!("/run/netns/enl-{}-fabric", lab.name());
        let capture = std::thread::spawn(move || {
            let fabric = std::fs::File::open(fabric).unwrap();
            setns(fabric, CloneFlags::CLONE_NEWNET).unwrap();
            capture()
        });
        let capture = capture.join().unwrap();
        let (uses, is_over) = (Arc::new(Mutex::new(Vec::new())), Arc::default());
        let wire = Self { uses, is_over };
        let (uses, is_over) = (Arc::clone(&wire.uses), Arc::clone(&wire.is_over));
        std::thread::spawn(move || {
            let mut frame = vec![0; 2048];
            while !is_over.load(Ordering::Relaxed) {
                let Ok(length) = recv(capture.as_raw_fd(), &mut frame, MsgFlags::empty()) else {
                    continue;
                };
                let from = nodes.iter().position(|mac| frame[6..12] == mac[..]);
                if let Some(node) = from
                    && is_use(&frame[..length])
                {
                    uses.lock().unwrap().push((Instant::now(), node));
                }
            }
        });
        wire
    }

    /// Who used the address, and from when to when.
    fn uses(&self) -> Vec<Use> {
        let mut uses: Vec<Use> = Vec::new();
        let mut open: [Option<usize>; NODES.len()] = [None; NODES.len()];
        for (at, node) in self.uses.lock().unwrap().iter().copied() {
            match open[node].map(|index| &mut uses[index]) {
                Some(last) if at - last.to < SILENCE => last.to = at,
                _ => {
                    open[node] = Some(uses.len());
                    let (from, to) = (at, at);
                    uses.push(Use { node, from, to });
                }
            }
        }
        uses
    }
}

/// Two nodes that used the address at the same time.
fn two_owners(uses: &[Use]) -> Option<[Use; 2]> {
    let pairs = uses.iter().enumerate().flat_map(|(index, one)| {
        let others = uses[index + 1..].iter();
        others.map(move |other| [*one, *other])
    });
    let mut at_once = pairs.filter(|[one, other]| {
        one.node != other.node && one.from <= other.to && other.from <= one.to
    });
    at_once.next()
}

/// A socket that gets all frames of its namespace.
fn capture() -> OwnedFd {
    let all = SockProtocol::EthAll;
    let capture = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), all);
    let capture = capture.unwrap();
    let _ = setsockopt(&capture, sockopt::RcvBufForce, &(64 << 20));
    let patience = TimeVal::milliseconds(50);
    setsockopt(&capture, sockopt::ReceiveTimeout, &patience).unwrap();
    capture
}

/// Whether a frame comes from the floating IP, or says in ARP that its sender has it.
fn is_use(frame: &[u8]) -> bool {
    let sender = match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(26..30),
        Some([0x08, 0x06]) => frame.get(28..32),
        _ => None,
    };
    sender == Some(&FLOATING.octets()[..])
}

/// What is wrong with the cluster now.
#[derive(Default)]
struct Trouble {
    /// The store is out of reach for a node, or nodes for each other: not both.
    is_divided: bool,
    is_without_store: bool,
    frozen: BTreeSet<&'static str>,
    /// Whose interface is off: of one at a time, as the lab cannot make routes on it.
    down: Option<&'static str>,
}

impl Trouble {
    /// One thing more. Says what.
    fn add(&mut self, lab: &TestLab, rng: &mut Rng) -> String {
        let node = NODES[rng.usize(..5) % NODES.len()];
        let cut = |cut: Cut<'static>| {
            lab.cut(cut).unwrap();
            format!("{cut:?}")
        };
        match rng.usize(..12) {
            0 => cut(Cut::Off(node)),
            1 => cut(Cut::Deaf(node)),
            2 => cut(Cut::Mute(node)),
            3 | 4 if !self.is_divided => {
                self.is_without_store = true;
                cut(Cut::FromApiServer(node))
            }
            5 if !self.is_divided => {
                self.is_without_store = true;
                cut(Cut::ApiServer)
            }
            6 if !self.is_without_store => {
                self.is_divided = true;
                cut(Cut::Between(NODES[0], NODES[1]))
            }
            7 => {
                lab.restart_controller().unwrap();
                "the controller is killed".to_owned()
            }
            8 if self.down.is_none() => {
                self.down = Some(node);
                lab.link_down(node).unwrap();
                format!("{node}: interface off")
            }
            9 | 10 if self.frozen.insert(node) => {
                lab.freeze(node).unwrap();
                format!("{node}: agent frozen")
            }
            _ => {
                self.frozen.remove(node);
                lab.restart_agent(node).unwrap();
                format!("{node}: agent killed")
            }
        }
    }

    fn mend(&mut self, lab: &TestLab) {
        lab.mend().unwrap();
        let trouble = std::mem::take(self);
        for node in trouble.frozen {
            lab.thaw(node).unwrap();
        }
        if let Some(node) = trouble.down {
            lab.link_up(node).unwrap();
        }
    }
}

fn steps() -> usize {
    match std::env::var_os("EGRESSNAT_LONG") {
        Some(_) => 200,
        None => 10,
    }
}

#[test]
fn whatever_is_cut_off_frozen_or_killed_one_node_at_most_uses_an_address_and_it_flows_again_e31_e33_e43()
 {
    let seed = std::env::var(SEED).map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    let mut rng = Rng::with_seed(seed);
    let lab = TestLab::cluster(&[]);
    let wire = Wire::listen(&lab);
    let _asking = lab.listen();
    let traffic = ["frontend-0", "frontend-1"]
        .map(|name| Traffic::start(&lab.namespace(&pod(name)).unwrap(), SERVER).unwrap());
    let start = Instant::now();
    let mut told = vec![format!("{SEED}={seed}")];
    let mut trouble = Trouble::default();
    for _ in 0..steps() {
        let what = match rng.usize(..5) {
            0 => {
                trouble.mend(&lab);
                "mended".to_owned()
            }
            _ => trouble.add(&lab, &mut rng),
        };
        told.push(format!("{:.1?} {what}", start.elapsed()));
        std::thread::sleep(Duration::from_millis(rng.u64(100..3000)));
    }
    trouble.mend(&lab);
    let mended = Instant::now();
    told.push(format!("{:.1?} mended", start.elapsed()));
    let flows = traffic
        .iter()
        .try_for_each(|traffic| traffic.wait_for_answers(10, PATIENCE));
    let took = mended.elapsed();
    let uses = wire.uses();
    for one in &uses {
        let [from, to] = [one.from, one.to].map(|at| at - start);
        told.push(format!(
            "{from:.1?} to {to:.1?} {} uses it",
            NODES[one.node]
        ));
    }
    let told = told.join("\n");
    eprintln!("{told}\nflows after {took:.1?}");
    assert!(!uses.is_empty(), "nothing was seen on the wire");
    assert!(two_owners(&uses).is_none(), "two owners\n{told}");
    flows.unwrap_or_else(|error| panic!("{error}\n{told}"));
    for traffic in traffic {
        let observed = traffic.finish().unwrap();
        assert_eq!(observed.sources, [FLOATING].into(), "{told}");
    }
    for name in ["frontend-0", "frontend-1"] {
        lab.until_seen_as(&pod(name), FLOATING);
    }
}

/// A frame to everybody, of a type and with what is in it.
fn frame(kind: [u8; 2], rest: &[u8]) -> Vec<u8> {
    [&[0xff; 6][..], &[2; 6], &kind, rest].concat()
}

#[test]
fn who_sends_with_an_address_or_says_in_arp_that_it_has_it_uses_it_and_who_asks_for_it_does_not() {
    let (floating, router) = (FLOATING.octets(), [192, 168, 1, 254]);
    for (from, to, is_its_use) in [(floating, router, true), (router, floating, false)] {
        let packet = [&[0x45; 12][..], &from, &to].concat();
        assert_eq!(is_use(&frame([8, 0], &packet)), is_its_use);
        let arp = [&[0; 8][..], &[2; 6], &from, &[0; 6], &to].concat();
        assert_eq!(is_use(&frame([8, 6], &arp)), is_its_use);
    }
}

/// Without this, that nobody is seen would show nothing.
#[test]
fn two_nodes_that_use_an_address_at_once_are_seen_on_the_wire_e33() {
    let lab = TestLab::cluster(&[]);
    let (holder, other) = lab.holder_and_other();
    let wire = Wire::listen(&lab);
    // It asks again and again, and whoever has the address answers.
    let _asking = lab.listen();
    let seen = |name: &'static str| {
        let node = NODES.iter().position(|node| *node == name);
        wire.uses().iter().any(|one| Some(one.node) == node)
    };
    let holder = NODES.into_iter().find(|node| *node == holder).unwrap();
    until("the holder to be seen", PATIENCE, || {
        seen(holder).then_some(())
    })
    .unwrap();
    assert!(!seen(other));
    assert!(two_owners(&wire.uses()).is_none());
    let add = [
        "ip",
        "addr",
        "add",
        &format!("{FLOATING}/32"),
        "dev",
        "eth0",
    ];
    lab.told(other, &add);
    let told = || two_owners(&wire.uses());
    let [one, another] = until("two owners to be seen", PATIENCE, told).unwrap();
    let both = BTreeSet::from([one.node, another.node].map(|node| NODES[node]));
    assert_eq!(both, [holder, other].into());
}
