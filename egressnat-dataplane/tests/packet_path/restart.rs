//! E45: an agent that is killed and started again loses no packet, and writes nothing that is right.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Map, MapData};
use egressnat_dataplane::{Config, Dataplane};

use crate::leaks::rounds;
use crate::network::{FLOATING, Network, eventually, plan, runtime};
use crate::side::{self, SIDES, Side};
use crate::traffic::address;

/// Nobody answers there, so that all that is measured is one way.
const PORT: u16 = 9;

/// What the process that is killed is told by.
const NODE: &str = "EGRESSNAT_TEST_NODE";
const HOLDER: &str = "EGRESSNAT_TEST_HOLDER";
const BPFFS: &str = "EGRESSNAT_TEST_BPFFS";

/// Not a test: the agent of the test below, in a process of its own, which ends by being killed.
#[test]
fn agent_process() {
    let (Ok(node), Ok(holder)) = (std::env::var(NODE), std::env::var(HOLDER)) else {
        return;
    };
    let config = Config {
        bpffs: std::env::var_os(BPFFS).unwrap().into(),
        ..Config::default()
    };
    runtime().block_on(async {
        let mut dataplane = Dataplane::open(config).await.unwrap();
        loop {
            let report = dataplane.apply(&side::plan(&node, &holder)).await;
            let (changes, failures) = (report.changes, report.failures.len());
            writeln!(std::io::stdout(), "applied {changes} {failures}").unwrap();
            dataplane.changed().await;
        }
    });
}

