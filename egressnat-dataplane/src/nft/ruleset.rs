//! Our table: made whole once per layout; afterwards only elements change.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::net::IpAddr;
use std::time::Instant;

use egressnat_core::model::{MasqueradeAction, MasqueradeMatch, MasqueradeRules};
use ipnet::IpNet;
use nftnl::{Batch, MsgType};

use super::batch::NftError;
use super::counter::Counter;
use super::fence;
use super::forgotten::Forgotten;
use super::inventory::altered;
use super::masquerade;
use super::owner::{Owner, Standing};
use super::query;
use super::set::{Change, Elements, SetName};
use crate::config::Config;
use crate::family::Family;
use crate::mark::MarkMask;

mod chains;

pub(super) use chains::{AFTER_SRCNAT, MASQUERADE, RAW, begins_no_connection};

/// What our tables are called: one of family ip, one of family ip6 where a plan has something of IPv6, one of family arp
/// where deadlines are used.
pub(crate) const TABLE: &CStr = c"egressnat";

/// Counts up with every change of chains, rules or sets: a table of another layout is replaced in one batch.
const LAYOUT: u32 = 6;

/// The table of a family as it should be: which bits and which port its rules name.
#[derive(Debug, Clone)]
pub(crate) struct Ruleset {
    family: Family,
    mark: MarkMask,
    tunnel_port: u16,
    tunnel_device: String,
}

impl Ruleset {
    pub(crate) fn new(family: Family, config: &Config) -> Self {
        Self {
            family,
            mark: config.mark,
            tunnel_port: config.tunnel_port,
            tunnel_device: config.tunnel_device.clone(),
        }
    }

    pub(super) fn family(&self) -> Family {
        self.family
    }

