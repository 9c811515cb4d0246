//! Which packets count as new connections of the policy that decides about them.

use aya::maps::{Array, Map, MapData};

use super::*;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// As in the C source.
const IDLE: u32 = 120;

/// The place of an egress IP that this node holds, and the policy that it is by.
const HELD_HERE: usize = 1;
const POLICY: u32 = 2;

/// A bucket of flows: tag and last second, eight times.
type Bucket = [u32; 16];

struct Counted {
    pins: Pins,
    addresses: Addresses,
    programs: Programs,
}

impl Counted {
    fn of(addresses: Addresses) -> Self {
        let pins = Pins::mount();
        let mark = MarkMask::DEFAULT;
        let programs = load(&pins, &addresses, (mark.max_index(), mark.max_index() - 1));
        Self {
            pins,
            addresses,
            programs,
        }
    }

    fn packet(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let (pod, destination) = (ip(self.addresses.pod), ip(self.addresses.inside[HELD_HERE]));
        packet(pod, destination, protocol, payload)
    }

    /// How many connections a packet counts as.
    fn send(&mut self, packet: &[u8]) -> u64 {
        let before = self.connections();
        run(&mut self.programs, packet, 0, 1);
        self.connections() - before
    }

    fn connections(&self) -> u64 {
        let maps = self.pins.maps();
        maps.policies.traffic(POLICY).unwrap().connections
    }

    fn flows(&self) -> Array<MapData, Bucket> {
        let flows = MapData::from_pin(self.pins.config().pins().join("flows")).unwrap();
        Map::Array(flows).try_into().unwrap()
    }

    /// The buckets that have flows.
    fn used(&self) -> Vec<(u32, Bucket)> {
        let buckets = crate::maps::read_array(&self.flows()).unwrap().into_iter();
        let used = (0..).zip(buckets).filter(|(_, bucket)| *bucket != [0; 16]);
        used.collect()
    }
}

fn udp(source: u16, destination: u16) -> Vec<u8> {
    [
        source.to_be_bytes(),
        destination.to_be_bytes(),
        [0, 8],
        [0, 0],
    ]
    .concat()
}

/// Source, destination, verification tag, checksum, then the first chunk.
fn sctp(chunk: u8) -> Vec<u8> {
    let mut bytes = vec![0; 12];
    bytes.extend([chunk, 0, 0, 4]);
    bytes
}

fn echo(kind: u8, id: u16, sequence: u16) -> Vec<u8> {
    [[kind, 0], [0, 0], id.to_be_bytes(), sequence.to_be_bytes()].concat()
}

#[test]
fn a_flow_of_udp_or_of_echo_requests_counts_once_and_an_association_by_what_asks_for_it() {
    for (addresses, icmp, request, reply) in [(IPV4, ICMP, 8, 0), (IPV6, ICMPV6, 128, 129)] {
        let mut counted = Counted::of(addresses);
        for (what, protocol, payload, want) in [
            ("first", UDP, udp(4000, 53), 1),
            ("again", UDP, udp(4000, 53), 0),
            ("another source port", UDP, udp(4001, 53), 1),
            ("another destination port", UDP, udp(4000, 54), 1),
            ("the ports the other way around", UDP, udp(53, 4000), 1),
            ("the first again", UDP, udp(4000, 53), 0),
            ("without ports", UDP, vec![], 1),
            ("echo request", icmp, echo(request, 7, 1), 1),
            ("the next of the same", icmp, echo(request, 7, 2), 0),
            ("of another process", icmp, echo(request, 8, 1), 1),
            ("echo reply", icmp, echo(reply, 9, 1), 0),
            ("error", icmp, echo(3, 10, 1), 0),
            ("INIT", SCTP, sctp(1), 1),
            ("INIT ACK", SCTP, sctp(2), 0),
            ("DATA", SCTP, sctp(0), 0),
            ("GRE", 47, vec![0; 20], 0),
        ] {
            let packet = counted.packet(protocol, &payload);
            assert_eq!(counted.send(&packet), want, "{what}");
        }
        // As short as it is, nothing behind it is read.
        let mut short = counted.packet(UDP, &udp(5000, 53));
        short.truncate(short.len() - 1);
        assert_eq!(counted.send(&short), 0);
        // The pod next to it has flows of its own, and what is not decided has none.
        let used = counted.used().len();
        for source in [counted.addresses.unselected, counted.addresses.stranger] {
            let destination = ip(counted.addresses.inside[HELD_HERE]);
            run(
                &mut counted.programs,
                &packet(ip(source), destination, UDP, &udp(6000, 53)),
                0,
                1,
            );
        }
        assert_eq!(counted.used().len(), used);
    }
}

#[test]
fn what_is_behind_options_or_is_a_later_fragment_begins_nothing() {
    let mut counted = Counted::of(IPV4);
    for protocol in [TCP, UDP, SCTP] {
        // Flags of TCP, and the first chunk of SCTP.
        let mut payload = [0; 20];
        (payload[12], payload[13]) = (1, 2);
        let first = counted.packet(protocol, &payload);
        let mut later = first.clone();
        later[14 + 7] = 1;
        assert_eq!(counted.send(&later), 0, "{protocol}");
        let mut with_options = first.clone();
        with_options[14] = 0x46;
        assert_eq!(counted.send(&with_options), 0, "{protocol}");
        assert_eq!(counted.send(&first), 1, "{protocol}");
    }
}

#[test]
fn a_flow_that_was_silent_for_long_begins_anew() {
    let mut counted = Counted::of(IPV4);
    let packet = counted.packet(UDP, &udp(4000, 53));
    assert_eq!(counted.send(&packet), 1);
    for (silent, want) in [(IDLE - 2, 0), (IDLE + 2, 1), (0, 0)] {
        let used = counted.used();
        let [(index, mut bucket)] = used[..] else {
            panic!("{used:?}");
        };
        bucket[1] = bucket[1].wrapping_sub(silent);
        counted.flows().set(index, bucket, 0).unwrap();
        assert_eq!(counted.send(&packet), want, "{silent}");
    }
}

#[test]
fn in_a_full_bucket_a_flow_takes_the_place_of_the_one_that_was_silent_for_longest() {
    let mut counted = Counted::of(IPV6);
    let packet = counted.packet(UDP, &udp(4000, 53));
    assert_eq!(counted.send(&packet), 1);
    let used = counted.used();
    let [(index, bucket)] = used[..] else {
        panic!("{used:?}");
    };
    let (tag, now) = (bucket[0], bucket[1]);
    let mut full = bucket;
    for (place, flow) in full.chunks_exact_mut(2).enumerate() {
        let silent = if place == 5 { 9 } else { 8 };
        flow.copy_from_slice(&[2 + 2 * place as u32, now.wrapping_sub(silent)]);
    }
    counted.flows().set(index, full, 0).unwrap();
    assert_eq!(counted.send(&packet), 1);
    let after = counted.used()[0].1;
    let mut want = full;
    (want[10], want[11]) = (tag, after[11]);
    assert_eq!(after, want);
    assert_eq!(counted.send(&packet), 0);
}
