//! The test network in both address families: what is shown in one holds in the other.

use egressnat_core::NodePlan;

use crate::ipv6::{self, FLOATING6, NODES, SERVER6, address6};
use crate::network::{FLOATING, Network, SERVER, planned};

/// One family's addresses, and what its ICMP calls things: type and code.
pub(crate) struct Side {
    pub(crate) server: &'static str,
    /// Of the range that the policy is about as the server is, behind the router.
    pub(crate) beyond: &'static str,
    pub(crate) floating: &'static str,
    /// Another floating IP, where a test needs two.
    pub(crate) second: &'static str,
    pub(crate) nodes: [&'static str; 2],
    pub(crate) router: &'static str,
    pub(crate) port_unreachable: (u8, u8),
    pub(crate) unknown_protocol: (u8, u8),
    pub(crate) time_exceeded: (u8, u8),
    pub(crate) too_big: (u8, u8),
    /// How much less than the uplink the tunnel takes.
    pub(crate) tunnel_headers: u16,
}

pub(crate) const SIDES: [Side; 2] = [
    Side {
        server: SERVER,
        beyond: "8.8.8.9",
        floating: FLOATING,
        second: "192.168.1.101",
        nodes: ["192.168.1.1", "192.168.1.2"],
        router: "192.168.1.254",
        port_unreachable: (3, 3),
        unknown_protocol: (3, 2),
        time_exceeded: (11, 0),
        too_big: (3, 4),
        tunnel_headers: 50,
    },
    Side {
        server: SERVER6,
        beyond: "2001:db8:8::9",
        floating: FLOATING6,
        second: "fd00:192:168:1::101",
        nodes: NODES,
        router: "fd00:192:168:1::254",
        port_unreachable: (1, 4),
        unknown_protocol: (4, 1),
        time_exceeded: (3, 0),
        too_big: (2, 0),
        tunnel_headers: 70,
    },
];

impl Side {
    pub(crate) fn is_ipv6(&self) -> bool {
        self.server == SERVER6
    }

    /// The address of a pod of this family, by that of IPv4, which is what it is called.
    pub(crate) fn pod(&self, name: &str) -> String {
        match self.is_ipv6() {
            true => address6(name),
            false => name.to_owned(),
        }
    }

    /// What nft and ip call the family.
    pub(crate) fn family(&self) -> &'static str {
        match self.is_ipv6() {
            true => "ip6",
            false => "ip",
        }
    }

    /// What conntrack calls it.
    pub(crate) fn conntrack(&self) -> &'static str {
        match self.is_ipv6() {
            true => "ipv6",
            false => "ipv4",
        }
    }

    /// Loads rules of somebody else into a table `foreign` of the family, on a host.
    pub(crate) fn add_rules(&self, network: &Network, host: &str, chain: &str, rules: &[String]) {
        let family = self.family();
        network.exec(host, &format!("nft add table {family} foreign"));
        network.exec(
            host,
            &format!("nft add chain {family} foreign rules {{ type {chain} ; }}"),
        );
        for rule in rules {
            network.exec(host, &format!("nft add rule {family} foreign rules {rule}"));
        }
    }

    /// Takes them away again.
    pub(crate) fn delete_rules(&self, network: &Network, host: &str) {
        network.exec(host, &format!("nft delete table {} foreign", self.family()));
    }
}

/// What a node must have when `holder` has the floating IPs of both families.
pub(crate) fn plan(node: &str, holder: &str) -> NodePlan {
    let holders = [(FLOATING, holder), (FLOATING6, holder)];
    planned(&ipv6::snapshot(), node, &holders)
}

impl Network {
    /// The network with both families, where `holder` has the floating IPs.
    pub(crate) fn held_by(holder: &str) -> Self {
        let network = Self::dual_stack();
        network.apply_sides(holder);
        network
    }

    /// Applies to both nodes what they must have when `holder` has the floating IPs.
    pub(crate) fn apply_sides(&self, holder: &str) {
        // Who gives an address away is first, as in a planned move.
        let mut nodes = ["n1", "n2"];
        nodes.sort_by_key(|node| *node == holder);
        for node in nodes {
            let report = self.apply(node, plan(node, holder));
            assert_eq!(report.failures, [], "{node}");
        }
    }
}
