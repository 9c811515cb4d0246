//! What the node may hold: core's [`Holder`] between the lease, the grants, and the kernel's deadlines (E33).
//!
//! Three parts of the agent meet here. The task that renews the lease says that it was renewed, and writes nothing while something
//! is yet to be given back. The loop says what is granted, and applies plans with what is held. Probes say whether
//! somebody else has an address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use egressnat_core::model::NodeName;
use egressnat_core::ownership::{
    Generation, GrantRecord, Holder, HolderStep, LeaseRecord, Probe, RATE_ERROR, Source, Term,
    Time, Timing,
};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::Uplink;
use super::lookout::Lookout;
use super::segment::Neighbors;
use crate::clock;

/// How many of the segment's other gateway nodes are asked at most.
const VOTERS: usize = 15;

/// How long to wait for their answers.
const ANSWER: Duration = Duration::from_millis(150);

/// What a node may hold now. Clones are of one thing.
pub(super) struct Ownership<U>(Arc<Shared<U>>);

impl<U> Clone for Ownership<U> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Shared<U> {
    uplink: U,
    neighbors: Neighbors,
    lease_duration: Duration,
    state: Mutex<State>,
    /// What is held has changed: a plan wants to be applied.
    changed: Notify,
    /// Everything that was to be given back is.
    settled: Notify,
}

struct State {
    node: NodeName,
    holder: Holder,
    /// What a plan has yet to take out of the kernel.
    releasing: BTreeSet<IpAddr>,
    /// Without a deadline in the kernel, for it could not be written, and why.
    unfenced: BTreeMap<IpAddr, String>,
    /// As last told to the loop.
    held: BTreeSet<IpAddr>,
}

