//! The maps of the eBPF programs, as Rust sees them.

mod batch;
mod entries;
mod policies;

use std::net::IpAddr;
use std::path::Path;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use ipnet::IpNet;

use crate::family::Family;
use crate::programs::ProgramsError;

use batch::all;

pub(crate) use batch::read_array;
pub(crate) use entries::{Entry, Walk};
pub(crate) use policies::{
    DestinationValue, FIRST_POLICY, MAX_POLICIES, NAME_LENGTH, PolicyMaps, PolicyTraffic,
};

/// Value of a destination that is left to normal forwarding.
pub(crate) const FORWARD: u16 = 0;
/// Value of a destination whose packets keep the pod's address.
pub(crate) const KEEP: u16 = 1;
/// Value of a destination whose packets do not leave.
pub(crate) const DROP: u16 = u16::MAX;
/// The maps of pods: how many there can be is configured.
pub(crate) const PODS: [&str; 2] = ["pods", "pods6"];
/// The maps that have as many entries as a mark has indices.
pub(crate) const BY_INDEX: [&str; 4] = ["egress_ips", "egress_ips6", "vnis", "traffic"];

/// The first index of an egress IP.
pub(crate) const FIRST_EGRESS: u32 = 2;

/// The maps that the agent writes. One set of methods for both families: an address tells its own.
pub(crate) struct Maps {
    ipv4: AddressMaps<[u8; 4]>,
    ipv6: AddressMaps<[u8; 16]>,
    /// By VNI. No two egress IPs have the same, of whatever family.
    pub(crate) vnis: HashMap<MapData, u32, u32>,
    /// By address in host byte order, as the tunnel key has it.
    peers: HashMap<MapData, u32, u32>,
    peers6: HashMap<MapData, [u8; 16], u32>,
    blocked: PerCpuArray<MapData, u64>,
    traffic: PerCpuArray<MapData, EgressTraffic>,
    /// By the index of a policy.
    pub(crate) policies: PolicyMaps,
}

/// A pod's address on its interface, and its policy set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PodEntry {
    pub(crate) address: IpAddr,
    pub(crate) ifindex: u32,
    pub(crate) set: u32,
}

/// A slot of an egress IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EgressEntry {
    pub(crate) index: u32,
    pub(crate) address: IpAddr,
    pub(crate) vni: u32,
    pub(crate) is_local: bool,
}

impl EgressEntry {
    /// One that is of none.
    pub(crate) fn free(family: Family, index: u32) -> Self {
        Self {
            index,
            address: family.unspecified(),
            vni: 0,
            is_local: false,
        }
    }

    /// Whether it is of none.
    pub(crate) fn is_free(&self) -> bool {
        self.address.is_unspecified()
    }
}

/// Calls a method of the maps of an address's family.
macro_rules! of_family {
    ($maps:expr, $address:expr, |$family:ident, $octets:ident| $call:expr) => {
        match $address {
            IpAddr::V4(address) => {
                let ($family, $octets) = (&mut $maps.ipv4, address.octets());
                $call
            }
            IpAddr::V6(address) => {
                let ($family, $octets) = (&mut $maps.ipv6, address.octets());
                $call
            }
        }
    };
}

