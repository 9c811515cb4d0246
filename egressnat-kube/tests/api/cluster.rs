//! A cluster without kubelets: an API server, the CRDs, the roles, nodes, and the two loops as their service accounts.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use egressnat_core::{Decision, Failure, NodePlan, Report};
use egressnat_kube::{
    AgentConfig, ApiStore, ControllerConfig, Election, NodeDataplane, Pulse, StoreError,
    StoreOutage, Uplink, run_agent, run_controller,
};
use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::server::Server;
use crate::wire::Wire;

/// Long enough for two busy cores.
const DEADLINE: Duration = Duration::from_secs(60);

/// Polls until there is something.
pub(crate) fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) struct Cluster {
    pub(crate) server: Server,
    pub(crate) runtime: Runtime,
}

/// A loop that runs until it is dropped: killed, as far as others can see.
pub(crate) struct Running {
    task: JoinHandle<Result<(), StoreError>>,
    pub(crate) pulse: Pulse,
}

impl Running {
    pub(crate) fn is_running(&self) -> bool {
        !self.task.is_finished()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A running agent, and all plans that it has applied.
pub(crate) struct Agent {
    pub(crate) running: Running,
    plans: Arc<Mutex<Vec<NodePlan>>>,
    failures: Arc<Mutex<Vec<Failure>>>,
    again: Arc<Notify>,
}

impl Agent {
    /// From now on its kernel does everything but this.
    pub(crate) fn fail(&self, failures: &[(&str, &str)]) {
        let failure = |(object, message): &(&str, &str)| Failure {
            object: (*object).to_owned(),
            message: (*message).to_owned(),
        };
        *self.failures.lock().unwrap() = failures.iter().map(failure).collect();
        self.again.notify_one();
    }

    pub(crate) fn plans(&self) -> Vec<NodePlan> {
        self.plans.lock().unwrap().clone()
    }

    pub(crate) fn plan(&self) -> Option<NodePlan> {
        self.plans.lock().unwrap().last().cloned()
    }

    pub(crate) fn decides(&self, pod: &str, destination: &str) -> Option<Decision> {
        let plan = self.plan()?;
        Some(plan.decide(pod.parse().unwrap(), destination.parse().unwrap(), None))
    }

    pub(crate) fn until_decides(&self, pod: &str, destination: &str, want: Decision) {
        until(&format!("{pod} -> {destination}: {want:?}"), || {
            (self.decides(pod, destination) == Some(want)).then_some(())
        });
    }
}

struct Recording {
    plans: Arc<Mutex<Vec<NodePlan>>>,
    failures: Arc<Mutex<Vec<Failure>>>,
    again: Arc<Notify>,
}

/// An uplink of which nobody knows a deadline, on a segment where all nodes answer.
#[derive(Clone)]
pub(crate) struct Neighborly;

impl Uplink for Neighborly {
    fn hold_until(&self, _: &[IpAddr], _: Instant) -> Result<(), Failure> {
        Ok(())
    }

    async fn answers(&self, address: IpAddr, _: Duration) -> bool {
        // Floating IPs of the tests begin at .99.
        matches!(address, IpAddr::V4(address) if address.octets()[3] < 99)
    }
}

impl NodeDataplane for Recording {
    type Uplink = Neighborly;

    fn uplink(&self) -> Neighborly {
        Neighborly
    }

    async fn apply(&mut self, plan: &NodePlan) -> Report {
        let mut plans = self.plans.lock().unwrap();
        if plans.last() != Some(plan) {
            plans.push(plan.clone());
        }
        let failures = self.failures.lock().unwrap().clone();
        let is_usable = |address: &&IpAddr| {
            let object = format!("address {address}");
            failures.iter().all(|failure| failure.object != object)
        };
        let usable = plan.floating_ips.iter().filter(is_usable);
        Report {
            floating_ips: Arc::new(usable.copied().collect()),
            failures: failures.clone(),
            ..Report::default()
        }
    }

    async fn changed(&mut self) {
        self.again.notified().await;
    }

    fn subnets(&self) -> BTreeSet<IpNet> {
        ["192.168.1.1/24".parse().unwrap()].into()
    }
}

impl Cluster {
    /// With CRDs, roles, and the nodes worker1 and worker2.
    pub(crate) fn start() -> Self {
        let cluster = Self::without_crds();
        cluster.server.install_crds();
        cluster
    }

    pub(crate) fn without_crds() -> Self {
        let server = Server::start();
        until("kube-system", || {
            server
                .kubectl(&["get", "namespace", "kube-system"])
                .is_success
                .then_some(())
        });
        for file in ["rbac.yaml", "admission.yaml"] {
            let path = format!("{}/../deploy/{file}", env!("CARGO_MANIFEST_DIR"));
            server.ok(&["apply", "--filename", &path]);
        }
        let cluster = Self {
            server,
            runtime: Runtime::new().unwrap(),
        };
        for (name, address) in [("worker1", "192.168.1.1"), ("worker2", "192.168.1.2")] {
            let addresses = json!([{"type": "InternalIP", "address": address}]);
            cluster.create(&json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {"addresses": addresses},
            }));
        }
        cluster
    }

