//! Live packets through the kernel of a network namespace, on one core: how long each takes.
//!
//! `BPF_PROG_TEST_RUN` hands frames to the stack as if they came in on a pod's interface. A program at the end of the uplink counts
//! and drops them. A figure counts only if every packet arrived, with the addresses that it should have. Time is the thread's own:
//! what else runs on the machine disturbs caches, and is not counted.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use aya::maps::Array;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{
    LinkOrder, SchedClassifier, TcAttachType, TestRun, TestRunAttrs, TestRunOptions, Xdp,
};
use aya::{Ebpf, EbpfLoader};
use egressnat_core::gateway::EgressId;
use egressnat_core::{NodePlan, PolicySetId, Steering};
use egressnat_dataplane::{Config, Dataplane};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use nix::time::{ClockId, clock_gettime};

/// The programs that measure, and those that are compared with.
pub static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/bench.bpf.o"));

/// The pod that all packets come from.
pub const POD: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 2);
/// Where all packets go.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
/// This node.
pub const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
/// The egress IP.
pub const FLOATING: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 100);

const SET: PolicySetId = PolicySetId(7);
/// The mark of the first egress IP of a node, with the default mask.
const FIRST_MARK: u32 = 2 << 16;

const BATCH: u32 = 64;
const FRAME: usize = 64;
const ARRIVED: u32 = 1;
const RIGHT: u32 = 2;

/// Which flows the packets are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flows {
    /// So many, which take turns and have run for a while.
    Running(u32),
    /// Each packet is the first of its flow.
    New,
}

impl Flows {
    fn count(self) -> u32 {
        match self {
            Flows::Running(count) => count,
            Flows::New => u32::MAX,
        }
    }

    fn packets(self) -> u32 {
        match self {
            Flows::Running(_) => 200_000,
            Flows::New => 30_000,
        }
    }

    fn warm_up(self) -> u32 {
        match self {
            Flows::Running(count) => 2 * count.max(10_000),
            // The first of all flows in a namespace makes more than a flow.
            Flows::New => 100,
        }
    }
}

/// A node in a network namespace of its own, the one of the thread that it was made on.
pub struct Node {
    bpffs: Option<Bpffs>,
    attached: Vec<Ebpf>,
}

