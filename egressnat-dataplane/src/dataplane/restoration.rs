//! Telling what others did from what the plan changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use egressnat_core::{Change, NodePlan, Report, Resource, Restored, diff};
use tokio::time::Instant;

use super::Dataplane;
use crate::family::Family;
use crate::network::is_tunnel_set;
use crate::programs::Hook;

/// How often what the kernel tells nobody is looked at: what is gone is back within a second.
const AUDIT: Duration = Duration::from_millis(500);

/// What was made the last time: a change that neither the plan nor an earlier failure explains undoes what somebody did.
#[derive(Default)]
pub(super) struct Restoration {
    last: Option<Applied>,
    counts: BTreeMap<Resource, u64>,
    audited: Option<Instant>,
}

/// A plan as it was applied.
struct Applied {
    plan: NodePlan,
    routes: BTreeMap<IpAddr, u32>,
    undone: BTreeSet<Change>,
}

impl Restoration {
    pub(super) fn counts(&self) -> &BTreeMap<Resource, u64> {
        &self.counts
    }

    /// Waits until the next look is due.
    ///
    /// Cancel safe: being asked often does not put it off.
    pub(super) async fn audit_is_due(&mut self) {
        let last = *self.audited.get_or_insert_with(Instant::now);
        tokio::time::sleep_until(last + AUDIT).await;
        self.audited = Some(Instant::now());
    }

    /// Puts what was restored into the report, and counts it. `report.restored` has so far what is there whatever the plan says; it
    /// was made, not restored, if this is the first plan.
    pub(super) fn finish(
        &mut self,
        plan: NodePlan,
        routes: BTreeMap<IpAddr, u32>,
        changes: &[Change],
        undone: BTreeSet<Change>,
        report: &mut Report,
    ) {
        match &self.last {
            None => report.restored.clear(),
            Some(last) => {
                let planned: BTreeSet<Change> = diff(&last.plan, &plan).into_iter().collect();
                let is_done = |change: &&Change| {
                    !planned.contains(change)
                        && !last.undone.contains(change)
                        && !undone.contains(change)
                        && !has_moved(change, &last.routes, &routes)
                };
                let changes = changes.iter().filter(is_done);
                report.restored.extend(changes.map(|change| Restored {
                    resource: match change {
                        Change::AddAddress(_) | Change::RemoveAddress(_) => Resource::Address,
                        _ => Resource::Entry,
                    },
                    object: change.to_string(),
                }));
            }
        }
        for restored in &report.restored {
            *self.counts.entry(restored.resource).or_default() += 1;
        }
        self.audited = Some(Instant::now());
        self.last = Some(Applied {
            plan,
            routes,
            undone,
        });
    }
}

/// Whether a change is about a pod that was elsewhere the last time.
fn has_moved(change: &Change, before: &BTreeMap<IpAddr, u32>, now: &BTreeMap<IpAddr, u32>) -> bool {
    match change {
        Change::SetPod(pod, _) | Change::RemovePod(pod) => before.get(pod) != now.get(pod),
        _ => false,
    }
}

impl Dataplane {
    /// Whether what nobody tells about is as it was put: programs and the tunnel device's setting, by the cheapest questions
    /// there are.
    pub(super) fn is_in_place(&mut self) -> bool {
        let is_set = |family: &Family| is_tunnel_set(&self.config, *family);
        if !self.families.iter().all(is_set) {
            return false;
        }
        let mut steered = self.steered.iter();
        steered.all(|ifindex| self.programs.is_attached(Hook::Steer, *ifindex))
            && [Hook::Encap, Hook::Decap]
                .into_iter()
                .all(|hook| self.programs.is_attached(hook, self.tunnel))
    }
}
