//! An API server of this test run's own, and kubectl, which has to succeed or is looked at.

use std::sync::OnceLock;

use serde_json::Value;

pub(crate) use egressnat_apiserver::Told;

/// A running API server. It ends with this value, and with this process however that ends.
pub(crate) struct Server(egressnat_apiserver::Server);

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

impl std::ops::Deref for Server {
    type Target = egressnat_apiserver::Server;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Server {
    /// Starts one and waits until it is ready.
    pub(crate) fn start() -> Self {
        Self(egressnat_apiserver::Server::start().unwrap())
    }

    /// Installs the CRDs and waits until they are served.
    pub(crate) fn install_crds(&self) {
        self.ok(&["apply", "--filename", crds()]);
        let wait = ["wait", "--for=condition=Established", "--timeout=60s"];
        self.ok(&[&wait[..], &["--filename", crds()]].concat());
    }

    /// Kills the API server with SIGKILL and waits until a new one is ready on the same etcd.
    pub(crate) fn restart(&self) {
        self.0.restart().unwrap();
    }

    /// Runs kubectl as the user who may do everything.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Told {
        self.0.kubectl(arguments).unwrap()
    }

    /// Runs kubectl with something on its standard input.
    pub(crate) fn kubectl_with(&self, arguments: &[&str], input: &str) -> Told {
        self.0.kubectl_with(arguments, input).unwrap()
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
