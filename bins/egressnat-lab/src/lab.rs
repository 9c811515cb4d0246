//! A lab: its directory, its objects, its namespaces, its processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use egressnat_kube::{Applied, DirectoryStore, Kind, Manifests, Object, ObjectKey, read_manifests};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;

use crate::cluster::{
    self, NodePlace, PodPlace, default_nodes, default_pods, place_nodes, place_pods,
};
use crate::probe::until;
use crate::target::Target;
use crate::topology::{SERVERS, Topology};
use crate::{netns, process};

/// Where labs keep their directories.
const ROOT: &str = "/run/egressnat-lab";

/// How long anything may take to come up.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a lab is brought up with.
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// Files or directories of manifests.
    pub manifests: Vec<PathBuf>,
    /// Workers of the default cluster, where the manifests have no nodes.
    pub workers: usize,
}

impl Default for UpOptions {
    fn default() -> Self {
        Self {
            manifests: Vec::new(),
            workers: 2,
        }
    }
}

/// A lab by its name. Opening one makes nothing; several can be up side by side.
#[derive(Debug, Clone)]
pub struct Lab {
    name: String,
    directory: PathBuf,
    topology: Topology,
}

impl Lab {
    /// The lab of that name, whether it is up or not.
    ///
    /// # Errors
    ///
    /// The name does not fit the names of namespaces and files.
    pub fn open(name: &str) -> Result<Self> {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if name.is_empty() || name.len() > 20 || !name.chars().all(is_plain) {
            bail!("{name:?} is no name for a lab: use at most 20 lower case letters and digits");
        }
        let directory = Path::new(ROOT).join(name);
        let topology = Topology::new(name, &directory);
        Ok(Self {
            name: name.to_owned(),
            directory,
            topology,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory: objects, logs, pins.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether it was brought up.
    pub fn is_up(&self) -> bool {
        self.objects().is_dir()
    }

    fn objects(&self) -> PathBuf {
        self.directory.join("objects")
    }

    /// Its objects.
    ///
    /// # Errors
    ///
    /// It is not up.
    pub fn store(&self) -> Result<DirectoryStore> {
        if !self.is_up() {
            bail!(
                "the lab {} is not up: run 'egressnat-lab up --name {}'",
                self.name,
                self.name
            );
        }
        Ok(DirectoryStore::open(self.objects())?)
    }

    /// Brings the lab up, or brings what is missing of it. Returns the errors of manifests that cannot be used; all
    /// others are.
    ///
    /// # Errors
    ///
    /// The machine does not let us, or something does not come up in time.
    pub fn up(&self, options: &UpOptions) -> Result<Vec<String>> {
        let logs = self.directory.join("logs");
        // Again, should the last of other labs just have taken the directory of all labs away.
        fs::create_dir_all(&logs).or_else(|_| fs::create_dir_all(&logs))?;
        self.mount_bpffs()?;
        let store = DirectoryStore::open(self.objects())?;
        let mut given = Manifests::default();
        for path in &options.manifests {
            let read = read_manifests(path);
            given.objects.extend(read.objects);
            given.errors.extend(read.errors);
        }
        let mut errors: Vec<String> = given.errors.iter().map(ToString::to_string).collect();
        let has = |kind| {
            let known = store.list(kind).is_ok_and(|objects| !objects.is_empty());
            known || given.objects.iter().any(|object| object.kind() == kind)
        };
        let mut machines = Vec::new();
        if !has(Kind::Node) {
            machines.extend(default_nodes(options.workers));
        }
        if !has(Kind::Pod) {
            machines.extend(default_pods());
        }
        let is_machine =
            |object: &Object| matches!(object.kind(), Kind::Node | Kind::Namespace | Kind::Pod);
        let (given_machines, rest): (Vec<Object>, Vec<Object>) =
            given.objects.into_iter().partition(is_machine);
        machines.extend(given_machines);
        errors.extend(apply_all(&store, machines));
        errors.extend(self.reconcile()?);
        self.wait_for_agents()?;
        // Gateways after the nodes that are to hold their addresses, or the first node to come up would get them all.
        errors.extend(apply_all(&store, rest));
        Ok(errors)
    }

    fn mount_bpffs(&self) -> Result<()> {
        let path = self.bpffs();
        fs::create_dir_all(&path)?;
        let is_mounted = nix::sys::statfs::statfs(&path)
            .is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC);
        if !is_mounted {
            let mounted = mount(
                Some("bpf"),
                &path,
                Some("bpf"),
                MsFlags::empty(),
                None::<&str>,
            );
            mounted.with_context(|| format!("could not mount a bpffs at {}", path.display()))?;
        }
        Ok(())
    }

    fn bpffs(&self) -> PathBuf {
        self.directory.join("bpf")
    }

    /// Makes namespaces and processes what the objects say. Returns what is wrong with single objects.
    fn reconcile(&self) -> Result<Vec<String>> {
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

    fn start_agent(&self, node: &str) -> Result<()> {
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
    fn wait_for_agents(&self) -> Result<()> {
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

    /// Applies a file or a directory of manifests. Returns the errors of those that cannot be used; all others are.
    ///
    /// # Errors
    ///
    /// The lab is not up, or a namespace cannot be made.
    pub fn apply(&self, path: &Path) -> Result<Outcome> {
        let manifests = read_manifests(path);
        let mut outcome = self.apply_objects(manifests.objects)?;
        let unread = manifests.errors.iter().map(ToString::to_string);
        outcome.errors.splice(0..0, unread);
        Ok(outcome)
    }

    /// Applies objects.
    ///
    /// # Errors
    ///
    /// As [`apply`](Self::apply).
    pub fn apply_objects(&self, objects: Vec<Object>) -> Result<Outcome> {
        let store = self.store()?;
        let mut outcome = Outcome::default();
        for object in objects {
            let key = object.key().clone();
            match cluster::apply(&store, object) {
                Ok(applied) => outcome.applied.push((key, applied)),
                Err(error) => outcome.errors.push(format!("{error:#}")),
            }
        }
        outcome.errors.extend(self.reconcile()?);
        Ok(outcome)
    }

    /// Deletes the objects that a file names. Returns those that were there.
    ///
    /// # Errors
    ///
    /// The lab is not up, or an object cannot be deleted.
    pub fn delete(&self, path: &Path) -> Result<Outcome> {
        let store = self.store()?;
        let manifests = read_manifests(path);
        let mut outcome = Outcome {
            errors: manifests.errors.iter().map(ToString::to_string).collect(),
            ..Outcome::default()
        };
        for object in manifests.objects {
            match store.delete(object.key()) {
                Ok(true) => outcome.deleted.push(object.key().clone()),
                Ok(false) => outcome
                    .errors
                    .push(format!("{} does not exist", object.key())),
                Err(error) => outcome.errors.push(error.to_string()),
            }
        }
        outcome.errors.extend(self.reconcile()?);
        Ok(outcome)
    }

    /// The namespace that a target stands for.
    ///
    /// # Errors
    ///
    /// There is no such thing, or its node is powered off.
    pub fn namespace(&self, target: &Target) -> Result<String> {
        let namespace = match target {
            Target::Outside => self.topology.outside(),
            Target::Router => self.topology.router(),
            Target::Node(name) => self.topology.node(name),
            Target::Pod(namespace, name) => {
                let key = ObjectKey::namespaced(Kind::Pod, namespace, name);
                let pod = self.store()?.get(&key)?;
                let pod = pod.with_context(|| {
                    format!("there is no {key}: 'egressnat-lab get pods' lists them")
                })?;
                match (
                    pod.at("/spec/hostNetwork").as_bool(),
                    pod.at("/spec/nodeName").as_str(),
                ) {
                    (Some(true), Some(node)) => self.topology.node(node),
                    _ => self.topology.pod(namespace, name),
                }
            }
        };
        if !netns::exists(&namespace) {
            bail!("{target} is not running: it is not there, or its node is powered off");
        }
        Ok(namespace)
    }

    /// A command that will run inside a target.
    ///
    /// # Errors
    ///
    /// As [`namespace`](Self::namespace).
    pub fn command(&self, target: &Target, program: &str) -> Result<Command> {
        let namespace = self.namespace(target)?;
        process::command(
            &self.directory,
            &format!("exec@{namespace}"),
            Some(&namespace),
            Path::new(program),
        )
    }

    /// Runs a command inside a target, and returns what it printed.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn output(&self, target: &Target, command: &[&str]) -> Result<Output> {
        let (program, arguments) = command.split_first().context("no command was given")?;
        let mut command = self.command(target, program)?;
        command
            .args(arguments)
            .output()
            .with_context(|| format!("could not run {program} in {target}"))
    }

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

    fn forget_pins(&self, node: &str) {
        let _ = fs::remove_dir_all(self.bpffs().join(node));
    }

    fn agent(&self, node: &str) -> Result<nix::unistd::Pid> {
        self.check_node(node)?;
        let role = format!("{}@{}", agent_name(node), self.topology.node(node));
        process::find(&self.directory, &role).with_context(|| format!("no agent runs on {node}"))
    }

    /// The process id of a node's agent.
    ///
    /// # Errors
    ///
    /// None runs.
    pub fn agent_pid(&self, node: &str) -> Result<i32> {
        Ok(self.agent(node)?.as_raw())
    }

    /// Stops a node's agent in its tracks (SIGSTOP); its kernel goes on.
    ///
    /// # Errors
    ///
    /// None runs.
    pub fn freeze(&self, node: &str) -> Result<()> {
        process::signal(self.agent(node)?, Signal::SIGSTOP)
    }

    /// Lets a frozen agent go on.
    ///
    /// # Errors
    ///
    /// None runs.
    pub fn thaw(&self, node: &str) -> Result<()> {
        process::signal(self.agent(node)?, Signal::SIGCONT)
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

    /// Everything that there is of the lab on the machine: namespaces, processes, mounts, files.
    pub fn remains(&self) -> Vec<String> {
        let mut remains: Vec<String> = self
            .topology
            .all()
            .iter()
            .map(|name| format!("namespace {name}"))
            .collect();
        let processes = process::list(&self.directory).into_iter();
        remains.extend(processes.map(|(pid, role)| format!("process {pid} ({role})")));
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let directory = self.directory.display().to_string();
        // The whole path: another lab's name may begin with this one's.
        let is_ours = |line: &&str| {
            let place = line.split(' ').nth(1).map(Path::new);
            place.is_some_and(|place| place.starts_with(&self.directory))
        };
        remains.extend(
            mounts
                .lines()
                .filter(is_ours)
                .map(|line| format!("mount {line}")),
        );
        if self.directory.exists() {
            remains.push(format!("directory {directory}"));
        }
        remains
    }

    /// Takes everything down, whatever state it is in. Doing it again does nothing.
    ///
    /// # Errors
    ///
    /// Something is left.
    pub fn down(&self) -> Result<()> {
        // Again until nobody is left: a process that was just being started may have been missed.
        for _ in 0..3 {
            process::kill_all(&self.directory, |_| true)?;
            for namespace in self.topology.all() {
                self.topology.remove(&namespace)?;
            }
            while umount2(&self.bpffs(), MntFlags::MNT_DETACH).is_ok() {}
            let _ = fs::remove_dir_all(&self.directory);
            // Stays while there are other labs.
            let _ = fs::remove_dir(ROOT);
            if self.remains().is_empty() {
                return Ok(());
            }
        }
        bail!("still there: {}", self.remains().join(", "))
    }
}

/// What `apply` or `delete` did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Applied objects, and whether they changed.
    pub applied: Vec<(ObjectKey, Applied)>,
    /// Deleted objects.
    pub deleted: Vec<ObjectKey>,
    /// What cannot be used, each with file, field and fix.
    pub errors: Vec<String>,
}

fn agent_name(node: &str) -> String {
    format!("agent-{node}")
}

fn apply_all(store: &DirectoryStore, objects: Vec<Object>) -> Vec<String> {
    objects
        .into_iter()
        .filter_map(|object| cluster::apply(store, object).err())
        .map(|error| format!("{error:#}"))
        .collect()
}
