//! An API server full of objects.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use egressnat_apiserver::Server;
use http::Request;
use ipnet::Ipv4Net;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::{Arguments, NODE};

/// The segment of the floating IPs.
pub(crate) const SEGMENT: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16);

/// How many namespaces the pods are spread over.
const NAMESPACES: usize = 100;

/// How many requests are under way at once.
const PARALLEL: usize = 64;

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");

pub(crate) struct Cluster {
    server: Server,
    client: Client,
    runtime: Runtime,
}

impl Cluster {
    /// With definitions and roles.
    pub(crate) fn start() -> Result<Self> {
        let server = Server::start()?;
        let runtime = Runtime::new()?;
        let config = Kubeconfig::read_from(server.directory().join("kubeconfig"))?;
        let client = runtime.block_on(async {
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(config, &options).await?;
            anyhow::Ok(Client::try_from(config)?)
        })?;
        let cluster = Self {
            server,
            client,
            runtime,
        };
        let crds = format!("{DEPLOY}/crds");
        let rbac = format!("{DEPLOY}/rbac.yaml");
        crate::until("kube-system", || {
            Ok(cluster
                .server
                .kubectl(&["get", "ns", "kube-system"])?
                .is_success)
        })?;
        cluster.kubectl(&["apply", "-f", &crds, "-f", &rbac])?;
        cluster.kubectl(&[
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            "-f",
            &crds,
        ])?;
        Ok(cluster)
    }

    pub(crate) fn directory(&self) -> &Path {
        self.server.directory()
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let told = self.server.kubectl(arguments)?;
        if !told.is_success {
            bail!("kubectl {arguments:?}: {}", told.stderr);
        }
        Ok(told.stdout)
    }

    /// What the API server tells of itself.
    pub(crate) fn metrics(&self) -> Result<String> {
        let request = Request::get("/metrics").body(Vec::new())?;
        Ok(self.runtime.block_on(self.client.request_text(request))?)
    }

    /// A kubeconfig for a service account.
    pub(crate) fn kubeconfig(&self, account: &str) -> Result<PathBuf> {
        let admin = fs::read_to_string(self.directory().join("kubeconfig"))?;
        let mut config: Value = serde_yaml_ng::from_str(&admin)?;
        let token = self.kubectl(&["create", "token", account, "--namespace=kube-system"])?;
        config["users"][0]["user"] = json!({ "token": token.trim() });
        let path = self.directory().join(account);
        fs::write(&path, config.to_string())?;
        Ok(path)
    }

