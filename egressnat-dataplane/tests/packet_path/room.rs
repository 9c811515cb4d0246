//! How many egress IPs a node can have follows from its mark mask, also when that changes.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use egressnat_core::{NodePlan, PolicySetId, Report, Steering};
use egressnat_dataplane::MarkMask;
use ipnet::IpNet;

use crate::network::{FLOATING, Network, SERVER, plan};

/// More than the default mask has room for.
const CROWD: u32 = 1_200;

/// Room for 8,188.
const WIDE: u32 = 0x3fff_0000;
const DEFAULT: u32 = 0x07ff_0000;

fn seen(address: &str) -> Option<String> {
    Some(address.to_owned())
}

/// Egress IPs that come before all others in a plan, and take the small indices.
fn crowd() -> impl Iterator<Item = IpAddr> {
    let first = u32::from(Ipv4Addr::new(172, 16, 0, 0));
    (first..first + CROWD).map(|address| Ipv4Addr::from(address).into())
}

/// A plan in which a node holds a crowd, or steers to each of it.
fn crowded(node: &str, holder: &str) -> NodePlan {
    let mut plan = plan(node, holder);
    if node == holder {
        plan.floating_ips.extend(crowd());
    }
    for (number, address) in (0..).zip(crowd()) {
        let prefix = IpNet::from(IpAddr::from(Ipv4Addr::from(0x6440_0000 + number)));
        let key = (PolicySetId(1), prefix);
        plan.destinations.insert(key, Steering::Snat(address));
    }
    plan
}

impl Network {
    /// Starts the agent of a node with a mask, and has it apply a plan if there is one.
    fn apply_masked(&self, node: &str, mask: u32, plan: Option<NodePlan>) -> Report {
        let mut config = self.config(node);
        config.mark = MarkMask::new(mask).unwrap();
        self.open_with(node, config, async move |mut dataplane| {
            let Some(plan) = plan else {
                return Report::default();
            };
            let report = dataplane.apply(&plan).await;
            match report.is_complete() {
                true => report,
                // What found no index gets one that the first time has freed.
                false => dataplane.apply(&plan).await,
            }
        })
    }
}

#[test]
fn beyond_what_the_default_mask_has_room_for_packets_are_steered_and_translated() {
    let network = Network::new();
    for node in ["n1", "n2"] {
        let report = network.apply_masked(node, WIDE, Some(crowded(node, "n1")));
        assert_eq!(report.failures, [], "{node}");
        let again = network.apply_masked(node, WIDE, Some(crowded(node, "n1")));
        assert_eq!((again.changes, again.failures), (0, vec![]), "{node}");
    }
    // The last of all of them.
    for pod in ["10.10.1.2", "10.10.2.2"] {
        assert_eq!(network.seen_by_tcp(pod, SERVER), seen(FLOATING), "{pod}");
    }
    // With the default there is no room, which is told of each.
    let report = network.apply_masked("n1", DEFAULT, Some(crowded("n1", "n1")));
    let told = report
        .failures
        .iter()
        .filter(|failure| failure.message.contains("mark mask"));
    assert!(
        told.count() > (CROWD - 1020) as usize,
        "{:?}",
        report.failures.first()
    );
}

#[test]
fn a_mask_with_less_room_or_more_takes_over_and_nothing_leaves_otherwise() {
    let network = Network::new();
    for node in ["n1", "n2"] {
        let report = network.apply_masked(node, WIDE, Some(crowded(node, "n1")));
        assert_eq!(report.failures, [], "{node}");
    }
    // Any of the crowd can be reached: a packet that is steered to a wrong one leaves with it.
    network.ip("n2", "route add 172.16.0.0/16 via 192.168.1.1");
    network.watch_for_leaks();
    let _senders = ["10.10.1.2", "10.10.2.2"]
        .map(|pod| network.send_every(pod, SERVER, Duration::from_millis(1)));
    // The index of the floating IP has no room: nothing leaves with another one's.
    for mask in [DEFAULT, WIDE, DEFAULT] {
        for node in ["n2", "n1"] {
            network.apply_masked(node, mask, None);
            network.seen_by_tcp("10.10.2.2", SERVER);
            assert_eq!(network.leaked(), 0, "{node} has {mask:#x}, and no plan yet");
            let report = network.apply_masked(node, mask, Some(plan(node, "n1")));
            assert_eq!(report.failures, [], "{node} with {mask:#x}");
            for pod in ["10.10.1.2", "10.10.2.2"] {
                assert_eq!(network.seen_by_tcp(pod, SERVER), seen(FLOATING), "{pod}");
            }
        }
    }
    assert_eq!(network.leaked(), 0);
}
