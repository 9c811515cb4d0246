//! What a loop tells of itself while it runs: that it turns, what it sees, what it did.

use std::fmt::{self, Display, Formatter};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use egressnat_core::Report;

mod observed;

pub(crate) use observed::Observed;

/// How often a loop turns at least, with nothing to do.
pub(crate) const BEAT: Duration = Duration::from_secs(10);

/// A loop that has not turned for so long hangs. Three beats, of which one may be spent on a large plan.
const STALLED: Duration = Duration::from_secs(30);

/// The pulse of a loop. Clones are of the same loop: one goes with the loop's configuration, another is read by whoever answers probes.
#[derive(Debug, Clone)]
pub struct Pulse(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    turned: Instant,
    is_synced: bool,
    /// Since when the store cannot be seen.
    unseen: Option<Instant>,
    /// What is not as planned; none before the first plan.
    plan: Option<Result<(), String>>,
    /// Of the controller: whether it leads.
    leads: Option<bool>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            turned: Instant::now(),
            is_synced: false,
            unseen: None,
            plan: None,
            leads: None,
        })))
    }
}

/// A state of health: whether a probe succeeds, and what there is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether all is well as far as was asked.
    pub is_well: bool,
    lines: Vec<String>,
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", if self.is_well { "ok" } else { "not ok" })?;
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl Pulse {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The loop goes on.
    pub(crate) fn turned(&self) {
        self.state().turned = Instant::now();
    }

    /// The store has told everything once.
    pub(crate) fn synced(&self) {
        self.state().is_synced = true;
    }

    /// The store cannot be seen.
    pub(crate) fn lost_sight(&self) {
        let mut state = self.state();
        state.unseen = state.unseen.or_else(|| Some(Instant::now()));
    }

    /// The store can be seen again.
    pub(crate) fn regained_sight(&self) {
        self.state().unseen = None;
    }

    /// A plan was applied, as well as the report says.
    pub(crate) fn applied(&self, report: &Report) {
        let outcome = match report.failures.as_slice() {
            [] => Ok(()),
            [first, rest @ ..] => Err(format!(
                "{}: {}{}",
                first.object,
                first.message,
                match rest.len() {
                    0 => String::new(),
                    more => format!(", and {more} more"),
                }
            )),
        };
        self.state().plan = Some(outcome);
    }

    /// The controller leads, or another does.
    pub(crate) fn leads(&self, leads: bool) {
        self.state().leads = Some(leads);
    }

    /// Whether the loop turns. One that does not cannot help itself: it wants to be started anew.
    pub fn liveness(&self) -> Verdict {
        self.state().liveness(Instant::now())
    }

    /// Whether the loop knows the objects and has done what follows from them.
    ///
    /// A store that cannot be seen later changes nothing of that: the last plan stays in force. The verdict says so.
    pub fn readiness(&self) -> Verdict {
        self.state().readiness(Instant::now())
    }
}

impl State {
    fn liveness(&self, now: Instant) -> Verdict {
        let since = now.saturating_duration_since(self.turned);
        Verdict {
            is_well: since < STALLED,
            lines: vec![format!("loop: turned {} s ago", since.as_secs())],
        }
    }

    fn readiness(&self, now: Instant) -> Verdict {
        let Verdict { is_well, mut lines } = self.liveness(now);
        lines.push(match (self.is_synced, self.unseen) {
            (false, _) => "objects: not all seen yet".to_owned(),
            (true, None) => "objects: seen".to_owned(),
            (true, Some(since)) => format!(
                "objects: cannot be seen for {} s; what was decided stays in force",
                now.saturating_duration_since(since).as_secs()
            ),
        });
        let mut is_ready = is_well && self.is_synced;
        match (&self.leads, &self.plan) {
            (Some(true), _) => lines.push("role: leading".to_owned()),
            (Some(false), _) => lines.push("role: standby".to_owned()),
            (None, Some(Ok(()))) => lines.push("plan: applied".to_owned()),
            (None, Some(Err(failure))) => {
                is_ready = false;
                lines.push(format!("plan: not as planned: {failure}"));
            }
            (None, None) => {
                is_ready = false;
                lines.push("plan: none applied yet".to_owned());
            }
        }
        Verdict {
            is_well: is_ready,
            lines,
        }
    }
}

#[cfg(test)]
mod tests;
