//! Both families with the rights of the agent's container, and no others.

use egressnat_core::Report;
use egressnat_dataplane::Dataplane;

use super::*;
use crate::container::confine;

impl Network {
    /// Applies plans one after the other in one run of a confined agent.
    fn apply_confined<const N: usize>(&self, node: &str, plans: [NodePlan; N]) -> [Report; N] {
        let config = self.config(node);
        self.enter(node, move || {
            confine();
            runtime().block_on(async {
                let mut dataplane = Dataplane::open(config).await.unwrap();
                let mut reports = Vec::new();
                for plan in &plans {
                    reports.push(dataplane.apply(plan).await);
                }
                reports.try_into().unwrap()
            })
        })
    }
}

#[test]
fn the_agents_container_may_do_all_that_an_agent_does_e40() {
    let network = Network::dual_stack();
    for node in ["n1", "n2"] {
        for report in network.apply_confined(node, [plan(node, "n2")]) {
            assert_eq!(report.failures, [], "{node}");
        }
    }
    network.watch_for_leaks6();
    for pod in PODS {
        assert_eq!(network.seen_by_tcp(pod, SERVER), seen(FLOATING), "{pod}");
        assert_eq!(network.seen_by_tcp(pod, SERVER6), seen(FLOATING6), "{pod}");
    }
    // A successor, a move, and what others did meanwhile.
    for (node, holder) in [("n2", "n1"), ("n1", "n1")] {
        network.sysctl(node, "net.ipv4.conf.egressnat0.rp_filter=1");
        network.ip(node, "-6 route del default table 1190");
        let [before, after] = network.apply_confined(node, [plan(node, "n2"), plan(node, holder)]);
        assert_eq!(
            (before.failures, after.failures),
            (vec![], vec![]),
            "{node}"
        );
    }
    for pod in PODS {
        assert_eq!(network.seen_by_tcp(pod, SERVER6), seen(FLOATING6), "{pod}");
    }
    assert_eq!(network.counted6("leaked"), 0);
    // `cleanup` has the same.
    let config = network.config("n1");
    let report = network.enter("n1", move || {
        confine();
        runtime().block_on(cleanup(&config))
    });
    assert_eq!(report.failures, []);
    assert_eq!(network.exec("n1", "nft list tables"), "", "E46");
}
