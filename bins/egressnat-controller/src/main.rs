//! The controller: assigns floating IPs to nodes, tells status and events.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use egressnat_kube::{ControllerConfig, DirectoryStore, run_controller};
use ipnet::IpNet;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Assigns floating IPs to nodes, and tells status and events.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Directory of YAML files that holds the objects.
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// A range inside the cluster that no object tells, such as the service range; repeatable.
    #[arg(long = "cluster-range", value_name = "CIDR")]
    cluster_ranges: Vec<IpNet>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::builder()
                .with_default_directive(LevelFilter::INFO.into())
                .from_env_lossy(),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let store = DirectoryStore::open(arguments.manifests)?;
    let config = ControllerConfig {
        cluster_ranges: arguments.cluster_ranges,
    };
    run_controller(store, config)
        .await
        .context("the controller stopped")
}
