//! Telling what others did from what the plan changed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use egressnat_core::{Change, NodePlan, Report, Resource, Restored, diff};
use tokio::time::Instant;

use super::Dataplane;
use super::kept::Kept;
use crate::family::Family;
use crate::network::is_tunnel_set;
use crate::ports::PodInterfaces;
use crate::programs::Hook;

/// How often what the kernel tells nobody is looked at: what is gone is back within a second.
const AUDIT: Duration = Duration::from_millis(500);

/// How often all is read again, whatever was told and looked at.
const READING: Duration = Duration::from_secs(10);

/// Tells what others did: when something was in doubt, a change that what was kept does not explain undoes it.
#[derive(Default)]
pub(super) struct Restoration {
    has_applied: bool,
    counts: BTreeMap<Resource, u64>,
    audited: Option<Instant>,
    read: Option<Instant>,
}

/// The changes of a comparison, and what they were found with.
pub(super) struct Comparison<'a> {
    /// What was kept before the kernel was read again, if it was.
    pub(super) before: Option<Kept>,
    pub(super) desired: &'a NodePlan,
    pub(super) interfaces: &'a PodInterfaces,
    pub(super) changes: &'a [Change],
    /// Those that could not be made.
    pub(super) undone: BTreeSet<Change>,
}

impl Restoration {
    pub(super) fn counts(&self) -> &BTreeMap<Resource, u64> {
        &self.counts
    }

    /// Whether a plan was applied before, so that what is kept is what this run knows.
    pub(super) fn has_applied(&self) -> bool {
        self.has_applied
    }

    /// Waits until the next audit is due.
    ///
    /// Cancel safe: being asked often does not put it off.
    pub(super) async fn audit_is_due(&mut self) {
        let last = *self.audited.get_or_insert_with(Instant::now);
        tokio::time::sleep_until(last + AUDIT).await;
        self.audited = Some(Instant::now());
    }

    /// Whether all is to be read again.
    pub(super) fn is_reading_due(&self) -> bool {
        self.read.is_none_or(|read| read.elapsed() >= READING)
    }

    /// Notes that all was read.
    pub(super) fn note_reading(&mut self) {
        self.read = Some(Instant::now());
    }

    /// Puts what was restored into the report, and counts it. `report.restored` has so far what is there whatever the plan says; it
    /// was made, not restored, if this is the first plan.
    pub(super) fn finish(&mut self, comparison: Comparison<'_>, report: &mut Report) {
        if !std::mem::replace(&mut self.has_applied, true) {
            report.restored.clear();
        } else if let Some(before) = comparison.before {
            let explained = diff(&before.plan, comparison.desired);
            let explained: BTreeSet<Change> = explained.into_iter().collect();
            let is_restored = |change: &&Change| {
                !explained.contains(change)
                    && !comparison.undone.contains(change)
                    && !has_moved(change, &before, comparison.interfaces)
            };
            let restored = comparison.changes.iter().filter(is_restored);
            report.restored.extend(restored.map(|change| Restored {
                resource: match change {
                    Change::AddAddress(_) | Change::RemoveAddress(_) => Resource::Address,
                    _ => Resource::Entry,
                },
                object: change.to_string(),
            }));
        }
        for restored in &report.restored {
            *self.counts.entry(restored.resource).or_default() += 1;
        }
    }
}

/// Whether a change is about a pod that was elsewhere before.
fn has_moved(change: &Change, before: &Kept, now: &PodInterfaces) -> bool {
    match change {
        Change::SetPod(pod, _) => {
            let now = now.by_address.get(pod).copied();
            !now.is_some_and(|ifindex| before.pods.contains_key(&(*pod, ifindex)))
        }
        _ => false,
    }
}

impl Dataplane {
    /// Whether what nobody tells about is as it was put: pins, programs and the tunnel device's setting, by the cheapest questions
    /// there are.
    pub(super) fn is_in_place(&self) -> bool {
        let is_set = |family: &Family| is_tunnel_set(&self.config, *family);
        if !self.families.iter().all(is_set) {
            return false;
        }
        let mut steered = self.steered.iter();
        self.programs.are_pinned()
            && self.programs.are_departures_there()
            && steered.all(|ifindex| self.programs.is_attached(Hook::Steer, *ifindex))
            && [Hook::Encap, Hook::Decap]
                .into_iter()
                .all(|hook| self.programs.is_attached(hook, self.tunnel))
    }
}