impl Maps {
    /// Takes the maps that `take` gives by name: of a loaded object, or pinned.
    pub(crate) fn open(
        mut take: impl FnMut(&'static str) -> Result<Map, ProgramsError>,
    ) -> Result<Self, ProgramsError> {
        Ok(Self {
            ipv4: AddressMaps::open(&mut take)?,
            ipv6: AddressMaps::open(&mut take)?,
            vnis: take("vnis")?.try_into().map_err(map_error("vnis"))?,
            peers: take("peers")?.try_into().map_err(map_error("peers"))?,
            peers6: take("peers6")?.try_into().map_err(map_error("peers6"))?,
            blocked: take("blocked")?.try_into().map_err(map_error("blocked"))?,
            traffic: take("traffic")?.try_into().map_err(map_error("traffic"))?,
            policies: PolicyMaps::open(&mut take)?,
        })
    }

    /// Opens what an agent has pinned, whether it still runs or not.
    pub(crate) fn from_pins(pins: &Path) -> Result<Self, ProgramsError> {
        Self::open(|name| {
            let data = MapData::from_pin(pins.join(name)).map_err(map_error(name))?;
            Map::from_map_data(data).map_err(map_error(name))
        })
    }

    /// All pods.
    pub(crate) fn pods(&self) -> Result<Vec<PodEntry>, ProgramsError> {
        Ok([self.ipv4.pods()?, self.ipv6.pods()?].concat())
    }

    /// Sets the policy set of a pod.
    pub(crate) fn set_pod(&mut self, pod: PodEntry) -> Result<(), ProgramsError> {
        of_family!(self, pod.address, |maps, octets| maps
            .set_pod(PodKey::new(octets, pod.ifindex), pod.set))
    }

    /// Removes a pod.
    pub(crate) fn remove_pod(
        &mut self,
        address: IpAddr,
        ifindex: u32,
    ) -> Result<(), ProgramsError> {
        of_family!(self, address, |maps, octets| maps
            .remove_pod(PodKey::new(octets, ifindex)))
    }

    /// All destinations: policy set, prefix, value.
    pub(crate) fn destinations(
        &self,
    ) -> Result<Vec<(u32, IpNet, DestinationValue)>, ProgramsError> {
        Ok([self.ipv4.destinations()?, self.ipv6.destinations()?].concat())
    }

    /// Sets the value of a destination of a policy set.
    pub(crate) fn set_destination(
        &mut self,
        set: u32,
        prefix: IpNet,
        value: DestinationValue,
    ) -> Result<(), ProgramsError> {
        of_family!(self, prefix.network(), |maps, octets| maps
            .set_destination(destination_key(set, octets, prefix), value))
    }

    /// Removes a destination of a policy set.
    pub(crate) fn remove_destination(
        &mut self,
        set: u32,
        prefix: IpNet,
    ) -> Result<(), ProgramsError> {
        of_family!(self, prefix.network(), |maps, octets| maps
            .remove_destination(destination_key(set, octets, prefix)))
    }

    /// Blocks all destinations whose egress IP has a larger index: there is no mark for it.
    pub(crate) fn block_beyond(&mut self, index: u32) -> Result<(), ProgramsError> {
        for (set, prefix, value) in self.destinations()? {
            if value.egress != DROP && u32::from(value.egress) > index {
                let egress = DROP;
                self.set_destination(set, prefix, DestinationValue { egress, ..value })?;
            }
        }
        Ok(())
    }

    /// The egress IPs that have a slot.
    pub(crate) fn egress_ips(&self) -> Result<Vec<EgressEntry>, ProgramsError> {
        let mut slots = self.slots()?;
        slots.retain(|slot| !slot.is_free());
        Ok(slots)
    }

    /// All slots of egress IPs, also those that are free.
    pub(crate) fn slots(&self) -> Result<Vec<EgressEntry>, ProgramsError> {
        Ok([self.ipv4.slots()?, self.ipv6.slots()?].concat())
    }

    /// Writes the slot of an egress IP.
    pub(crate) fn set_egress(&mut self, egress: EgressEntry) -> Result<(), ProgramsError> {
        let (vni, local) = (egress.vni, u32::from(egress.is_local));
        of_family!(self, egress.address, |maps, address| maps.set_egress(
            egress.index,
            Egress {
                address,
                vni,
                local
            }
        ))
    }

    /// The nodes that steered packets are accepted from.
    pub(crate) fn peers(&self) -> Result<Vec<IpAddr>, ProgramsError> {
        let ipv4 = all(&self.peers).map_err(map_error("peers"))?;
        let ipv6 = all(&self.peers6).map_err(map_error("peers6"))?;
        let ipv4 = ipv4.into_iter().map(|(key, _)| peer_of(key));
        Ok(ipv4
            .chain(ipv6.into_iter().map(|(key, _)| key.into()))
            .collect())
    }

    /// Accepts steered packets from a node.
    pub(crate) fn add_peer(&mut self, peer: IpAddr) -> Result<(), ProgramsError> {
        match peer {
            IpAddr::V4(peer) => self.peers.insert(u32::from(peer), 1, 0),
            IpAddr::V6(peer) => self.peers6.insert(peer.octets(), 1, 0),
        }
        .map_err(map_error("peers"))
    }

    /// Accepts no steered packets from a node.
    pub(crate) fn remove_peer(&mut self, peer: IpAddr) -> Result<(), ProgramsError> {
        match peer {
            IpAddr::V4(peer) => self.peers.remove(&u32::from(peer)),
            IpAddr::V6(peer) => self.peers6.remove(&peer.octets()),
        }
        .map_err(map_error("peers"))
    }

    /// How many packets ended in the programs for a reason, on all CPUs.
    pub(crate) fn blocked(&self, reason: Reason) -> Result<u64, ProgramsError> {
        let values = self.blocked.get(&(reason as u32), 0);
        Ok(values.map_err(map_error("blocked"))?.iter().sum())
    }

    /// What was counted for an egress index, on all CPUs.
    pub(crate) fn traffic(&self, index: u32) -> Result<EgressTraffic, ProgramsError> {
        let mut sum = EgressTraffic::default();
        let values = self.traffic.get(&index, 0).map_err(map_error("traffic"))?;
        for value in values.iter() {
            sum.steered += value.steered;
            sum.received += value.received;
        }
        Ok(sum)
    }

    /// Lets an index count from 0: it stands for another egress IP now.
    pub(crate) fn reset_traffic(&mut self, index: u32) -> Result<(), ProgramsError> {
        let cpus = aya::util::nr_cpus().unwrap_or_default();
        let Ok(zeros) = PerCpuValues::try_from(vec![EgressTraffic::default(); cpus]) else {
            return Ok(());
        };
        let set = self.traffic.set(index, zeros, 0);
        set.map_err(map_error("traffic"))
    }
}

/// A key of `peers`.
fn peer_of(key: u32) -> IpAddr {
    IpAddr::from(key.to_be_bytes())
}

pub(crate) fn map_error(name: &'static str) -> impl FnOnce(MapError) -> ProgramsError {
    move |source| match &source {
        // E2BIG is what a full hash says, ENOSPC what a full trie says.
        MapError::SyscallError(error)
            if matches!(
                error.io_error.raw_os_error(),
                Some(libc::E2BIG | libc::ENOSPC)
            ) =>
        {
            ProgramsError::Full { name }
        }
        _ => ProgramsError::Map { name, source },
    }
}

/// Keys of `blocked`: the order is that of `enum reason` in the C source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    Dropped,
    NoEgress,
    UnknownPeer,
    UnknownVni,
}

