//! The resources in a real API server, with a real kubectl.
//!
//! `hack/kube-apiserver.sh` yields both; where they are missing, these tests fail and say so.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

mod crds;
mod manifests;
mod refused;
mod server;
mod server_ends;
