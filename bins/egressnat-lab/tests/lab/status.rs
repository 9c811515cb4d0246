//! Status tells what real kernels have.

use std::time::Duration;

use egressnat_kube::{Kind, ObjectKey};
use egressnat_lab::probe::until;

use crate::{TestLab, pod, programmed};

#[test]
fn a_policy_is_programmed_when_real_kernels_have_it_and_no_more_when_one_has_not() {
    let lab = TestLab::with_policy();
    let key = ObjectKey::cluster(Kind::EgressNatPolicy, "egress");
    let told = |want: (&str, &str)| {
        until(&format!("{want:?}"), Duration::from_secs(60), || {
            let object = lab.object(&key);
            let (status, reason) = programmed(&object)?;
            ((status.as_str(), reason.as_str()) == want).then_some(object)
        })
        .unwrap()
    };
    let object = told(("True", "Programmed"));
    assert_eq!(object.at("/status/selectedPods"), 3);
    assert_eq!(object.at("/status/nodes/0"), &lab.holder());
    // The agent cannot mend what it is not allowed to: the host forwards nothing any more.
    let (_, away) = lab.beside_and_away();
    let node = if away.to_string() == pod("frontend-0").to_string() {
        "worker1"
    } else {
        "worker2"
    };
    let forward = |value: &str| {
        let write = format!("echo {value} >/proc/sys/net/ipv4/ip_forward");
        let output = lab.cli(&["exec", &format!("node/{node}"), "--", "sh", "-c", &write]);
        assert!(output.status.success(), "{output:?}");
    };
    forward("0");
    let object = told(("False", "NodeFailed"));
    let message = object.at("/status/conditions").to_string();
    assert!(
        message.contains(&format!("node {node}: sysctl net.ipv4.ip_forward")),
        "{message}"
    );
    forward("1");
    told(("True", "Programmed"));
}
