//! What a floating IP leaves behind where it was held: connections that are translated to it.
//!
//! Those of this node's own pods have to go when it goes: they would leave with an address that is another node's. Those of other nodes
//! stay, because answers may be on their way; once the address comes back, their packets would be taken for invalid.
//!
//! To look for any is to have the kernel walk through all that it tracks, which takes it ten milliseconds even where that is nothing. So
//! it is done for addresses that may have some, and once at the start, for what an earlier run left.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::conntrack::{Connection, ConntrackError, connections, connections_seen_as, forget};
use crate::family::Family;
use crate::nft::Answer;
use crate::redecide::forget_expecting;

/// The floating IPs that may have connections.
#[derive(Default)]
pub(crate) struct Leftovers {
    /// Those that were given away, and those that had connections at the first look, before which they are not known.
    left: Option<BTreeSet<IpAddr>>,
    /// Those that pods of this node were ever steered to.
    steered: BTreeSet<IpAddr>,
}

impl Leftovers {
    /// Notes that pods of this node are steered to egress IPs.
    pub(crate) fn note_steered(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.steered.extend(addresses);
    }

    /// Makes the kernel forget what is left behind of floating IPs that come here.
    ///
    /// Before, `expect` is called with the answers to what `is_pod`s of this node have open.
    pub(crate) fn forget_old<E: From<ConntrackError>>(
        &mut self,
        coming: &[IpAddr],
        is_pod: impl Fn(&IpAddr) -> bool,
        expect: impl FnMut(Family, &[Answer]) -> Result<(), E>,
    ) -> Result<(), E> {
        let left = self.left()?;
        let wanted: BTreeSet<IpAddr> = coming.iter().copied().collect();
        let wanted = &wanted & left;
        let is_of_pod = |connection: &Connection| is_pod(&connection.source);
        let old = connections_seen_as(&wanted)?.into_iter();
        let (of_pods, others): (Vec<_>, Vec<_>) = old.partition(is_of_pod);
        forget_expecting(&of_pods, expect)?;
        others.iter().try_for_each(forget)?;
        left.retain(|address| !wanted.contains(address));
        Ok(())
    }

    /// Makes the kernel forget the connections of this node's pods that are translated to floating IPs which are given away.
    ///
    /// Before, `expect` is called with the answers to them: those whose policy is gone went on as they were until now, and what ends
    /// them begins no flow.
    pub(crate) fn forget_pods<E: From<ConntrackError>>(
        &mut self,
        going: &[IpAddr],
        is_pod: impl Fn(&IpAddr) -> bool,
        expect: impl FnMut(Family, &[Answer]) -> Result<(), E>,
    ) -> Result<(), E> {
        let going: BTreeSet<IpAddr> = going.iter().copied().collect();
        let steered = &going & &self.steered;
        let left = self.left()?;
        let wanted = &steered | &(&going & &*left);
        left.extend(going);
        let mut of_pods = connections_seen_as(&wanted)?;
        of_pods.retain(|connection| is_pod(&connection.source));
        forget_expecting(&of_pods, expect).map(drop)
    }

    fn left(&mut self) -> Result<&mut BTreeSet<IpAddr>, ConntrackError> {
        match &mut self.left {
            Some(left) => Ok(left),
            unknown => Ok(unknown.insert(translated()?)),
        }
    }
}

/// The addresses that connections are translated to now.
fn translated() -> Result<BTreeSet<IpAddr>, ConntrackError> {
    let mut addresses = BTreeSet::new();
    for family in Family::ALL {
        let connections = connections(family)?.into_iter();
        let translated = connections.filter(|connection| connection.seen_as != connection.source);
        addresses.extend(translated.map(|connection| connection.seen_as));
    }
    Ok(addresses)
}