impl Node {
    /// Runs `work` on a new node, on a thread of its own. The namespace goes with the thread.
    ///
    /// # Panics
    ///
    /// Without root, and where `work` does.
    pub fn run<T: Send + 'static>(work: impl FnOnce(&mut Self) -> T + Send + 'static) -> T {
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run this as root");
            let mut node = Self {
                bpffs: None,
                attached: Vec::new(),
            };
            run("ip", &["-batch", "-"], NETWORK);
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding");
            work(&mut node)
        });
        match thread.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Adds a ruleset, in the language of nft.
    ///
    /// # Panics
    ///
    /// If nft refuses.
    pub fn nft(&self, text: &str) {
        run("nft", &["-f", "-"], text);
    }

    /// Puts our packet path in place.
    ///
    /// # Panics
    ///
    /// If anything of the plan fails.
    pub fn apply(&mut self, plan: &NodePlan) {
        let config = self.config();
        runtime().block_on(async {
            let mut dataplane = Dataplane::open(config).await.expect("a packet path");
            let report = dataplane.apply(plan).await;
            assert_eq!(report.failures, []);
        });
    }

    /// A configuration whose bpffs is this node's.
    ///
    /// # Panics
    ///
    /// If no bpffs can be mounted.
    pub fn config(&mut self) -> Config {
        let bpffs = self.bpffs.get_or_insert_with(Bpffs::mount);
        Config {
            bpffs: bpffs.0.path().to_owned(),
            ..Config::default()
        }
    }

    /// The textbook's way of steering: one table by source and destination, the tunnel's key, the kernel's VXLAN device.
    pub fn steer_by_the_textbook(&mut self) {
        run(
            "ip",
            &["-batch", "-"],
            "link add vxlan0 type vxlan external dstport 4789 nolearning\nlink set vxlan0 up\n",
        );
        let mut loader = EbpfLoader::new();
        let device = index("vxlan0");
        let mut ebpf = loader
            .override_global("TUNNEL_DEVICE", &device, true)
            .load(OBJECT)
            .expect("the object");
        let map = ebpf.map_mut("pairs").expect("a map");
        let mut pairs: LpmTrie<_, [[u8; 4]; 2], [u32; 2]> = map.try_into().expect("a trie");
        let network = Ipv4Addr::new(8, 8, 8, 0);
        let key = Key::new(32 + 24, [POD.octets(), network.octets()]);
        let vni = EgressId::of(IpAddr::V4(FLOATING)).vni();
        let pair = [u32::from(FLOATING), vni];
        pairs.insert(&key, pair, 0).expect("an entry");
        attach(&mut ebpf, "textbook", "pod0", TcAttachType::Ingress);
        self.attached.push(ebpf);
    }

    /// Marks packets as if they came out of the tunnel, and gives the interface the settings of the tunnel device.
    ///
    /// # Panics
    ///
    /// If there is no tunnel device.
    pub fn mark_as_decapsulated(&mut self) {
        for setting in ["rp_filter", "accept_local"] {
            let [tunnel, pod] = ["egressnat0", "pod0"]
                .map(|interface| format!("/proc/sys/net/ipv4/conf/{interface}/{setting}"));
            let value = fs::read(tunnel).expect("a setting of the tunnel device");
            fs::write(pod, value).expect("a setting");
        }
        let mut loader = EbpfLoader::new();
        let mut ebpf = loader
            .override_global("MARK", &FIRST_MARK, true)
            .load(OBJECT)
            .expect("the object");
        attach(&mut ebpf, "marked", "pod0", TcAttachType::Ingress);
        self.attached.push(ebpf);
    }

    /// Puts a program that does nothing where ours would be.
    pub fn do_nothing(&mut self) {
        let mut ebpf = Ebpf::load(OBJECT).expect("the object");
        attach(&mut ebpf, "nothing", "pod0", TcAttachType::Ingress);
        self.attached.push(ebpf);
    }

    /// Nanoseconds that a packet takes from the pod's interface to the end of the uplink, where it has to have these addresses.
    ///
    /// # Panics
    ///
    /// If one packet got lost, or leaves with other addresses: then there is no figure.
    pub fn measure(&mut self, flows: Flows, (from, to): (Ipv4Addr, Ipv4Addr)) -> f64 {
        let frame = frame();
        let [from, to] = [from, to].map(|address| u32::from_ne_bytes(address.octets()));
        let count = flows.count();
        let mut ebpf = EbpfLoader::new()
            .override_global("FRAME", &frame, true)
            .override_global("FLOWS", &count, true)
            .override_global("SEEN_FROM", &from, true)
            .override_global("SEEN_TO", &to, true)
            .load(OBJECT)
            .expect("the object");
        attach(&mut ebpf, "sink", "eth0", TcAttachType::Egress);
        let program = ebpf.program_mut("generate").expect("a program");
        let generate: &mut Xdp = program.try_into().expect("XDP");
        generate.load().expect("a program that the kernel takes");
        send(&ebpf, flows.warm_up());
        let before = counted(&mut ebpf);
        let start = thread_time();
        send(&ebpf, flows.packets());
        let took = thread_time() - start;
        let after = counted(&mut ebpf);
        let sent = u64::from(flows.packets());
        let [arrived, right] = [after[0] - before[0], after[1] - before[1]];
        assert_eq!(
            [arrived, right],
            [sent, sent],
            "of {sent}: arrived, as they should"
        );
        took.as_nanos() as f64 / sent as f64
    }
}

/// A pod's interface and an uplink, and neighbors that are known.
const NETWORK: &str = "\
link set lo up
link add pod0 address 02:00:00:00:00:01 type veth peer name pod1
link add eth0 address 02:00:00:00:00:03 type veth peer name eth1
link set pod0 up
link set pod1 up
link set eth0 up
link set eth1 up
addr add 10.10.1.254/32 dev pod0
route add 10.10.1.2/32 dev pod0
addr add 192.168.1.1/24 dev eth0
neigh add 192.168.1.254 lladdr 02:00:00:00:00:fe dev eth0
neigh add 192.168.1.100 lladdr 02:00:00:00:00:64 dev eth0
route add default via 192.168.1.254
";

