//! Real packets through real kernels' namespaces: the lab with the real controller and agents. Needs root.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

mod api;
mod chaos;
mod input;
mod ownership;
mod packets;
mod partitions;
mod restarts;
mod rights;
mod status;
mod teardown;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use egressnat_kube::{Kind, Object, ObjectKey};
use egressnat_lab::probe::{Protocol, seen_source, until};
use egressnat_lab::{Lab, Target, UpOptions};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);
const SERVER: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
const FLOATING: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 100);

/// A lab of its own for one test, taken down when the test ends, however it ends.
struct TestLab(Lab);

impl std::ops::Deref for TestLab {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.0
    }
}

impl Drop for TestLab {
    fn drop(&mut self) {
        let down = self.0.down();
        if !std::thread::panicking() {
            down.expect("nothing is left of the lab");
        }
    }
}

fn examples(version: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../examples")
        .join(version)
}

impl TestLab {
    /// Not up yet, under a name that no other test has.
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self::named(&format!("t{}x{count}y", std::process::id()))
    }

    fn named(name: &str) -> Self {
        Self(Lab::open(name).unwrap())
    }

    /// The command line, of this lab.
    fn cli(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_egressnat-lab"));
        command
            .args(["--name", self.name()])
            .args(arguments)
            .output()
            .unwrap()
    }

    /// Up, with the seeds' v1 manifests, and with .100 in use.
    fn with_policy() -> Self {
        let lab = Self::new();
        let options = UpOptions {
            manifests: vec![examples("v1")],
            ..UpOptions::default()
        };
        assert_eq!(lab.up(&options).unwrap(), [""; 0]);
        for name in ["frontend-0", "frontend-1"] {
            lab.until_seen_as(&pod(name), FLOATING);
        }
        lab
    }

    fn seen(&self, from: &Target, protocol: Protocol) -> anyhow::Result<Ipv4Addr> {
        seen_source(&self.namespace(from)?, SERVER, protocol)
    }

    fn until_seen_as(&self, from: &Target, want: Ipv4Addr) {
        let what = format!("{from} to be seen as {want}");
        until(&what, PATIENCE, || {
            self.seen(from, Protocol::Udp)
                .ok()
                .filter(|seen| *seen == want)
        })
        .unwrap();
    }

    fn object(&self, key: &ObjectKey) -> Object {
        self.store()
            .unwrap()
            .get(key)
            .unwrap()
            .unwrap_or_else(|| panic!("there is no {key}"))
    }

    /// The node that holds .100 by the status.
    fn holder(&self) -> String {
        self.holder_by_status().expect("somebody holds it")
    }

    fn holder_by_status(&self) -> Option<String> {
        let key = ObjectKey::namespaced(Kind::NetworkGatewayGroup, "kube-system", "default");
        let status = self.object(&key);
        let holder = status.at("/status/floatingIPs/192.168.1.100").as_str();
        holder.map(str::to_owned)
    }

    /// A selected pod on the node that holds .100, and one on another.
    fn beside_and_away(&self) -> (Target, Target) {
        let holder = self.holder();
        let other = if holder == "worker1" {
            "worker2"
        } else {
            "worker1"
        };
        (on(&holder), on(other))
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.directory().join(format!("logs/{name}.log")))
            .unwrap_or_default()
    }

    fn apply_text(&self, text: &str) -> egressnat_lab::Outcome {
        let objects = serde_yaml_ng::Deserializer::from_str(text)
            .map(|document| {
                Object::from_value(serde::Deserialize::deserialize(document).unwrap()).unwrap()
            })
            .collect();
        self.apply_objects(objects).unwrap()
    }

    /// Every object but the leases, which are renewed for ever, when all kernels have what the objects say.
    fn objects_at_rest(&self) -> Vec<Value> {
        let store = self.store().unwrap();
        until("all of it in the kernels", PATIENCE, || {
            let kinds = [Kind::EgressNatPolicy, Kind::NetworkGatewayGroup];
            let mut objects = kinds.into_iter().flat_map(|kind| store.list(kind).unwrap());
            let is_programmed =
                |object: Object| programmed(&object).is_some_and(|(status, _)| status == "True");
            objects.all(is_programmed).then_some(())
        })
        .unwrap();
        let kinds = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Lease);
        kinds
            .flat_map(|kind| store.list(kind).unwrap())
            .map(|object| object.value().clone())
            .collect()
    }
}

/// Status and reason of an object's condition Programmed.
fn programmed(object: &Object) -> Option<(String, String)> {
    let conditions = object.at("/status/conditions").as_array()?;
    let found = conditions.iter().find(|one| one["type"] == "Programmed")?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("reason")))
}

/// A pod that the policy selects on a worker.
fn on(node: &str) -> Target {
    pod(match node {
        "worker1" => "frontend-0",
        _ => "frontend-1",
    })
}

/// A pod of alice's.
fn pod(name: &str) -> Target {
    Target::Pod("alice".to_owned(), name.to_owned())
}
