//! A cluster of network namespaces on one machine: made for playing with egressnat, and for proving it.
//!
//! Each node is a namespace with an agent process of its own, which may do no more than the container of `deploy/agent.yaml`, each pod a namespace behind a routed veth pair. The nodes
//! share an L2 segment, 192.168.1.0/24; behind a router there is an outside network with servers at 8.8.8.8 and 9.9.9.9
//! that answer with the client's address as they saw it. Objects are a directory of YAML files, or live in a real API server
//! on a machine of its own on the segment.
//!
//! ```text
//!  pod ─ veth ─ node worker1 ─┐                      ┌─ 8.8.8.8  HTTP :80, echo :7
//!  pod ─ veth ─ node worker2 ─┼─ bridge ── router ── outside
//!               control-plane ┘                      └─ 9.9.9.9
//! ```
//!
//! * [`Lab`]: up, apply, exec, power off, freeze, cut, down.
//! * [`probe`]: what a client in a namespace sees.
//! * [`demo`]: the tour.
#![deny(missing_docs)]

mod cluster;
mod container;
mod control_plane;
pub mod demo;
pub mod get;
mod lab;
mod netns;
mod objects;
pub mod probe;
mod process;
mod relay;
pub mod server;
mod target;
mod topology;

pub use lab::{Cut, Lab, ObjectPlace, Outcome, UpOptions};
pub use netns::within;
pub use objects::Objects;
pub use target::Target;
