//! The agent: makes its node's plan real in the kernel.

mod counters;
mod memory;

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use counters::Output;
use egressnat_core::model::NodeName;
use egressnat_core::{Failure, NodePlan, Report};
use egressnat_dataplane::{
    Attachment, Config, Counters, Dataplane, Deadlines, Encapsulation, FloatingIpUse, MarkMask,
    Segment, cleanup,
};
use egressnat_kube::{
    AgentConfig, ApiStore, DirectoryStore, NodeDataplane, Pulse, StoreOutage, Uplink, run_agent,
    serve_health,
};
use ipnet::IpNet;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Steers and translates the egress traffic of one node.
#[derive(Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

#[derive(Subcommand)]
enum Command {
    /// Removes everything of egressnat from the node's kernel, once no agent runs there.
    Cleanup(Host),
    /// Prints what the node's packet path counted: by policy, by egress IP, and what was blocked. It needs no agent that runs, and
    /// disturbs none.
    Counters(Count),
}

#[derive(Args)]
struct Count {
    /// Where a bpffs is mounted.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
    /// How to print them.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Args)]
struct Run {
    /// Directory of YAML files that holds the objects, instead of a cluster.
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    manifests: Option<PathBuf>,
    /// Says where the cluster's API server is. Not needed in a pod, which has a service account.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The node this agent runs on.
    #[arg(long, value_name = "NAME", required = true)]
    node: Option<NodeName>,
    /// How many seconds the node counts as up after a renewal of its lease.
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    lease_duration: u64,
    /// A range inside the cluster that no object tells, such as the service range; repeatable.
    #[arg(long = "cluster-range", value_name = "CIDR")]
    cluster_ranges: Vec<IpNet>,
    /// Address and port to answer probes on, /healthz and /readyz; none are answered if it is not given.
    #[arg(long, value_name = "IP:PORT")]
    health_address: Option<SocketAddr>,
    /// What becomes of the node's floating IPs while the store does not answer.
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = Outage::Hold)]
    store_outage: Outage,
    #[command(flatten)]
    host: Host,
}

#[derive(Clone, Copy, ValueEnum)]
enum Outage {
    /// They stay, as long as most of the gateway nodes on the segment answer.
    Hold,
    /// They fall silent when the lease runs out.
    Release,
}

#[derive(Args)]
struct Host {
    /// Interface that floating IPs go on; the one of the default route if not given.
    #[arg(long, value_name = "IF")]
    uplink: Option<String>,
    /// Where a bpffs is mounted.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
    /// File to keep what is guarded in, so that a reboot does not open a gap: on a disk that outlasts it. Cleanup removes it.
    #[arg(long, value_name = "FILE")]
    guard_file: Option<PathBuf>,
    /// Bits of the packet mark that egressnat may use, in one piece. The default has room for 1,020 egress IPs on this node, held or steered to;
    /// 0x7fff0000 for 16,380.
    #[arg(long, value_name = "MASK", default_value = "0x07ff0000", value_parser = mark_mask)]
    mark_mask: MarkMask,
    /// How programs are put on interfaces: automatic, tcx or clsact.
    #[arg(long, value_name = "WAY", default_value = "automatic", value_parser = attachment)]
    attachment: Attachment,
    /// Who writes the outer headers of tunnel packets: program, or device on nodes with ip rules or IPsec between each other.
    #[arg(long, value_name = "WHO", default_value = "program", value_parser = encapsulation)]
    encapsulation: Encapsulation,
}

fn encapsulation(text: &str) -> anyhow::Result<Encapsulation> {
    match text {
        "program" => Ok(Encapsulation::Program),
        "device" => Ok(Encapsulation::Device),
        _ => bail!("write program or device"),
    }
}

fn attachment(text: &str) -> anyhow::Result<Attachment> {
    match text {
        "automatic" => Ok(Attachment::Automatic),
        "tcx" => Ok(Attachment::Tcx),
        "clsact" => Ok(Attachment::Clsact),
        _ => bail!("write automatic, tcx or clsact"),
    }
}

fn mark_mask(text: &str) -> anyhow::Result<MarkMask> {
    let digits = text
        .strip_prefix("0x")
        .context("write the mask in hexadecimal, such as 0x07ff0000")?;
    Ok(MarkMask::new(u32::from_str_radix(digits, 16)?)?)
}