/// Packets and bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets; one that the kernel carries in many segments counts as so many.
    pub packets: u64,
    /// Bytes with the Ethernet header.
    pub bytes: u64,
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// Value of `traffic`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct EgressTraffic {
    pub(crate) steered: Traffic,
    pub(crate) received: Traffic,
}

// SAFETY: plain integers, `repr(C)`, no padding.
unsafe impl Pod for EgressTraffic {}

/// An address in network byte order, as the maps of its family have it.
trait Octets: Pod + Into<IpAddr> {
    /// What the maps of this family are called.
    const NAMES: Names;
}

struct Names {
    pods: &'static str,
    destinations: &'static str,
    egress_ips: &'static str,
}

impl Octets for [u8; 4] {
    const NAMES: Names = Names {
        pods: "pods",
        destinations: "destinations",
        egress_ips: "egress_ips",
    };
}

impl Octets for [u8; 16] {
    const NAMES: Names = Names {
        pods: "pods6",
        destinations: "destinations6",
        egress_ips: "egress_ips6",
    };
}

/// Key of `pods`: an address counts on its own interface only.
#[repr(C)]
#[derive(Clone, Copy)]
struct PodKey<A> {
    address: A,
    ifindex: u32,
}

impl<A: Octets> From<(PodKey<A>, u32)> for PodEntry {
    fn from((key, set): (PodKey<A>, u32)) -> Self {
        Self {
            address: key.address.into(),
            ifindex: key.ifindex,
            set,
        }
    }
}

impl<A> PodKey<A> {
    fn new(address: A, ifindex: u32) -> Self {
        Self { address, ifindex }
    }
}

/// Key of `destinations` behind its prefix length.
#[repr(C)]
#[derive(Clone, Copy)]
struct DestinationKey<A> {
    set: u32,
    address: A,
}

/// Bits of a destination's key before the address.
const SET_BITS: u32 = 32;