/// The plan of a node whose pod is steered to the egress IP, or to a floating IP that the node holds itself.
pub fn plan(pod: Pod, holder: Holder) -> NodePlan {
    let mut plan = NodePlan::default();
    let range = "10.10.1.0/24".parse().expect("a range");
    let destination = "8.8.8.0/24".parse().expect("a range");
    match pod {
        Pod::Selected => plan.pods.insert(IpAddr::V4(POD), SET),
        Pod::Unselected => plan.pods.insert(IpAddr::V4(POD), PolicySetId::EMPTY),
        Pod::Elsewhere => None,
    };
    plan.destinations
        .insert((SET, destination), Steering::Snat(IpAddr::V4(FLOATING)));
    if holder == Holder::ThisNode {
        plan.floating_ips.insert(IpAddr::V4(FLOATING));
    }
    plan.guard_ranges.insert(destination);
    plan.pod_ranges.insert(range);
    plan.internal_ranges = [range, "192.168.1.1/32".parse().expect("a range")].into();
    plan
}

/// What a node knows about the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pod {
    /// A policy selects it.
    Selected,
    /// It is here, and no policy selects it.
    Unselected,
    /// It is on another node: its packets come out of the tunnel.
    Elsewhere,
}

/// Who has the floating IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// The node that is measured.
    ThisNode,
    /// Another one.
    Another,
}

/// A bpffs of its own.
struct Bpffs(tempfile::TempDir);

impl Bpffs {
    fn mount() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().display().to_string();
        run("mount", &["-t", "bpf", "bpf", &path], "");
        Self(directory)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let path = self.0.path().display().to_string();
        run("umount", &[&path], "");
    }
}

/// A UDP packet of the pod as it comes in, with ports that `generate` sets.
fn frame() -> [u64; FRAME / 8] {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00];
    let length = (FRAME - 14) as u8;
    let mut header = vec![0x45, 0, 0, length, 0, 0, 0, 0, 64, 17, 0, 0];
    header.extend(POD.octets());
    header.extend(SERVER.octets());
    let words = header
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes.extend(header);
    bytes.extend([0, 0, 0, 0, 0, length - 20, 0, 0]);
    bytes.resize(FRAME, 0);
    let words = bytes.chunks(8).map(|word| {
        let word = word.try_into().expect("eight bytes");
        u64::from_ne_bytes(word)
    });
    words.collect::<Vec<u64>>().try_into().expect("eight words")
}

fn send(ebpf: &Ebpf, packets: u32) {
    let program = ebpf.program("generate").expect("a program");
    let generate: &Xdp = program.try_into().expect("XDP");
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context = [0, FRAME as u32, 0, index("pod0"), 0, 0].map(u32::to_ne_bytes);
    let mut options = TestRunOptions::new();
    options.data_in = Some(&[0; FRAME]);
    options.ctx_in = Some(context.as_flattened());
    options.repeat = packets;
    options.attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
    generate.test_run(options).expect("a run");
}

/// How many packets arrived at the end of the uplink, and how many of them as they should.
fn counted(ebpf: &mut Ebpf) -> [u64; 2] {
    let map = ebpf.map_mut("live").expect("a map");
    let counters: Array<_, u64> = map.try_into().expect("an array");
    [ARRIVED, RIGHT].map(|index| counters.get(&index, 0).expect("a counter"))
}

fn attach(ebpf: &mut Ebpf, name: &str, interface: &str, side: TcAttachType) {
    let program = ebpf.program_mut(name).expect("a program");
    let program: &mut SchedClassifier = program.try_into().expect("a classifier");
    program.load().expect("a program that the kernel takes");
    let options = TcAttachOptions::TcxOrder(LinkOrder::last());
    let attached = program.attach_with_options(interface, side, options);
    attached.expect("an interface");
}

/// The index of an interface.
///
/// # Panics
///
/// If there is none.
pub fn index(interface: &str) -> u32 {
    if_nametoindex(interface).expect("an interface")
}

/// The time that this thread has run.
pub fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    Duration::from(time.expect("a clock of this thread"))
}

/// A runtime as the agent has it.
///
/// # Panics
///
/// Where there is no epoll.
pub fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime")
}

fn run(program: &str, arguments: &[&str], input: &str) {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped());
    let mut child = command.spawn().expect("a program that is installed");
    let mut stdin = child.stdin.take().expect("standard input");
    stdin.write_all(input.as_bytes()).expect("a reader");
    drop(stdin);
    let status = child.wait().expect("an end");
    assert!(status.success(), "{program} {arguments:?}: {status}");
}
