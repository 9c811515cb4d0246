//! A large cluster on a real API server: what the controller and the loop of an agent cost.
//!
//! ```text
//! export KUBEBUILDER_ASSETS=$(hack/kube-apiserver.sh)
//! cargo build --release -p egressnat-agent -p egressnat-controller -p egressnat-benches
//! target/release/scale --nodes 1000 --pods 100000 --policies 1000 --whole-agent
//! ```
//!
//! Budgets: the controller 50 MB, an agent with 250 pods 20 MB; at rest no requests but renewals of leases. The agent is its loop with a packet
//! path that does nothing; with `--whole-agent`, which needs root, the program that ships comes after it, with everything, in a network namespace with
//! the interfaces of its pods, and holds all floating IPs. Other nodes have no agents, which would be as many renewals a second.
//! An edit of a policy is the worst there is: every policy selects every pod, so that the node's report, which tells all of them, is written anew.
#![expect(clippy::print_stdout, reason = "this is what it is for")]

#[path = "scale/cluster.rs"]
mod cluster;
#[path = "scale/measured.rs"]
mod measured;
#[path = "scale/node.rs"]
mod node;

use std::collections::BTreeSet;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use egressnat_core::{NodePlan, Report};
use egressnat_kube::{
    AgentConfig, ApiStore, NoUplink, NodeDataplane, Pulse, StoreOutage, run_agent,
};
use ipnet::IpNet;

use cluster::Cluster;
use measured::{Process, requests};
use node::Node;

/// The node that has an agent.
const NODE: &str = "node-0";

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long the cluster is looked at while nothing happens.
const REST: Duration = Duration::from_secs(60);

/// How often a policy is edited.
const EDITS: usize = 20;

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 1_000)]
    nodes: usize,
    #[arg(long, default_value_t = 100_000)]
    pods: usize,
    /// Of them on the node that has an agent.
    #[arg(long, default_value_t = 250)]
    local_pods: usize,
    #[arg(long, default_value_t = 1_000)]
    policies: usize,
    /// Afterwards the same with the whole agent.
    #[arg(long)]
    whole_agent: bool,
    /// Be the agent's loop.
    #[arg(long, hide = true)]
    agent: Option<PathBuf>,
}

/// A packet path that does nothing.
struct Nothing;

impl NodeDataplane for Nothing {
    type Uplink = NoUplink;

    fn uplink(&self) -> NoUplink {
        NoUplink
    }

    async fn apply(&mut self, plan: &NodePlan) -> Report {
        println!("{} {}", plan.pods.len(), plan.destinations.len());
        Report {
            floating_ips: plan.floating_ips.clone().into(),
            ..Report::default()
        }
    }

    async fn changed(&mut self) {
        pending().await
    }

    fn subnets(&self) -> BTreeSet<IpNet> {
        [IpNet::V4(cluster::SEGMENT)].into()
    }
}

#[tokio::main(flavor = "current_thread")]
async fn be_agent(kubeconfig: PathBuf) -> Result<()> {
    let config = AgentConfig {
        node: NODE.parse()?,
        lease_duration: Duration::from_secs(3),
        cluster_ranges: vec![],
        pulse: Pulse::default(),
        outage: StoreOutage::Hold,
    };
    let store = ApiStore::from_kubeconfig(&kubeconfig).await?;
    Ok(run_agent(store, Nothing, config).await?)
}

