use egressnat_core::Failure;

use super::*;

impl Pulse {
    /// As a loop that hangs.
    pub(crate) fn turned_long_ago(&self) {
        self.state().turned = Instant::now() - STALLED;
    }
}

fn after(pulse: &Pulse, wait: Duration) -> (Verdict, Verdict) {
    let now = Instant::now() + wait;
    let state = pulse.state();
    (state.liveness(now), state.readiness(now))
}

#[test]
fn a_loop_that_stops_turning_is_neither_alive_nor_ready() {
    let pulse = Pulse::default();
    pulse.synced();
    pulse.applied(&Report::default());
    let (liveness, readiness) = after(&pulse, STALLED - Duration::from_secs(1));
    assert!(liveness.is_well && readiness.is_well);
    let (liveness, readiness) = after(&pulse, STALLED);
    assert!(!liveness.is_well && !readiness.is_well);
    assert_eq!(
        liveness.to_string(),
        "not ok\nloop: turned 30 s ago\n",
        "it says for how long"
    );
}

#[test]
fn an_agent_is_ready_once_a_plan_is_applied_and_as_long_as_the_last_one_is() {
    let pulse = Pulse::default();
    assert!(pulse.liveness().is_well && !pulse.readiness().is_well);
    pulse.synced();
    let verdict = pulse.readiness();
    assert!(!verdict.is_well, "{verdict}");
    assert!(verdict.to_string().contains("plan: none applied yet"));
    pulse.applied(&Report::default());
    assert!(pulse.readiness().is_well);
    let failure = |object: &str| Failure {
        object: object.to_owned(),
        message: "no room".to_owned(),
    };
    pulse.applied(&Report {
        failures: vec![failure("table"), failure("link")],
        ..Report::default()
    });
    let verdict = pulse.readiness();
    assert!(!verdict.is_well);
    let text = verdict.to_string();
    assert!(text.contains("table: no room, and 1 more"), "{text}");
    assert!(pulse.liveness().is_well, "a restart would not help");
}

#[test]
fn a_store_that_cannot_be_seen_is_told_and_no_reason_to_be_unready_e45() {
    let pulse = Pulse::default();
    pulse.lost_sight();
    assert!(!pulse.readiness().is_well, "it never knew anything");
    pulse.synced();
    pulse.applied(&Report::default());
    let (_, readiness) = after(&pulse, Duration::from_secs(12));
    assert!(readiness.is_well);
    let text = readiness.to_string();
    assert!(text.contains("cannot be seen for 12 s"), "{text}");
    pulse.regained_sight();
    assert!(pulse.readiness().to_string().contains("objects: seen"));
}

#[test]
fn a_controller_is_ready_whether_it_leads_or_not() {
    let pulse = Pulse::default();
    pulse.leads(false);
    assert!(!pulse.readiness().is_well);
    pulse.synced();
    assert!(pulse.readiness().is_well);
    assert!(pulse.readiness().to_string().contains("role: standby"));
    pulse.leads(true);
    assert!(pulse.readiness().to_string().contains("role: leading"));
}
