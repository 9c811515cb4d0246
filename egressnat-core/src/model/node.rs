use alloc::collections::BTreeSet;
use core::net::IpAddr;
use ipnet::IpNet;

/// Whether a node may be trusted to carry traffic now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Health {
    /// Its agent renews its lease.
    Up,
    /// Its lease ran out, or it never had one.
    Down,
}

impl core::fmt::Display for Health {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Health::Up => "Up",
            Health::Down => "Down",
        })
    }
}

/// What a node is there for. Workers are preferred for floating IPs (E30), hence the order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Role {
    /// Runs workloads.
    #[default]
    Worker,
    /// Has the label `node-role.kubernetes.io/control-plane` (or the older `…/master`).
    ControlPlane,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Node {
    /// Its internal IPs.
    pub addresses: BTreeSet<IpAddr>,
    /// The on-link subnets of its uplink: a floating IP must lie in one of them (E30).
    pub subnets: BTreeSet<IpNet>,
    /// The ranges its pods get their addresses from.
    pub pod_ranges: BTreeSet<IpNet>,
    /// Worker or control plane.
    pub role: Role,
    /// Up or down, as its lease tells.
    pub health: Health,
    /// Cordoned, or marked for drain: it takes no floating IP any more, and gives those it has to other nodes before it goes (E35).
    pub draining: bool,
    /// The most floating IPs that may be placed on it; no limit if `None`.
    pub capacity: Option<usize>,
}

impl Node {
    /// A worker without addresses.
    pub fn new(health: Health) -> Self {
        Self {
            addresses: BTreeSet::new(),
            subnets: BTreeSet::new(),
            pod_ranges: BTreeSet::new(),
            role: Role::Worker,
            health,
            draining: false,
            capacity: None,
        }
    }

    /// Its part of the cluster's own addresses: its pods' and its own.
    pub fn internal_ranges(&self) -> impl Iterator<Item = IpNet> + '_ {
        let own = self.addresses.iter().copied().map(IpNet::from);
        self.pod_ranges.iter().map(IpNet::trunc).chain(own)
    }

    /// Whether `address` lies in one of the node's subnets.
    pub fn is_on_link(&self, address: IpAddr) -> bool {
        self.subnets.iter().any(|subnet| subnet.contains(&address))
    }
}