/// A process that ends with this value.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::null()).spawn();
        Ok(Self(child.with_context(|| format!("{command:?}"))?))
    }

    fn process(&self) -> Process {
        Process(self.0.id())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let start = Instant::now();
    while !is_so()? {
        if start.elapsed() > PATIENCE {
            bail!("waited {PATIENCE:?} in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(start.elapsed())
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(kubeconfig) = arguments.agent {
        return be_agent(kubeconfig);
    }
    // While there is one thread.
    let node = arguments
        .whole_agent
        .then(|| Node::enter(arguments.local_pods))
        .transpose()?;
    let cluster = Cluster::start()?;
    let start = Instant::now();
    cluster.fill(&arguments)?;
    println!("objects made in {:.0?}", start.elapsed());

    let own = std::env::current_exe()?;
    let plans = cluster.directory().join("plans");
    let agent_config = cluster.kubeconfig("egressnat-agent")?;
    let agent = Running::start(
        Command::new(&own)
            .arg("--agent")
            .arg(&agent_config)
            .stdout(std::fs::File::create(&plans)?),
    )?;
    let last_plan = || -> Result<String> {
        let text = std::fs::read_to_string(&plans)?;
        Ok(text.lines().last().unwrap_or_default().to_owned())
    };
    let whole = format!("{} {}", arguments.local_pods, arguments.policies);
    let time = until("the agent's plan", || Ok(last_plan()? == whole))?;
    println!(
        "agent: first plan after {time:.2?}: {}",
        agent.process().cost()?
    );

    let controller_config = cluster.kubeconfig("egressnat-controller")?;
    let controller = Running::start(
        Command::new(own.with_file_name("egressnat-controller"))
            .arg("--kubeconfig")
            .arg(controller_config)
            .env("RUST_LOG", "warn"),
    )?;
    let time = until("an assignment", || cluster.is_assigned())?;
    println!(
        "controller: first assignment after {time:.2?}: {}",
        controller.process().cost()?
    );

    // What the start leaves to be written is written first.
    std::thread::sleep(Duration::from_secs(10));
    let (before, agent_cpu, controller_cpu) = (
        requests(&cluster)?,
        agent.process().cpu()?,
        controller.process().cpu()?,
    );
    std::thread::sleep(REST);
    println!("at rest, in {REST:?}:");
    println!("  agent {:.2?} CPU", agent.process().cpu()? - agent_cpu);
    println!(
        "  controller {:.2?} CPU",
        controller.process().cpu()? - controller_cpu
    );
    measured::print_difference(&before, &requests(&cluster)?);

    let before = requests(&cluster)?;
    cluster.add_policies(arguments.policies..arguments.policies + 1)?;
    let more = format!("{} {}", arguments.local_pods, arguments.policies + 1);
    let time = until("the new policy", || Ok(last_plan()? == more))?;
    println!("a policy more: in the agent's plan after {time:.2?}; requests until 5 s later:");
    std::thread::sleep(Duration::from_secs(5));
    measured::print_difference(&before, &requests(&cluster)?);

    let (agent_cpu, controller_cpu) = (agent.process().cpu()?, controller.process().cpu()?);
    for round in 0..EDITS {
        cluster.edit_policy(0, round)?;
        std::thread::sleep(Duration::from_millis(500));
    }
    std::thread::sleep(Duration::from_secs(2));
    println!("an edit of a policy, with what is told of it in status:");
    let each = |before: Duration, now: Duration| (now - before) / EDITS as u32;
    println!(
        "  agent {:.2?} CPU",
        each(agent_cpu, agent.process().cpu()?)
    );
    println!(
        "  controller {:.2?} CPU",
        each(controller_cpu, controller.process().cpu()?)
    );
    println!("agent: {}", agent.process().cost()?);
    println!("controller: {}", controller.process().cost()?);
    let Some(node) = node else { return Ok(()) };
    drop(agent);
    measure_whole(&cluster, &node, &agent_config, &own, arguments.local_pods)
}

/// The program that ships, at rest and after edits.
fn measure_whole(
    cluster: &Cluster,
    node: &Node,
    kubeconfig: &Path,
    own: &Path,
    pods: usize,
) -> Result<()> {
    let log = cluster.directory().join("agent.log");
    let agent = Running::start(
        Command::new(own.with_file_name("egressnat-agent"))
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["--node", NODE, "--uplink", node::UPLINK, "--bpffs"])
            .arg(node.bpffs.path())
            .env("RUST_LOG", "info")
            .stderr(std::fs::File::create(&log)?),
    )?;
    let holds = format!("pods={pods} floating_ips={{{}", cluster::FIRST_FLOATING);
    let time = until("the whole agent's floating IPs", || {
        Ok(std::fs::read_to_string(&log)?.contains(&holds))
    })?;
    println!(
        "whole agent: holds floating IPs after {time:.2?}: {}",
        agent.process().cost()?
    );
    std::thread::sleep(REST);
    println!("whole agent, {REST:?} later: {}", agent.process().cost()?);
    for round in 0..EDITS {
        cluster.edit_policy(0, EDITS + round)?;
        std::thread::sleep(Duration::from_millis(500));
    }
    println!("whole agent after edits: {}", agent.process().cost()?);
    std::thread::sleep(REST);
    println!("whole agent, {REST:?} later: {}", agent.process().cost()?);
    Ok(())
}
