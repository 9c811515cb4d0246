//! A segment that falls apart, and a store that is out of reach: never two owners of an address (E33), as `docs/design/0009` and
//! `0017` say.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use egressnat_lab::Cut;
use egressnat_lab::probe::Traffic;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;

/// Longer than two leases of an agent, and than two of a controller.
const LONG: Duration = Duration::from_secs(11);

/// What the router hears of whoever uses .100, which it asks for again and again.
pub(super) struct Listener {
    capture: Child,
    pinging: Child,
    heard: Arc<Mutex<Vec<String>>>,
    /// Ends with this.
    _forgetting: Sender<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        for child in [&mut self.capture, &mut self.pinging] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl TestLab {
    /// With a real API server, the seeds' v1 manifests, and .100 in use.
    pub(super) fn cluster(agents: &[&str]) -> Self {
        let lab = Self::new();
        let options = UpOptions {
            manifests: vec![examples("v1")],
            objects: egressnat_lab::ObjectPlace::ApiServer,
            agents: agents.iter().map(|one| (*one).to_owned()).collect(),
            ..UpOptions::default()
        };
        assert_eq!(lab.up(&options).unwrap(), [""; 0]);
        for name in ["frontend-0", "frontend-1"] {
            lab.until_seen_as(&pod(name), FLOATING);
        }
        lab
    }

    /// The holder, and the worker that is not.
    pub(super) fn holder_and_other(&self) -> (String, &'static str) {
        let holder = self.holder();
        let other = ["worker1", "worker2"]
            .into_iter()
            .find(|node| **node != holder);
        (holder, other.unwrap())
    }

    pub(super) fn listen(&self) -> Listener {
        let router = Target::Router;
        // Of whoever says in ARP to have the address, and of whoever sends with it.
        let filter = format!("src host {FLOATING}");
        let mut capture = self.capture(&router, &["-e", "-i", "eth0", &filter]);
        let lines = BufReader::new(capture.stdout.take().unwrap()).lines();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&heard);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                all.lock().unwrap().push(line);
            }
        });
        let mut pinging = self.command(&router, "ping").unwrap();
        pinging.args(["-q", "-i", "0.05", &FLOATING.to_string()]);
        let pinging = pinging.stdout(Stdio::null()).spawn().unwrap();
        let (forgetting, is_over) = channel::<()>();
        let lab = self.0.clone();
        std::thread::spawn(move || {
            let pause = Duration::from_millis(200);
            while is_over.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let address = FLOATING.to_string();
                let forget = ["ip", "neigh", "del", &address, "dev", "eth0"];
                // It may not be there.
                let _ = lab.output(&Target::Router, &forget);
            }
        });
        let has_heard = || (heard.lock().unwrap().len() > 3).then_some(());
        until("the holder to be heard", PATIENCE, has_heard).unwrap();
        Listener {
            capture,
            pinging,
            heard,
            _forgetting: forgetting,
        }
    }

    /// The link-layer address of a node.
    pub(super) fn mac(&self, node: &str) -> String {
        let link = self.told(node, &["ip", "-o", "link", "show", "eth0"]);
        let mac = link.split("link/ether ").nth(1).unwrap();
        mac.split(' ').next().unwrap().to_owned()
    }

    /// Who used the address, one after the other, as far as the router heard it.
    fn owners(&self, listener: &Listener) -> Vec<String> {
        let nodes = ["worker1", "worker2", "control-plane"];
        let nodes = nodes.map(|name| (self.mac(name), name.to_owned()));
        let nodes = BTreeMap::from(nodes);
        let mut owners: Vec<String> = Vec::new();
        for line in listener.heard.lock().unwrap().iter() {
            let owner = nodes.get(line.split(' ').nth(1).unwrap());
            let owner = owner.unwrap_or_else(|| panic!("{line}: of nobody"));
            if owners.last() != Some(owner) {
                owners.push(owner.clone());
            }
        }
        owners
    }

    /// Waits until `new` uses the address, which `old` may not do from then on.
    fn until_taken(&self, old: &str, new: &str) {
        until("the next holder", PATIENCE, || {
            // In this order: what the first has given up it does not get back.
            let is_taken = self.is_used_on(new);
            assert!(!(is_taken && self.is_used_on(old)), "two owners");
            is_taken.then_some(())
        })
        .unwrap();
    }

    /// Checks for so long that the address is used by this node and by no other worker.
    fn stays_on(&self, holder: &str, other: &str, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            assert!(self.is_used_on(holder), "{holder} has let go");
            assert!(!self.is_used_on(other), "{other} has it, too");
        }
    }

    /// Stops the API server, or lets it go on.
    fn signal_api_server(&self, signal: Signal) {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let is_server = |line: &str| {
            let program = line.split('\0').next().unwrap_or_default();
            program.ends_with("kube-apiserver") && line.contains(self.name())
        };
        let servers: Vec<i32> = entries
            .filter_map(|entry| {
                let line = std::fs::read(entry.path().join("cmdline")).ok()?;
                is_server(&String::from_utf8_lossy(&line)).then_some(())?;
                entry.file_name().to_str()?.parse().ok()
            })
            .collect();
        assert_eq!(servers.len(), 1);
        kill(Pid::from_raw(servers[0]), signal).unwrap();
    }
}

