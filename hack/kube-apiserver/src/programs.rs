use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

const NAMES: [&str; 3] = ["kube-apiserver", "etcd", "kubectl"];

/// The variable that says where the programs are.
const ASSETS: &str = "KUBEBUILDER_ASSETS";

/// Where kube-apiserver, etcd and kubectl are.
#[derive(Debug, Clone)]
pub struct Programs(PathBuf);

/// Where a server listens: etcd on loopback, the API on an address of the namespace that it runs in.
#[derive(Debug, Clone, Copy)]
pub struct Listen {
    /// The API's address.
    pub address: Ipv4Addr,
    /// The API's port.
    pub api: u16,
    /// etcd's port.
    pub etcd: u16,
    /// etcd's port for its peers, of which there are none.
    pub peer: u16,
}

impl Listen {
    /// Loopback, on ports that nobody listens on now.
    ///
    /// # Errors
    ///
    /// There are none.
    pub fn anywhere() -> io::Result<Self> {
        // All at once, or one port might be found twice.
        let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let [etcd, peer, api] = [free()?, free()?, free()?];
        Ok(Self {
            address: Ipv4Addr::LOCALHOST,
            api: api.local_addr()?.port(),
            etcd: etcd.local_addr()?.port(),
            peer: peer.local_addr()?.port(),
        })
    }
}

impl Programs {
    /// Those in the directory that `KUBEBUILDER_ASSETS` names.
    ///
    /// # Errors
    ///
    /// It names none that holds all of them.
    pub fn find() -> Result<Self> {
        let given = std::env::var_os(ASSETS).map(PathBuf::from);
        let complete =
            given.filter(|directory| NAMES.iter().all(|name| directory.join(name).is_file()));
        complete.map(Self).context(
            "KUBEBUILDER_ASSETS names no directory with kube-apiserver, etcd and kubectl: run `make test`, or \
             `export KUBEBUILDER_ASSETS=$(hack/kube-apiserver.sh)` first",
        )
    }

    /// Those that `KUBEBUILDER_ASSETS` names, or those of the checkout that this was built from, which are built where they are
    /// missing: that takes minutes, once.
    ///
    /// # Errors
    ///
    /// They cannot be had.
    pub fn find_or_build() -> Result<Self> {
        if std::env::var_os(ASSETS).is_some() {
            return Self::find();
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../kube-apiserver.sh");
        let output = Command::new(script)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| {
                format!(
                    "could not run {script}: set {ASSETS} to a directory with {}",
                    NAMES.join(", ")
                )
            })?;
        if !output.status.success() {
            bail!("{script} yields no API server; what it said is above");
        }
        let directory = String::from_utf8(output.stdout)?;
        Ok(Self(PathBuf::from(directory.trim())))
    }

    /// A server that lives in `directory`, which goes with it, for as long as the command's standard input stays open.
    pub fn serve(&self, directory: &Path, listen: &Listen) -> Command {
        let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/serve.sh"));
        command
            .arg(directory)
            .args([listen.etcd, listen.peer, listen.api].map(|port| port.to_string()))
            .arg(listen.address.to_string())
            .env(ASSETS, &self.0)
            .stdin(Stdio::piped());
        command
    }

    /// A kubectl that uses a kubeconfig, and keeps its cache in `home`.
    pub fn kubectl(&self, kubeconfig: &Path, home: &Path) -> Command {
        let mut command = Command::new(self.0.join("kubectl"));
        command
            .env("KUBECONFIG", kubeconfig)
            .env("HOME", home)
            .env("NO_PROXY", "127.0.0.1");
        command
    }
}
