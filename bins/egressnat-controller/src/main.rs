//! The controller: assigns floating IPs to nodes, tells status and events.

use std::future::Future;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::{ArgAction, Parser};
use egressnat_kube::{
    ApiStore, ControllerConfig, DirectoryStore, Election, Pulse, run_controller_until, serve_health,
};
use ipnet::IpNet;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Assigns floating IPs to nodes, and tells status and events.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Directory of YAML files that holds the objects, instead of a cluster.
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    manifests: Option<PathBuf>,
    /// Says where the cluster's API server is. Not needed in a pod, which has a service account.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Whether controllers agree which of them writes, by the Lease kube-system/egressnat-controller; only in a cluster.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set, num_args = 0..=1,
        default_missing_value = "true", require_equals = true)]
    leader_elect: bool,
    /// A range inside the cluster that no object tells, such as the service range; repeatable.
    #[arg(long = "cluster-range", value_name = "CIDR")]
    cluster_ranges: Vec<IpNet>,
    /// Address and port to answer probes on, /healthz and /readyz; none are answered if it is not given.
    #[arg(long, value_name = "IP:PORT")]
    health_address: Option<SocketAddr>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let log = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry()
        .with(log)
        .with(log_filter())
        .init();
    let stop = stop()?;
    let mut config = ControllerConfig {
        cluster_ranges: arguments.cluster_ranges,
        election: None,
        pulse: Pulse::default(),
    };
    if let Some(address) = arguments.health_address {
        serve_health(address, config.pulse.clone())?;
    }
    if let Some(directory) = arguments.manifests {
        let store = DirectoryStore::open(directory)?;
        return run_controller_until(store, config, stop)
            .await
            .context("the controller stopped");
    }
    let store = match &arguments.kubeconfig {
        Some(path) => ApiStore::from_kubeconfig(path).await?,
        None => ApiStore::in_cluster()?,
    };
    config.election = arguments.leader_elect.then(Election::of_this_process);
    run_controller_until(store, config, stop)
        .await
        .context("the controller stopped")
}

/// What is logged: what `RUST_LOG` says, such as `warn` or `info,egressnat_kube=debug`; everything from `info` on where it says nothing.
fn log_filter() -> Targets {
    let told = std::env::var("RUST_LOG").ok();
    let told: Targets = told.and_then(|text| text.parse().ok()).unwrap_or_default();
    match told.default_level() {
        Some(_) => told,
        None => told.with_default(LevelFilter::INFO),
    }
}

/// Waits until somebody wants this process to end.
fn stop() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("no handler of SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("no handler of SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
