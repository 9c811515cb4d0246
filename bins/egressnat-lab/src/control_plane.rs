//! The control plane of a lab with a real API server: kube-apiserver and etcd in a namespace on the segment, as on a machine of their own.
//!
//! Agents reach it over their nodes' links. The machine that the lab runs on reaches it by a relay, since nothing of the lab's network is
//! connected to the machine's.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use egressnat_apiserver::{Listen, Programs};
use egressnat_kube::{Kind, Object, ObjectKey};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use crate::objects::{ApiObjects, Objects};
use crate::probe::until;
use crate::{netns, process, relay};

/// The API server's address on the segment.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 253);

/// Ports in a namespace of its own, where nobody else can have them.
const LISTEN: Listen = Listen {
    address: ADDRESS,
    api: 6443,
    etcd: 2379,
    peer: 2380,
};

/// A start takes 3 s on two idle cores; others may have them.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the server's certificate says besides its address, which is not the relay's.
const SERVER_NAME: &str = "kubernetes";

/// The role of the processes of the control plane.
pub(crate) const ROLE: &str = "control-plane";

/// The directory of the checkout that this was built from.
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// The control plane's files in a lab's directory. They exist if the lab has one.
#[derive(Debug, Clone)]
pub(crate) struct ControlPlane {
    directory: PathBuf,
    /// For everybody on the machine that the lab runs on.
    kubeconfig: PathBuf,
}

impl ControlPlane {
    pub(crate) fn of(lab: &Path) -> Self {
        Self {
            directory: lab.join("control-plane"),
            kubeconfig: lab.join("kubeconfig"),
        }
    }

    /// Whether the lab is one with an API server.
    pub(crate) fn is_there(&self) -> bool {
        self.directory.is_dir()
    }

    /// Says that the lab is one with an API server.
    pub(crate) fn prepare(&self) -> Result<()> {
        Ok(fs::create_dir_all(&self.directory)?)
    }

    /// The kubeconfig for the machine that the lab runs on; as the user who may do everything.
    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    fn server(&self) -> PathBuf {
        self.directory.join("server")
    }

    /// Runs the server inside `namespace` and the relay here, until the server ends.
    pub(crate) fn serve(&self, namespace: &str) -> Result<()> {
        let listener = relay::listen()?;
        let port = listener.local_addr()?.port();
        let file = fs::File::open(netns::path(namespace))
            .with_context(|| format!("there is no namespace {namespace}"))?;
        let mut command = Programs::find_or_build()?.serve(&self.server(), &LISTEN);
        // SAFETY: only async-signal-safe calls between fork and exec.
        unsafe {
            command.pre_exec(move || {
                setns(file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)
            });
        }
        // What an earlier server left leads nowhere.
        let _ = fs::remove_file(&self.kubeconfig);
        let mut server = command.spawn().context("could not start the API server")?;
        // Open as long as this process lives, and no longer; to wait for a child would close it.
        let _input = server.stdin.take();
        let is_there = || {
            let ended = server.try_wait().is_ok_and(|status| status.is_some());
            (ended || self.has_written()).then_some(())
        };
        until("the API server's certificate", PATIENCE, is_there)?;
        if self.has_written() {
            self.write_kubeconfig(port)?;
        }
        let inside = namespace.to_owned();
        std::thread::spawn(move || {
            relay::relay(&listener, &inside, SocketAddr::from((ADDRESS, LISTEN.api)));
        });
        let status = server.wait()?;
        let _ = fs::remove_file(&self.kubeconfig);
        bail!("the API server ended: {status}")
    }

    /// Whether the server has written what a client needs.
    fn has_written(&self) -> bool {
        let has_text =
            |name| fs::metadata(self.server().join(name)).is_ok_and(|file| file.len() > 0);
        has_text("kubeconfig") && has_text("certs/apiserver.crt")
    }

