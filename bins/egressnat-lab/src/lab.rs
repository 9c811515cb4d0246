//! A lab: its directory, its objects, its namespaces, its processes.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use egressnat_kube::{Applied, DirectoryStore, Kind, Manifests, Object, ObjectKey, read_manifests};

use crate::cluster::{self, default_nodes, default_pods};
use crate::control_plane::ControlPlane;
use crate::objects::{ApiObjects, Objects};
use crate::target::Target;
use crate::topology::Topology;
use crate::{netns, process};

mod partition;
mod power;
mod reconcile;
mod remains;

pub use partition::Cut;

/// Where labs keep their directories.
const ROOT: &str = "/run/egressnat-lab";

/// How long anything may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a lab is brought up with.
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// Files or directories of manifests.
    pub manifests: Vec<PathBuf>,
    /// Workers of the default cluster, where the manifests have no nodes.
    pub workers: usize,
    /// Where the objects of a new lab live; one that is up stays as it is.
    pub objects: ObjectPlace,
    /// More arguments for the agents of a new lab.
    pub agents: Vec<String>,
}

/// Where the objects of a lab live.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ObjectPlace {
    /// In a directory of YAML files.
    #[default]
    Directory,
    /// In a real API server, which the lab starts.
    ApiServer,
}

impl Default for UpOptions {
    fn default() -> Self {
        Self {
            manifests: Vec::new(),
            workers: 2,
            objects: ObjectPlace::default(),
            agents: Vec::new(),
        }
    }
}

/// A lab by its name. Opening one makes nothing; several can be up side by side.
#[derive(Clone)]
pub struct Lab {
    name: String,
    directory: PathBuf,
    topology: Topology,
    control_plane: ControlPlane,
    /// The way to the API server, with the kubeconfig that it was made of.
    api: Arc<Mutex<Option<(String, ApiObjects)>>>,
}

impl fmt::Debug for Lab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lab")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
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
            control_plane: ControlPlane::of(&directory),
            directory,
            topology,
            api: Arc::default(),
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
        self.objects().is_dir() || self.control_plane.is_there()
    }

    /// The kubeconfig of its API server, for who may do everything.
    ///
    /// # Errors
    ///
    /// It has none, or is not up.
    pub fn kubeconfig(&self) -> Result<&Path> {
        let path = self.control_plane.kubeconfig();
        if !path.is_file() {
            let name = &self.name;
            bail!("the lab {name} has no API server: run 'egressnat-lab up --api --name {name}'");
        }
        Ok(path)
    }

    /// The file of what agents are started with besides, an argument a line.
    fn agent_arguments(&self) -> PathBuf {
        self.directory.join("agent-arguments")
    }

    fn objects(&self) -> PathBuf {
        self.directory.join("objects")
    }

    /// Its objects.
    ///
    /// # Errors
    ///
    /// It is not up.
    pub fn store(&self) -> Result<Objects> {
        if !self.is_up() {
            bail!(
                "the lab {} is not up: run 'egressnat-lab up --name {}'",
                self.name,
                self.name
            );
        }
        if !self.control_plane.is_there() {
            return Ok(DirectoryStore::open(self.objects())?.into());
        }
        let path = self.kubeconfig()?;
        let text = fs::read_to_string(path)?;
        let mut api = self.api.lock().unwrap_or_else(PoisonError::into_inner);
        match &*api {
            Some((known, objects)) if *known == text => Ok(objects.clone().into()),
            _ => {
                let objects = ApiObjects::open(path)?;
                *api = Some((text, objects.clone()));
                Ok(objects.into())
            }
        }
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
        if !self.is_up() {
            fs::write(self.agent_arguments(), options.agents.join("\n"))?;
            if options.objects == ObjectPlace::ApiServer {
                self.control_plane.prepare()?;
            }
        }
        if self.control_plane.is_there() {
            self.start_control_plane()?;
        } else {
            fs::create_dir_all(self.objects())?;
        }
        let store = self.store()?;
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
            // Without a look at the objects, which may be out of reach, where there is no need of one.
            Target::Pod(namespace, name) if netns::exists(&self.topology.pod(namespace, name)) => {
                self.topology.pod(namespace, name)
            }
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

fn apply_all(store: &Objects, objects: Vec<Object>) -> Vec<String> {
    objects
        .into_iter()
        .filter_map(|object| cluster::apply(store, object).err())
        .map(|error| format!("{error:#}"))
        .collect()
}
