//! The packet path alone: a plan from plain types, and the kernel made equal to it.
//!
//! Changes the network namespace that it runs in, so give it one of its own, with an uplink:
//!
//! ```text
//! ip netns add try && ip -n try link add eth0 type veth peer name peer0 && ip -n try link set eth0 up && ip -n try link set peer0 up
//! ip -n try address add 192.168.1.1/24 dev eth0 && mkdir -p /tmp/try && mount -t bpf bpf /tmp/try
//! cargo build -p egressnat-dataplane --example apply && ip netns exec try target/debug/examples/apply eth0 /tmp/try
//! ip netns exec try nft list ruleset; ip -n try address
//! umount /tmp/try && ip netns delete try
//! ```
#![expect(clippy::print_stdout, reason = "an example prints")]

use std::error::Error;

use egressnat_core::model::{
    EgressSource, Gateway, GatewayKey, Health, Labels, Node, NodeName, Pod, PodKey, Policy,
    Snapshot, Source,
};
use egressnat_core::{NodePlan, assign, plan_node};
use egressnat_dataplane::{Config, Dataplane};

/// One node, one pod, one policy for everything that goes to 8.8.8.0/24.
fn plan() -> Result<NodePlan, Box<dyn Error>> {
    let mut snapshot = Snapshot::default();
    let worker: NodeName = "worker1".parse()?;
    let mut node = Node::new(Health::Up);
    node.subnets.insert("192.168.1.0/24".parse()?);
    snapshot.nodes.insert(worker.clone(), node);
    snapshot.namespaces.insert("alice".parse()?, Labels::new());
    let mut pod = Pod::new(worker.clone());
    pod.ips.insert("10.10.1.2".parse()?);
    let key = PodKey::new("alice".parse()?, "frontend-0".parse()?);
    snapshot.pods.insert(key, pod);
    let gateway = GatewayKey::group("kube-system".parse()?, "default".parse()?);
    let floating = Gateway::new(["192.168.1.100".parse()?]);
    snapshot.gateways.insert(gateway.clone(), floating);
    let destinations = ["8.8.8.0/24".parse()?];
    let policy = Policy::snat(
        [Source::everything()],
        destinations,
        EgressSource::from(&gateway),
    );
    snapshot.policies.insert("egress".parse()?, policy);
    let assignment = assign(&snapshot).assignment;
    Ok(plan_node(&snapshot, &assignment, &worker).plan)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let config = Config {
        uplink: Some(arguments.next().ok_or("which interface?")?),
        bpffs: arguments.next().ok_or("which bpffs?")?.into(),
        ..Config::default()
    };
    let mut dataplane = Dataplane::open(config).await?;
    // As often as anything changes; the second time there is nothing to do.
    for _ in 0..2 {
        let report = dataplane.apply(&plan()?).await;
        println!(
            "{} changes; holds {:?}",
            report.changes, report.floating_ips
        );
        for failure in &report.failures {
            println!("{}: {}", failure.object, failure.message);
        }
    }
    // The kernel stays as it is: `cleanup` takes everything away.
    Ok(())
}
