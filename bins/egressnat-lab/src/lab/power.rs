//! What happens to single nodes and agents: power, frost, restarts.

use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use anyhow::{Result, bail};
use egressnat_kube::{Kind, ObjectKey};
use nix::sys::signal::Signal;

use super::{Lab, agent_name};
use crate::container::Container;
use crate::probe::until;
use crate::target::Target;
use crate::{netns, process};

impl Lab {
    fn off_marker(&self, node: &str) -> PathBuf {
        self.directory.join("off").join(node)
    }

    /// Whether a node is powered off.
    pub fn is_off(&self, node: &str) -> bool {
        self.off_marker(node).exists()
    }

    fn check_node(&self, node: &str) -> Result<()> {
        match self.store()?.get(&ObjectKey::cluster(Kind::Node, node))? {
            Some(_) => Ok(()),
            None => bail!("there is no node {node:?}: 'egressnat-lab get nodes' lists them"),
        }
    }

    /// Takes the power from a node: its processes, its kernel's state and its pods are gone in an instant.
    ///
    /// # Errors
    ///
    /// There is no such node.
    pub fn power_off(&self, node: &str) -> Result<()> {
        self.check_node(node)?;
        fs::create_dir_all(self.directory.join("off"))?;
        fs::write(self.off_marker(node), "")?;
        let namespace = self.topology.node(node);
        // First the wire: whatever dies later can tell nobody.
        let _ = netns::ip(Some(&namespace), &["link set eth0 down".to_owned()]);
        process::kill_all(&self.directory, |role| {
            role.ends_with(&format!("@{namespace}"))
        })?;
        self.reconcile()?;
        self.forget_pins(node);
        Ok(())
    }

    /// Gives a node its power back: it boots with nothing but its objects.
    ///
    /// # Errors
    ///
    /// There is no such node, or it does not come up.
    pub fn power_on(&self, node: &str) -> Result<()> {
        self.check_node(node)?;
        let _ = fs::remove_file(self.off_marker(node));
        self.reconcile()?;
        self.wait_for_agents()
    }

    /// Switches a node's interface off: its routes go, its addresses stay.
    ///
    /// # Errors
    ///
    /// There is no such node, or it is powered off.
    pub fn link_down(&self, node: &str) -> Result<()> {
        let namespace = self.namespace(&Target::Node(node.to_owned()))?;
        netns::ip(Some(&namespace), &["link set eth0 down".to_owned()])
    }

    /// Switches it on again, with its routes.
    ///
    /// # Errors
    ///
    /// As [`link_down`](Self::link_down).
    pub fn link_up(&self, node: &str) -> Result<()> {
        self.namespace(&Target::Node(node.to_owned()))?;
        self.topology.switch_on(node)?;
        self.reconcile().map(drop)
    }

    pub(super) fn forget_pins(&self, node: &str) {
        let _ = fs::remove_dir_all(self.bpffs().join(node));
    }

    fn agent(&self, node: &str) -> Result<nix::unistd::Pid> {
        let role = format!("{}@{}", agent_name(node), self.topology.node(node));
        if let Some(pid) = process::find(&self.directory, &role) {
            return Ok(pid);
        }
        self.check_node(node)?;
        bail!("no agent runs on {node}")
    }

    /// The process id of a node's agent.
    ///
    /// # Errors
    ///
    /// None runs.
    pub fn agent_pid(&self, node: &str) -> Result<i32> {
        Ok(self.agent(node)?.as_raw())
    }

    /// Stops a node's agent in its tracks (SIGSTOP); its kernel goes on. Not while it writes an object: in a directory of objects
    /// one writes at a time, and all others would stand still with it, which no API server does.
    ///
    /// # Errors
    ///
    /// None runs.
    pub fn freeze(&self, node: &str) -> Result<()> {
        let (agent, objects) = (self.agent(node)?, self.objects());
        until(
            "a moment between two writes",
            Duration::from_secs(10),
            || {
                process::stop(agent).ok()?;
                let is_writing = process::has_lock_below(agent, &objects);
                if is_writing {
                    process::signal(agent, Signal::SIGCONT).ok()?;
                }
                (!is_writing).then_some(())
            },
        )
    }

    /// Lets a frozen agent go on.
    ///
    /// # Errors
    ///
    /// None runs.
    pub fn thaw(&self, node: &str) -> Result<()> {
        process::signal(self.agent(node)?, Signal::SIGCONT)
    }

    /// Runs the agent's `cleanup` on a node, with the rights of `deploy/cleanup.yaml`, and returns what it printed.
    ///
    /// # Errors
    ///
    /// The node is not there or off.
    pub fn clean_up(&self, node: &str) -> Result<Output> {
        self.run_on(node, "cleanup", &[], &Container::of_cleanup()?)
    }

    /// Runs the agent's `counters --output json` on a node, with the rights of `deploy/agent.yaml`, and returns what it printed.
    ///
    /// # Errors
    ///
    /// The node is not there or off.
    pub fn counters(&self, node: &str) -> Result<Output> {
        let json = ["--output", "json"];
        self.run_on(node, "counters", &json, &Container::of_agent()?)
    }

    /// Runs a subcommand of the agent's program on a node, to its end.
    fn run_on(
        &self,
        node: &str,
        subcommand: &str,
        arguments: &[&str],
        container: &Container,
    ) -> Result<Output> {
        let program = process::program("egressnat-agent")?;
        let namespace = self.namespace(&Target::Node(node.to_owned()))?;
        let role = format!("{subcommand}@{namespace}");
        let mut command = process::command(&self.directory, &role, Some(&namespace), &program)?;
        command
            .args([subcommand, "--bpffs"])
            .arg(self.bpffs().join(node))
            .args(arguments);
        container.confine(&mut command);
        Ok(command.output()?)
    }

    /// Kills the controller (SIGKILL) and starts another.
    ///
    /// # Errors
    ///
    /// The lab is not up.
    pub fn restart_controller(&self) -> Result<()> {
        process::kill_all(&self.directory, |role| role.starts_with("controller@"))?;
        self.start_controller()
    }

    /// Kills a node's agent (SIGKILL) and starts another.
    ///
    /// # Errors
    ///
    /// The node is not there or off.
    pub fn restart_agent(&self, node: &str) -> Result<()> {
        self.check_node(node)?;
        if self.is_off(node) {
            bail!("{node} is powered off: run 'egressnat-lab power-on {node}'");
        }
        let role = format!("{}@{}", agent_name(node), self.topology.node(node));
        process::kill_all(&self.directory, |other| other == role)?;
        self.start_agent(node)
    }
}
