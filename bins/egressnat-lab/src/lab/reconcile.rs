//! Namespaces and processes as the objects say.

use std::fs;
use std::path::Path;

use anyhow::Result;
use egressnat_kube::{Kind, ObjectKey};

use super::{Lab, PATIENCE, agent_name};
use crate::cluster::{NodePlace, PodPlace, place_nodes, place_pods};
use crate::probe::until;
use crate::process;
use crate::topology::SERVERS;

impl Lab {
    /// Makes namespaces and processes what the objects say. Returns what is wrong with single objects.
    pub(super) fn reconcile(&self) -> Result<Vec<String>> {
        let store = self.store()?;
        let mut errors = Vec::new();
        self.topology.build_network()?;
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
        let own = std::env::current_exe()?;
        let lab = if own.ends_with("egressnat-lab") {
            own
        } else {
            process::program("egressnat-lab")?
        };
        self.ensure_process("servers", Some(&outside), &lab, &["serve".to_owned()])?;
        let objects = self.objects().display().to_string();
        let arguments = ["--manifests".to_owned(), objects.clone()];
        self.ensure_process(
            "controller",
            None,
            &process::program("egressnat-controller")?,
            &arguments,
        )?;
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

    pub(super) fn start_agent(&self, node: &str) -> Result<()> {
        let bpffs = self.bpffs().join(node);
        fs::create_dir_all(&bpffs)?;
        let arguments = [
            "--manifests".to_owned(),
            self.objects().display().to_string(),
            "--node".to_owned(),
            node.to_owned(),
            "--uplink".to_owned(),
            "eth0".to_owned(),
            "--bpffs".to_owned(),
            bpffs.display().to_string(),
        ];
        let namespace = self.topology.node(node);
        self.ensure_process(
            &agent_name(node),
            Some(&namespace),
            &process::program("egressnat-agent")?,
            &arguments,
        )
    }

    /// Starts a process unless it runs.
    fn ensure_process(
        &self,
        name: &str,
        namespace: Option<&str>,
        program: &Path,
        arguments: &[String],
    ) -> Result<()> {
        let role = format!("{name}@{}", namespace.unwrap_or_default());
        if process::find(&self.directory, &role).is_some() {
            return Ok(());
        }
        let mut command = process::command(&self.directory, &role, namespace, program)?;
        command.args(arguments);
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