    /// What the table of a family is called in nftables' own words.
    pub(crate) fn name(family: Family) -> &'static str {
        match family {
            Family::Ipv4 => "table ip egressnat",
            Family::Ipv6 => "table ip6 egressnat",
        }
    }

    /// Whether there is a table of a family, of whatever layout.
    pub(crate) fn is_present(family: Family) -> Result<bool, NftError> {
        Ok(query::table(family)?.is_some())
    }

    /// Makes the table if there is none at all.
    pub(crate) fn ensure_present(&self, owner: &mut Owner) -> Result<(), NftError> {
        if !owner.owns(self.family) && !Self::is_present(self.family)? {
            self.ensure(owner)?;
        }
        Ok(())
    }

    fn comment(&self) -> CString {
        let text = format!(
            "egressnat layout {LAYOUT}, mark {}, port {}, device {}: egress NAT gateway, written by egressnat-agent",
            self.mark, self.tunnel_port, self.tunnel_device
        );
        CString::new(text).expect("no NUL in it")
    }

    /// Makes the table unless it is there in this very layout. Returns whether it was made.
    pub(crate) fn ensure(&self, owner: &mut Owner) -> Result<bool, NftError> {
        let layout = query::comment_userdata(&self.comment());
        let present = match owner.look(self.family.into(), &layout)? {
            Standing::Owned => return Ok(false),
            Standing::Open(table) => {
                let rules = masquerade::read(self.family).unwrap_or_default();
                match altered(self.family.into(), |batch| self.declare(&rules, batch))? {
                    None => return Ok(false),
                    Some(_) => Some(table),
                }
            }
            Standing::Other(present) => present,
        };
        let (kept, notes, rules) = match &present {
            Some(table) => (
                self.kept_elements(&table.userdata),
                Forgotten::carried(self.family),
                masquerade::read(self.family).unwrap_or_default(),
            ),
            None => Default::default(),
        };
        let what = Self::name(self.family);
        let start = Instant::now();
        let made = owner.make(present.as_ref(), &layout, what, |owner| {
            let mut batch = Batch::new();
            if present.is_some() {
                batch.add(&owner.named(self.family, &[]), MsgType::Del);
            }
            batch.add(&owner.named(self.family, &layout), MsgType::Add);
            self.declare(&rules, &mut batch);
            if !notes.is_empty() {
                Forgotten::declare(self, &mut batch);
            }
            for elements in kept.iter().chain(&notes) {
                elements.add_to(&mut batch, Change::Add);
            }
            batch.finalize()
        })?;
        // The kernel counts from when it got the table: had we been frozen on the way, a deadline would be too late.
        if start.elapsed() > fence::CARRY_MARGIN {
            fence::let_go(owner, self.family)?;
        }
        Ok(made)
    }

    /// What a table of another layout has in the sets of this one: it goes into the new table in the same batch, so that the
    /// guard holds and translation goes on while the layout changes.
    fn kept_elements(&self, userdata: &[u8]) -> Vec<Elements> {
        let family = self.family;
        let ranges = [
            SetName::PodRanges,
            SetName::InternalRanges,
            SetName::GuardRanges,
        ];
        // A set that the old layout has not is empty.
        let mut kept: Vec<Elements> = ranges
            .into_iter()
            .map(|name| {
                let ranges = query::ranges(family, name).unwrap_or_default();
                let ranges = ranges.into_iter();
                ranges.fold(Elements::of(family, name), Elements::range)
            })
            .collect();
        let deadlines = query::expiring(family, SetName::Held).unwrap_or_default();
        kept.push(fence::carried(family, deadlines));
        for name in [SetName::FloatingIps, SetName::Fenced] {
            let addresses = query::addresses(family, name).unwrap_or_default();
            let addresses = addresses.into_iter();
            kept.push(addresses.fold(Elements::of(family, name), Elements::address));
        }
        // Marks mean the same as long as the mask is the same.
        let mask = format!("mark {},", self.mark);
        if String::from_utf8_lossy(userdata).contains(&mask) {
            let mapped = query::mappings(family, SetName::EgressIps).unwrap_or_default();
            // What an older layout translates may leave.
            kept.push(Elements::translated(family, mapped.iter().copied()));
            kept.push(Elements::mapped(family, mapped));
        }
        kept
    }

    /// Removes the table of a family. Returns whether there was one.
    pub(crate) fn remove(owner: &Owner, family: Family) -> Result<bool, NftError> {
        if !Self::is_present(family)? {
            return Ok(false);
        }
        let mut batch = Batch::new();
        batch.add(&owner.named(family, &[]), MsgType::Del);
        let what = format!("the removal of {}", Self::name(family));
        owner.commit(&batch.finalize(), &what)?;
        Ok(true)
    }

    /// Changes elements, removals first, all in one batch.
    pub(crate) fn change(
        owner: &Owner,
        removed: &[Elements],
        added: &[Elements],
        what: &str,
    ) -> Result<(), NftError> {
        let mut batch = Batch::new();
        for elements in removed {
            elements.add_to(&mut batch, Change::Remove);
        }
        for elements in added {
            elements.add_to(&mut batch, Change::Add);
        }
        owner.commit(&batch.finalize(), what)
    }

    /// Sets and removes masquerade rules of a family, all in one batch.
    pub(crate) fn change_masquerade(
        owner: &Owner,
        family: Family,
        set: &BTreeMap<MasqueradeMatch, MasqueradeAction>,
        removed: &[MasqueradeMatch],
    ) -> Result<(), NftError> {
        masquerade::change(owner, family, set, removed)
    }

    /// The masquerade rules now.
    pub(crate) fn masquerade(family: Family) -> Result<MasqueradeRules, NftError> {
        masquerade::read(family)
    }

    /// How many connections were translated to each egress IP.
    pub(crate) fn connections(family: Family) -> Result<BTreeMap<IpAddr, u64>, NftError> {
        query::connections(family, SetName::EgressIps)
    }

    /// How many packets a counter has.
    pub(crate) fn packets(family: Family, counter: Counter) -> Result<u64, NftError> {
        counter.of(family).packets()
    }

    /// The ranges in an interval set now.
    pub(crate) fn ranges(family: Family, name: SetName) -> Result<BTreeSet<IpNet>, NftError> {
        query::ranges(family, name)
    }

    /// The addresses in a set now.
    pub(crate) fn addresses(family: Family, name: SetName) -> Result<BTreeSet<IpAddr>, NftError> {
        query::addresses(family, name)
    }

    /// Marks, each with the address that what has it may leave with, now.
    pub(crate) fn translated(family: Family) -> Result<BTreeSet<(u32, IpAddr)>, NftError> {
        query::translated(family)
    }

    /// The mappings in a map now.
    pub(crate) fn mappings(
        family: Family,
        name: SetName,
    ) -> Result<BTreeSet<(u32, IpAddr)>, NftError> {
        query::mappings(family, name)
    }
}

#[cfg(test)]
mod tests;
