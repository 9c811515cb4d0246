//! What `steer` does to a packet, run by the kernel without an interface. Needs root.

mod connections;

use std::net::IpAddr;
use std::process::Command;

use aya::{TestRun, TestRunOptions};

use super::*;
use crate::family::octets;
use crate::maps::{
    DROP, DestinationValue, EgressEntry, FORWARD, KEEP, PodEntry, PolicyTraffic, Traffic,
};
use crate::mark::MarkMask;

/// The kernel runs the program as if the packet came in at `lo`.
const INTERFACE: u32 = 1;
/// Where `struct __sk_buff` has its mark.
const MARK: usize = 8;
const SK_BUFF: usize = 192;
const FOREIGN: u32 = 0x8000_8001;

const SET: u32 = 7;

/// A bpffs of its own.
pub(crate) struct Pins(tempfile::TempDir);

impl Pins {
    pub(crate) fn mount() -> Self {
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

    pub(crate) fn config(&self) -> Config {
        Config {
            bpffs: self.0.path().to_owned(),
            ..Config::default()
        }
    }

    /// The maps as they are pinned.
    fn maps(&self) -> Maps {
        Maps::from_pins(&self.config().pins()).unwrap()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// A packet of a protocol that begins with some bytes.
fn packet(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 12];
    match source {
        IpAddr::V4(_) => {
            bytes.extend([0x08, 0x00]);
            bytes.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0]);
        }
        IpAddr::V6(_) => {
            bytes.extend([0x86, 0xdd]);
            bytes.extend([0x60, 0, 0, 0, 0, 8, protocol, 64]);
        }
    }
    bytes.extend(octets(source));
    bytes.extend(octets(destination));
    bytes.extend(payload);
    bytes.resize(bytes.len() + 8usize.saturating_sub(payload.len()), 0);
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

/// Addresses of one family: of pods and in destinations of a policy set.
struct Addresses {
    pod: &'static str,
    unselected: &'static str,
    stranger: &'static str,
    floating: &'static str,
    /// Prefixes: tunneled, held here, kept, dropped, left to the node.
    prefixes: [&'static str; 5],
    /// An address in each of them, and in none.
    inside: [&'static str; 6],
}

const IPV4: Addresses = Addresses {
    pod: "10.10.1.2",
    unselected: "10.10.1.3",
    stranger: "10.10.1.4",
    floating: "192.168.1.100",
    prefixes: [
        "8.0.0.0/8",
        "8.8.8.0/24",
        "8.1.0.0/16",
        "8.2.0.0/16",
        "8.3.0.0/16",
    ],
    inside: [
        "8.9.9.9", "8.8.8.8", "8.1.1.1", "8.2.1.1", "8.3.1.1", "9.9.9.9",
    ],
};

const IPV6: Addresses = Addresses {
    pod: "fd00:10:10:1::2",
    unselected: "fd00:10:10:1::3",
    stranger: "fd00:10:10:1::4",
    floating: "fd00:192:168:1::100",
    prefixes: [
        "2000::/3",
        "2001:db8:8::/48",
        "2001:db8:1::/48",
        "2001:db8:2::/48",
        "2001:db8:3::1:0/112",
    ],
    inside: [
        "2001:db8:9::9",
        "2001:db8:8::8",
        "2001:db8:1::1",
        "2001:db8:2::1",
        "2001:db8:3::1:1",
        "fd99::9",
    ],
};

const NEXT: i32 = -1;
const SHOT: i32 = 2;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Programs whose maps know the addresses, each prefix by a policy of its own from 1 on, with two indices of egress IPs: a remote one and one held here.
fn load(pins: &Pins, addresses: &Addresses, (remote, local): (u32, u32)) -> Programs {
    let (programs, mut maps) = Programs::load(&pins.config(), CountedAt::Pod).unwrap();
    for (address, ifindex, set) in [
        (addresses.pod, INTERFACE, SET),
        (addresses.unselected, INTERFACE, 0),
        (addresses.stranger, INTERFACE + 1, SET),
    ] {
        let pod = PodEntry {
            address: ip(address),
            ifindex,
            set,
        };
        maps.set_pod(pod).unwrap();
        assert!(maps.pods().unwrap().contains(&pod));
    }
    let index = |index: u32| u16::try_from(index).unwrap();
    let values = [index(remote), index(local), KEEP, DROP, FORWARD];
    for (egress, (policy, prefix)) in values.into_iter().zip((1..).zip(addresses.prefixes)) {
        let prefix = prefix.parse().unwrap();
        let value = DestinationValue { egress, policy };
        maps.set_destination(SET, prefix, value).unwrap();
        assert!(maps.destinations().unwrap().contains(&(SET, prefix, value)));
        // Never asked about.
        let dropped = DestinationValue {
            egress: DROP,
            policy: 0,
        };
        maps.set_destination(0, prefix, dropped).unwrap();
    }
    for (index, is_local) in [(remote, false), (local, true)] {
        let egress = EgressEntry {
            index,
            address: ip(addresses.floating),
            vni: 1,
            is_local,
        };
        maps.set_egress(egress).unwrap();
        assert!(maps.egress_ips().unwrap().contains(&egress));
    }
    programs
}

#[test]
fn steer_gives_each_packet_of_a_known_pod_a_decision_and_leaves_foreign_bits_alone() {
    for addresses in [IPV4, IPV6] {
        let pins = Pins::mount();
        let mark = MarkMask::DEFAULT;
        let (remote, local) = (mark.max_index(), mark.max_index() - 1);
        let mut programs = load(&pins, &addresses, (remote, local));
        let [tunneled, held, kept, dropped, left, elsewhere] = addresses.inside;
        for (source, destination, verdict, ours) in [
            (
                addresses.pod,
                tunneled,
                NEXT,
                mark.tunnel() | mark.of_index(remote),
            ),
            (addresses.pod, held, NEXT, mark.of_index(local)),
            (addresses.pod, kept, NEXT, mark.keep()),
            (addresses.pod, dropped, SHOT, 0),
            (addresses.pod, left, NEXT, mark.passed()),
            (addresses.pod, elsewhere, NEXT, mark.passed()),
            (addresses.unselected, held, NEXT, mark.forward()),
            (addresses.stranger, held, NEXT, 0),
        ] {
            let packet = packet(ip(source), ip(destination), 17, &[]);
            // Whatever was in our bits before is no decision.
            for before in [FOREIGN, FOREIGN | mark.keep()] {
                let (got, after, _) = run(&mut programs, &packet, before, 1);
                assert_eq!(got, verdict, "{source} to {destination}");
                if verdict == NEXT {
                    assert_eq!(after, FOREIGN | ours, "{source} to {destination}");
                }
            }
        }
        assert_eq!(FOREIGN & mark.mask(), 0);
        for (what, source) in [
            ("steered", addresses.pod),
            ("known, unselected", addresses.unselected),
            ("unknown", addresses.stranger),
        ] {
            let packet = packet(ip(source), ip(tunneled), 17, &[]);
            let (_, _, nanoseconds) = run(&mut programs, &packet, 0, 1_000_000);
            // Seen, not judged: how long depends on what else the machine does.
            eprintln!("{what}, {source}: {nanoseconds} ns a packet");
        }
    }
}

#[test]
fn what_is_for_the_link_of_a_pod_alone_is_never_steered_and_never_dropped() {
    const UDP: u8 = 17;
    const ICMPV6: u8 = 58;
    let pins = Pins::mount();
    let mark = MarkMask::DEFAULT;
    let (remote, local) = (mark.max_index(), mark.max_index() - 1);
    let everywhere = Addresses {
        prefixes: ["::/0", "fe80::/10", "ff00::/8", "2001:db8::/32", "fc00::/7"],
        ..IPV6
    };
    let mut programs = load(&pins, &everywhere, (remote, local));
    let dropped = "2001:db8::1";
    let passed = mark.passed();
    for (destination, protocol, kind, verdict, ours) in [
        ("fe80::1", UDP, 0, NEXT, passed),
        ("febf::1", UDP, 0, NEXT, passed),
        ("ff02::1:2", UDP, 0, NEXT, passed),
        (dropped, UDP, 135, SHOT, 0),
        (dropped, ICMPV6, 128, SHOT, 0),
        (dropped, ICMPV6, 132, SHOT, 0),
        (dropped, ICMPV6, 138, SHOT, 0),
        // Router solicitation to redirect.
        (dropped, ICMPV6, 133, NEXT, 0),
        (dropped, ICMPV6, 135, NEXT, 0),
        (dropped, ICMPV6, 137, NEXT, 0),
    ] {
        let packet = packet(ip(IPV6.pod), ip(destination), protocol, &[kind]);
        let (got, after, _) = run(&mut programs, &packet, FOREIGN | mark.keep(), 1);
        assert_eq!(got, verdict, "{destination}, {protocol}, {kind}");
        if verdict == NEXT {
            assert_eq!(after, FOREIGN | ours, "{destination}, {protocol}, {kind}");
        }
    }
    // Cut off before its type: what is not there is not looked at.
    let mut short = packet(ip(IPV6.pod), ip(dropped), ICMPV6, &[]);
    short.truncate(54);
    assert_eq!(run(&mut programs, &short, 0, 1).0, SHOT);
}

#[test]
fn a_packet_is_counted_for_the_policy_that_decides_and_a_first_one_as_a_connection() {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    let tcp = |flags: u8| {
        let mut header = [0; 20];
        header[12] = 5 << 4;
        header[13] = flags;
        header
    };
    let (syn, syn_ack, ack) = (tcp(2), tcp(0x12), tcp(0x10));
    for addresses in [IPV4, IPV6] {
        let pins = Pins::mount();
        let mark = MarkMask::DEFAULT;
        let (remote, local) = (mark.max_index(), mark.max_index() - 1);
        let mut programs = load(&pins, &addresses, (remote, local));
        for (place, destination) in addresses.inside.into_iter().enumerate() {
            let mut bytes = 0;
            for (protocol, payload) in [
                (TCP, &syn),
                (TCP, &syn_ack),
                (TCP, &ack),
                // What stands at that place is no flags; it is the first of its flow.
                (UDP, &syn_ack),
                (UDP, &syn),
            ] {
                let packet = packet(ip(addresses.pod), ip(destination), protocol, payload);
                bytes += packet.len() as u64;
                run(&mut programs, &packet, 0, 1);
            }
            let counted = pins.maps().policies.traffic(place as u32 + 1).unwrap();
            let sent = PolicyTraffic {
                sent: Traffic { packets: 5, bytes },
                connections: 2,
                blocked: 0,
            };
            let want = match place {
                // Into the tunnel: counted where it leaves.
                0 => PolicyTraffic::default(),
                1 | 2 => sent,
                3 => PolicyTraffic {
                    blocked: 5,
                    ..PolicyTraffic::default()
                },
                _ => PolicyTraffic::default(),
            };
            assert_eq!(counted, want, "{destination}");
        }
        // Nor for nobody: an index that is none is not counted.
        let nobody = pins.maps().policies.traffic(0).unwrap();
        assert_eq!(nobody, PolicyTraffic::default());
    }
}

#[test]
fn what_an_older_release_has_dropped_is_dropped() {
    let pins = Pins::mount();
    let mark = MarkMask::DEFAULT;
    let mut programs = load(&pins, &IPV4, (mark.max_index(), mark.max_index() - 1));
    // All bits.
    let older = DestinationValue {
        egress: DROP,
        policy: u16::MAX,
    };
    let prefix = IPV4.prefixes[0].parse().unwrap();
    pins.maps().set_destination(SET, prefix, older).unwrap();
    let packet = packet(ip(IPV4.pod), ip(IPV4.inside[0]), 17, &[]);
    assert_eq!(run(&mut programs, &packet, 0, 1).0, SHOT);
}
