//! Which of several controllers writes: a `Lease` that one of them holds.
//!
//! The rule is core's [`Candidate`]: who holds the lease counts from before it sent the renewal, the others from when they saw it.

use std::future::Future;
use std::time::Duration;

use egressnat_core::gateway::SYSTEM_NAMESPACE;
use egressnat_core::ownership::{Candidate, LeaderRecord, LeaderStep, RATE_ERROR, Time, Timing};
use serde_json::json;
use tokio::sync::{oneshot, watch};

use crate::clock::now;
use crate::kind::Kind;
use crate::lease::micro_time;
use crate::object::{Object, ObjectKey};
use crate::store::{Asked, Layer, ObjectStore, StoreError};

/// A renewal is tried this often in the lease's duration, so that one that fails does no harm.
const RENEWALS: u32 = 5;

const NAME: &str = "egressnat-controller";

/// How controllers of one cluster come to agree which of them writes.
#[derive(Debug, Clone)]
pub struct Election {
    /// The name of this run of this controller, which no other run of any has.
    pub identity: String,
    /// How long a renewal is good for. The same for all controllers of a cluster.
    pub duration: Duration,
}

impl Election {
    /// How long a renewal is good for unless said otherwise: so long nobody writes after a leader has died.
    pub const DURATION: Duration = Duration::from_secs(5);

    /// An election with a name made of the host's and a number that nobody else has.
    pub fn of_this_process() -> Self {
        use std::hash::{BuildHasher, Hasher, RandomState};
        let host = nix::unistd::gethostname().unwrap_or_default();
        let number = RandomState::new().build_hasher().finish();
        Self {
            identity: format!("{}_{number:016x}", host.to_string_lossy()),
            duration: Self::DURATION,
        }
    }
}

/// Whether this controller leads.
#[derive(Debug, Clone)]
pub(crate) enum Leadership {
    /// There is no other.
    Sole,
    /// Until a time, unless it is renewed.
    Elected(watch::Receiver<Option<Time>>),
}

impl Leadership {
    /// For how long it leads from now on, if it does; for ever if there is no other.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        match self {
            Leadership::Sole => Some(Duration::MAX),
            Leadership::Elected(until) => {
                let until = (*until.borrow())?;
                let remaining = until.0.checked_sub(now().0)?;
                (!remaining.is_zero()).then_some(remaining)
            }
        }
    }

    /// Waits until it is told something new. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        if let Leadership::Elected(until) = self
            && until.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

/// Takes part in the election until it is told to resign, or dropped.
pub(crate) fn start<S: ObjectStore>(store: S, election: Election) -> (Leadership, Candidacy) {
    let (sender, receiver) = watch::channel(None);
    let (resign, resigned) = oneshot::channel();
    let timing = Timing {
        duration: election.duration,
        rate_error: RATE_ERROR,
    };
    let elector = Elector {
        store,
        candidate: Candidate::new(election.identity.clone(), timing),
        lease: None,
        leads_until: sender,
        election,
    };
    let task = tokio::spawn(async move {
        elector.run(resigned).await;
    });
    let candidacy = Candidacy {
        resign: Some(resign),
        task,
    };
    (Leadership::Elected(receiver), candidacy)
}

