//! Which interface is a pod's: the one whose packets may have its address.
//!
//! A pod with a route of its own is behind that route's interface. A pod behind a bridge is at one of its ports: the one that
//! leads to the namespace that has the address. Where no namespace can be looked into, as with a virtual machine, it is the port
//! that the bridge learned the neighbor's link-layer address at.

mod kernel;
mod place;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_core::NodePlan;
use ipnet::IpNet;

use crate::network::NetworkError;
use crate::probe::Mac;
use kernel::Kernel;
use place::{Place, Port, place};

/// Where the pods of a plan are.
#[derive(Debug, Default)]
pub(crate) struct PodInterfaces {
    /// The interface of each address that has one.
    pub(crate) by_address: BTreeMap<IpAddr, u32>,
    /// The ports of the pods' bridges: they get the program before it is known who is there.
    pub(crate) ports: BTreeSet<u32>,
    /// Names of all interfaces.
    pub(crate) names: BTreeMap<u32, String>,
    /// What is wrong with the claims to an address.
    pub(crate) contested: BTreeMap<IpAddr, String>,
    /// Whether this stays true, for any pods of the same ranges, until the kernel tells of a link, an address or a route: behind a
    /// bridge, addresses come and go untold.
    pub(crate) is_settled: bool,
}

/// Finds the interfaces of pods.
pub(crate) struct Ports {
    kernel: Kernel,
    /// Pods whose neighbor entry tells something new: they are nowhere yet, or known by that entry only.
    watched: BTreeSet<IpAddr>,
}

impl Ports {
    pub(crate) fn open() -> Result<Self, NetworkError> {
        Ok(Self {
            kernel: Kernel::open()?,
            watched: BTreeSet::new(),
        })
    }

    /// Waits until the kernel hears of a pod that it was not known where it is. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        self.kernel.heard_of(&self.watched).await;
    }

    /// Reads where the pods of a plan are. `routes` are the addresses with a route of their own, `before` is what counted
    /// until now.
    pub(crate) async fn find(
        &mut self,
        plan: &NodePlan,
        routes: BTreeMap<IpAddr, u32>,
        before: &BTreeMap<IpAddr, u32>,
    ) -> Result<PodInterfaces, NetworkError> {
        let links = self.kernel.links().await?;
        let mut found = PodInterfaces {
            by_address: routes,
            names: links.names,
            ..PodInterfaces::default()
        };
        // What is routed to a bridge may come from any of its ports.
        found
            .by_address
            .retain(|_, ifindex| !links.bridges.contains(ifindex));
        self.watched.clear();
        let subnets = self.pod_bridges(&links.bridges, plan).await?;
        if subnets.is_empty() {
            found.is_settled = true;
            return Ok(found);
        }
        let of_pods = |port: &(u32, Port)| subnets.contains_key(&port.1.bridge);
        let mut ports: BTreeMap<u32, Port> = links.ports.into_iter().filter(of_pods).collect();
        self.kernel.look_into(&mut ports).await;
        found.ports = ports.keys().copied().collect();

        let is_missing = |address: &&IpAddr| !found.by_address.contains_key(address);
        let looked_for: Vec<IpAddr> = plan.pods.keys().filter(is_missing).copied().collect();
        let mut owners: BTreeMap<IpAddr, Vec<u32>> = BTreeMap::new();
        for (ifindex, port) in &ports {
            for address in port.addresses.iter().flatten() {
                owners.entry(*address).or_default().push(*ifindex);
            }
        }
        let is_unowned = |address: &&IpAddr| !owners.contains_key(address);
        let neighbors = match looked_for.iter().any(|address| is_unowned(&address)) {
            true => self.kernel.neighbors(&ports).await?,
            false => BTreeMap::new(),
        };
        for address in looked_for {
            let owners = owners.get(&address).map_or(&[][..], Vec::as_slice);
            let neighbor = neighbors.get(&address).copied();
            if owners.is_empty() {
                self.watched.insert(address);
            }
            let (at, wrong) = match place(before.get(&address).copied(), owners, neighbor, &ports) {
                Place::At(port) => (Some(port), None),
                Place::Contested { keeps, text } => (keeps, Some(text)),
                Place::Unknown => (None, None),
            };
            found.by_address.extend(at.map(|port| (address, port)));
            found.contested.extend(wrong.map(|text| (address, text)));
            let is_near = |subnet: &&(IpNet, u32)| subnet.0.contains(&address);
            if let (None, Some((_, bridge))) = (at, subnets.values().flatten().find(is_near)) {
                self.kernel.ask_for(address, *bridge).await;
            }
        }
        Ok(found)
    }

    /// The link-layer addresses of the neighbors on an interface.
    pub(crate) async fn macs(&self, ifindex: u32) -> Result<BTreeMap<IpAddr, Mac>, NetworkError> {
        self.kernel.macs(ifindex).await
    }

    /// The bridges with an address among the node's pod ranges, and their subnets.
    async fn pod_bridges(
        &self,
        bridges: &BTreeSet<u32>,
        plan: &NodePlan,
    ) -> Result<BTreeMap<u32, Vec<(IpNet, u32)>>, NetworkError> {
        let mut subnets: BTreeMap<u32, Vec<(IpNet, u32)>> = BTreeMap::new();
        if bridges.is_empty() {
            return Ok(subnets);
        }
        for (ifindex, network) in self.kernel.addresses().await? {
            let carries_pods = |range: &IpNet| range.contains(&network) || network.contains(range);
            if bridges.contains(&ifindex) && plan.pod_ranges.iter().any(carries_pods) {
                let subnet = (network.trunc(), ifindex);
                subnets.entry(ifindex).or_default().push(subnet);
            }
        }
        Ok(subnets)
    }
}