impl<U: Uplink> Ownership<U> {
    /// `found` are the floating IPs that an earlier run left in the kernel, and until when.
    pub(super) fn new(
        node: NodeName,
        lease_duration: Duration,
        uplink: U,
        neighbors: Neighbors,
        found: BTreeMap<IpAddr, Instant>,
    ) -> Self {
        let timing = Timing {
            duration: lease_duration,
            rate_error: RATE_ERROR,
        };
        let mut holder = Holder::new(node.clone(), timing);
        for (address, until) in found {
            holder.found(address, clock::time(until));
        }
        let state = State {
            node,
            holder,
            releasing: BTreeSet::new(),
            unfenced: BTreeMap::new(),
            held: BTreeSet::new(),
        };
        Self(Arc::new(Shared {
            uplink,
            neighbors,
            lease_duration,
            state: Mutex::new(state),
            changed: Notify::new(),
            settled: Notify::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked has left no half of anything behind.
        let state = self.0.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    /// The grants of all floating IPs, as the gateways tell them now.
    pub(super) fn saw(&self, grants: BTreeMap<IpAddr, GrantRecord>) {
        let mut state = self.state();
        // Its gateway has it no more: as if it were asked for, so that the lease says when it was given back.
        let is_gone = |(address, known): (IpAddr, &GrantRecord)| {
            let grant = known.grant.as_ref()?;
            if grants.contains_key(&address) || grant.node != state.node || grant.is_withdrawn {
                return None;
            }
            let mut record = known.clone();
            record.grant.as_mut()?.is_withdrawn = true;
            Some((address, record))
        };
        let gone: Vec<(IpAddr, GrantRecord)> = state.holder.grants().filter_map(is_gone).collect();
        for (address, record) in grants.into_iter().chain(gone) {
            state.holder.saw(address, record);
        }
        self.step(state);
    }

    /// The floating IPs that may be used now.
    pub(super) fn held(&self) -> BTreeSet<IpAddr> {
        self.state().held(clock::now())
    }

    /// Waits until what is held has changed. Cancel safe.
    pub(super) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// A plan with these floating IPs was applied: the kernel has no others, and of these it uses `usable`.
    pub(super) fn applied(&self, floating_ips: &BTreeSet<IpAddr>, usable: &BTreeSet<IpAddr>) {
        let mut state = self.state();
        let was_releasing = !state.releasing.is_empty();
        state
            .releasing
            .retain(|address| floating_ips.contains(address));
        if was_releasing && state.releasing.is_empty() {
            self.0.settled.notify_one();
        }
        // Its deadline went with an address that was taken out of the kernel and is back by now.
        let silent = floating_ips.difference(usable).copied();
        let held = state.held(clock::now());
        let silent: Vec<IpAddr> = silent.filter(|address| held.contains(address)).collect();
        if let Some(until) = state.holder.valid_until()
            && !silent.is_empty()
        {
            state.hold(&self.0.uplink, &silent, until);
        }
    }

    /// Waits until something was given back, which the lease should tell at once. Cancel safe.
    pub(super) async fn given_back(&self) {
        self.0.settled.notified().await;
    }

    /// Waits until everything is given back that has to be, for a while: a packet that comes late is then sent on to the next holder.
    pub(super) async fn settle(&self, patience: Duration) {
        let settled = async {
            while !self.state().releasing.is_empty() {
                self.0.settled.notified().await;
            }
        };
        // If not, it is silenced.
        let _ = tokio::time::timeout(patience, settled).await;
    }

    /// Asks the other gateway nodes on the segment, while the store does not answer in time: `voters` are their addresses.
    ///
    /// As long as most of them answer, this node is where it was, and keeps what it holds. One that is cut off from the others gives
    /// up at its deadline, because they may have what it holds by then.
    pub(super) async fn ask_segment(&self, voters: &BTreeSet<IpAddr>) {
        let Some(term) = self.state().holder.term() else {
            return;
        };
        let sent = clock::now();
        let asked: JoinSet<bool> = voters
            .iter()
            .take(VOTERS)
            .map(|voter| {
                let (uplink, voter) = (self.0.uplink.clone(), *voter);
                async move { uplink.answers(voter, ANSWER).await }
            })
            .collect();
        let answers = asked.join_all().await;
        let others = answers.iter().filter(|is_there| **is_there).count();
        // This node is one of them.
        if 2 * (others + 1) > answers.len() + 1 {
            self.renewed(Source::Segment, term, sent);
        }
    }

    /// Whether the lease, by any source, will soon be good no more while something is held.
    pub(super) fn is_running_out(&self, soon: Duration) -> bool {
        let state = self.state();
        let now = clock::now();
        let until = state.holder.valid_until();
        !state.held(now).is_empty() && until.is_some_and(|until| until < now.after(soon))
    }

    /// What to write over the lease. What is yet to be given back is silenced in the kernel first: the lease says that it was.
    pub(super) fn renewal(&self, lease: &LeaseRecord) -> LeaseRecord {
        let mut state = self.state();
        state.holder.read(lease);
        let mut renewal = state.holder.renewal(lease);
        for address in std::mem::take(&mut state.releasing) {
            if let Err(failure) = self.0.uplink.hold_until(&[address], Instant::now()) {
                tracing::error!(
                    %address,
                    message = failure.message,
                    "a floating IP cannot be given back"
                );
                renewal.released.remove(&address);
                state.releasing.insert(address);
            }
        }
        renewal
    }

    /// Newer than all terms of this node that are known, for a lease that has to be created.
    pub(super) fn next_term(&self) -> Term {
        let state = self.state();
        let grants = state.holder.grants().filter_map(|(_, record)| {
            let grant = record.grant.as_ref()?;
            (grant.node == state.node).then_some(grant.term)
        });
        let newest = grants.chain(state.holder.term()).max();
        newest.map_or(Term::default(), |term| Term(term.0 + 1))
    }

    /// A renewal that was sent at `sent` is good.
    pub(super) fn renewed(&self, source: Source, term: Term, sent: Time) {
        let mut state = self.state();
        state.holder.renewed(source, term, sent);
        self.step(state);
    }

    /// Does what the holder wants.
    fn step(&self, mut state: MutexGuard<'_, State>) {
        let now = clock::now();
        let mut probes = Vec::new();
        // A renewed lease moves the deadline of all that is held.
        let mut deadlines: BTreeMap<Time, Vec<IpAddr>> = BTreeMap::new();
        for step in state.holder.step(now) {
            match step {
                HolderStep::HoldUntil(address, until) => {
                    state.releasing.remove(&address);
                    deadlines.entry(until).or_default().push(address);
                }
                HolderStep::Release(address) => {
                    state.releasing.insert(address);
                }
                HolderStep::Probe {
                    address,
                    generation,
                    is_handed_over,
                } => probes.push((address, generation, is_handed_over)),
            }
        }
        for (until, addresses) in deadlines {
            state.hold(&self.0.uplink, &addresses, until);
        }
        let held = state.held(now);
        if held != state.held {
            state.held = held;
            self.0.changed.notify_one();
        }
        drop(state);
        let (handed_over, others): (Vec<_>, Vec<_>) = probes
            .into_iter()
            .partition(|(.., is_handed_over)| *is_handed_over);
        for (address, generation, _) in handed_over {
            // A moment ago nobody else had it, or its holder would not have held it.
            self.probed(address, generation, Probe::Free);
        }
        if others.is_empty() {
            return;
        }
        let (uplink, nodes) = (self.0.uplink.clone(), self.0.neighbors.nodes());
        let lookout = Lookout::new(uplink, nodes, self.0.lease_duration);
        for (address, generation, _) in others {
            tokio::spawn(self.clone().probe(lookout.clone(), address, generation));
        }
    }

    async fn probe(self, lookout: Lookout<U>, address: IpAddr, generation: Generation) {
        let outcome = lookout.look(address).await;
        if outcome == Probe::Conflict {
            tracing::warn!(
                %address,
                "another host answers for a floating IP that is granted to this node: it is not used"
            );
        }
        self.probed(address, generation, outcome);
    }

    fn probed(&self, address: IpAddr, generation: Generation, outcome: Probe) {
        let mut state = self.state();
        state
            .holder
            .probed(address, generation, outcome, clock::now());
        self.step(state);
    }
}

impl State {
    fn held(&self, now: Time) -> BTreeSet<IpAddr> {
        let held = self.holder.held(now);
        held.filter(|address| !self.unfenced.contains_key(address))
            .collect()
    }

    fn hold(&mut self, uplink: &impl Uplink, addresses: &[IpAddr], until: Time) {
        match (
            uplink.hold_until(addresses, clock::instant(until)),
            addresses,
        ) {
            (Ok(()), addresses) => {
                for address in addresses {
                    self.unfenced.remove(address);
                }
            }
            (Err(failure), [address]) => {
                let address = *address;
                // One that had a deadline keeps it.
                if self.held.contains(&address) {
                    tracing::error!(%address, message = failure.message, "the deadline of a floating IP cannot be moved");
                } else if self.unfenced.get(&address) != Some(&failure.message) {
                    tracing::error!(%address, message = failure.message, "a floating IP cannot be held");
                    self.unfenced.insert(address, failure.message);
                }
            }
            // One may be to blame, and the others are not to fall silent for it.
            (Err(_), addresses) => {
                for address in addresses {
                    self.hold(uplink, &[*address], until);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use egressnat_core::Failure;

    /// Refuses whatever one address is among, and remembers the others.
    #[derive(Clone)]
    struct Refusing(IpAddr, Arc<Mutex<BTreeSet<IpAddr>>>);

    impl Uplink for Refusing {
        fn hold_until(&self, addresses: &[IpAddr], _: Instant) -> Result<(), Failure> {
            if addresses.contains(&self.0) {
                return Err(Failure {
                    object: self.0.to_string(),
                    message: "no".to_owned(),
                });
            }
            self.1.lock().unwrap().extend(addresses);
            Ok(())
        }

        async fn answers(&self, _: IpAddr, _: Duration) -> bool {
            false
        }
    }

    #[test]
    fn of_many_floating_ips_one_that_cannot_be_held_silences_no_other_e33() {
        let all = [1, 2, 3].map(|host| IpAddr::from([192, 168, 1, host]));
        let uplink = Refusing(all[1], Arc::default());
        let (node, lease) = ("worker1".parse().unwrap(), Duration::from_secs(5));
        let ownership = Ownership::new(
            node,
            lease,
            uplink.clone(),
            Neighbors::new(BTreeSet::new()),
            BTreeMap::new(),
        );
        let mut state = ownership.state();
        state.hold(&uplink, &all, clock::now().after(lease));
        assert!(state.unfenced.keys().eq([&all[1]]));
        assert_eq!(*uplink.1.lock().unwrap(), [all[0], all[2]].into());
    }
}
