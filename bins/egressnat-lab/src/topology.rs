//! The lab's network: what is connected to what.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use ipnet::Ipv4Net;

use crate::cluster::{NodePlace, PodPlace};
use crate::netns;

/// The segment that the nodes share.
pub(crate) const SEGMENT: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 1, 0), 24);

/// The router's address on it.
const ROUTER: &str = "192.168.1.254";

/// The servers outside.
pub(crate) const SERVERS: [&str; 2] = ["8.8.8.8", "9.9.9.9"];

/// The API server's port of the segment's bridge.
pub(crate) const API_PORT: &str = "api";

/// What a pod sees as its gateway: link-local, as on many clouds, so that every pod has a route of its own on its node.
const POD_GATEWAY: &str = "169.254.1.1";

/// Names and construction of a lab's namespaces.
#[derive(Debug, Clone)]
pub(crate) struct Topology {
    prefix: String,
    /// A file for each namespace that is complete: one that is not is made anew.
    complete: PathBuf,
}

impl Topology {
    pub(crate) fn new(lab: &str, directory: &Path) -> Self {
        Self {
            prefix: format!("enl-{lab}-"),
            complete: directory.join("complete"),
        }
    }

    fn named(&self, what: &str) -> String {
        format!("{}{what}", self.prefix)
    }

    pub(crate) fn fabric(&self) -> String {
        self.named("fabric")
    }

    pub(crate) fn router(&self) -> String {
        self.named("router")
    }

    pub(crate) fn outside(&self) -> String {
        self.named("outside")
    }

    pub(crate) fn control_plane(&self) -> String {
        self.named("api")
    }

    pub(crate) fn node(&self, name: &str) -> String {
        self.named(&format!("node-{name}"))
    }

