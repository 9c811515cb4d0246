//! What happened when a plan was applied.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

/// One object that could not be made as planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The object: `steering on veth12ab`, `pod 10.10.1.2`, `address 192.168.1.100`. A failure of a pod counts for the policies that
    /// select it, one of an address for who needs that floating IP, any other for all policies with pods on the node.
    pub object: String,
    /// What the kernel said, and what to do where that is known.
    pub message: String,
}

/// What kinds of kernel objects a node has of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// An nftables table with its chains and rules.
    Table,
    /// A single range, mapping, pod, destination, peer or masquerade rule.
    Entry,
    /// An eBPF program on an interface.
    Program,
    /// A pinned eBPF map.
    Map,
    /// The tunnel device.
    Device,
    /// A route.
    Route,
    /// An ip rule.
    RoutingRule,
    /// An address: a floating IP on the uplink, or the tunnel device's own.
    Address,
    /// A setting of the tunnel device.
    Setting,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Resource::Table => "table",
            Resource::Entry => "entry",
            Resource::Program => "program",
            Resource::Map => "map",
            Resource::Device => "device",
            Resource::Route => "route",
            Resource::RoutingRule => "ip rule",
            Resource::Address => "address",
            Resource::Setting => "setting",
        })
    }
}

/// Something of ours that somebody else removed or altered, and that is right again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Restored {
    /// What kind of object.
    pub resource: Resource,
    /// Which: `steer on veth12ab`, `address 192.168.1.100`.
    pub object: String,
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.resource, self.object)
    }
}

/// The outcome of applying a [`NodePlan`](crate::NodePlan): how much was written, and what is not as planned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// How many kernel objects were written or removed: 0 when everything was right already.
    pub changes: usize,
    /// The floating IPs that are in use on this node now: translated to, and answered for. Shared with who made the report: they may be
    /// ten thousand.
    pub floating_ips: Arc<BTreeSet<IpAddr>>,
    /// What somebody else had removed or altered since the last time, and is as planned again. It counts among the changes.
    pub restored: Vec<Restored>,
    /// What could not be done; everything else was.
    pub failures: Vec<Failure>,
}

impl Report {
    /// Whether the kernel has all of the plan.
    pub fn is_complete(&self) -> bool {
        self.failures.is_empty()
    }
}
