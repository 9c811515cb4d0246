//! Namespaces and processes as the objects say.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use egressnat_kube::{Kind, ObjectKey};

use super::{Lab, PATIENCE, agent_name};
use crate::cluster::{NodePlace, PodPlace, place_nodes, place_pods};
use crate::container::Container;
use crate::control_plane::{ADDRESS, ROLE};
use crate::probe::until;
use crate::process;
use crate::topology::SERVERS;

/// Where an agent answers probes, in the namespace of its node.
const PROBES: &str = "127.0.0.1:9477";

impl Lab {
    /// Makes namespaces and processes what the objects say. Returns what is wrong with single objects.
    pub(super) fn reconcile(&self) -> Result<Vec<String>> {
        let store = self.store()?;
        let mut errors = Vec::new();
        self.topology.build_network()?;
        store.finish_deletions()?;
        let nodes = place_nodes(&store)?;
        errors.extend(nodes.errors);
        let nodes = nodes.places;
        let pods = place_pods(&store, &nodes)?;
        errors.extend(pods.errors);
        let pods = pods.places;
        let running: Vec<&NodePlace> = nodes
            .iter()
            .filter(|node| !self.is_off(&node.name))
            .collect();
        let wanted = self.wanted(&running, &pods);
        for namespace in self
            .topology
            .all()
            .into_iter()
            .filter(|namespace| !wanted.contains(namespace))
        {
            process::kill_all(&self.directory, |role| {
                role.ends_with(&format!("@{namespace}"))
            })?;
            self.topology.remove(&namespace)?;
        }
        for node in &running {
            if self.topology.build_node(node)? {
                // A machine that comes up anew has no pins; its pods come up with it.
                self.forget_pins(&node.name);
                for pod in pods.iter().filter(|pod| pod.node == node.name) {
                    self.topology
                        .remove(&self.topology.pod(&pod.namespace, &pod.name))?;
                }
            }
        }
        for node in &running {
            self.topology.build_routes(node, &nodes)?;
        }
        for pod in pods
            .iter()
            .filter(|pod| !pod.host_network && running.iter().any(|node| node.name == pod.node))
        {
            self.topology.build_pod(pod)?;
        }
        let outside = self.topology.outside();
        let lab = own_program()?;
        self.ensure_process("servers", Some(&outside), &lab, |command| {
            command.arg("serve");
            Ok(())
        })?;
        self.start_controller()?;
        for node in running {
            self.start_agent(&node.name)?;
        }
        Ok(errors)
    }

    fn wanted(&self, running: &[&NodePlace], pods: &[PodPlace]) -> Vec<String> {
        let mut wanted = vec![
            self.topology.fabric(),
            self.topology.router(),
            self.topology.outside(),
        ];
        if self.control_plane.is_there() {
            wanted.push(self.topology.control_plane());
        }
        wanted.extend(running.iter().map(|node| self.topology.node(&node.name)));
        let is_running =
            |pod: &&PodPlace| !pod.host_network && running.iter().any(|node| node.name == pod.node);
        wanted.extend(
            pods.iter()
                .filter(is_running)
                .map(|pod| self.topology.pod(&pod.namespace, &pod.name)),
        );
        wanted
    }

    /// Starts the API server unless it runs, and waits until it has what egressnat needs.
    pub(super) fn start_control_plane(&self) -> Result<()> {
        self.topology.build_network()?;
        self.topology.build_control_plane(ADDRESS)?;
        let is_new = process::find(&self.directory, &format!("{ROLE}@")).is_none();
        if is_new {
            // A new server is empty and knows no token of an earlier one's.
            process::kill_all(&self.directory, |role| {
                role.starts_with("agent-") || role.starts_with("controller@")
            })?;
        }
        self.ensure_process(ROLE, None, &own_program()?, |command| {
            command.args(["--name", self.name(), "serve-api"]);
            Ok(())
        })?;
        self.control_plane.await_ready(&self.directory)?;
        if is_new {
            self.control_plane.install(&self.store()?)?;
        }
        Ok(())
    }

    /// Runs the API server until it ends.
    ///
    /// # Errors
    ///
    /// It cannot be started, or has ended.
    pub fn serve_api(&self) -> Result<()> {
        self.control_plane.serve(&self.topology.control_plane())
    }

    /// Where a program finds the objects.
    fn objects_of(&self, account: &str, node: Option<&str>) -> Result<[String; 2]> {
        let (option, path) = if self.control_plane.is_there() {
            let path = self.control_plane.credentials(account, node)?;
            ("--kubeconfig", path)
        } else {
            ("--manifests", self.objects())
        };
        Ok([option.to_owned(), path.display().to_string()])
    }

    pub(super) fn start_controller(&self) -> Result<()> {
        let beside_the_api = self.topology.control_plane();
        let namespace = self
            .control_plane
            .is_there()
            .then_some(beside_the_api.as_str());
        let program = process::program("egressnat-controller")?;
        self.ensure_process("controller", namespace, &program, |command| {
            command.args(self.objects_of("egressnat-controller", None)?);
            Ok(())
        })
    }

    pub(super) fn start_agent(&self, node: &str) -> Result<()> {
        let bpffs = self.bpffs().join(node);
        fs::create_dir_all(&bpffs)?;
        let namespace = self.topology.node(node);
        let program = process::program("egressnat-agent")?;
        self.ensure_process(&agent_name(node), Some(&namespace), &program, |command| {
            let host = [
                "--node",
                node,
                "--uplink",
                "eth0",
                "--health-address",
                PROBES,
            ];
            command
                .args(self.objects_of("egressnat-agent", Some(node))?)
                .args(host)
                .arg("--bpffs")
                .arg(&bpffs)
                .args(fs::read_to_string(self.agent_arguments())?.lines());
            Container::of_agent()?.confine(command);
            Ok(())
        })
    }

    /// Starts a process unless it runs. `prepare` gives it its arguments.
    fn ensure_process(
        &self,
        name: &str,
        namespace: Option<&str>,
        program: &Path,
        prepare: impl FnOnce(&mut Command) -> Result<()>,
    ) -> Result<()> {
        let role = format!("{name}@{}", namespace.unwrap_or_default());
        if process::find(&self.directory, &role).is_some() {
            return Ok(());
        }
        let mut command = process::command(&self.directory, &role, namespace, program)?;
        prepare(&mut command)?;
        process::start(
            command,
            &self.directory.join("logs").join(format!("{name}.log")),
        )
    }

    /// Waits until every agent has told the controller about its node, and the servers answer.
    pub(super) fn wait_for_agents(&self) -> Result<()> {
        let store = self.store()?;
        for node in store
            .list(Kind::Node)?
            .iter()
            .filter(|node| !self.is_off(node.name()))
        {
            let key = ObjectKey::namespaced(Kind::NetworkGatewayNode, "kube-system", node.name());
            let is_up = || {
                let object = store.get(&key).ok()??;
                (object.at("/status/health") == "Up").then_some(())
            };
            let what = format!(
                "the agent of {} (its log is in {})",
                node.name(),
                self.directory.join("logs").display()
            );
            until(&what, PATIENCE, is_up)?;
        }
        let outside = self.topology.outside();
        until("the servers", PATIENCE, || {
            crate::probe::seen_pings(&outside, SERVERS[0].parse().ok()?).ok()
        })?;
        Ok(())
    }
}

/// The lab's command line, also where this is a test of it.
fn own_program() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    if own.ends_with("egressnat-lab") {
        Ok(own)
    } else {
        process::program("egressnat-lab")
    }
}
