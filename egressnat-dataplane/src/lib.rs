//! The Linux packet path of egressnat: it makes a [`NodePlan`](egressnat_core::NodePlan) real in the kernel.
//!
//! **Promise**: [`Dataplane::apply`] makes no choices. It knows what the kernel has, writes what differs, and reports every
//! failure with its object. Applied twice, the second time writes nothing. What others did before it is called, it sees.
//!
//! ```text
//!  source node                                             gateway node
//!  pod ─veth─► steer (eBPF) marks ─► ip rule ─► egressnat0      egressnat0 ─► decap (eBPF) marks ─► nftables snat ─► uplink
//!                                               encap (eBPF) ──UDP to the floating IP itself──►
//! ```
//!
//! Every packet of a pod that the plan knows gets a decision from `steer`. nftables drops what comes from the node's pod
//! ranges without one and goes to a destination of a strict policy, whether an agent runs or not.
//!
//! * [`Config`]: what it may use on the node; [`MarkMask`]: which bits of the packet mark.
//! * [`Dataplane`]: open, apply, wait for changes.
//! * [`cleanup`]: remove everything.
//!
//! # Example
//!
//! ```no_run
//! use egressnat_core::NodePlan;
//! use egressnat_dataplane::{Config, Dataplane};
//!
//! # async fn run(plan: NodePlan) -> Result<(), Box<dyn std::error::Error>> {
//! let mut dataplane = Dataplane::open(Config::default()).await?;
//! let report = dataplane.apply(&plan).await;
//! for failure in &report.failures {
//!     eprintln!("{}: {}", failure.object, failure.message);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Requirements
//!
//! Linux 5.18 (6.6 for TCX), nf_tables, vxlan; CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF; a mounted bpffs;
//! libnftnl and libmnl. With CAP_PERFMON, which older kernels take in any case (Debian's 6.1 does), and Linux 6.4
//! counters have nothing that a network policy drops, see [`CountedAt`]. The eBPF objects are part of the crate: nobody needs clang to use it. IPv6 is used once a plan has something of it; on a node
//! without it, the rest of the plan is applied and the report says what is missed.
#![deny(missing_docs)]

mod announce;
mod capabilities;
mod cleanup;
mod config;
mod conntrack;
mod counters;
mod dataplane;
mod deadlines;
mod egress;
mod family;
mod guard_file;
mod handover;
mod host;
mod jitter;
mod leftovers;
mod lock;
mod maps;
mod mark;
mod neighbor_discovery;
mod netfilter;
mod network;
mod nft;
mod policy_table;
mod port_use;
mod ports;
mod probe;
mod process;
mod programs;
mod redecide;
mod segment;

pub use announce::AnnounceError;
pub use capabilities::CapabilitiesError;
pub use cleanup::cleanup;
pub use config::{Config, Encapsulation, FloatingIpUse, TableOwnership};
pub use conntrack::ConntrackError;
pub use counters::{Blocked, Counters, CountersError, EgressCounters, PolicyCounters};
pub use dataplane::{Dataplane, OpenError};
pub use deadlines::Deadlines;
pub use guard_file::GuardFileError;
pub use lock::LockError;
pub use maps::Traffic;
pub use mark::{InvalidMarkMask, MarkMask};
pub use netfilter::AskError;
pub use network::{NetworkError, Uplink};
pub use nft::NftError;
pub use port_use::{PORTS, PortUse, PortUseError};
pub use probe::Probes;
pub use process::Process;
pub use programs::{Attachment, CountedAt, DeparturesError, ProgramsError};
pub use segment::Segment;
