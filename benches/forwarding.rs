//! A packet on the source node, from the pod's interface to the end of the uplink.
//!
//! Budgets, as ratios taken in turns in one run: a selected pod's packet at least 2.2 times less than the textbook (one table by
//! source and destination, the tunnel's key, the kernel's VXLAN device), and at most 1.05 times a packet that is only forwarded;
//! an unselected pod's packet what masquerading it costs anyway. Which of them are met is in docs/performance.md.
//!
//! Only forwarding knows no connections. A node of a cluster does, for its services and for masquerading, so most rows have a
//! counterpart with connection tracking.

use egressnat_benches::live::{FLOATING, Flows, Holder, NODE, Node, POD, Pod, SERVER, plan};
use egressnat_benches::rounds::{Way, compare};

/// Any rule that asks for a connection.
const TRACKED: &str = "table ip cluster { chain forward { type filter hook forward priority 0; ct state established accept; }; }";
const MASQUERADED: &str = "table ip cluster { chain postrouting { type nat hook postrouting priority 100; \
    ip saddr 10.10.1.0/24 ip daddr != 10.10.0.0/16 masquerade; }; }";

fn main() {
    for (title, flows) in [
        ("source node, 1 flow", Flows::Running(1)),
        ("source node, 10,000 flows", Flows::Running(10_000)),
        ("source node, each packet a new flow", Flows::New),
    ] {
        let way = |name, seen, prepare: fn(&mut Node)| {
            Way::new(name, move || {
                Node::run(move |node| {
                    prepare(node);
                    node.measure(flows, seen)
                })
            })
        };
        let tunneled = (NODE, FLOATING);
        let ways = [
            way("forwarded", (POD, SERVER), |_| {}),
            way(
                "forwarded, a program that does nothing",
                (POD, SERVER),
                Node::do_nothing,
            ),
            way("forwarded, connections tracked", (POD, SERVER), |node| {
                node.nft(TRACKED)
            }),
            way("masqueraded by one nftables rule", (NODE, SERVER), |node| {
                node.nft(MASQUERADED)
            }),
            way(
                "ours: unselected pod, masqueraded",
                (NODE, SERVER),
                |node| {
                    node.apply(&plan(Pod::Unselected, Holder::Another));
                },
            ),
            way("textbook", tunneled, Node::steer_by_the_textbook),
            way("textbook, connections tracked", tunneled, |node| {
                node.nft(TRACKED);
                node.steer_by_the_textbook();
            }),
            way("ours: selected pod, into the tunnel", tunneled, |node| {
                node.apply(&plan(Pod::Selected, Holder::Another));
            }),
        ];
        compare(title, "ns per packet", &ways);
    }
}
