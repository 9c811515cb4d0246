//! An API server of this test run's own: etcd and kube-apiserver on loopback, in a temporary directory.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// A start takes 3 s on two idle cores; other builds may have them.
const START: Duration = Duration::from_secs(120);

/// A running API server. It ends with this value, and with this process however that ends: the script that runs it watches its
/// standard input, whose other end is here.
pub(crate) struct Server {
    supervisor: Child,
    directory: PathBuf,
    assets: PathBuf,
}

/// What kubectl said.
pub(crate) struct Told {
    pub(crate) is_success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The server that all tests of this binary share, with the CRDs in it. Tests use names of their own.
pub(crate) fn shared() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = Server::start();
        server.install_crds();
        server
    })
}

/// The directory of the CRDs.
pub(crate) fn crds() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/crds")
}

impl Server {
    /// Starts one and waits until it is ready.
    pub(crate) fn start() -> Self {
        // Somebody else may take a port between the moment it is found free and the moment it is used.
        for _ in 0..3 {
            if let Some(server) = Self::try_start() {
                return server;
            }
        }
        panic!("the API server ended at each of three starts; what it said is above");
    }

    fn try_start() -> Option<Self> {
        // First: without them nothing is to be left behind.
        let assets = assets();
        let directory = tempfile::Builder::new()
            .prefix("egressnat-api-")
            .tempdir()
            .unwrap()
            .keep();
        let supervisor = serve(&directory, free_ports())
            .spawn()
            .expect("hack/kube-apiserver/serve.sh runs");
        let mut server = Self {
            supervisor,
            directory,
            assets,
        };
        let deadline = Instant::now() + START;
        while !server.kubectl(&["get", "--raw", "/readyz"]).is_success {
            if server.supervisor.try_wait().unwrap().is_some() {
                return None;
            }
            assert!(
                Instant::now() < deadline,
                "the API server is not ready after {START:?}: {}",
                server.last_words()
            );
            thread::sleep(Duration::from_millis(50));
        }
        Some(server)
    }

    /// Installs the CRDs and waits until they are served.
    pub(crate) fn install_crds(&self) {
        self.ok(&["apply", "--filename", crds()]);
        let wait = ["wait", "--for=condition=Established", "--timeout=60s"];
        self.ok(&[&wait[..], &["--filename", crds()]].concat());
    }

    /// Kills the API server with SIGKILL and waits until a new one is ready on the same etcd.
    pub(crate) fn restart(&self) {
        let pid = self.directory.join("kube-apiserver.pid");
        let read = || std::fs::read_to_string(&pid).unwrap().trim().to_owned();
        let before = read();
        std::fs::write(self.directory.join("restart"), "").unwrap();
        let process = nix::unistd::Pid::from_raw(before.parse().unwrap());
        nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL).unwrap();
        let deadline = Instant::now() + START;
        while read() == before || !self.kubectl(&["get", "--raw", "/readyz"]).is_success {
            assert!(Instant::now() < deadline, "{}", self.last_words());
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn last_words(&self) -> String {
        let log = self.directory.join("kube-apiserver.log");
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    /// The directory that the server lives in.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Runs kubectl as the user who may do everything.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Told {
        self.kubectl_with(arguments, "")
    }

    /// Runs kubectl with something on its standard input.
    pub(crate) fn kubectl_with(&self, arguments: &[&str], input: &str) -> Told {
        let mut child = Command::new(self.assets.join("kubectl"))
            .args(arguments)
            .env("KUBECONFIG", self.directory.join("kubeconfig"))
            // Its cache goes with the server.
            .env("HOME", &self.directory)
            .env("NO_PROXY", "127.0.0.1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl runs");
        let mut stdin = child.stdin.take().unwrap();
        // It may end without reading.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        told(&child.wait_with_output().unwrap())
    }

    /// Runs kubectl, which has to succeed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        self.ok_with(arguments, "")
    }

    /// Runs kubectl with something on its standard input; it has to succeed.
    pub(crate) fn ok_with(&self, arguments: &[&str], input: &str) -> String {
        let told = self.kubectl_with(arguments, input);
        assert!(told.is_success, "kubectl {arguments:?}: {}", told.stderr);
        told.stdout
    }

    /// Applies a manifest as a user would, unknown fields refused.
    pub(crate) fn apply(&self, manifest: &str) -> Told {
        self.kubectl_with(&["apply", "--validate=strict", "--filename", "-"], manifest)
    }

    /// Reads an object: `kubectl get` with these arguments.
    pub(crate) fn read(&self, arguments: &[&str]) -> Value {
        let text = self.ok(&[&["get", "--output=json"], arguments].concat());
        serde_json::from_str(&text).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.supervisor.stdin.take());
        let _ = self.supervisor.wait();
    }
}

/// The script that runs a server: etcd's two ports, then the API's. It wants standard input to stay open.
pub(crate) fn serve(directory: &Path, ports: [u16; 3]) -> Command {
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../hack/kube-apiserver/serve.sh"
    );
    let mut command = Command::new(script);
    command
        .arg(directory)
        .args(ports.map(|port| port.to_string()))
        .env("KUBEBUILDER_ASSETS", assets())
        .stdin(Stdio::piped());
    command
}

fn told(output: &Output) -> Told {
    Told {
        is_success: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn assets() -> PathBuf {
    let directory = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let programs = ["kube-apiserver", "etcd", "kubectl"];
    directory
        .filter(|directory| programs.iter().all(|name| directory.join(name).is_file()))
        .expect(
            "KUBEBUILDER_ASSETS names no directory with kube-apiserver, etcd and kubectl: run `make test`, or \
             `export KUBEBUILDER_ASSETS=$(hack/kube-apiserver.sh)` first",
        )
}

/// Ports that nobody listens on.
pub(crate) fn free_ports() -> [u16; 3] {
    let listeners = [0; 3].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
