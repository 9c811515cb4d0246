//! The agent's loop inside a CNI: with its own packet path, and with the pods that it makes itself.
//!
//! ```text
//! cargo run -p egressnat-kube --example cni_agent -- DIRECTORY
//! ```
//!
//! DIRECTORY holds Node, Namespace, gateway and policy objects as YAML files; `egressnat-kube/examples/controller.rs` assigns floating IPs in it.
#![expect(clippy::print_stdout, reason = "an example prints")]

use std::collections::BTreeSet;
use std::error::Error;
use std::time::Duration;

use egressnat_core::model::{NodeName, Pod, PodKey};
use egressnat_core::{NodePlan, Report};
use egressnat_kube::{
    AgentConfig, DirectoryStore, LocalPods, NoUplink, NodeDataplane, Pulse, StoreOutage, run_agent,
};
use ipnet::IpNet;

/// A packet path that prints what it should do.
struct Printer;

impl NodeDataplane for Printer {
    // A packet path whose nodes hold floating IPs gives them deadlines in the kernel here.
    type Uplink = NoUplink;

    fn uplink(&self) -> NoUplink {
        NoUplink
    }

    async fn apply(&mut self, plan: &NodePlan) -> Report {
        println!("{plan:#?}");
        // With what could not be done in `failures`, which is told and tried again.
        Report {
            floating_ips: plan.floating_ips.clone().into(),
            ..Report::default()
        }
    }

    async fn changed(&mut self) {
        // Nobody else changes what is printed.
        std::future::pending().await
    }

    fn subnets(&self) -> BTreeSet<IpNet> {
        BTreeSet::from([IpNet::from(ipnet::Ipv4Net::new_assert(
            [192, 168, 1, 0].into(),
            24,
        ))])
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args().nth(1).ok_or("which directory?")?;
    let node: NodeName = "worker1".parse()?;

    // What a CNI's ADD and DEL would do, as they happen.
    let pods = LocalPods::default();
    let mut pod = Pod::new(node.clone());
    pod.ips.insert("10.10.1.2".parse()?);
    pod.labels.insert("role".to_owned(), "frontend".to_owned());
    pods.put(&PodKey::new("alice".parse()?, "frontend-0".parse()?), &pod);

    let config = AgentConfig {
        node,
        lease_duration: Duration::from_secs(3),
        cluster_ranges: vec![],
        pulse: Pulse::default(),
        outage: StoreOutage::Hold,
    };
    let store = pods.beside(DirectoryStore::open(directory)?);
    tokio::select! {
        outcome = run_agent(store, Printer, config) => outcome?,
        stopped = tokio::signal::ctrl_c() => stopped?,
    }
    Ok(())
}