    /// Makes all objects.
    pub(crate) fn fill(&self, arguments: &Arguments) -> Result<()> {
        let nodes = arguments.nodes;
        self.make("/api/v1/nodes", (0..nodes).map(node))?;
        self.make("/api/v1/namespaces", (0..NAMESPACES).map(namespace))?;
        for n in 0..NAMESPACES {
            let in_it = (n..arguments.pods).step_by(NAMESPACES);
            let path = format!("/api/v1/namespaces/tenant-{n}/pods");
            self.make(&path, in_it.map(|pod| pod_of(pod, arguments)))?;
        }
        let local = (0..arguments.local_pods).map(|pod| {
            let path = format!(
                "/api/v1/namespaces/tenant-{}/pods/pod-{pod}/status",
                pod % NAMESPACES
            );
            let address = pod_address(pod).to_string();
            let status = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]});
            let patch = json!({ "status": status });
            let request =
                Request::patch(path).header("Content-Type", "application/merge-patch+json");
            (request, patch)
        });
        self.send(local)?;
        let groups = "/apis/networking.gke.io/v1/namespaces/kube-system/networkgatewaygroups";
        self.make(groups, [group()].into_iter())?;
        self.add_policies(0..arguments.policies)
    }

    pub(crate) fn add_policies(&self, which: std::ops::Range<usize>) -> Result<()> {
        self.make(
            "/apis/networking.gke.io/v1/egressnatpolicies",
            which.map(policy),
        )
    }

    /// Gives a policy another destination, which is one event for everybody.
    pub(crate) fn edit_policy(&self, n: usize, round: usize) -> Result<()> {
        let path = format!("/apis/networking.gke.io/v1/egressnatpolicies/policy-{n}");
        let request = Request::patch(path).header("Content-Type", "application/merge-patch+json");
        let destination = json!({"cidr": format!("21.0.{round}.0/24")});
        let edit = json!({"spec": {"destinations": [destination]}});
        self.send([(request, edit)].into_iter())
    }

    /// Whether every floating IP has its node.
    pub(crate) fn is_assigned(&self) -> Result<bool> {
        let text = self.kubectl(&["get", "ngg", "default", "-n", "kube-system", "-o", "json"])?;
        let group: Value = serde_json::from_str(&text)?;
        Ok(group["status"]["floatingIPs"]
            .as_object()
            .map(serde_json::Map::len)
            == Some(FLOATING))
    }

    fn make(&self, path: &str, objects: impl Iterator<Item = Value>) -> Result<()> {
        self.send(objects.map(|object| {
            let request = Request::post(path).header("Content-Type", "application/json");
            (request, object)
        }))
    }

    fn send(&self, requests: impl Iterator<Item = (http::request::Builder, Value)>) -> Result<()> {
        let places = Arc::new(Semaphore::new(PARALLEL));
        self.runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for (request, object) in requests {
                let place = Arc::clone(&places).acquire_owned().await?;
                let request = request.body(serde_json::to_vec(&object)?)?;
                let client = self.client.clone();
                tasks.spawn(async move {
                    let answer = client.request::<Value>(request).await;
                    drop(place);
                    answer.map(drop).with_context(|| object.to_string())
                });
                while let Some(done) = tasks.try_join_next() {
                    done??;
                }
            }
            while let Some(done) = tasks.join_next().await {
                done??;
            }
            Ok(())
        })
    }
}

/// The first of the floating IPs.
pub(crate) const FIRST_FLOATING: Ipv4Addr = Ipv4Addr::new(192, 168, 128, 0);

/// How many floating IPs there are.
const FLOATING: usize = 100;

/// The address of a node.
pub(crate) fn address_of(n: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(SEGMENT.addr()) + 256 + n as u32)
}

fn node(n: usize) -> Value {
    let address = address_of(n).to_string();
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("node-{n}")},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    })
}

fn namespace(n: usize) -> Value {
    let name = format!("tenant-{n}");
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"tenant": name}}})
}

/// The address of a pod of the node that has an agent.
pub(crate) fn pod_address(n: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0a0a_0000 + n as u32 + 2)
}

/// The first ones are the agent's, all others on the other nodes.
fn pod_of(n: usize, arguments: &Arguments) -> Value {
    let node = if n < arguments.local_pods {
        NODE.to_owned()
    } else {
        format!("node-{}", 1 + n % (arguments.nodes - 1).max(1))
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("pod-{n}"), "labels": {"role": "frontend", "app": format!("app-{}", n % 20)}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none"}]},
    })
}

fn group() -> Value {
    let addresses: Vec<String> = (0..FLOATING)
        .map(|n| Ipv4Addr::from(u32::from(FIRST_FLOATING) + n as u32).to_string())
        .collect();
    json!({
        "apiVersion": "networking.gke.io/v1", "kind": "NetworkGatewayGroup",
        "metadata": {"name": "default", "namespace": "kube-system"}, "spec": {"floatingIPs": addresses},
    })
}

/// For all frontends, so that each is in the agent's plan: the worst case of a node.
fn policy(n: usize) -> Value {
    let everything = json!({"matchLabels": {"role": "frontend"}});
    json!({
        "apiVersion": "networking.gke.io/v1", "kind": "EgressNATPolicy", "metadata": {"name": format!("policy-{n}")},
        "spec": {
            "sources": [{"namespaceSelector": {"matchExpressions": [{"key": "tenant", "operator": "Exists"}]}, "podSelector": everything}],
            "action": "SNAT",
            "destinations": [{"cidr": format!("20.{}.{}.0/24", n / 250, n % 250)}],
            "gatewayRef": {"name": "default", "namespace": "kube-system"},
        },
    })
}
