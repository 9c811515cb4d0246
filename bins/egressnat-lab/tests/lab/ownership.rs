//! Who has a floating IP when: never two nodes (E33), also when one of them is frozen or drained.

use egressnat_lab::probe::Traffic;
use serde_json::json;

use super::*;

impl TestLab {
    pub(super) fn told(&self, node: &str, command: &[&str]) -> String {
        let output = self.output(&Target::Node(node.to_owned()), command);
        String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
    }

    /// Cordons a node, or takes that back.
    fn set_unschedulable(&self, node: &str, is: bool) {
        let mut object = self.object(&ObjectKey::cluster(Kind::Node, node));
        object.value_mut()["spec"]["unschedulable"] = json!(is);
        self.apply_objects(vec![object]).unwrap();
    }

    /// Whether the kernel of a node would use .100 now: it has the address, and its deadline has not come.
    pub(super) fn is_used_on(&self, node: &str) -> bool {
        let address = FLOATING.to_string();
        let held = self.told(node, &["nft", "list", "set", "ip", "egressnat", "held"]);
        held.contains(&address)
            && self
                .told(node, &["ip", "-4", "address", "show"])
                .contains(&address)
    }
}

#[test]
fn a_frozen_holder_falls_silent_before_another_has_its_address_e33() {
    let lab = TestLab::with_policy();
    let (old, new) = lab.holder_and_other();
    let (_, away) = lab.beside_and_away();
    assert!(lab.is_used_on(&old));
    lab.freeze(&old).unwrap();
    until("the next holder", PATIENCE, || {
        // In this order: what the first has given up it does not get back.
        let is_taken = lab.is_used_on(new);
        assert!(!(is_taken && lab.is_used_on(&old)), "two owners");
        is_taken.then_some(())
    })
    .unwrap();
    // The address is still on its interface: the kernel alone keeps it silent.
    let addresses = lab.told(&old, &["ip", "-4", "address", "show"]);
    assert!(addresses.contains(&FLOATING.to_string()), "{addresses}");
    lab.until_seen_as(&away, FLOATING);
    lab.thaw(&old).unwrap();
    until("the address to be off its old holder", PATIENCE, || {
        let addresses = lab.told(&old, &["ip", "-4", "address", "show"]);
        (!addresses.contains(&FLOATING.to_string())).then_some(())
    })
    .unwrap();
    assert_eq!(lab.holder(), new);
    lab.until_seen_as(&away, FLOATING);
}

/// How long packets wait for the next holder: the kernel asks for it three times, a second apart, and then drops them.
const KERNELS_PATIENCE: Duration = Duration::from_millis(2500);

#[test]
fn a_drained_node_hands_its_address_over_and_no_pod_loses_a_packet_e33_e35() {
    let lab = TestLab::with_policy();
    for attempt in 1..=4 {
        let old = lab.holder();
        let (beside, away) = lab.beside_and_away();
        let traffic = [beside, away].map(|pod| {
            let traffic = Traffic::start(&lab.namespace(&pod).unwrap(), SERVER).unwrap();
            traffic.wait_for_answers(10, PATIENCE).unwrap();
            traffic
        });
        lab.set_unschedulable(&old, true);
        until("another holder", PATIENCE, || {
            (lab.holder() != old && lab.is_used_on(&lab.holder())).then_some(())
        })
        .unwrap();
        assert!(!lab.is_used_on(&old));
        let [on_old, on_next] = traffic.map(|traffic| {
            traffic.wait_for_answers(10, PATIENCE).unwrap();
            traffic.finish().unwrap()
        });
        let observed = [on_old, on_next];
        for flow in &observed {
            assert_eq!(flow.sources, [FLOATING].into());
        }
        if observed
            .iter()
            .all(|flow| flow.longest_gap < KERNELS_PATIENCE)
        {
            for flow in &observed {
                assert_eq!(flow.sent, flow.answered, "{observed:?}");
            }
            return;
        }
        eprintln!("attempt {attempt} void, so slow a machine: {observed:?}");
        lab.set_unschedulable(&old, false);
    }
    panic!("the machine was always too slow to tell anything");
}
