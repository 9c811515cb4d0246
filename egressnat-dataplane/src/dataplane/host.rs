//! What the host itself needs for the plan.

use std::collections::BTreeSet;
use std::net::IpAddr;

use egressnat_core::{Failure, NodePlan};

use super::applicable::asks_for;
use super::doubt::Doubts;
use super::{Dataplane, failure};
use crate::host::{tracked_connections, wrong_settings};
use crate::network::forwarding;
use crate::nft::{Ruleset, SetName};
use crate::port_use::{PortUse, PortUseError, port_use, scarce};
use crate::ports::PodInterfaces;

/// What was found wrong with the host when it was looked at last.
#[derive(Default)]
pub(super) struct HostFindings {
    /// Whether the node had floating IPs then.
    holds: bool,
    findings: Vec<Failure>,
}

impl Dataplane {
    /// The use of the ports of the floating IPs that this node translates to, the most used first, by asking connection tracking.
    ///
    /// # Errors
    ///
    /// Connections, or a table, cannot be read.
    pub fn port_use(&self) -> Result<Vec<PortUse>, PortUseError> {
        let mut addresses = BTreeSet::new();
        for family in &self.families {
            addresses.extend(Ruleset::addresses(*family, SetName::FloatingIps)?);
        }
        Ok(port_use(&addresses)?)
    }

    /// Tells settings of the host that keep traffic from flowing as planned, and ports that run out. Nobody tells of either, and
    /// looking costs more than a plan that changes little: so it is done when all is read again, and when floating IPs come to a node
    /// that had none.
    pub(super) fn look_at_host(
        &mut self,
        plan: &NodePlan,
        interfaces: &PodInterfaces,
        doubts: Doubts,
    ) -> Vec<Failure> {
        let holds = !plan.floating_ips.is_empty();
        if doubts == Doubts::ALL || holds != self.host.holds {
            self.host = HostFindings {
                holds,
                findings: self.find_wrong(plan, interfaces),
            };
        }
        self.host.findings.clone()
    }

    fn find_wrong(&self, plan: &NodePlan, interfaces: &PodInterfaces) -> Vec<Failure> {
        let mut findings = Vec::new();
        for family in &self.families {
            if let Err(name) = forwarding(*family)
                && asks_for(plan, *family)
            {
                findings.push(Failure {
                    object: format!("sysctl {name}"),
                    message: format!(
                        "it is 0, so no pod's {family} packet leaves this node: run 'sysctl -w {name}=1'"
                    ),
                });
            }
        }
        let held = &plan.floating_ips;
        let interface = |pod: &IpAddr| interfaces.by_address.get(pod).copied();
        // Of IPv6, the kernel checks no return paths.
        let pods = plan.pods.keys().filter(|pod| pod.is_ipv4());
        let pods: BTreeSet<u32> = pods.filter_map(interface).collect();
        let names = pods.iter().filter_map(|index| interfaces.names.get(index));
        let wrong = wrong_settings(!held.is_empty(), names.map(String::as_str));
        findings.extend(wrong);
        match scarce(held, tracked_connections()) {
            Ok(scarce) => findings.extend(scarce.iter().map(PortUse::failure)),
            Err(error) => findings.push(failure("ports of egress IPs", &error)),
        }
        findings
    }
}