/// A part in the election, which ends with this value.
pub(crate) struct Candidacy {
    resign: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl Candidacy {
    /// Gives the lead up, if it has it. The one who calls this writes no more.
    pub(crate) async fn resign(mut self) {
        if let Some(resign) = self.resign.take() {
            let _ = resign.send(());
            let _ = (&mut self.task).await;
        }
    }
}

impl Drop for Candidacy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Elector<S> {
    store: S,
    election: Election,
    candidate: Candidate<String>,
    /// As last read or written; none if there is none.
    lease: Option<Object>,
    leads_until: watch::Sender<Option<Time>>,
}

impl<S: ObjectStore> Elector<S> {
    async fn run(mut self, mut resigned: oneshot::Receiver<()>) {
        let pause = self.election.duration / RENEWALS;
        let (mut is_failing, mut is_leading) = (false, false);
        loop {
            // Half of it, so that after an answer that does not come there is time for another attempt.
            let turn = tokio::time::timeout(self.election.duration / 2, self.turn()).await;
            match turn {
                Ok(Ok(())) => is_failing = false,
                Ok(Err(error)) if !is_failing => {
                    is_failing = true;
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "no part in the election of a leader; trying again");
                }
                _ => {}
            }
            let until = self.candidate.leads_until(now());
            if until.is_some() != is_leading {
                is_leading = until.is_some();
                let identity = self.election.identity.as_str();
                if is_leading {
                    tracing::info!(identity, "leads");
                } else {
                    tracing::warn!(identity, "leads no more");
                }
            }
            self.leads_until.send_if_modified(|told| {
                let is_news = *told != until;
                *told = until;
                is_news
            });
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                told = &mut resigned => {
                    if told.is_ok() {
                        self.give_up().await;
                    }
                    return;
                }
            }
        }
    }

    /// Takes its name out of the lease, so that the others need not wait until it has run out.
    async fn give_up(mut self) {
        self.leads_until.send_replace(None);
        let leads = self.candidate.leads_until(now()).is_some();
        let Some(mut lease) = self.lease.take().filter(|_| leads) else {
            return;
        };
        lease.value_mut()["spec"]["holderIdentity"] = json!("");
        let given = tokio::time::timeout(self.election.duration / 2, self.store.update(lease));
        match given.await {
            Ok(Ok(_)) => tracing::info!("the lead is given up"),
            _ => tracing::warn!("the lead could not be given up: others wait until it has run out"),
        }
    }

    /// Reads or writes the lease as the candidate wants.
    async fn turn(&mut self) -> Result<(), StoreError> {
        if self.candidate.step(now()) != LeaderStep::Read {
            self.write_if_due().await?;
        }
        if matches!(
            self.candidate.step(now()),
            LeaderStep::Read | LeaderStep::Wait
        ) {
            self.lease = self.store.read(&lease_key()).await?;
            self.candidate.saw(record(self.lease.as_ref()), now());
            self.write_if_due().await?;
        }
        Ok(())
    }

    async fn write_if_due(&mut self) -> Result<(), StoreError> {
        let sent = now();
        let LeaderStep::Write(_) = self.candidate.step(sent) else {
            return Ok(());
        };
        let written = match &self.lease {
            None => self.store.create(self.renewed(None)).await,
            Some(known) => self.store.update(self.renewed(Some(known))).await,
        };
        match written {
            Ok(lease) => {
                self.candidate.wrote(record(Some(&lease)), sent);
                self.lease = Some(lease);
                Ok(())
            }
            Err(StoreError::Conflict(_) | StoreError::Exists(_) | StoreError::NotFound(_)) => {
                self.candidate.lost();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The lease with our name in it, to be written over the version that is known.
    fn renewed(&self, known: Option<&Object>) -> Object {
        let time = micro_time();
        let mut lease = match known {
            Some(known) => known.clone(),
            None => Object::new(&lease_key(), json!({ "spec": {} })),
        };
        let spec = &mut lease.value_mut()["spec"];
        if spec["holderIdentity"] != json!(self.election.identity) {
            let transitions = spec["leaseTransitions"].as_u64();
            spec["leaseTransitions"] = json!(transitions.map_or(0, |count| count + 1));
            spec["acquireTime"] = json!(time);
            spec["holderIdentity"] = json!(self.election.identity);
        }
        spec["leaseDurationSeconds"] = json!(self.election.duration.as_secs().max(1));
        spec["renewTime"] = json!(time);
        lease
    }
}

fn lease_key() -> ObjectKey {
    ObjectKey::namespaced(Kind::Lease, SYSTEM_NAMESPACE, NAME)
}

/// The lock as the candidate sees it.
fn record(lease: Option<&Object>) -> LeaderRecord<String> {
    let Some(lease) = lease else {
        return LeaderRecord::default();
    };
    let leader = lease.at("/spec/holderIdentity").as_str();
    LeaderRecord {
        version: lease.version(),
        leader: leader.filter(|name| !name.is_empty()).map(str::to_owned),
    }
}

/// A store that is written to only while this controller leads.
#[derive(Clone)]
pub(crate) struct Led<S> {
    pub(crate) store: S,
    pub(crate) leadership: Leadership,
}

impl<S: ObjectStore> Layer for Led<S> {
    type Inner = S;

    fn inner(&self) -> &S {
        &self.store
    }

    /// A write is cut off at the moment at which another may begin to lead.
    async fn around<T: Send>(
        &self,
        asked: Asked<'_>,
        answer: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let Asked::Write(key) = asked else {
            return answer.await;
        };
        let not_leading = || StoreError::NotLeading(key.clone());
        let remaining = self.leadership.remaining().ok_or_else(not_leading)?;
        match tokio::time::timeout(remaining, answer).await {
            Ok(written) => written,
            Err(_) => Err(not_leading()),
        }
    }
}

#[cfg(test)]
mod tests;