/// Ends traffic that has to be flowing, and has to have had one address all the time.
fn finish(traffic: Traffic) {
    traffic.wait_for_answers(10, PATIENCE).unwrap();
    let observed = traffic.finish().unwrap();
    eprintln!("{observed:?}");
    assert_eq!(observed.sources, [FLOATING].into());
}

#[test]
fn a_holder_that_is_cut_off_from_the_api_server_alone_goes_on_and_nobody_takes_its_address_e33() {
    let lab = TestLab::cluster(&[]);
    let (old, new) = lab.holder_and_other();
    let (_, away) = lab.beside_and_away();
    let traffic = Traffic::start(&lab.namespace(&away).unwrap(), SERVER).unwrap();
    let listener = lab.listen();
    lab.cut(Cut::FromApiServer(&old)).unwrap();
    // The controller hears nothing of it, and gives the address to the other, which finds it in use.
    until("another to be given the address", PATIENCE, || {
        assert!(!lab.is_used_on(new), "two owners");
        (lab.holder_by_status()? == new).then_some(())
    })
    .unwrap();
    lab.stays_on(&old, new, LONG);
    let answered = "another host answers for a floating IP";
    assert!(lab.log(&format!("agent-{new}")).contains(answered));
    traffic.wait_for_answers(10, PATIENCE).unwrap();
    // As soon as it reads what was decided meanwhile, it lets go.
    lab.mend().unwrap();
    lab.until_taken(&old, new);
    finish(traffic);
    assert_eq!(lab.owners(&listener), [old.as_str(), new]);
}

#[test]
fn a_holder_that_is_cut_off_from_everybody_falls_silent_before_the_next_has_its_address_e33() {
    let lab = TestLab::cluster(&[]);
    let (old, new) = lab.holder_and_other();
    let listener = lab.listen();
    lab.cut(Cut::Off(&old)).unwrap();
    lab.until_taken(&old, new);
    lab.until_seen_as(&on(new), FLOATING);
    lab.mend().unwrap();
    lab.stays_on(new, &old, LONG);
    for node in [&old, new] {
        lab.until_seen_as(&on(node), FLOATING);
    }
    assert_eq!(lab.owners(&listener), [old.as_str(), new]);
    assert_eq!(lab.holder(), new, "E32");
}

