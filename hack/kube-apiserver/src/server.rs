use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::programs::{Listen, Programs};

/// A start takes 3 s on two idle cores; other builds may have them.
const START: Duration = Duration::from_secs(120);

/// How often the server is asked whether it is ready.
const POLL: Duration = Duration::from_millis(50);

/// A running API server on loopback. It ends with this value, and with this process however that ends: the script that runs it
/// watches its standard input, whose other end is here.
#[derive(Debug)]
pub struct Server {
    supervisor: Child,
    directory: PathBuf,
    programs: Programs,
}

/// What kubectl said.
#[derive(Debug, Clone)]
pub struct Told {
    /// Whether it did what it was told to.
    pub is_success: bool,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl From<Output> for Told {
    fn from(output: Output) -> Self {
        Self {
            is_success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Server {
    /// Starts one and waits until it is ready.
    ///
    /// # Errors
    ///
    /// The programs are missing, or it does not come up.
    pub fn start() -> Result<Self> {
        // Somebody else may take a port between the moment it is found free and the moment it is used.
        for _ in 0..3 {
            if let Some(server) = Self::try_start()? {
                return Ok(server);
            }
        }
        bail!("the API server ended at each of three starts; what it said is above");
    }

    fn try_start() -> Result<Option<Self>> {
        // First: without them nothing is to be left behind.
        let programs = Programs::find()?;
        let directory = tempfile::Builder::new()
            .prefix("egressnat-api-")
            .tempdir()?
            .keep();
        let supervisor = programs
            .serve(&directory, &Listen::anywhere()?)
            .spawn()
            .context("could not run hack/kube-apiserver/serve.sh")?;
        let mut server = Self {
            supervisor,
            directory,
            programs,
        };
        let deadline = Instant::now() + START;
        while !server.is_ready()? {
            if server.supervisor.try_wait()?.is_some() {
                return Ok(None);
            }
            server.wait_a_little(deadline)?;
        }
        Ok(Some(server))
    }

    fn is_ready(&self) -> Result<bool> {
        let told = self.kubectl(&["get", "--raw", "/readyz"])?;
        Ok(told.is_success)
    }

    fn wait_a_little(&self, deadline: Instant) -> Result<()> {
        if Instant::now() >= deadline {
            bail!(
                "the API server is not ready after {START:?}: {}",
                self.last_words()
            );
        }
        thread::sleep(POLL);
        Ok(())
    }

    fn last_words(&self) -> String {
        let log = self.directory.join("kube-apiserver.log");
        let text = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    /// The directory that it lives in; `kubeconfig` in there is for the user who may do everything.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The process of kube-apiserver.
    ///
    /// # Errors
    ///
    /// It is being started.
    pub fn api(&self) -> Result<Pid> {
        self.process("kube-apiserver")
    }

    /// The process of etcd.
    ///
    /// # Errors
    ///
    /// It is being started.
    pub fn etcd(&self) -> Result<Pid> {
        self.process("etcd")
    }

    fn process(&self, name: &str) -> Result<Pid> {
        let text = fs::read_to_string(self.directory.join(format!("{name}.pid")))?;
        Ok(Pid::from_raw(text.trim().parse()?))
    }

    /// Kills the API server with SIGKILL and waits until a new one is ready on the same etcd.
    ///
    /// # Errors
    ///
    /// None becomes ready.
    pub fn restart(&self) -> Result<()> {
        let before = self.api()?;
        fs::write(self.directory.join("restart"), "")?;
        kill(before, Signal::SIGKILL)?;
        let deadline = Instant::now() + START;
        while self.api()? == before || !self.is_ready()? {
            self.wait_a_little(deadline)?;
        }
        Ok(())
    }

    /// Runs kubectl as the user who may do everything.
    ///
    /// # Errors
    ///
    /// It cannot be run. What it cannot do is in what it told.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<Told> {
        self.kubectl_with(arguments, "")
    }

    /// Runs kubectl with something on its standard input.
    ///
    /// # Errors
    ///
    /// As [`kubectl`](Self::kubectl).
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<Told> {
        let kubeconfig = self.directory.join("kubeconfig");
        // Its cache goes with the server.
        let mut child = self
            .programs
            .kubectl(&kubeconfig, &self.directory)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("could not run kubectl")?;
        if let Some(mut stdin) = child.stdin.take() {
            // It may end without reading.
            let _ = stdin.write_all(input.as_bytes());
        }
        Ok(child.wait_with_output()?.into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.supervisor.stdin.take());
        let _ = self.supervisor.wait();
    }
}