    pub(crate) fn create(&self, object: &Value) {
        self.server
            .ok_with(&["create", "--filename", "-"], &object.to_string());
    }

    pub(crate) fn apply(&self, object: &Value) {
        let told = self.server.apply(&object.to_string());
        assert!(told.is_success, "{object}: {}", told.stderr);
    }

    pub(crate) fn apply_examples(&self, version: &str) {
        let examples = examples(version);
        let told = self
            .server
            .kubectl(&["create", "namespace", "cluster-cluster1"]);
        assert!(
            told.is_success || told.stderr.contains("AlreadyExists"),
            "{}",
            told.stderr
        );
        self.server.ok(&["apply", "--filename", &examples]);
    }

    /// A pod that runs on a node with an address.
    pub(crate) fn run_pod(&self, name: &str, node: &str, address: &str) {
        self.create(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "alice", "labels": {"role": "frontend"}},
            "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none"}], "terminationGracePeriodSeconds": 0},
        }));
        let status = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]});
        self.patch_status(&["pod", name, "--namespace=alice"], &status);
    }

    pub(crate) fn patch_status(&self, object: &[&str], status: &Value) {
        let patch = format!("--patch={}", json!({ "status": status }));
        let arguments = ["--subresource=status", "--type=merge", &patch];
        self.server
            .ok(&[&["patch"], object, &arguments[..]].concat());
    }

    /// An object, if it is there.
    pub(crate) fn find(&self, arguments: &[&str]) -> Option<Value> {
        let told = self
            .server
            .kubectl(&[&["get", "--output=json"], arguments].concat());
        told.is_success
            .then(|| serde_json::from_str(&told.stdout).unwrap())
    }

    /// A kubeconfig for a service account, which may do what `deploy/rbac.yaml` says; one that is bound to a node, as that of a pod
    /// is, may do it for that node only.
    pub(crate) fn kubeconfig(
        &self,
        account: &str,
        node: Option<&str>,
        port: Option<u16>,
    ) -> PathBuf {
        let directory = self.server.directory();
        let admin = fs::read_to_string(directory.join("kubeconfig")).unwrap();
        let mut config: Value = serde_yaml_ng::from_str(&admin).unwrap();
        let mut create = vec!["create", "token", account, "--namespace=kube-system"];
        let name = node.map(|node| format!("--bound-object-name={node}"));
        if let Some(name) = &name {
            create.extend(["--bound-object-kind=Node", name]);
        }
        let token = self.server.ok(&create);
        config["users"][0]["user"] = json!({ "token": token.trim() });
        if let Some(port) = port {
            config["clusters"][0]["cluster"]["server"] = json!(format!("https://127.0.0.1:{port}"));
        }
        let node = node.unwrap_or("none");
        let name = format!("kubeconfig-{account}-{node}-{}", port.unwrap_or(0));
        let path = directory.join(name);
        fs::write(&path, config.to_string()).unwrap();
        path
    }

    pub(crate) fn store(&self, account: &str, wire: Option<&Wire>) -> ApiStore {
        let path = self.kubeconfig(account, None, wire.map(|wire| wire.port));
        self.connect(&path)
    }

    fn store_of_agent(&self, node: &str, wire: Option<&Wire>) -> ApiStore {
        let port = wire.map(|wire| wire.port);
        self.connect(&self.kubeconfig("egressnat-agent", Some(node), port))
    }

    fn connect(&self, kubeconfig: &Path) -> ApiStore {
        let connected = ApiStore::from_kubeconfig(kubeconfig);
        self.runtime.block_on(connected).unwrap()
    }

    /// A way to the API server that can be cut.
    pub(crate) fn wire(&self) -> Wire {
        let kubeconfig = fs::read_to_string(self.server.directory().join("kubeconfig")).unwrap();
        let port = kubeconfig.split("https://127.0.0.1:").nth(1).unwrap();
        let port = port.lines().next().unwrap().trim().parse().unwrap();
        Wire::to(port, self.runtime.handle())
    }

    pub(crate) fn controller(&self, identity: &str, wire: Option<&Wire>) -> Running {
        let store = self.store("egressnat-controller", wire);
        let pulse = Pulse::default();
        let config = ControllerConfig {
            cluster_ranges: vec![],
            election: Some(Election {
                identity: identity.to_owned(),
                duration: Duration::from_secs(3),
            }),
            pulse: pulse.clone(),
        };
        let task = self.runtime.spawn(run_controller(store, config));
        Running { task, pulse }
    }

    pub(crate) fn agent(&self, node: &str, wire: Option<&Wire>) -> Agent {
        let plans = Arc::new(Mutex::new(Vec::new()));
        let pulse = Pulse::default();
        let config = AgentConfig {
            node: node.parse().unwrap(),
            lease_duration: Duration::from_secs(6),
            cluster_ranges: vec![],
            pulse: pulse.clone(),
            outage: StoreOutage::Hold,
        };
        let (failures, again) = (Arc::default(), Arc::new(Notify::new()));
        let dataplane = Recording {
            plans: Arc::clone(&plans),
            failures: Arc::clone(&failures),
            again: Arc::clone(&again),
        };
        let store = self.store_of_agent(node, wire);
        let task = self.runtime.spawn(run_agent(store, dataplane, config));
        Agent {
            running: Running { task, pulse },
            plans,
            failures,
            again,
        }
    }

    /// Waits until the status of an object is this, as far as it is given.
    pub(crate) fn until_status(&self, object: &[&str], want: &Value) {
        let mut last = Value::Null;
        let deadline = Instant::now() + DEADLINE;
        let has = |last: &Value| {
            let mut fields = want.as_object().unwrap().iter();
            fields.all(|(field, value)| last.get(field) == Some(value))
        };
        while !has(&last) {
            assert!(Instant::now() < deadline, "{object:?}: {last}, not {want}");
            thread::sleep(Duration::from_millis(50));
            last = self
                .find(object)
                .map_or(Value::Null, |object| object["status"].clone());
        }
    }

    /// Waits until a condition of an object has this status and reason, of the generation that it has.
    pub(crate) fn until_condition(&self, object: &[&str], kind: &str, want: (&str, &str)) -> Value {
        let mut last = Value::Null;
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(object) = self.find(object) {
                let generation = &object["metadata"]["generation"];
                let conditions = object["status"]["conditions"].as_array();
                let mut conditions = conditions.into_iter().flatten();
                let found = conditions.find(|condition| condition["type"] == kind);
                if let Some(found) = found
                    && (&found["status"], &found["reason"]) == (&json!(want.0), &json!(want.1))
                    && &found["observedGeneration"] == generation
                {
                    return found.clone();
                }
                last = object["status"].clone();
            }
            assert!(
                Instant::now() < deadline,
                "{object:?}: {last}, and not {kind} {want:?}"
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until all kernels have an object.
    pub(crate) fn until_programmed(&self, object: &[&str]) {
        self.until_condition(object, "Programmed", ("True", "Programmed"));
    }

    /// Waits until nothing is written any more: the versions of everything then.
    pub(crate) fn at_rest(&self) -> Vec<String> {
        until("rest", || {
            let before = self.versions();
            // The agents, too, have renewed their leases meanwhile.
            self.await_renewals(6);
            (self.versions() == before).then_some(before)
        })
    }

    /// Waits for the only event with a reason about an object.
    pub(crate) fn until_event(&self, reason: &str, about: &str) -> Value {
        let selector = format!("--field-selector=reason={reason},involvedObject.name={about}");
        until(&format!("{reason} about {about}"), || {
            let list = self.find(&["events", "--all-namespaces", &selector])?;
            let events = list["items"].as_array().unwrap();
            assert!(events.len() < 2, "{events:?}");
            events.first().cloned()
        })
    }

    /// Who holds the controllers' lease, and its version.
    pub(crate) fn leader(&self) -> Option<(String, String)> {
        let lease = self.find(&["lease", "egressnat-controller", "--namespace=kube-system"])?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let holder = text(&lease["spec"]["holderIdentity"]);
        Some((holder, text(&lease["metadata"]["resourceVersion"])))
    }

    /// Waits until the leader has renewed its lease this many times, and so has had the time to do anything else.
    pub(crate) fn await_renewals(&self, count: usize) {
        let mut seen = BTreeSet::new();
        until("renewals of the leader", || {
            seen.extend(self.leader());
            (seen.len() > count).then_some(())
        });
    }

    /// Kind, name and version of every object that both loops could write, leases left out.
    pub(crate) fn versions(&self) -> Vec<String> {
        let kinds = "ngg,ang,ngn,angn,enp,clusters,events,nodes,namespaces,pods";
        let list = self.find(&[kinds, "--all-namespaces"]).unwrap();
        let items = list["items"].as_array().unwrap().iter();
        items
            .map(|item| {
                let metadata = &item["metadata"];
                format!(
                    "{} {} {}",
                    item["kind"], metadata["name"], metadata["resourceVersion"]
                )
            })
            .collect()
    }
}

/// The directory of published manifests of a version.
pub(crate) fn examples(version: &str) -> String {
    format!("{}/../examples/{version}", env!("CARGO_MANIFEST_DIR"))
}

/// A group in `kube-system`.
pub(crate) fn group(name: &str, addresses: &[&str]) -> Value {
    json!({
        "apiVersion": "networking.gke.io/v1", "kind": "NetworkGatewayGroup",
        "metadata": {"name": name, "namespace": "kube-system"},
        "spec": {"floatingIPs": addresses},
    })
}

/// A policy for the frontends of Alice, to a range.
pub(crate) fn policy(name: &str, group: &str, range: &str) -> Value {
    json!({
        "apiVersion": "networking.gke.io/v1", "kind": "EgressNATPolicy", "metadata": {"name": name},
        "spec": {
            "sources": [{
                "namespaceSelector": {"matchLabels": {"user": "alice"}},
                "podSelector": {"matchLabels": {"role": "frontend"}},
            }],
            "action": "SNAT",
            "destinations": [{"cidr": range}],
            "gatewayRef": {"name": group, "namespace": "kube-system"},
        },
    })
}

/// A namespace with labels.
pub(crate) fn namespace(name: &str, labels: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}