impl Host {
    fn config(self) -> Config {
        Config {
            uplink: self.uplink,
            bpffs: self.bpffs,
            mark: self.mark_mask,
            floating_ip_use: FloatingIpUse::UntilDeadline,
            attachment: self.attachment,
            encapsulation: self.encapsulation,
            guard_file: self.guard_file,
            ..Config::default()
        }
    }
}

/// The kernel of this node behind the loop's port.
struct Kernel(Dataplane);

/// What of it is needed while a plan is being applied.
#[derive(Clone)]
struct KernelUplink {
    deadlines: Deadlines,
    segment: Segment,
}

impl Uplink for KernelUplink {
    fn hold_until(&self, addresses: &[IpAddr], deadline: Instant) -> Result<(), Failure> {
        let held = self.deadlines.hold_until(addresses, deadline);
        held.map_err(|error| Failure {
            object: match addresses {
                [address] => format!("floating IP {address}"),
                addresses => format!("{} floating IPs", addresses.len()),
            },
            message: format!("{:#}", anyhow::Error::new(error)),
        })
    }

    async fn answers(&self, address: IpAddr, patience: Duration) -> bool {
        self.segment.answers(address, patience).await
    }
}

impl NodeDataplane for Kernel {
    type Uplink = KernelUplink;

    fn uplink(&self) -> KernelUplink {
        KernelUplink {
            deadlines: self.0.deadlines(),
            segment: self.0.segment(),
        }
    }

    fn found(&self) -> BTreeMap<IpAddr, Instant> {
        self.0.deadlines().read().unwrap_or_else(|error| {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "what an earlier run left cannot be read");
            BTreeMap::new()
        })
    }

    async fn apply(&mut self, plan: &NodePlan) -> Report {
        self.0.apply(plan).await
    }

    async fn changed(&mut self) {
        self.0.changed().await;
    }

    fn subnets(&self) -> BTreeSet<IpNet> {
        self.0.uplink().addresses.iter().copied().collect()
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    memory::configure();
    let arguments = Arguments::parse();
    let log = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry()
        .with(log)
        .with(log_filter())
        .init();
    match arguments.command {
        Some(Command::Cleanup(host)) => return clean_up(host).await,
        Some(Command::Counters(count)) => return print_counters(count),
        None => {}
    }
    let mut terminate = signal(SignalKind::terminate()).context("no handler of SIGTERM")?;
    // As the first process of a container it would not end by the signal alone. The kernel is left as it is.
    tokio::select! {
        outcome = run(arguments.run) => outcome,
        () = memory::give_back() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
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

async fn clean_up(host: Host) -> anyhow::Result<()> {
    let report = cleanup(&host.config()).await;
    for failure in &report.failures {
        tracing::error!(
            object = failure.object,
            message = failure.message,
            "not removed"
        );
    }
    if !report.is_complete() {
        bail!("{} things could not be removed", report.failures.len());
    }
    tracing::info!(
        removed = report.changes,
        "nothing of egressnat is left on this node"
    );
    Ok(())
}

fn print_counters(count: Count) -> anyhow::Result<()> {
    let config = Config {
        bpffs: count.bpffs,
        ..Config::default()
    };
    let read = Counters::read(&config)?;
    counters::write(&mut std::io::stdout(), &read, count.output).context("not all is printed")
}

async fn run(run: Run) -> anyhow::Result<()> {
    // An option only for the sake of the subcommand, which does not take it.
    let config = AgentConfig {
        node: run.node.context("--node is missing")?,
        lease_duration: Duration::from_secs(run.lease_duration),
        cluster_ranges: run.cluster_ranges,
        pulse: Pulse::default(),
        outage: match run.store_outage {
            Outage::Hold => StoreOutage::Hold,
            Outage::Release => StoreOutage::Release,
        },
    };
    if let Some(address) = run.health_address {
        serve_health(address, config.pulse.clone())?;
    }
    if let Some(directory) = run.manifests {
        let store = DirectoryStore::open(directory)?;
        return run_agent(store, open(run.host).await?, config)
            .await
            .context("the agent stopped");
    }
    let store = match &run.kubeconfig {
        Some(path) => ApiStore::from_kubeconfig(path).await?,
        None => ApiStore::in_cluster()?,
    };
    run_agent(store, open(run.host).await?, config)
        .await
        .context("the agent stopped")
}

/// After the store, so that a mistake in the options leaves the kernel alone.
async fn open(host: Host) -> anyhow::Result<Kernel> {
    let dataplane = Dataplane::open(host.config())
        .await
        .context("the packet path cannot be put in place")?;
    Ok(Kernel(dataplane))
}
