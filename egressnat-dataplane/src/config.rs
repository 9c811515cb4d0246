use std::path::PathBuf;
use std::time::Duration;

use crate::mark::MarkMask;
use crate::probe::Probes;
use crate::programs::Attachment;

/// What the packet path may use on this node.
#[derive(Debug, Clone)]
pub struct Config {
    /// The interface that floating IPs go on; the one of the default route if not given.
    pub uplink: Option<String>,
    /// Where a bpffs is mounted: programs and maps are pinned in `egressnat/` below it.
    pub bpffs: PathBuf,
    /// Name of the tunnel device.
    pub tunnel_device: String,
    /// UDP port of the tunnel, the same on all nodes.
    pub tunnel_port: u16,
    /// Our bits of the packet mark.
    pub mark: MarkMask,
    /// The route table that leads into the tunnel.
    pub route_table: u32,
    /// Priority of the ip rule that leads to that table: before the main table (32766).
    pub rule_priority: u32,
    /// How long a plan's floating IPs may be used.
    pub floating_ip_use: FloatingIpUse,
    /// How many pod addresses of each family the node can have.
    pub max_pods: u32,
    /// How programs are put on interfaces.
    pub attachment: Attachment,
    /// Who writes the outer headers of tunnel packets.
    pub encapsulation: Encapsulation,
    /// How the network is asked before a floating IP is taken.
    pub probes: Probes,
    /// How often the neighbors are told who holds a floating IP, give or take a quarter, for as long as it is held. More than 50 addresses are
    /// not announced in a second: ten thousand have their turn once in 200 seconds, however short this is.
    pub announce_every: Duration,
    /// Who may change the nftables tables while the packet path is open.
    pub table_ownership: TableOwnership,
    /// Where to keep what the guard needs over a reboot. Without such a file nothing is guarded from a reboot to the first plan.
    pub guard_file: Option<PathBuf>,
}

/// How long the floating IPs of a plan may be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FloatingIpUse {
    /// As long as a plan has them: whoever plans sees to it that no other node has them.
    #[default]
    Unlimited,
    /// Until the deadline that [`Deadlines`](crate::Deadlines) gives them; they are silent before they have one.
    UntilDeadline,
}

/// Who writes the outer headers of tunnel packets. On the wire both are the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Encapsulation {
    /// Our program at the tunnel device, which takes less than half the time. What it sends passes by the node's output: no
    /// ip rule, no firewall rule and no IPsec policy sees it. Where it cannot, the device does it: IPv6, kernels before 6.7,
    /// floating IPs to which the main table has no route, neighbors that
    /// are not known yet.
    #[default]
    Program,
    /// The kernel's VXLAN device, always: for nodes that route by ip rules or encrypt between each other with IPsec.
    Device,
}

/// Who may change our nftables tables while the packet path is open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TableOwnership {
    /// Nobody else, where the kernel can see to that: from Linux 6.9. `nft flush ruleset` then leaves them alone.
    #[default]
    WherePossible,
    /// Everybody, as with any table: what others change is found and undone.
    Never,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            uplink: None,
            bpffs: PathBuf::from("/sys/fs/bpf"),
            tunnel_device: "egressnat0".to_owned(),
            // Neither 4789 nor 8472, which overlay CNIs use on the same nodes.
            tunnel_port: 8473,
            mark: MarkMask::DEFAULT,
            route_table: 1190,
            rule_priority: 1190,
            floating_ip_use: FloatingIpUse::default(),
            max_pods: 65_536,
            attachment: Attachment::Automatic,
            encapsulation: Encapsulation::default(),
            probes: Probes::default(),
            // As often as a kernel looks after a neighbor that it sends to. RFC 4861, section 7.2.6, lets three unsolicited
            // advertisements go for one change: this is one more each time for those who missed it, far apart.
            announce_every: Duration::from_secs(45),
            table_ownership: TableOwnership::default(),
            guard_file: None,
        }
    }
}

impl Config {
    /// Where this layout of programs and maps is pinned. A change of any map's shape takes a new directory, because a
    /// pinned map of another shape would be opened without an error.
    pub(crate) fn pins(&self) -> PathBuf {
        self.pin_root().join("v1")
    }

    pub(crate) fn pin_root(&self) -> PathBuf {
        self.bpffs.join("egressnat")
    }
}