    /// The kubeconfig that the server wrote for its own namespace.
    fn inner_kubeconfig(&self) -> Result<Value> {
        let path = self.server().join("kubeconfig");
        let text = fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))?;
        Ok(serde_yaml_ng::from_str(&text)?)
    }

    fn write_kubeconfig(&self, port: u16) -> Result<()> {
        let mut config = self.inner_kubeconfig()?;
        let cluster = &mut config["clusters"][0]["cluster"];
        cluster["server"] = json!(format!("https://127.0.0.1:{port}"));
        cluster["tls-server-name"] = json!(SERVER_NAME);
        write_whole(&self.kubeconfig, &config)
    }

    /// Waits until the API server answers.
    pub(crate) fn await_ready(&self, lab: &Path) -> Result<()> {
        let log = lab.join("logs").join(format!("{ROLE}.log"));
        let is_running = || {
            let mut processes = process::list(lab).into_iter();
            processes.any(|(_, role)| role.starts_with(ROLE))
        };
        let is_ready = || {
            let ready = ApiObjects::open(&self.kubeconfig).is_ok_and(|api| api.is_ready());
            // Ended is not ready either, but there is nothing to wait for.
            (ready || !is_running()).then_some(ready)
        };
        let what = format!("the API server (its log is {})", log.display());
        if !until(&what, PATIENCE, is_ready)? {
            let text = fs::read_to_string(&log).unwrap_or_default();
            bail!("{what} ended: {}", text.trim_end());
        }
        Ok(())
    }

    /// Installs definitions, roles and the namespaces that the published manifests live in.
    pub(crate) fn install(&self, objects: &Objects) -> Result<()> {
        let system = ObjectKey::cluster(Kind::Namespace, "kube-system");
        until("the namespace kube-system", PATIENCE, || {
            objects.get(&system).ok()?
        })?;
        let crds = format!("{SOURCE}/deploy/crds");
        let rbac = format!("{SOURCE}/deploy/rbac.yaml");
        let admission = format!("{SOURCE}/deploy/admission.yaml");
        let apply = ["apply", "--server-side", "--force-conflicts"];
        let files = ["-f", &crds, "-f", &rbac, "-f", &admission];
        self.kubectl(&[&apply[..], &files].concat())?;
        let wait = ["wait", "--for=condition=Established", "--timeout=60s"];
        self.kubectl(&[&wait[..], &["-f", &crds]].concat())?;
        let cluster = ObjectKey::cluster(Kind::Namespace, "cluster-cluster1");
        objects.apply(Object::new(&cluster, json!({})))?;
        Ok(())
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<()> {
        let output = Programs::find_or_build()?
            .kubectl(&self.kubeconfig, &self.directory)
            .args(arguments)
            .output()
            .context("could not run kubectl")?;
        if !output.status.success() {
            let told = String::from_utf8_lossy(&output.stderr);
            bail!("kubectl {}: {}", arguments.join(" "), told.trim_end());
        }
        Ok(())
    }

    /// A new kubeconfig for the controller, or for the agent of a node: for the lab's network, with the rights of a service account.
    pub(crate) fn credentials(&self, account: &str, node: Option<&str>) -> Result<PathBuf> {
        let api = ApiObjects::open(&self.kubeconfig)?;
        let object = node
            .map(|node| {
                let key = ObjectKey::cluster(Kind::Node, node);
                api.get(&key)?
                    .with_context(|| format!("{key} is gone again"))
            })
            .transpose()?;
        let mut config = self.inner_kubeconfig()?;
        config["users"][0]["user"] = json!({ "token": api.token(account, object.as_ref())? });
        let name = node.map_or(account.to_owned(), |node| format!("{account}-{node}"));
        let path = self.directory.join(format!("{name}.kubeconfig"));
        write_whole(&path, &config)?;
        Ok(path)
    }
}

/// Whoever finds the file finds all of it.
fn write_whole(path: &Path, config: &Value) -> Result<()> {
    let temporary = path.with_extension("writing");
    fs::write(&temporary, serde_yaml_ng::to_string(config)?)?;
    Ok(fs::rename(temporary, path)?)
}
