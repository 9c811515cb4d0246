//! Until when the kernel lets this node use its floating IPs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use crate::config::Config;
use crate::family::Family;
use crate::nft::{Fence, NftError, Ruleset, SharedOwner};

/// How many deadlines are written in one batch: so many take a fraction of the margin for writing them.
const AT_ONCE: usize = 1_000;

/// Deadlines of floating IPs, counted by the kernel (E33). Clones are of one thing.
///
/// # Guarantees
///
/// At its deadline an address falls silent: it answers no ARP or neighbor solicitation, and nothing goes out or comes in with it, not even for connections that
/// run, whether this process runs, is frozen or is gone.
///
/// # Minimum kernel version
///
/// 5.18, with tables of family arp.
#[derive(Debug, Clone)]
pub struct Deadlines {
    nft: SharedOwner,
    config: Config,
}

impl Deadlines {
    pub(crate) fn new(nft: SharedOwner, config: Config) -> Self {
        Self { nft, config }
    }

    /// Lets this node use floating IPs until `deadline` and no longer. Called again it moves the deadline, without a gap for packets (before Linux
    /// 6.17, one of a million may be lost); one that has passed ends the use at once. A thousand are one batch.
    ///
    /// An address that has no deadline may be used for ever, unless [`FloatingIpUse`](crate::FloatingIpUse) says otherwise. A deadline
    /// goes with its floating IP, when a plan has that no more. A table that takes the place of another layout has the same
    /// deadlines, less 300 ms.
    ///
    /// # Errors
    ///
    /// nf_tables refused: the kernel has no tables of family arp. The old deadlines stand, of all addresses or of some.
    pub fn hold_until(&self, addresses: &[IpAddr], deadline: Instant) -> Result<(), NftError> {
        for family in Family::of_all(addresses) {
            Ruleset::new(family, &self.config).ensure_present(&mut self.nft.lock())?;
        }
        addresses
            .chunks(AT_ONCE)
            .try_for_each(|part| Fence::hold(&mut self.nft.lock(), part, deadline))
    }

    /// The floating IPs that have a deadline to come, such as those that an earlier run left.
    ///
    /// # Errors
    ///
    /// nf_tables cannot be read.
    pub fn read(&self) -> Result<BTreeMap<IpAddr, Instant>, NftError> {
        let now = Instant::now();
        let mut deadlines = BTreeMap::new();
        for family in Family::ALL {
            if Ruleset::is_present(family)? {
                let left = Fence::deadlines(family)?.into_iter();
                deadlines.extend(left.map(|(address, left)| (address, now + left)));
            }
        }
        Ok(deadlines)
    }
}
