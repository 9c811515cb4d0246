//! An agent of few words: it does what it is told, and heals what others break.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use egressnat_core::NodePlan;
use egressnat_dataplane::{Config, Dataplane};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::network::{Network, runtime};

pub(super) enum Order {
    Apply(Box<NodePlan>),
    /// Dies so long after it has begun to apply a plan, and is started again.
    Die(Box<NodePlan>, Duration),
}

/// An agent that lives until this is dropped.
pub(super) struct Agent {
    orders: UnboundedSender<Order>,
    done: mpsc::Receiver<()>,
}

impl Agent {
    pub(super) fn start(network: &Network, node: &str) -> Self {
        let (config, namespace) = (network.config(node), network.namespace(node));
        let (orders, received) = unbounded_channel();
        let (tell, done) = mpsc::channel();
        thread::spawn(move || {
            let file = std::fs::File::open(format!("/run/netns/{namespace}")).unwrap();
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            runtime().block_on(obey(config, received, tell));
        });
        Self { orders, done }
    }

    pub(super) fn order(&self, order: Order) {
        assert!(self.orders.send(order).is_ok(), "the agent has ended");
        let patience = Duration::from_secs(60);
        self.done.recv_timeout(patience).expect("the agent obeys");
    }

    pub(super) fn apply(&self, plan: NodePlan) {
        self.order(Order::Apply(Box::new(plan)));
    }
}

async fn obey(config: Config, mut orders: UnboundedReceiver<Order>, done: mpsc::Sender<()>) {
    let mut dataplane = Dataplane::open(config.clone()).await.unwrap();
    let mut plan = NodePlan::default();
    loop {
        let order = tokio::select! {
            order = orders.recv() => order,
            () = dataplane.changed() => {
                // Somebody may be at it again: the next will be complete.
                dataplane.apply(&plan).await;
                continue;
            }
        };
        match order {
            None => return,
            Some(Order::Apply(next)) => plan = *next,
            Some(Order::Die(next, after)) => {
                plan = *next;
                // Where it waits for something: at any other point a process is killed by tests of their own.
                let _ = tokio::time::timeout(after, dataplane.apply(&plan)).await;
                drop(dataplane);
                dataplane = Dataplane::open(config.clone()).await.unwrap();
            }
        }
        let mut report = dataplane.apply(&plan).await;
        if !report.is_complete() {
            report = dataplane.apply(&plan).await;
        }
        assert_eq!(report.failures, []);
        let _ = done.send(());
    }
}
