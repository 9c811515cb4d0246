//! What `steer` does to a packet, run by the kernel without an interface. Needs root.

use std::net::Ipv4Addr;
use std::process::Command;

use aya::{TestRun, TestRunOptions};

use super::*;
use crate::maps::{DROP, FORWARD, KEEP};
use crate::mark::MarkMask;

/// The kernel runs the program as if the packet came in at `lo`.
const INTERFACE: u32 = 1;
/// Where `struct __sk_buff` has its mark.
const MARK: usize = 8;
const SK_BUFF: usize = 192;
const FOREIGN: u32 = 0x8000_8001;

const POD: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 2);
const UNSELECTED: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 3);
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 4);
const SET: u32 = 7;

/// A bpffs of its own.
struct Pins(tempfile::TempDir);

impl Pins {
    fn mount() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "bpf", "bpf"])
            .arg(directory.path())
            .status();
        assert!(
            mounted.unwrap().success(),
            "run the tests as root ('make test')"
        );
        Self(directory)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

fn packet(source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
    let mut bytes = vec![0; 14];
    bytes[12..].copy_from_slice(&[0x08, 0x00]);
    bytes.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0]);
    bytes.extend(source.octets());
    bytes.extend(destination.octets());
    bytes.extend([0; 8]);
    bytes
}

/// The verdict about a packet with a mark, and its mark afterwards.
fn run(programs: &mut Programs, packet: &[u8], mark: u32, repeat: u32) -> (i32, u32, u128) {
    let (mut context, mut after) = ([0u8; SK_BUFF], [0u8; SK_BUFF]);
    context[MARK..MARK + 4].copy_from_slice(&mark.to_ne_bytes());
    let mut options = TestRunOptions::new();
    options.data_in = Some(packet);
    options.ctx_in = Some(&context);
    options.ctx_out = Some(&mut after);
    options.repeat = repeat;
    let result = programs.program(Hook::Steer).test_run(options).unwrap();
    let mark = u32::from_ne_bytes(*after[MARK..].first_chunk().unwrap());
    (
        result.return_value.cast_signed(),
        mark,
        result.duration.as_nanos(),
    )
}

#[test]
fn steer_gives_each_packet_of_a_known_pod_a_decision_and_leaves_foreign_bits_alone() {
    let pins = Pins::mount();
    let config = Config {
        bpffs: pins.0.path().to_owned(),
        ..Config::default()
    };
    let mark = config.mark;
    let (mut programs, mut maps) = Programs::load(&config).unwrap();
    let elsewhere = PodKey::new(STRANGER, INTERFACE + 1);
    for (pod, set) in [
        (PodKey::new(POD, INTERFACE), SET),
        (PodKey::new(UNSELECTED, INTERFACE), 0),
        (elsewhere, SET),
    ] {
        maps.pods.insert(pod, set, 0).unwrap();
    }
    let index = mark.max_index();
    for (prefix, value) in [
        ("8.0.0.0/8", index),
        ("8.8.8.0/24", index - 1),
        ("8.1.0.0/16", KEEP),
        ("8.2.0.0/16", DROP),
        ("8.3.0.0/16", FORWARD),
    ] {
        let key = destination_key(SET, prefix.parse().unwrap());
        maps.destinations.insert(&key, value, 0).unwrap();
        // Never asked about.
        let key = destination_key(0, prefix.parse().unwrap());
        maps.destinations.insert(&key, DROP, 0).unwrap();
    }
    let address = Ipv4Addr::new(192, 168, 1, 100);
    maps.egress_ips
        .set(index, Egress::new(address, 1, false), 0)
        .unwrap();
    maps.egress_ips
        .set(index - 1, Egress::new(address, 1, true), 0)
        .unwrap();

    const NEXT: i32 = -1;
    const SHOT: i32 = 2;
    for (source, destination, verdict, ours) in [
        (
            POD,
            [8, 9, 9, 9],
            NEXT,
            mark.tunnel() | mark.of_index(index),
        ),
        (POD, [8, 8, 8, 8], NEXT, mark.of_index(index - 1)),
        (POD, [8, 1, 1, 1], NEXT, mark.keep()),
        (POD, [8, 2, 1, 1], SHOT, 0),
        (POD, [8, 3, 1, 1], NEXT, mark.forward()),
        (POD, [9, 9, 9, 9], NEXT, mark.forward()),
        (UNSELECTED, [8, 8, 8, 8], NEXT, mark.forward()),
        (STRANGER, [8, 8, 8, 8], NEXT, 0),
    ] {
        let packet = packet(source, destination.into());
        // Whatever was in our bits before is no decision.
        for before in [FOREIGN, FOREIGN | mark.keep()] {
            let (got, after, _) = run(&mut programs, &packet, before, 1);
            assert_eq!(got, verdict, "{source} to {destination:?}");
            if verdict == NEXT {
                assert_eq!(after, FOREIGN | ours, "{source} to {destination:?}");
            }
        }
    }
    assert_eq!(FOREIGN & MarkMask::DEFAULT.mask(), 0);
    for (what, source) in [
        ("steered", POD),
        ("known, unselected", UNSELECTED),
        ("unknown", STRANGER),
    ] {
        let packet = packet(source, [8, 9, 9, 9].into());
        let (_, _, nanoseconds) = run(&mut programs, &packet, 0, 1_000_000);
        // Seen, not judged: how long depends on what else the machine does.
        eprintln!("{what}: {nanoseconds} ns a packet");
    }
}