/// What an entry of `destinations` means; none if it is of no policy set in particular, as no entry of ours is.
fn destination_of<A: Octets>(
    (key, value): (Key<DestinationKey<A>>, u32),
) -> Option<(u32, IpNet, DestinationValue)> {
    let DestinationKey { set, address } = key.data();
    let length = u8::try_from(key.prefix_len().checked_sub(SET_BITS)?).ok()?;
    // The bits behind the prefix mean nothing.
    let prefix = IpNet::new(address.into(), length).ok()?.trunc();
    Some((set, prefix, DestinationValue::from_bits(value)))
}

fn destination_key<A: Octets>(set: u32, address: A, prefix: IpNet) -> Key<DestinationKey<A>> {
    let bits = SET_BITS + u32::from(prefix.prefix_len());
    Key::new(bits, DestinationKey { set, address })
}

/// Value of `egress_ips`: without an address, a free slot.
#[repr(C)]
#[derive(Clone, Copy)]
struct Egress<A> {
    address: A,
    vni: u32,
    local: u32,
}

impl<A: Octets> From<(u32, Egress<A>)> for EgressEntry {
    fn from((index, egress): (u32, Egress<A>)) -> Self {
        Self {
            index,
            address: egress.address.into(),
            vni: egress.vni,
            is_local: egress.local != 0,
        }
    }
}

// SAFETY: plain integers and bytes, `repr(C)`, no padding: an address is of 4 or of 16 bytes.
unsafe impl<A: Octets> Pod for PodKey<A> {}
// SAFETY: as above.
unsafe impl<A: Octets> Pod for DestinationKey<A> {}
// SAFETY: as above.
unsafe impl<A: Octets> Pod for Egress<A> {}

/// The maps of one family.
struct AddressMaps<A: Octets> {
    pods: HashMap<MapData, PodKey<A>, u32>,
    destinations: LpmTrie<MapData, DestinationKey<A>, u32>,
    egress_ips: Array<MapData, Egress<A>>,
}

impl<A: Octets> AddressMaps<A> {
    fn open(
        take: &mut impl FnMut(&'static str) -> Result<Map, ProgramsError>,
    ) -> Result<Self, ProgramsError> {
        let Names {
            pods,
            destinations,
            egress_ips,
        } = A::NAMES;
        Ok(Self {
            pods: take(pods)?.try_into().map_err(map_error(pods))?,
            destinations: take(destinations)?
                .try_into()
                .map_err(map_error(destinations))?,
            egress_ips: take(egress_ips)?
                .try_into()
                .map_err(map_error(egress_ips))?,
        })
    }

    fn pods(&self) -> Result<Vec<PodEntry>, ProgramsError> {
        let pods = all(&self.pods).map_err(map_error(A::NAMES.pods))?;
        Ok(pods.into_iter().map(PodEntry::from).collect())
    }

    fn set_pod(&mut self, key: PodKey<A>, set: u32) -> Result<(), ProgramsError> {
        let inserted = self.pods.insert(key, set, 0);
        inserted.map_err(map_error(A::NAMES.pods))
    }

    fn remove_pod(&mut self, key: PodKey<A>) -> Result<(), ProgramsError> {
        let removed = self.pods.remove(&key);
        removed.map_err(map_error(A::NAMES.pods))
    }

    fn destinations(&self) -> Result<Vec<(u32, IpNet, DestinationValue)>, ProgramsError> {
        let all = all(&self.destinations).map_err(map_error(A::NAMES.destinations))?;
        Ok(all.into_iter().filter_map(destination_of).collect())
    }

    fn set_destination(
        &mut self,
        key: Key<DestinationKey<A>>,
        value: DestinationValue,
    ) -> Result<(), ProgramsError> {
        let inserted = self.destinations.insert(&key, value.bits(), 0);
        inserted.map_err(map_error(A::NAMES.destinations))
    }

    fn remove_destination(&mut self, key: Key<DestinationKey<A>>) -> Result<(), ProgramsError> {
        let removed = self.destinations.remove(&key);
        removed.map_err(map_error(A::NAMES.destinations))
    }

    fn slots(&self) -> Result<Vec<EgressEntry>, ProgramsError> {
        let all = all(&self.egress_ips).map_err(map_error(A::NAMES.egress_ips))?;
        Ok(all.into_iter().map(EgressEntry::from).collect())
    }

    fn set_egress(&mut self, index: u32, egress: Egress<A>) -> Result<(), ProgramsError> {
        let written = self.egress_ips.set(index, egress, 0);
        written.map_err(map_error(A::NAMES.egress_ips))
    }
}
