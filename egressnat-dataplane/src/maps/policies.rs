//! What is counted by policy: an index stands for a name.

use aya::Pod;
use aya::maps::{HashMap, Map, MapData, PerCpuArray, PerCpuValues};
use egressnat_core::model::PolicyName;

use super::batch::all;
use super::{Traffic, map_error};
use crate::programs::ProgramsError;

/// As in the C source.
pub(crate) const MAX_POLICIES: u32 = 4096;
/// The first index of a policy: what has no policy has 0.
pub(crate) const FIRST_POLICY: u32 = 1;
/// Bytes of a name in the map: more than any name has (253), so that each ends with a 0.
pub(crate) const NAME_LENGTH: usize = 256;

/// Value of a destination: what becomes of a packet in the lower half of its bits, and by which policy in the upper half.
///
/// The values of releases before there were policies in them read as what they were, counted for nobody: all that they said was in
/// the lower half, and an index that no policy can have beside [`DROP`](super::DROP) in the upper one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DestinationValue {
    /// An egress index, or one of those with a meaning of their own.
    pub(crate) egress: u16,
    /// The index of the policy that decides, or 0.
    pub(crate) policy: u16,
}

impl DestinationValue {
    pub(super) fn from_bits(bits: u32) -> Self {
        let [b0, b1, b2, b3] = bits.to_le_bytes();
        Self {
            egress: u16::from_le_bytes([b0, b1]),
            policy: u16::from_le_bytes([b2, b3]),
        }
    }

    pub(super) fn bits(self) -> u32 {
        u32::from(self.egress) | u32::from(self.policy) << u16::BITS
    }
}

/// Value of `policy_traffic`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PolicyTraffic {
    pub(crate) sent: Traffic,
    pub(crate) connections: u64,
    pub(crate) blocked: u64,
}

// SAFETY: plain integers, `repr(C)`, no padding.
unsafe impl Pod for PolicyTraffic {}

impl std::ops::AddAssign for PolicyTraffic {
    fn add_assign(&mut self, other: Self) {
        self.sent += other.sent;
        self.connections += other.connections;
        self.blocked += other.blocked;
    }
}

/// The maps by the index of a policy.
pub(crate) struct PolicyMaps {
    traffic: PerCpuArray<MapData, PolicyTraffic>,
    pub(super) names: HashMap<MapData, u32, [u8; NAME_LENGTH]>,
}

impl PolicyMaps {
    pub(super) fn open(
        take: &mut impl FnMut(&'static str) -> Result<Map, ProgramsError>,
    ) -> Result<Self, ProgramsError> {
        Ok(Self {
            traffic: take("policy_traffic")?
                .try_into()
                .map_err(map_error("policy_traffic"))?,
            names: take("policy_names")?
                .try_into()
                .map_err(map_error("policy_names"))?,
        })
    }

    /// The policies that have an index. What is no name is none of them.
    pub(crate) fn names(&self) -> Result<Vec<(u32, PolicyName)>, ProgramsError> {
        let entries = self.entries()?.into_iter();
        let names = entries.filter_map(|(index, name)| Some((index, name?)));
        Ok(names.collect())
    }

    /// The indices that have an entry, and their policies unless somebody wrote what is no name.
    pub(crate) fn entries(&self) -> Result<Vec<(u32, Option<PolicyName>)>, ProgramsError> {
        let names = all(&self.names).map_err(map_error("policy_names"))?;
        let names = names.into_iter();
        Ok(names.map(|(index, name)| (index, decoded(&name))).collect())
    }

    /// Gives an index to a policy, for which it counts from 0.
    pub(crate) fn set_name(&mut self, index: u32, name: &PolicyName) -> Result<(), ProgramsError> {
        self.reset(index)?;
        self.rewrite_name(index, name)
    }

    /// Writes the name of a policy that has an index; what was counted for it stays.
    pub(crate) fn rewrite_name(
        &mut self,
        index: u32,
        name: &PolicyName,
    ) -> Result<(), ProgramsError> {
        let set = self.names.insert(index, encoded(name), 0);
        set.map_err(map_error("policy_names"))
    }

    /// Takes away the name of an index that is no policy's.
    pub(crate) fn remove_name(&mut self, index: u32) -> Result<(), ProgramsError> {
        let removed = self.names.remove(&index);
        removed.map_err(map_error("policy_names"))
    }

    /// What was counted for the policy with this index, on all CPUs.
    pub(crate) fn traffic(&self, index: u32) -> Result<PolicyTraffic, ProgramsError> {
        let values = self.traffic.get(&index, 0);
        let values = values.map_err(map_error("policy_traffic"))?;
        let mut sum = PolicyTraffic::default();
        for value in values.iter() {
            sum += *value;
        }
        Ok(sum)
    }

    fn reset(&mut self, index: u32) -> Result<(), ProgramsError> {
        let cpus = aya::util::nr_cpus().unwrap_or_default();
        let Ok(zeros) = PerCpuValues::try_from(vec![PolicyTraffic::default(); cpus]) else {
            return Ok(());
        };
        let set = self.traffic.set(index, zeros, 0);
        set.map_err(map_error("policy_traffic"))
    }
}

fn encoded(name: &PolicyName) -> [u8; NAME_LENGTH] {
    let mut bytes = [0; NAME_LENGTH];
    for (byte, of_name) in bytes.iter_mut().zip(name.as_str().bytes()) {
        *byte = of_name;
    }
    bytes
}

pub(super) fn decoded(bytes: &[u8]) -> Option<PolicyName> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&bytes[..end]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::{DROP, KEEP};
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written_however_long_it_is() {
        for length in [1, 253] {
            let name: PolicyName = "a".repeat(length).parse().unwrap();
            assert_eq!(decoded(&encoded(&name)), Some(name));
        }
        assert_eq!(decoded(&[0; NAME_LENGTH]), None);
        assert_eq!(decoded(&[0xff; NAME_LENGTH]), None);
    }

    #[test]
    fn the_value_of_an_older_release_says_what_it_said() {
        let value = |egress| DestinationValue { egress, policy: 0 };
        assert_eq!(DestinationValue::from_bits(1), value(KEEP));
        assert_eq!(DestinationValue::from_bits(1023), value(1023));
        let dropped = DestinationValue::from_bits(u32::MAX);
        assert_eq!(dropped.egress, DROP);
        assert!(u32::from(dropped.policy) >= MAX_POLICIES);
        let both = DestinationValue {
            egress: 2,
            policy: 4095,
        };
        assert_eq!(DestinationValue::from_bits(both.bits()), both);
    }
}
