//! What the steering program costs by itself, and its two lookups against the textbook's one table.
//!
//! Budgets: two steps (the pod's address to its policy set, then set and destination) against one table by source and destination at
//! least 5 / 10 / 25 times less at 16,000 / 100,000 / 1,000,000 entries of that table, and at a million not more than 1.5 times of what
//! they are at 100. A packet of an unselected pod at most 5 ns more than a program that does nothing. Which of them are met is in
//! docs/performance.md.
//!
//! Addresses are pseudo-random, so that the million is not always the same cache line; making them is measured too and taken off.

use std::rc::Rc;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData};
use aya::programs::tc::TcAttachType;
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use egressnat_benches::live::{Holder, Node, OBJECT, POD, Pod, SERVER, index, plan, thread_time};
use egressnat_benches::rounds::{Way, compare};
use egressnat_core::NodePlan;

/// As in the C source.
const LOOKUPS: u32 = 64;
const RUNS: u32 = 4000;
const FRAME: usize = 64;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// In the worst shape so many pods share a policy set, in the best one all do.
const PODS_OF_A_SET: u32 = 10;

fn main() {
    programs();
    // A node has the pods that run on it, whatever the cluster has.
    for (entries, pods, destinations) in [
        ("100", 10, 10),
        ("16,000", 125, 128),
        ("100,000", 250, 400),
        ("1,000,000", 250, 4000),
    ] {
        let [shared, apart] =
            [pods, PODS_OF_A_SET].map(|of_a_set| Rc::new(load(pods, destinations, of_a_set)));
        let way = |name, ebpf: &Rc<Ebpf>, program: &'static str| {
            let ebpf = Rc::clone(ebpf);
            Way::new(name, move || {
                nanoseconds(&ebpf, program) - nanoseconds(&ebpf, "lookup_none")
            })
        };
        compare(
            &format!("lookup, {entries} pairs of a source and a destination"),
            "ns per lookup",
            &[
                way("two steps, one policy set", &shared, "lookup_two_steps"),
                way(
                    "two steps, a policy set for each 10 pods",
                    &apart,
                    "lookup_two_steps",
                ),
                way(
                    "one table by source and destination",
                    &shared,
                    "lookup_one_table",
                ),
            ],
        );
    }
}

/// The steering program with each of its answers.
fn programs() {
    let way = |name, plan: Option<NodePlan>, protocol| {
        Way::new(name, move || {
            let plan = plan.clone();
            Node::run(move |node| {
                match &plan {
                    Some(plan) => node.apply(plan),
                    None => node.do_nothing(),
                }
                let (_, mut attached) =
                    SchedClassifier::query_tcx("pod0", TcAttachType::Ingress).expect("programs");
                let info = attached.pop().expect("one program");
                let program = SchedClassifier::from_program_info(info, "steer".into());
                let program = program.expect("a classifier");
                run(&program, protocol, index("pod0"), 100 * RUNS)
            })
        })
    };
    let [unselected, steered, held] = [
        (Pod::Unselected, Holder::Another),
        (Pod::Selected, Holder::Another),
        (Pod::Selected, Holder::ThisNode),
    ]
    .map(|(pod, holder)| Some(plan(pod, holder)));
    compare(
        "the program at a pod's interface",
        "ns per packet",
        &[
            way("does nothing", None, UDP),
            way("ours: unselected pod", unselected, UDP),
            way("ours: selected pod, into the tunnel", steered, UDP),
            way("ours: selected pod, held here, TCP", held.clone(), TCP),
            way("ours: selected pod, held here, UDP", held, UDP),
        ],
    );
}

/// Both forms of the same decisions.
fn load(pods: u32, destinations: u32, of_a_set: u32) -> Ebpf {
    let mut ebpf = EbpfLoader::new()
        .override_global("PODS", &pods, true)
        .override_global("DESTINATIONS", &destinations, true)
        .load(OBJECT)
        .expect("the object");
    for name in ["lookup_none", "lookup_one_table", "lookup_two_steps"] {
        let program = ebpf.program_mut(name).expect("a program");
        let program: &mut SchedClassifier = program.try_into().expect("a classifier");
        program.load().expect("a program that the kernel takes");
    }
    let pod = |n: u32| (0x0a00_0000 + n).to_be_bytes();
    let network = |n: u32| (0x6400_0000 + (n << 8)).to_be_bytes();
    let map = ebpf.map_mut("pairs").expect("a map");
    let mut pairs: LpmTrie<&mut MapData, [[u8; 4]; 2], [u32; 2]> = map.try_into().expect("a trie");
    for source in 0..pods {
        for destination in 0..destinations {
            let key = Key::new(32 + 24, [pod(source), network(destination)]);
            pairs.insert(&key, [1, 1], 0).expect("an entry");
        }
    }
    let map = ebpf.map_mut("pods").expect("a map");
    let mut sets: HashMap<&mut MapData, [[u8; 4]; 2], u32> = map.try_into().expect("a hash");
    for source in 0..pods {
        let key = [pod(source), 1u32.to_ne_bytes()];
        let set = 1 + source / of_a_set;
        sets.insert(key, set, 0).expect("an entry");
    }
    let map = ebpf.map_mut("destinations").expect("a map");
    let mut trie: LpmTrie<&mut MapData, [[u8; 4]; 2], u32> = map.try_into().expect("a trie");
    for set in 1..=pods.div_ceil(of_a_set) {
        for destination in 0..destinations {
            let key = Key::new(32 + 24, [set.to_ne_bytes(), network(destination)]);
            trie.insert(&key, 2, 0).expect("an entry");
        }
    }
    ebpf
}

fn nanoseconds(ebpf: &Ebpf, name: &str) -> f64 {
    let program = ebpf.program(name).expect("a program");
    let program: &SchedClassifier = program.try_into().expect("a classifier");
    run(program, UDP, 1, RUNS) / f64::from(LOOKUPS)
}

/// Nanoseconds that one run of a program takes with a packet of the pod.
fn run(program: &SchedClassifier, protocol: u8, ifindex: u32, repeat: u32) -> f64 {
    let mut packet = [0; FRAME];
    packet[12..14].copy_from_slice(&[0x08, 0x00]);
    packet[14] = 0x45;
    packet[23] = protocol;
    packet[26..30].copy_from_slice(&POD.octets());
    packet[30..34].copy_from_slice(&SERVER.octets());
    // Where struct __sk_buff has its ifindex.
    let mut context = [0u8; 192];
    if ifindex > 1 {
        context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
    }
    let options = || {
        let mut options = TestRunOptions::new();
        options.data_in = Some(&packet);
        options.ctx_in = Some(&context);
        options
    };
    let mut repeated = options();
    repeated.repeat = repeat;
    let start = thread_time();
    let result = program.test_run(repeated).expect("a run");
    let took = (thread_time() - start).as_nanos() as f64 / f64::from(repeat);
    let answer = result.return_value.cast_signed();
    let is_right = answer == -1 || answer == LOOKUPS.cast_signed();
    assert!(is_right, "{answer}: not everything was found");
    took
}
