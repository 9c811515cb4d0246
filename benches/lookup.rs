//! One decision, with 100 to a million combinations of pod policy and destination.
//!
//! Budget: 60 ns, and at a million at most 1.5 times of 100, over a cycle of 1,024 packets (neither is met at a million yet: the
//! tables of 1,000 sets are larger than the cache). For comparison: a longest prefix match alone,
//! in user space, over the full Internet table and a cycle of 1,024 addresses, took 17.6 ns (bart 0.30, Go 1.26.8).

#![expect(missing_docs, reason = "criterion's macro makes a public function")]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use egressnat_core::{DecisionTable, NodePlan, PolicySetId, Steering};
use std::net::{IpAddr, Ipv4Addr};

/// As many policy sets as each has prefixes, and a pod for each set.
fn plan(sets: u32) -> NodePlan {
    let mut plan = NodePlan::default();
    let egress = IpAddr::from([192, 168, 1, 100]);
    for set in 1..=sets {
        let pod = Ipv4Addr::from(0x0a0a_0000 + set);
        plan.pods.insert(pod.into(), PolicySetId(set));
        for n in 0..sets {
            let prefix = format!("100.{}.{}.0/24", n >> 8, n & 0xff);
            let prefix = prefix.parse().expect("a CIDR");
            plan.destinations
                .insert((PolicySetId(set), prefix), Steering::Snat(egress));
        }
    }
    plan
}

fn lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decision");
    for sets in [10u32, 128, 317, 1000] {
        let table = DecisionTable::new(&plan(sets), 1);
        let packets: Vec<(IpAddr, IpAddr)> = (0..1024u32)
            .map(|n| {
                let n = n.wrapping_mul(2_654_435_761);
                let source = Ipv4Addr::from(0x0a0a_0000 + 1 + n % sets);
                let destination = Ipv4Addr::from(0x6400_0000 + (((n >> 12) % sets) << 8) + 7);
                (source.into(), destination.into())
            })
            .collect();
        let mut next = packets.iter().cycle();
        group.bench_function(BenchmarkId::from_parameter(sets * sets), |bencher| {
            bencher.iter(|| {
                let (source, destination) = next.next().expect("a cycle");
                table.decide(*source, *destination, None)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, lookup);
criterion_main!(benches);
