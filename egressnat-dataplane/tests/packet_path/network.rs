//! A small cluster of network namespaces: two nodes with pods, a bridge, and a server outside that tells its clients which
//! address it saw.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use egressnat_core::model::*;
use egressnat_core::{Assignment, NodePlan, Report, plan_node};
use egressnat_dataplane::{Attachment, Config, Dataplane};

pub(crate) const FLOATING: &str = "192.168.1.100";
pub(crate) const SERVER: &str = "8.8.8.8";
pub(crate) const OTHER_SERVER: &str = "9.9.9.9";
const PORT: u16 = 80;
const DEADLINE: Duration = Duration::from_secs(10);

/// Nodes are `n1` and `n2`, with the pods `10.10.1.2`, `10.10.1.3` and `10.10.2.2`, `10.10.2.3`. Those that end in 2 are
/// selected for 8.8.8.0/24.
pub(crate) struct Network {
    prefix: String,
    namespaces: Vec<String>,
    bpffs: tempfile::TempDir,
    /// How the nodes' programs are attached from now on.
    pub(crate) attachment: Attachment,
}

impl Network {
    pub(crate) fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests make network namespaces: run them as root ('make test')"
        );
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let bpffs = tempfile::tempdir().unwrap();
        let mut network = Self {
            prefix: format!("egdp{}x{count}", std::process::id()),
            namespaces: Vec::new(),
            bpffs,
            attachment: Attachment::Automatic,
        };
        run(&format!(
            "mount -t bpf bpf {}",
            network.bpffs.path().display()
        ));
        for name in ["lan", "out", "n1", "n2"] {
            network.add_namespace(name);
        }
        network.ip("lan", "link add br0 type bridge");
        network.ip("lan", "link set br0 up");
        for (name, address) in [
            ("out", "192.168.1.254"),
            ("n1", "192.168.1.1"),
            ("n2", "192.168.1.2"),
        ] {
            let (inside, lan) = (network.namespace(name), network.namespace("lan"));
            run(&format!(
                "ip link add eth0 netns {inside} type veth peer name p{name} netns {lan}"
            ));
            network.ip("lan", &format!("link set p{name} master br0 up"));
            network.ip(name, "link set eth0 up");
            network.ip(name, &format!("addr add {address}/24 dev eth0"));
            network.sysctl(name, "net.ipv4.ip_forward=1");
            network.sysctl(name, "net.ipv4.conf.all.rp_filter=1");
        }
        network.ip("out", &format!("addr add {SERVER}/32 dev lo"));
        network.ip("out", &format!("addr add {OTHER_SERVER}/32 dev lo"));
        for (node, other) in [(1, 2), (2, 1)] {
            network.ip(&format!("n{node}"), "route add default via 192.168.1.254");
            network.ip(
                &format!("n{node}"),
                &format!("route add 10.10.{other}.0/24 via 192.168.1.{other}"),
            );
            network.ip(
                "out",
                &format!("route add 10.10.{node}.0/24 via 192.168.1.{node}"),
            );
            network.add_pod(&format!("10.10.{node}.2"));
            network.add_pod(&format!("10.10.{node}.3"));
        }
        // Bound one by one, so that UDP answers come from the address that was asked.
        network.serve("out", SERVER);
        network.serve("out", OTHER_SERVER);
        network
    }

    pub(crate) fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    pub(crate) fn add_namespace(&mut self, name: &str) {
        let namespace = self.namespace(name);
        run(&format!("ip netns add {namespace}"));
        self.namespaces.push(namespace);
        self.ip(name, "link set lo up");
        // Nobody asks for a neighbor before its own link-local address is certain, which takes up to two seconds.
        let certain = ["all", "default"].map(|of| format!("net.ipv6.conf.{of}.accept_dad=0"));
        self.told(name, &format!("sysctl -qw {}", certain.join(" ")));
    }

    /// A plan of `n1` with one more pod, selected like its first. The pod has a namespace, and no interface yet.
    pub(crate) fn expect_pod(&mut self, address: &str) -> NodePlan {
        self.add_namespace(address);
        let mut plan = plan("n1", "n2");
        let set = plan.pods[&IpAddr::from([10, 10, 1, 2])];
        plan.pods.insert(address.parse().unwrap(), set);
        plan
    }

    /// A pod `10.10.NODE.N`, with a veth pair and a route of its own.
    pub(crate) fn add_pod(&mut self, address: &str) {
        self.add_namespace(address);
        self.connect_pod(address);
    }

    /// The veth pair and the route of a pod.
    pub(crate) fn connect_pod(&self, address: &str) {
        let octets = address.parse::<Ipv4Addr>().unwrap().octets();
        let node = format!("n{}", octets[2]);
        let (inside, outside) = (self.namespace(address), self.namespace(&node));
        let veth = format!("veth{}", octets[3]);
        let gateway = format!("10.10.{}.254", octets[2]);
        run(&format!(
            "ip link add eth0 netns {inside} type veth peer name {veth} netns {outside}"
        ));
        self.ip(&node, &format!("link set {veth} up"));
        self.ip(&node, &format!("addr add {gateway}/32 dev {veth}"));
        self.ip(&node, &format!("route add {address}/32 dev {veth}"));
        self.ip(address, "link set eth0 up");
        self.ip(address, &format!("addr add {address}/32 dev eth0"));
        self.ip(address, &format!("route add {gateway} dev eth0"));
        self.ip(address, &format!("route add default via {gateway}"));
    }

    /// Runs `ip` in a namespace and gives its output.
    pub(crate) fn ip(&self, name: &str, args: &str) -> String {
        run(&format!("ip -n {} {args}", self.namespace(name)))
    }

    /// Runs a command in a namespace and gives its output.
    pub(crate) fn exec(&self, name: &str, command: &str) -> String {
        run(&format!("ip netns exec {} {command}", self.namespace(name)))
    }

    /// Runs a line of shell in a namespace and gives what it says, whether it fails or not.
    pub(crate) fn told(&self, name: &str, line: &str) -> String {
        let netns = ["netns", "exec", &self.namespace(name), "sh", "-c", line];
        let output = Command::new("ip").args(netns).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&said).into_owned()
    }

    /// Runs a line of shell in a namespace.
    pub(crate) fn shell(&self, name: &str, line: &str) {
        let netns = ["netns", "exec", &self.namespace(name), "sh", "-c", line];
        let output = Command::new("ip").args(netns).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
    }

    /// Work to be done in a namespace later, on another thread: `ip` commands and the like that may fail.
    pub(crate) fn outside(
        &self,
        name: &str,
        work: impl FnOnce(&dyn Fn(&str)) + Send + 'static,
    ) -> impl FnOnce() + Send + 'static {
        let namespace = self.namespace(name);
        move || {
            work(&|command| {
                try_run(&format!("ip netns exec {namespace} {command}"));
            });
        }
    }

    pub(crate) fn sysctl(&self, name: &str, setting: &str) {
        self.exec(name, &format!("sysctl -qw {setting}"));
    }

    /// Runs a function in a namespace, on a thread of its own.
    pub(crate) fn enter<T: Send + 'static>(
        &self,
        name: &str,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        match self.start(name, run).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// The same without waiting for its end.
    pub(crate) fn start<T: Send + 'static>(
        &self,
        name: &str,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let file = File::open(format!("/run/netns/{}", self.namespace(name))).unwrap();
        thread::spawn(move || {
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            run()
        })
    }

    /// TCP and UDP servers on port 80 of an address of a namespace that tell each client its address.
    pub(crate) fn serve(&self, name: &str, address: &str) {
        let address = SocketAddr::from((address.parse::<IpAddr>().unwrap(), PORT));
        let (tcp, udp) = self.enter(name, move || {
            (
                TcpListener::bind(address).unwrap(),
                UdpSocket::bind(address).unwrap(),
            )
        });
        // Both end with the test process.
        thread::spawn(move || {
            for stream in tcp.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    let mut byte = [0];
                    let peer = stream.peer_addr().unwrap();
                    while stream.read(&mut byte).is_ok_and(|length| length == 1) {
                        if writeln!(stream, "{}", peer.ip()).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 16];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                udp.send_to(format!("{}\n", peer.ip()).as_bytes(), peer)
                    .unwrap();
            }
        });
    }

    /// Connects from a namespace. Fails after a second without an answer.
    pub(crate) fn connect(&self, from: &str, to: &str) -> Option<Connection> {
        let to = SocketAddr::from((to.parse::<IpAddr>().unwrap(), PORT));
        self.enter(from, move || {
            let stream = TcpStream::connect_timeout(&to, Duration::from_secs(1)).ok()?;
            stream
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            stream.set_nodelay(true).unwrap();
            Some(Connection(stream))
        })
    }

    /// The address that a TCP server sees a client at.
    pub(crate) fn seen_by_tcp(&self, from: &str, to: &str) -> Option<String> {
        self.connect(from, to)?.ask()
    }

    /// The address that a UDP server sees a client at.
    pub(crate) fn seen_by_udp(&self, from: &str, to: &str) -> Option<String> {
        let to = SocketAddr::from((to.parse::<IpAddr>().unwrap(), PORT));
        self.enter(from, move || {
            let socket = UdpSocket::bind(any(to)).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_secs(1)))
                .unwrap();
            socket.send_to(b"?", to).unwrap();
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..length]).trim().to_owned())
        })
    }

    /// Sends UDP datagrams from a namespace to port 80 as fast as it can, until it is dropped. Starts before it returns, whether
    /// there is a network yet or not.
    pub(crate) fn send(&self, from: &str, to: &str) -> Sender {
        self.send_every(from, to, Duration::ZERO)
    }

    /// As `send`, with a pause between datagrams, for tests that need the machine for something else too.
    pub(crate) fn send_every(&self, from: &str, to: &str, pause: Duration) -> Sender {
        let to = SocketAddr::from((to.parse::<IpAddr>().unwrap(), PORT));
        let socket = self.enter(from, move || UdpSocket::bind(any(to)).unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&stop);
        thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                let _ = socket.send_to(b"?", to);
                match pause {
                    Duration::ZERO => thread::yield_now(),
                    pause => thread::sleep(pause),
                }
            }
        });
        Sender(stop)
    }

    /// Counts packets that come into a namespace and match, under a name.
    pub(crate) fn count(&self, name: &str, counter: &str, matches: &str) {
        for command in [
            "add table ip watch".to_owned(),
            "add chain ip watch in { type filter hook prerouting priority -400 ; }".to_owned(),
            format!("add counter ip watch {counter}"),
            format!("add rule ip watch in {matches} counter name {counter}"),
        ] {
            self.exec(name, &format!("nft {command}"));
        }
    }

    /// What a counter of a table has by now.
    pub(crate) fn counted(&self, name: &str, table: &str, counter: &str) -> u64 {
        self.counted_in(name, &format!("ip {table}"), counter)
    }

    /// The same of a table with its family.
    pub(crate) fn counted_in(&self, name: &str, table: &str, counter: &str) -> u64 {
        let text = self.exec(name, &format!("nft list counter {table} {counter}"));
        let mut words = text.split_whitespace();
        words.find(|word| *word == "packets");
        words.next().unwrap().parse().unwrap()
    }

    /// Whether an echo request is answered.
    pub(crate) fn is_pinged(&self, from: &str, to: &str) -> bool {
        let namespace = self.namespace(from);
        let ping = ["netns", "exec", &namespace, "ping", "-c1", "-W1", "-q", to];
        Command::new("ip")
            .args(ping)
            .output()
            .unwrap()
            .status
            .success()
    }

    /// The configuration of a node.
    pub(crate) fn config(&self, node: &str) -> Config {
        let bpffs = self.bpffs.path().join(node);
        std::fs::create_dir_all(&bpffs).unwrap();
        Config {
            bpffs,
            attachment: self.attachment,
            ..Config::default()
        }
    }

    /// Where a node pins its programs and maps.
    pub(crate) fn pins(&self, node: &str) -> PathBuf {
        self.bpffs.path().join(node).join("egressnat")
    }

    /// Opens a node's packet path and hands it to `work`.
    pub(crate) fn open<T: Send + 'static>(
        &self,
        node: &str,
        work: impl AsyncFnOnce(Dataplane) -> T + Send + 'static,
    ) -> T {
        self.open_with(node, self.config(node), work)
    }

    /// As `open`, with a configuration of one's own.
    pub(crate) fn open_with<T: Send + 'static>(
        &self,
        node: &str,
        config: Config,
        work: impl AsyncFnOnce(Dataplane) -> T + Send + 'static,
    ) -> T {
        self.enter(node, move || {
            runtime().block_on(async { work(Dataplane::open(config).await.unwrap()).await })
        })
    }

    /// Forgets everything of ours on a node, but what is on a disk.
    pub(crate) fn reboot(&self, node: &str) {
        let config = self.config(node);
        let report = self.enter(node, move || {
            runtime().block_on(egressnat_dataplane::cleanup(&config))
        });
        assert_eq!(report.failures, []);
    }

    /// Opens a node's packet path, applies a plan, and lets go of it.
    pub(crate) fn apply(&self, node: &str, plan: NodePlan) -> Report {
        self.open(node, async move |mut dataplane| {
            dataplane.apply(&plan).await
        })
    }

    /// Applies to both nodes what they must have when `holder` has the floating IP.
    pub(crate) fn apply_all(&self, holder: &str) {
        // Who gives an address away is first, as in a planned move.
        let mut nodes = ["n1", "n2"];
        nodes.sort_by_key(|node| *node == holder);
        for node in nodes {
            let report = self.apply(node, plan(node, holder));
            assert_eq!(report.failures, [], "{node}");
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            try_run(&format!("ip netns del {namespace}"));
        }
        try_run(&format!("umount {}", self.bpffs.path().display()));
    }
}

