//! What happened when a plan was applied.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
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

/// The outcome of applying a [`NodePlan`](crate::NodePlan): how much was written, and what is not as planned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// How many kernel objects were written or removed: 0 when everything was right already.
    pub changes: usize,
    /// The floating IPs that are in use on this node now: translated to, and answered for.
    pub floating_ips: BTreeSet<IpAddr>,
    /// What could not be done; everything else was.
    pub failures: Vec<Failure>,
}

impl Report {
    /// Whether the kernel has all of the plan.
    pub fn is_complete(&self) -> bool {
        self.failures.is_empty()
    }
}
