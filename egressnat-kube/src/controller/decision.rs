//! Where the floating IPs belong, by what was told and by who is alive: the planner's engine, fed.

use std::collections::BTreeSet;

use egressnat_core::model::{Event, Health, Node, NodeName, Snapshot};
use egressnat_core::{Assignment, ClusterEngine, ClusterPlan, EffectiveGateways};

/// What is decided about the cluster.
///
/// # Guarantees
///
/// [`Decision::make`] says what planning from nothing says, with the last decision as the previous assignment: whatever was told in
/// between, and in whatever order.
#[derive(Debug, Default)]
pub(super) struct Decision {
    engine: ClusterEngine,
    /// What was decided last; none if anything has changed since.
    plan: Option<ClusterPlan>,
    /// Whether what was decided last is on its way to the store. If not, what the store tells counts.
    stands: bool,
}

impl Decision {
    /// Takes what was told, and who is alive, and decides. `told` reads from the store who holds what, where no earlier decision
    /// stands. Returns what was decided, with everything that is to be told about it.
    pub(super) fn make(
        &mut self,
        events: Vec<Event>,
        alive: &BTreeSet<NodeName>,
        told: impl FnOnce(&EffectiveGateways) -> Assignment,
    ) -> ClusterPlan {
        let health = |name: &NodeName| match alive.contains(name) {
            true => Health::Up,
            false => Health::Down,
        };
        let turned = |node: &(&NodeName, &Node)| node.1.health != health(node.0);
        let turned = self.engine.objects().nodes.iter().filter(turned);
        let turned = turned.map(|(name, node)| Event::Node(name.clone(), Some(node.clone())));
        // What was told of a node is newer than what is known of it.
        let mut all: Vec<Event> = turned.chain(events).collect();
        for event in &mut all {
            if let Event::Node(name, Some(node)) = event {
                node.health = health(name);
            }
        }
        self.take(all);
        if !std::mem::take(&mut self.stands) {
            let previous = told(self.engine.gateways());
            self.engine.go_on_from(&previous);
            self.plan = None;
        }
        let plan = self.plan.get_or_insert_with(|| self.engine.plan());
        plan.clone()
    }

    /// Takes what was told while another decides.
    pub(super) fn follow(&mut self, events: Vec<Event>) {
        self.take(events);
        self.doubt();
    }

    /// Takes events, most of which say nothing new to the planner.
    fn take(&mut self, events: Vec<Event>) {
        let objects = self.engine.objects();
        if !events.iter().all(|event| objects.is_as(event)) {
            self.engine.apply_all(events);
            self.plan = None;
        }
    }

    /// What was decided is granted: the next decision goes on from it.
    pub(super) fn stand(&mut self) {
        self.stands = true;
    }

    /// What was decided may not be what the store says: another decides, or a write failed.
    pub(super) fn doubt(&mut self) {
        self.stands = false;
    }

    /// Nodes, gateways and policies as they were told.
    pub(super) fn objects(&self) -> &Snapshot {
        self.engine.objects()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use egressnat_core::model::{Gateway, GatewayKey, GatewayKind};
    use std::net::IpAddr;

    const NODES: [&str; 2] = ["worker1", "worker2"];

    fn names<'a>(nodes: impl IntoIterator<Item = &'a str>) -> BTreeSet<NodeName> {
        let names = nodes.into_iter().map(|name| name.parse().unwrap());
        names.collect()
    }

    fn address() -> IpAddr {
        "192.168.1.100".parse().unwrap()
    }

    /// Two nodes and a floating IP.
    fn events() -> Vec<Event> {
        let mut node = Node::new(Health::Up);
        node.subnets = ["192.168.1.0/24".parse().unwrap()].into();
        let nodes = names(NODES).into_iter();
        let mut events: Vec<Event> = nodes
            .map(|name| Event::Node(name, Some(node.clone())))
            .collect();
        let key = GatewayKey {
            kind: GatewayKind::NetworkGatewayGroup,
            namespace: "kube-system".parse().unwrap(),
            name: "default".parse().unwrap(),
        };
        let gateway = Gateway::new([address()]);
        events.push(Event::Gateway(key, Some(gateway)));
        events
    }

    fn holder(plan: &ClusterPlan) -> Option<&str> {
        let holder = plan.assigned.assignment.nodes.get(&address());
        holder.map(NodeName::as_str)
    }

    fn nobody(_: &EffectiveGateways) -> Assignment {
        Assignment::default()
    }

    #[test]
    fn a_node_that_falls_silent_loses_its_address_and_takes_nothing_back_e31_e32() {
        let mut decision = Decision::default();
        let mut events = Some(events());
        for (alive, want) in [
            (&NODES[..], NODES[0]),
            (&NODES[1..], NODES[1]),
            (&NODES[..], NODES[1]),
        ] {
            let events = events.take().unwrap_or_default();
            let alive = names(alive.iter().copied());
            let plan = decision.make(events, &alive, nobody);
            decision.stand();
            assert_eq!(holder(&plan), Some(want), "{alive:?}");
        }
    }

    #[test]
    fn what_the_store_tells_counts_where_no_decision_stands() {
        let told = |_: &EffectiveGateways| Assignment {
            nodes: [(address(), NODES[1].parse().unwrap())].into(),
        };
        let mut decision = Decision::default();
        let first = decision.make(events(), &names(NODES), nobody);
        assert_eq!(holder(&first), Some(NODES[0]));
        let second = decision.make(vec![], &names(NODES), told);
        assert_eq!(holder(&second), Some(NODES[1]), "it was not granted");
        decision.stand();
        let third = decision.make(events(), &names(NODES), |_| panic!("a decision stands"));
        assert_eq!(third, second);
        decision.follow(vec![]);
        let fourth = decision.make(vec![], &names(NODES), nobody);
        assert_eq!(holder(&fourth), Some(NODES[0]), "another has led meanwhile");
    }
}