/// Ends the sending when dropped.
pub(crate) struct Sender(Arc<AtomicBool>);

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A TCP connection to one of the servers.
pub(crate) struct Connection(TcpStream);

impl Connection {
    /// Which address the server has for this connection.
    pub(crate) fn ask(&mut self) -> Option<String> {
        self.ask_often(1)
    }

    /// Asks so many times at once, and gives the first answer.
    pub(crate) fn ask_often(&mut self, times: usize) -> Option<String> {
        self.0.write_all(&vec![b'?'; times]).ok()?;
        let mut answer = Vec::new();
        let mut byte = [0];
        while self.0.read(&mut byte).ok()? == 1 && byte != *b"\n" {
            answer.push(byte[0]);
        }
        String::from_utf8(answer).ok()
    }
}

/// The cluster as objects tell it.
pub(crate) fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for index in 1..=2u8 {
        let mut entry = Node::new(Health::Up);
        entry.addresses.insert(IpAddr::from([192, 168, 1, index]));
        entry.subnets.insert("192.168.1.0/24".parse().unwrap());
        entry
            .pod_ranges
            .insert(format!("10.10.{index}.0/24").parse().unwrap());
        let name: NodeName = format!("n{index}").parse().unwrap();
        for (host, role) in [(2, "frontend"), (3, "backend")] {
            let mut pod = Pod::new(name.clone());
            pod.ips = BTreeSet::from([IpAddr::from([10, 10, index, host])]);
            pod.labels = Labels::from([("role".to_owned(), role.to_owned())]);
            let key = PodKey::new(
                "alice".parse().unwrap(),
                format!("pod-{index}-{host}").parse().unwrap(),
            );
            snapshot.pods.insert(key, pod);
        }
        snapshot.nodes.insert(name, entry);
    }
    snapshot
        .namespaces
        .insert("alice".parse().unwrap(), Labels::new());
    let key = GatewayKey::group("kube-system".parse().unwrap(), "default".parse().unwrap());
    let floating: IpAddr = FLOATING.parse().unwrap();
    snapshot
        .gateways
        .insert(key.clone(), Gateway::new([floating]));
    let mut source = Source::everything();
    source.pods = egressnat_core::selector::Selector::from_labels([("role", "frontend")]);
    let policy = Policy::snat(
        [source],
        ["8.8.8.0/24".parse().unwrap()],
        EgressSource::from(&key),
    );
    snapshot.policies.insert("egress".parse().unwrap(), policy);
    snapshot
}

