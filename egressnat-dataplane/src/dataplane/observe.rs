//! Reading what the kernel has, as far as that is in doubt.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use egressnat_core::{NodePlan, Report, Resource};
use ipnet::IpNet;

use super::doubt::Doubts;
use super::ensure::wrote;
use super::kept::Kept;
use super::{Dataplane, ObserveError, fail};
use crate::family::Family;
use crate::nft::Fence;
use crate::ports::PodInterfaces;

/// Where the pods of a plan are, as it was last read.
pub(super) struct Located {
    interfaces: Arc<PodInterfaces>,
    /// The plan's ranges of pods, by which their bridges are told.
    pod_ranges: BTreeSet<IpNet>,
}

impl Dataplane {
    /// Where the pods are. What counted until now is in the map, which outlives this process.
    pub(super) async fn locate(
        &mut self,
        plan: &NodePlan,
        doubts: Doubts,
    ) -> Result<Arc<PodInterfaces>, ObserveError> {
        if let Some(Located {
            interfaces,
            pod_ranges,
        }) = &self.located
            && !doubts.links
            && interfaces.is_settled
            && *pod_ranges == plan.pod_ranges
        {
            return Ok(Arc::clone(interfaces));
        }
        self.located = None;
        let before = self.kept.pods.keys().copied().collect();
        let routes = self.network.host_routes().await?;
        let interfaces = Arc::new(self.ports.find(plan, routes, &before).await?);
        self.located = Some(Located {
            interfaces: Arc::clone(&interfaces),
            pod_ranges: plan.pod_ranges.clone(),
        });
        Ok(interfaces)
    }

    /// Reads what is in doubt of the tables and of the uplink's addresses.
    pub(super) async fn observe(&mut self, doubts: Doubts) -> Result<(), ObserveError> {
        if doubts.tables {
            self.kept.read_tables(&self.families)?;
            Fence::read(&mut self.nft.lock(), &self.families)?;
        }
        if doubts.tables || doubts.maps {
            self.kept.read_vnis(&self.maps, &self.egress);
        }
        if doubts.addresses {
            let addresses = self.network.floating_ips(self.uplink.index).await?;
            let has_family = |address: &IpAddr| self.families.contains(&Family::of(*address));
            let addresses = addresses.into_iter().filter(has_family);
            self.kept.replace_addresses(addresses);
        }
        if doubts.tables || doubts.maps || doubts.addresses {
            self.kept.count_floating_ips(&self.egress);
        }
        Ok(())
    }

    /// Takes pods out of the maps whose address is on another interface now, or on none. What others put there, as `before` the maps were
    /// read shows, is told.
    pub(super) fn forget_moved_pods(
        &mut self,
        interfaces: &PodInterfaces,
        before: Option<&Kept>,
        report: &mut Report,
    ) {
        let is_there = |(address, ifindex): &(IpAddr, u32)| {
            interfaces.by_address.get(address) == Some(ifindex)
        };
        let pods = self.kept.pods.keys();
        let moved: Vec<(IpAddr, u32)> = pods.filter(|pod| !is_there(pod)).copied().collect();
        if moved.is_empty() {
            return;
        }
        for (address, ifindex) in moved {
            match self.maps.remove_pod(address, ifindex) {
                Ok(())
                    if before.is_some_and(|kept| !kept.pods.contains_key(&(address, ifindex))) =>
                {
                    let object = format!("- pod {address} on interface {ifindex}");
                    wrote(report, true, Resource::Entry, &object);
                }
                Ok(()) => report.changes += 1,
                Err(error) => fail(report, &format!("pod {address}"), &error),
            }
            self.kept.pods.remove(&(address, ifindex));
        }
        self.kept.count_pods();
    }

    /// The addresses whose deadline has come.
    pub(super) fn expired(&self) -> BTreeSet<IpAddr> {
        Fence::expired(&self.nft.lock())
    }
}
