//! A real kube-apiserver with etcd, for whoever needs one for a while: tests, the lab, measurements.
//!
//! * [`Programs`]: kube-apiserver, etcd and kubectl, as `hack/kube-apiserver.sh` yields them.
//! * [`Server`]: one on loopback, in a temporary directory, that ends with its value.
//!
//! Not a part of egressnat: nothing that ships depends on it.
#![deny(missing_docs)]

mod programs;
mod server;

pub use programs::{Listen, Programs};
pub use server::{Server, Told};
