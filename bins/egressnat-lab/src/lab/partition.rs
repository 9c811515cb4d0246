//! What does not reach whom on the segment any more.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};
use egressnat_kube::{Kind, ObjectKey};

use super::Lab;
use crate::process;
use crate::topology::API_PORT;

/// A way on which frames are lost. Several may be lost at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut<'a> {
    /// A node and the API server do not reach each other, and reach all others.
    FromApiServer(&'a str),
    /// A node reaches nobody, and nobody reaches it.
    Off(&'a str),
    /// A node hears nobody, and all hear it.
    Deaf(&'a str),
    /// A node hears all, and nobody hears it.
    Mute(&'a str),
    /// Two nodes do not reach each other, and reach all others.
    Between(&'a str, &'a str),
    /// The API server reaches nobody, and nobody reaches it.
    ApiServer,
}

/// Our table in the namespace of the segment's bridge.
const TABLE: &str = "bridge cuts";

impl Lab {
    /// Loses frames on a way, until [`mend`](Self::mend).
    ///
    /// # Errors
    ///
    /// There is no such node, or no nft.
    pub fn cut(&self, cut: Cut<'_>) -> Result<()> {
        let both = |one: &str, other: &str| {
            let way = |from: &str, to: &str| format!("iifname {from} oifname {to}");
            vec![way(one, other), way(other, one)]
        };
        let all = |port: &str| vec![format!("iifname {port}"), format!("oifname {port}")];
        let lost = match cut {
            Cut::FromApiServer(node) => both(&self.port(node)?, API_PORT),
            Cut::Off(node) => all(&self.port(node)?),
            Cut::Deaf(node) => vec![format!("oifname {}", self.port(node)?)],
            Cut::Mute(node) => vec![format!("iifname {}", self.port(node)?)],
            Cut::Between(one, other) => both(&self.port(one)?, &self.port(other)?),
            Cut::ApiServer => all(API_PORT),
        };
        let chain = format!("{TABLE} forward");
        let hook = "{ type filter hook forward priority 0; }";
        let mut commands = vec![
            format!("add table {TABLE}"),
            format!("add chain {chain} {hook}"),
        ];
        commands.extend(
            lost.iter()
                .map(|way| format!("add rule {chain} {way} drop")),
        );
        self.nft(&commands)
    }

    /// Ends all cuts.
    ///
    /// # Errors
    ///
    /// There is no nft.
    pub fn mend(&self) -> Result<()> {
        // One that is not there cannot be deleted.
        self.nft(&[
            format!("add table {TABLE}"),
            format!("delete table {TABLE}"),
        ])
    }

    /// The port of the segment's bridge that a node is at.
    fn port(&self, node: &str) -> Result<String> {
        let key = ObjectKey::cluster(Kind::Node, node);
        let object = self.store()?.get(&key)?;
        let object = object.with_context(|| {
            format!("there is no node {node:?}: 'egressnat-lab get nodes' lists them")
        })?;
        let address = object.at("/status/addresses/0/address").as_str();
        let address: Ipv4Addr = address.context("the node has no address")?.parse()?;
        Ok(crate::topology::node_port(address))
    }

    fn nft(&self, commands: &[String]) -> Result<()> {
        let fabric = self.topology.fabric();
        let role = format!("cut@{fabric}");
        let mut nft = process::command(&self.directory, &role, Some(&fabric), "nft".as_ref())?;
        let output = nft.arg(commands.join("\n")).output();
        let output = output.context("could not run nft: install nftables")?;
        if !output.status.success() {
            bail!("nft: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}