/// An agent in a process of its own, which is killed when this is dropped.
pub(crate) struct Agent {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Agent {
    pub(crate) fn start(network: &Network, node: &str, holder: &str) -> Self {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &network.namespace(node)])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "restart::agent_process", "--nocapture"])
            .env(NODE, node)
            .env(HOLDER, holder)
            .env(BPFFS, network.config(node).bpffs)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// How much the next plan wrote, and how much failed.
    pub(crate) fn applied(&mut self) -> [u64; 2] {
        loop {
            let mut line = String::new();
            assert!(self.lines.read_line(&mut line).unwrap() > 0, "it ended");
            if let Some((_, numbers)) = line.trim().split_once("applied ") {
                let mut numbers = numbers.split(' ').map(|number| number.parse().unwrap());
                return [numbers.next().unwrap(), numbers.next().unwrap()];
            }
        }
    }

    /// Stops it between any two instructions, to go on when it is thawed.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
        eventually(true, || self.is_frozen());
    }

    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
        eventually(false, || self.is_frozen());
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([name, &id]).status();
        assert!(sent.unwrap().success());
    }

    fn is_frozen(&self) -> bool {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        state.unwrap().contains(") T ")
    }

    /// SIGKILL, between any two instructions. What it said until then.
    fn kill(mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        rest
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How many datagrams a stream sends a second.
const RATE: u64 = 10_000;

/// Sends datagrams, and counts them.
pub(crate) struct Stream {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    sent: Arc<AtomicU64>,
}

impl Stream {
    pub(crate) fn start(network: &Network, side: &Side, from: &str, rate: u64) -> Self {
        let socket = network.udp(from, 0, address(side.server, PORT));
        let (stop, sent) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (is_over, counted) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = thread::spawn(move || {
            let start = Instant::now();
            while !is_over.load(Ordering::Relaxed) {
                // As many as are due by now, never more than ten at once.
                let due = start.elapsed().as_micros() as u64 * rate / 1_000_000;
                let late = due.saturating_sub(counted.load(Ordering::Relaxed));
                for _ in 0..late.min(10) {
                    socket.send(b"?").unwrap();
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                thread::sleep(Duration::from_micros(500));
            }
        });
        Self {
            stop,
            thread: Some(thread),
            sent,
        }
    }

    /// How many were sent in all.
    fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Network {
    /// Counts the datagrams of a stream at the server, by whether they have the floating IP.
    pub(crate) fn sink(&self, side: &Side) {
        let (family, floating) = (side.family(), side.floating);
        // What is counted needs no answer, not even that there is nobody.
        for command in [
            format!("add table {family} sink"),
            format!("add chain {family} sink in {{ type filter hook prerouting priority -300 ; }}"),
            format!("add counter {family} sink translated"),
            format!("add counter {family} sink other"),
            format!(
                "add rule {family} sink in {family} saddr {floating} udp dport {PORT} counter name translated drop"
            ),
            format!("add rule {family} sink in udp dport {PORT} counter name other drop"),
        ] {
            self.exec("out", &format!("nft {command}"));
        }
    }

    fn sunk(&self, side: &Side, counter: &str) -> u64 {
        self.counted_in("out", &format!("{} sink", side.family()), counter)
    }

    pub(crate) fn arrived(&self, side: &Side) -> u64 {
        self.sunk(side, "translated")
    }

    /// Waits for all of a stream, none of which has another address, and gives how many there were.
    pub(crate) fn finish(&self, side: &Side, stream: Stream) -> u64 {
        let sent = stream.finish();
        eventually(sent, || self.arrived(side));
        assert_eq!(self.sunk(side, "other"), 0);
        sent
    }
}

#[test]
fn an_agent_that_is_killed_again_and_again_loses_nothing_and_rewrites_nothing() {
    kill_again_and_again("n2");
}

#[test]
fn nor_does_one_whose_node_has_the_floating_ips_itself() {
    kill_again_and_again("n1");
}

/// Kills the agents of both nodes while a pod of `n1` sends.
fn kill_again_and_again(holder: &str) {
    let network = Network::held_by(holder);
    for side in &SIDES {
        network.sink(side);
    }
    let mut agents = ["n1", "n2"].map(|node| Some(Agent::start(&network, node, holder)));
    for agent in agents.iter_mut().flatten() {
        assert_eq!(agent.applied(), [0, 0]);
    }
    let start = Instant::now();
    let streams = SIDES.each_ref().map(|side| {
        // Half for each family.
        (side, Stream::start(&network, side, "10.10.1.2", RATE / 2))
    });
    for restart in 0..rounds() {
        for (node, agent) in ["n1", "n2"].into_iter().zip(&mut agents) {
            let before = SIDES.each_ref().map(|side| network.arrived(side));
            let said = agent.take().unwrap().kill();
            let mut applied = said.lines().filter(|line| line.contains("applied "));
            assert!(applied.all(|line| line.ends_with("applied 0 0")), "{said}");
            let mut next = Agent::start(&network, node, holder);
            assert_eq!(next.applied(), [0, 0], "{node}, restart {restart}");
            *agent = Some(next);
            for (side, before) in SIDES.iter().zip(before) {
                eventually(true, || network.arrived(side) > before + 100);
            }
        }
    }
    let elapsed = start.elapsed();
    let sent = streams.map(|(side, stream)| network.finish(side, stream));
    let counted = ["egress", "egress6"].map(|policy| network.policy(policy).sent.packets);
    assert_eq!(counted, sent, "one count through all runs");
    eprintln!(
        "{sent:?} sent in {elapsed:?}, all of them translated, {} kills of each of two agents",
        rounds()
    );
}

#[test]
fn a_table_of_an_older_layout_is_taken_over_under_traffic_with_its_deadlines() {
    let network = Network::new();
    network.apply_all("n2");
    let side = &SIDES[0];
    network.sink(side);
    let address = FLOATING.parse().unwrap();
    network.open("n2", async move |dataplane| {
        let deadline = Instant::now() + Duration::from_secs(60);
        dataplane
            .deadlines()
            .hold_until(&[address], deadline)
            .unwrap();
    });
    // As the version before wrote it: fewer chains, and nobody's.
    for node in ["n1", "n2"] {
        let table = network.exec(node, "nft list table ip egressnat");
        let older = table.replace("egressnat layout ", "egressnat layout older than ");
        // An nft that is older than the kernel has no word for a table that lasts, and reads no mark as a zone, though it says so itself.
        let is_read = |line: &&str| !line.starts_with("\tflags ") && !line.contains(" zone set ");
        let lines = older.lines().filter(is_read);
        let older: String = lines.map(|line| format!("{line}\n")).collect();
        let (before, rest) = older.split_once("\tchain input {").unwrap();
        let (_, after) = rest.split_once("\t}\n").unwrap();
        let ruleset = format!("delete table ip egressnat\n{before}{after}");
        network.load(node, &ruleset);
    }
    let stream = Stream::start(&network, side, "10.10.1.2", RATE);
    eventually(true, || network.arrived(side) > 1000);
    for node in ["n1", "n2"] {
        let report = network.apply(node, plan(node, "n2"));
        assert_eq!((report.changes, report.failures), (1, vec![]), "{node}");
        let table = network.exec(node, "nft list table ip egressnat");
        assert!(table.contains("chain input") && !table.contains("older"));
    }
    let before = network.arrived(side);
    eventually(true, || network.arrived(side) > before + 1000);
    network.finish(side, stream);
    let held = network.exec("n2", "nft list set ip egressnat held");
    assert!(held.contains(&format!("{FLOATING} timeout")), "{held}");
}

/// A key of `destinations` behind its prefix length: policy set and address.
type DestinationKey = [u8; 8];

#[test]
fn destinations_of_a_release_that_counted_no_policies_are_taken_over_under_traffic() {
    let network = Network::new();
    network.apply_all("n2");
    let side = &SIDES[0];
    network.sink(side);
    // As that release wrote them: without a policy, and all bits for what is dropped.
    let pins = network.pins("n1").join("v1");
    let map = Map::LpmTrie(MapData::from_pin(pins.join("destinations")).unwrap());
    let mut destinations: LpmTrie<_, DestinationKey, u32> = map.try_into().unwrap();
    let entries: Vec<_> = destinations.iter().map(Result::unwrap).collect();
    let decided = entries.iter().filter(|(_, value)| *value != 0).count();
    assert!(decided > 0);
    for (key, value) in &entries {
        let older = match value & 0xffff {
            0xffff => u32::MAX,
            index => index,
        };
        destinations.insert(key, older, 0).unwrap();
    }
    for map in ["policy_names", "policy_traffic"] {
        std::fs::remove_file(pins.join(map)).unwrap();
    }
    let stream = Stream::start(&network, side, "10.10.1.2", RATE);
    eventually(true, || network.arrived(side) > 1000);
    let report = network.apply("n1", plan("n1", "n2"));
    assert_eq!((report.changes, report.failures), (decided, vec![]));
    let before = network.policy("egress").sent.packets;
    eventually(true, || {
        network.policy("egress").sent.packets > before + 1000
    });
    network.finish(side, stream);
}