/// What a node must have when `holder` has the floating IP, from the planner itself.
pub(crate) fn plan(node: &str, holder: &str) -> NodePlan {
    planned(&snapshot(), node, &[(FLOATING, holder)])
}

/// What a node must have when floating IPs are held like this.
pub(crate) fn planned(snapshot: &Snapshot, node: &str, holders: &[(&str, &str)]) -> NodePlan {
    let mut assignment = Assignment::default();
    for (floating, holder) in holders {
        let holder = holder.parse().unwrap();
        assignment.nodes.insert(floating.parse().unwrap(), holder);
    }
    plan_node(snapshot, &assignment, &node.parse().unwrap()).plan
}

/// Any port of the family of an address.
fn any(of: SocketAddr) -> SocketAddr {
    match of {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// A runtime as the agent has it.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Waits until a condition holds, at most ten seconds.
pub(crate) fn eventually<T: PartialEq + std::fmt::Debug>(want: T, mut read: impl FnMut() -> T) {
    let start = Instant::now();
    loop {
        let now = read();
        if now == want {
            return;
        }
        assert!(
            start.elapsed() < DEADLINE,
            "still {now:?} after {DEADLINE:?}, not {want:?}"
        );
        thread::yield_now();
    }
}

pub(crate) fn run(command: &str) -> String {
    let output = try_run(command);
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn try_run(command: &str) -> std::process::Output {
    let mut words = command.split_whitespace();
    Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap()
}
