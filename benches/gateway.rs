//! A packet on the gateway node, from an interface to the end of the uplink, translated to the floating IP.
//!
//! Budget: with 10,000 mappings at most 1.02 times one bare `snat` rule of nftables, in one run and in turns. Which of the rows meet
//! it is in docs/performance.md.
//!
//! The tunnel itself is the kernel's in any case and is left out: packets come in marked, as `decap` marks them.

use std::collections::BTreeMap;

use egressnat_benches::live::{FLOATING, Flows, Holder, Node, Pod, SERVER, plan};
use egressnat_benches::rounds::{Way, compare};
use egressnat_core::NodePlan;

const MAPPINGS: u32 = 10_000;

const BARE: &str = "table ip cluster { chain postrouting { type nat hook postrouting priority 100; \
    ip saddr 10.10.1.0/24 ip daddr 8.8.8.0/24 snat to 192.168.1.100; }; }";

fn main() {
    for (title, flows) in [
        ("gateway node, 1 flow", Flows::Running(1)),
        ("gateway node, 10,000 flows", Flows::Running(10_000)),
        ("gateway node, each packet a new flow", Flows::New),
    ] {
        let way = |name, prepare: fn(&mut Node)| {
            Way::new(name, move || {
                Node::run(move |node| {
                    prepare(node);
                    node.measure(flows, (FLOATING, SERVER))
                })
            })
        };
        let ways = [
            way("one bare snat rule", |node| node.nft(BARE)),
            way("ours: out of the tunnel, 1 mapping", |node| {
                from_the_tunnel(node, &of_others());
            }),
            way("ours: out of the tunnel, 10,000 mappings", |node| {
                from_the_tunnel(node, &of_others());
                node.nft(&mappings());
            }),
            way("ours: the same, on a node that steers too", |node| {
                from_the_tunnel(node, &plan(Pod::Elsewhere, Holder::ThisNode));
                node.nft(&mappings());
            }),
            way("ours: a pod of the gateway node, 10,000 mappings", |node| {
                node.apply(&plan(Pod::Selected, Holder::ThisNode));
                node.nft(&mappings());
            }),
        ];
        compare(title, "ns per packet", &ways);
    }
}

/// The plan of a gateway node of whose own pods no policy selects one: it has no ip rule.
fn of_others() -> NodePlan {
    NodePlan {
        destinations: BTreeMap::new(),
        ..plan(Pod::Elsewhere, Holder::ThisNode)
    }
}

fn from_the_tunnel(node: &mut Node, plan: &NodePlan) {
    node.apply(plan);
    node.mark_as_decapsulated();
}

/// More mappings and floating IPs than marks have room for: the kernel does not mind.
fn mappings() -> String {
    let address = |n: u32| std::net::Ipv4Addr::from(0xac10_0000 + n);
    let mapped: Vec<String> = (1..MAPPINGS)
        .map(|n| format!("{n} : {}", address(n)))
        .collect();
    let floating: Vec<String> = (1..MAPPINGS).map(|n| address(n).to_string()).collect();
    format!(
        "add element ip egressnat egress_ips {{ {} }}\nadd element ip egressnat floating_ips {{ {} }}\n",
        mapped.join(", "),
        floating.join(", ")
    )
}
