//! The resources and both loops in a real API server, with a real kubectl.
//!
//! `hack/kube-apiserver.sh` yields both; where they are missing, these tests fail and say so.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

mod admission;
mod agent;
mod bad_input;
mod cluster;
mod controller;
mod copies;
mod crds;
mod deploy;
mod descriptions;
mod history;
mod leaders;
mod manifests;
mod outage;
mod rbac;
mod refused;
mod server;
mod server_ends;
mod status;
mod trouble;
mod wire;
