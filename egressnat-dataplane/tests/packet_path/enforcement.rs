//! E43: what becomes of the pods of a policy that is strict, or is not, while nobody holds its egress IP, and in between.

use egressnat_core::NodePlan;
use egressnat_core::model::Enforcement;

use crate::ipv6::{FLOATING6, snapshot};
use crate::network::{FLOATING, Network, planned};
use crate::side::SIDES;
use crate::traffic::{PODS, address};
use crate::wire::Packet;

const NODES: [&str; 2] = ["n1", "n2"];

/// One state of a policy and its egress IPs.
#[derive(Debug, Clone, Copy, PartialEq)]
struct State {
    enforcement: Enforcement,
    is_held: bool,
}

/// From each of the four states to each of the others, once.
const STATES: [State; 13] = {
    use Enforcement::{BestEffort, Strict};
    const fn state(enforcement: Enforcement, is_held: bool) -> State {
        State {
            enforcement,
            is_held,
        }
    }
    [
        state(Strict, true),
        state(Strict, false),
        state(BestEffort, true),
        state(BestEffort, false),
        state(Strict, true),
        state(BestEffort, true),
        state(Strict, true),
        state(BestEffort, false),
        state(Strict, false),
        state(BestEffort, false),
        state(BestEffort, true),
        state(Strict, false),
        state(Strict, true),
    ]
};

impl State {
    fn plan(self, node: &str) -> NodePlan {
        let mut snapshot = snapshot();
        for policy in snapshot.policies.values_mut() {
            policy.enforcement = self.enforcement;
        }
        match self.is_held {
            true => planned(&snapshot, node, &[(FLOATING, "n2"), (FLOATING6, "n2")]),
            false => planned(&snapshot, node, &[]),
        }
    }
}

#[test]
fn whoever_holds_the_egress_ip_or_nobody_a_strict_policy_and_one_of_best_effort_do_as_they_say_e43()
{
    let network = Network::dual_stack();
    let wire = network.listen("out", "eth0");
    let flows: Vec<_> = (5500..)
        .zip(&SIDES)
        .flat_map(|(port, side)| {
            PODS.map(|pod| (side, pod, network.udp(pod, port, address(side.server, 9))))
        })
        .collect();
    for (number, state) in (0u16..).zip(STATES) {
        for node in NODES {
            assert_eq!(
                network.apply(node, state.plan(node)).failures,
                [],
                "{state:?}"
            );
        }
        for (side, pod, flow) in &flows {
            let node = if *pod == PODS[0] {
                side.nodes[1]
            } else {
                side.nodes[0]
            };
            let want = match state {
                State { is_held: true, .. } => Some(side.floating),
                State {
                    enforcement: Enforcement::Strict,
                    ..
                } => None,
                _ => Some(node),
            };
            let want = want.map(str::to_owned);
            let what = format!("{pod} to {}, {state:?}", side.server);
            assert_eq!(network.seen_by_tcp(pod, side.server), want, "{what}");
            // A flow that has run through all of this, whose datagrams tell the states apart.
            let text = format!("{number} of {pod}");
            let is_it =
                |p: &Packet| p.is_to(side.server) && p.payload.get(8..) == Some(text.as_bytes());
            for _ in 0..3 {
                // That nobody listens is told to it, too.
                let _ = flow.send(text.as_bytes());
            }
            if let Some(want) = &want {
                wire.wait_for(&what, |p| is_it(p) && p.is_from(want));
            }
            let others =
                wire.count(|p| is_it(p) && !want.as_ref().is_some_and(|want| p.is_from(want)));
            assert_eq!(others, 0, "{what}");
        }
    }
}