    /// A namespace's name has no dot, so that this is unique.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> String {
        self.named(&format!("pod-{namespace}.{name}"))
    }

    /// Every namespace of the lab, complete or not.
    pub(crate) fn all(&self) -> Vec<String> {
        netns::list(&self.prefix)
    }

    /// Makes a namespace unless it is there, complete and as `wiring` says. Returns whether it was made.
    fn build(
        &self,
        namespace: &str,
        wiring: &str,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<bool> {
        let marker = self.complete.join(namespace);
        let is_so = || std::fs::read_to_string(&marker).is_ok_and(|built| built == wiring);
        if netns::exists(namespace) && is_so() {
            return Ok(false);
        }
        self.remove(namespace)?;
        netns::add(namespace)?;
        work()?;
        std::fs::create_dir_all(&self.complete)?;
        std::fs::write(marker, wiring)?;
        Ok(true)
    }

    /// Removes a namespace.
    pub(crate) fn remove(&self, namespace: &str) -> Result<()> {
        let _ = std::fs::remove_file(self.complete.join(namespace));
        netns::delete(namespace)
    }

    /// Segment, router and the outside.
    pub(crate) fn build_network(&self) -> Result<()> {
        let (fabric, router, outside) = (self.fabric(), self.router(), self.outside());
        self.build(&fabric, "", || {
            netns::ip(
                Some(&fabric),
                &[
                    "link add br0 type bridge".to_owned(),
                    "link set br0 up".to_owned(),
                ],
            )
        })?;
        self.build(&router, "", || {
            self.connect(&router, "router")?;
            let commands = [
                format!("addr add {ROUTER}/24 dev eth0"),
                "link set eth0 up".to_owned(),
            ];
            netns::ip(Some(&router), &commands)?;
            netns::sysctl(&router, &[("ip_forward", "1")])
        })?;
        self.build(&outside, "", || {
            forget_link(&router, "out0");
            netns::ip(
                None,
                &[format!(
                    "link add eth0 netns {outside} type veth peer name out0 netns {router}"
                )],
            )?;
            let mut commands = vec![
                "addr add 198.51.100.2/30 dev eth0".to_owned(),
                "link set eth0 up".to_owned(),
            ];
            commands.push("route add default via 198.51.100.1".to_owned());
            commands.extend(SERVERS.map(|server| format!("addr add {server}/32 dev lo")));
            netns::ip(
                Some(&router),
                &[
                    "addr add 198.51.100.1/30 dev out0".to_owned(),
                    "link set out0 up".to_owned(),
                ],
            )?;
            netns::ip(Some(&outside), &commands)?;
            let routes = SERVERS.map(|server| format!("route add {server}/32 via 198.51.100.2"));
            netns::ip(Some(&router), &routes)
        })?;
        Ok(())
    }

    /// Puts `eth0` of a namespace on the segment.
    fn connect(&self, namespace: &str, port: &str) -> Result<()> {
        let fabric = self.fabric();
        forget_link(&fabric, port);
        netns::ip(
            None,
            &[format!(
                "link add eth0 netns {namespace} type veth peer name {port} netns {fabric}"
            )],
        )?;
        netns::ip(
            Some(&fabric),
            &[
                format!("link set {port} master br0"),
                format!("link set {port} up"),
            ],
        )
    }

    /// A machine on the segment for the API server.
    pub(crate) fn build_control_plane(&self, address: Ipv4Addr) -> Result<()> {
        let namespace = self.control_plane();
        self.build(&namespace, "", || {
            self.connect(&namespace, API_PORT)?;
            let commands = [
                format!("addr add {address}/{} dev eth0", SEGMENT.prefix_len()),
                "link set eth0 up".to_owned(),
            ];
            netns::ip(Some(&namespace), &commands)
        })?;
        Ok(())
    }

    /// A node on the segment. Returns whether it was made.
    pub(crate) fn build_node(&self, node: &NodePlace) -> Result<bool> {
        let namespace = self.node(&node.name);
        self.build(&namespace, &node.address.to_string(), || {
            self.connect(&namespace, &node_port(node.address))?;
            let address = format!("{}/{}", node.address, SEGMENT.prefix_len());
            netns::ip(Some(&namespace), &[format!("addr add {address} dev eth0")])?;
            self.switch_on(&node.name)?;
            // Strict reverse path filtering, as many distributions set it: the hardest case for the packet path.
            netns::sysctl(
                &namespace,
                &[("ip_forward", "1"), ("conf/all/rp_filter", "1")],
            )
        })
    }

    /// Switches a node's interface on, and makes the route that goes when it is switched off.
    pub(crate) fn switch_on(&self, node: &str) -> Result<()> {
        let commands = [
            "link set eth0 up".to_owned(),
            format!("route replace default via {ROUTER}"),
        ];
        netns::ip(Some(&self.node(node)), &commands)
    }

    /// Routes to the pods of the other nodes.
    pub(crate) fn build_routes(&self, node: &NodePlace, nodes: &[NodePlace]) -> Result<()> {
        let others = nodes.iter().filter(|other| other.name != node.name);
        let routes: Vec<String> = others
            .map(|other| format!("route replace {} via {}", other.pods, other.address))
            .collect();
        netns::ip(Some(&self.node(&node.name)), &routes)
    }

    /// A pod on its node. Returns whether it was made.
    pub(crate) fn build_pod(&self, pod: &PodPlace) -> Result<bool> {
        let (namespace, node) = (self.pod(&pod.namespace, &pod.name), self.node(&pod.node));
        self.build(&namespace, &format!("{} {}", pod.node, pod.address), || {
            let link = pod_link(pod.address);
            forget_link(&node, &link);
            netns::ip(
                None,
                &[format!(
                    "link add eth0 netns {namespace} type veth peer name {link} netns {node}"
                )],
            )?;
            let host_side = [
                format!("addr add {POD_GATEWAY}/32 dev {link} scope link"),
                format!("link set {link} up"),
                format!("route add {}/32 dev {link}", pod.address),
            ];
            netns::ip(Some(&node), &host_side)?;
            let pod_side = [
                format!("addr add {}/32 dev eth0", pod.address),
                "link set eth0 up".to_owned(),
                format!("route add {POD_GATEWAY}/32 dev eth0"),
                format!("route add default via {POD_GATEWAY}"),
            ];
            netns::ip(Some(&namespace), &pod_side)
        })
    }
}

/// Removes a link that may be left of an earlier peer: the kernel takes a namespace's links apart some time after its end.
fn forget_link(namespace: &str, link: &str) {
    // Mostly it is not there, which is what we want.
    let _ = netns::ip(Some(namespace), &[format!("link delete {link}")]);
}

/// A node's port of the segment's bridge.
pub(crate) fn node_port(address: Ipv4Addr) -> String {
    let [.., last] = address.octets();
    format!("node{last}")
}

/// Name of a pod's host-side interface.
fn pod_link(address: Ipv4Addr) -> String {
    format!("veth{:08x}", u32::from(address))
}
