//! What others do to entries of the eBPF maps, of which the kernel tells nobody: found out within a second, and undone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use egressnat_core::gateway::EgressId;
use egressnat_core::{Report, Resource};

use super::doubt::Doubts;
use super::ensure::wrote;
use super::kept::Tally;
use super::{Dataplane, fail};
use crate::maps::{EgressEntry, Entry, Walk, map_error};
use crate::programs::ProgramsError;

/// For how long an audit, of which there are two a second, looks at entries: 0.2 % of a processor. The kernel takes half a microsecond or
/// more for each destination and less for others, so what most nodes have is looked at each time, and 10,000 destinations take some seconds.
const LONGEST: Duration = Duration::from_millis(1);

/// So many it looks at in any case: on a slow machine, or a busy one, what few entries say is looked at each time too.
const LEAST: usize = 1024;

/// How far the entries were looked at since something was written last.
#[derive(Debug, Default)]
pub(super) struct EntryAudit {
    walk: Option<Walk>,
    met: Tally,
    /// Whether there is a destination of no policy set in particular: to be looked for among all of them.
    has_astray: bool,
}

impl Dataplane {
    /// Looks at entries of the maps, from where it ended the last time. Doubts the maps if one is not as it was written.
    pub(super) fn audit_entries(&mut self) {
        if !self.doubts.maps && !self.are_next_entries_right().unwrap_or(false) {
            self.doubts.maps = true;
            self.entry_audit = EntryAudit {
                has_astray: self.entry_audit.has_astray,
                ..EntryAudit::default()
            };
        }
    }

    fn are_next_entries_right(&mut self) -> Result<bool, ProgramsError> {
        let (start, mut count) = (Instant::now(), 0);
        let EntryAudit {
            walk,
            met,
            has_astray,
        } = &mut self.entry_audit;
        let walk = walk.get_or_insert_with(|| Walk::new(self.egress.ends()));
        while let Some(entries) = walk.next(&self.maps)? {
            for entry in &entries {
                if !self.kept.has(entry, &self.egress, &self.policies) {
                    *has_astray = *entry == Entry::Astray;
                    return Ok(false);
                }
                met.count(entry);
            }
            count += entries.len();
            if count >= LEAST && start.elapsed() >= LONGEST {
                return Ok(true);
            }
        }
        let met = std::mem::take(&mut self.entry_audit).met;
        Ok(met == self.kept.tally(&self.policies))
    }

    /// Writes entries anew that somebody altered, and takes others away, of which no plan says anything: what was written is known.
    pub(super) fn restore_entries(&mut self, doubts: Doubts, report: &mut Report) {
        if !doubts.maps || !self.restoration.has_applied() {
            return;
        }
        let mut told = |objects: Result<Vec<String>, ProgramsError>| match objects {
            Ok(objects) => objects
                .iter()
                .for_each(|object| wrote(report, true, Resource::Entry, object)),
            Err(error) => fail(report, "entries of eBPF maps that others altered", &error),
        };
        let slots = self.egress.restore(&mut self.maps);
        told(slots.map(|slots| {
            let object = |slot: EgressEntry| match slot.is_free() {
                true => format!("free index {} of egress IPs", slot.index),
                false => format!("index {} of egress IP {}", slot.index, slot.address),
            };
            slots.into_iter().map(object).collect()
        }));
        let names = self.policies.restore(&mut self.maps.policies);
        told(names.map(|indices| {
            let object = |index| format!("name of the policy with index {index}");
            indices.into_iter().map(object).collect()
        }));
        if self.entry_audit.has_astray {
            let astray = self.maps.remove_astray();
            told(astray.map(|count| vec!["destination of no policy set".to_owned(); count]));
        }
        told(self.restore_numbers());
    }

    /// Writes the VNIs of held floating IPs anew. Returns what it wrote and took away.
    fn restore_numbers(&mut self) -> Result<Vec<String>, ProgramsError> {
        let own = self
            .kept
            .numbered()
            .filter_map(|address| Some((EgressId::of(address).vni(), self.egress.index(address)?)));
        let mut missing: BTreeMap<u32, u32> = own.collect();
        let mut restored = Vec::new();
        for (vni, index) in self.maps.numbers()? {
            match missing.get(&vni) {
                Some(right) if index == *right => _ = missing.remove(&vni),
                Some(_) => {}
                None => {
                    self.maps.vnis.remove(&vni).map_err(map_error("vnis"))?;
                    restored.push(format!("VNI {vni} of no floating IP"));
                }
            }
        }
        for (vni, index) in missing {
            let written = self.maps.vnis.insert(vni, index, 0);
            written.map_err(map_error("vnis"))?;
            restored.push(format!("VNI {vni}"));
        }
        Ok(restored)
    }
}