#[test]
fn a_holder_that_hears_nobody_is_silent_before_the_next_has_its_address_e33() {
    let lab = TestLab::cluster(&[]);
    let (old, new) = lab.holder_and_other();
    let listener = lab.listen();
    lab.cut(Cut::Deaf(&old)).unwrap();
    lab.until_taken(&old, new);
    lab.until_seen_as(&on(new), FLOATING);
    // It is heard all the time, so the router would hear it claim the address.
    lab.stays_on(new, &old, LONG);
    lab.mend().unwrap();
    lab.until_seen_as(&on(&old), FLOATING);
    assert_eq!(lab.owners(&listener), [old.as_str(), new]);
}

#[test]
fn without_an_api_server_for_longer_than_every_lease_traffic_goes_on_where_it_was_e33_e45() {
    let lab = TestLab::cluster(&[]);
    let (holder, other) = lab.holder_and_other();
    let (_, away) = lab.beside_and_away();
    let traffic = Traffic::start(&lab.namespace(&away).unwrap(), SERVER).unwrap();
    let listener = lab.listen();
    lab.signal_api_server(Signal::SIGSTOP);
    lab.stays_on(&holder, other, LONG);
    lab.signal_api_server(Signal::SIGCONT);
    lab.stays_on(&holder, other, LONG);
    finish(traffic);
    assert_eq!(lab.owners(&listener), [holder.as_str()]);
    assert_eq!(lab.holder(), holder);
}

#[test]
fn with_release_an_outage_of_the_api_server_silences_the_address_until_it_is_over_e33_e43() {
    let lab = TestLab::cluster(&["--store-outage", "release"]);
    let (holder, other) = lab.holder_and_other();
    let (beside, away) = lab.beside_and_away();
    lab.signal_api_server(Signal::SIGSTOP);
    until("silence", PATIENCE, || {
        assert!(!lab.is_used_on(other), "two owners");
        (!lab.is_used_on(&holder)).then_some(())
    })
    .unwrap();
    // The policy is strict: no other address instead.
    for target in [&beside, &away] {
        assert_eq!(lab.seen(target, Protocol::Udp).ok(), None, "{target}");
    }
    lab.signal_api_server(Signal::SIGCONT);
    for target in [&beside, &away] {
        lab.until_seen_as(target, FLOATING);
    }
}

#[test]
fn a_control_plane_that_no_node_reaches_leaves_addresses_in_use_and_grants_them_anew_after_it_e33()
{
    let lab = TestLab::cluster(&[]);
    let (holder, other) = lab.holder_and_other();
    let (_, away) = lab.beside_and_away();
    let traffic = Traffic::start(&lab.namespace(&away).unwrap(), SERVER).unwrap();
    let listener = lab.listen();
    // Its controller takes all nodes for dead, and can give their addresses to nobody.
    lab.cut(Cut::ApiServer).unwrap();
    lab.stays_on(&holder, other, LONG);
    traffic.wait_for_answers(10, PATIENCE).unwrap();
    lab.mend().unwrap();
    until("an owner", PATIENCE, || {
        let used = [&holder, other].map(|node| lab.is_used_on(node));
        assert_ne!(used, [true, true], "two owners");
        lab.is_used_on(&lab.holder_by_status()?).then_some(())
    })
    .unwrap();
    finish(traffic);
    let owners = lab.owners(&listener);
    let distinct: BTreeSet<&String> = owners.iter().collect();
    assert_eq!(owners.len(), distinct.len(), "to and fro: {owners:?}");
}

#[test]
fn an_interface_that_was_switched_off_and_on_takes_no_address_back_e32_e33() {
    let lab = TestLab::cluster(&[]);
    let (old, new) = lab.holder_and_other();
    let listener = lab.listen();
    lab.link_down(&old).unwrap();
    lab.until_taken(&old, new);
    lab.link_up(&old).unwrap();
    lab.stays_on(new, &old, LONG);
    for node in [&old, new] {
        lab.until_seen_as(&on(node), FLOATING);
    }
    assert_eq!(lab.owners(&listener), [old.as_str(), new]);
    assert_eq!(lab.holder(), new);
}
