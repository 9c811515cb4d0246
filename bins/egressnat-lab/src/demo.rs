//! The tour: what egressnat is for, with real packets, each fact as it was observed.

use std::io::Write;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use egressnat_kube::{Kind, Object, ObjectKey};
use serde_json::Value;

use crate::lab::{Lab, ObjectPlace, UpOptions};
use crate::probe::{Protocol, Traffic, seen_pings, seen_source, until};
use crate::target::Target;

const PATIENCE: Duration = Duration::from_secs(20);
const FLOATING: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 100);
const SERVER: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
const OTHER_SERVER: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);

/// The seeds' manifests, version v1.
const V1: [&str; 3] = [
    include_str!("../../../examples/v1/cluster.yaml"),
    include_str!("../../../examples/v1/gateway.yaml"),
    include_str!("../../../examples/v1/policy.yaml"),
];

/// The seeds' manifests, version v1alpha1.
const V1ALPHA1: [&str; 3] = [
    include_str!("../../../examples/v1alpha1/cluster.yaml"),
    include_str!("../../../examples/v1alpha1/gateway.yaml"),
    include_str!("../../../examples/v1alpha1/policy.yaml"),
];

/// Runs the tour in a lab of its own and takes the lab down, also when a step fails.
///
/// # Errors
///
/// Something that was observed is not as it must be.
pub fn run(lab: &Lab, objects: ObjectPlace, out: &mut dyn Write) -> Result<()> {
    lab.down()
        .context("an earlier lab of this name is in the way")?;
    let mut tour = Tour { lab, objects, out };
    let outcome = tour.all();
    if outcome.is_err() {
        // The agents' own words, before they are gone.
        for node in ["worker1", "worker2"] {
            let log =
                std::fs::read_to_string(lab.directory().join(format!("logs/agent-{node}.log")))
                    .unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            writeln!(
                tour.out,
                "log of the agent on {node}, newest first:\n{}",
                tail.join("\n")
            )?;
        }
    }
    let down = lab.down();
    outcome?;
    down?;
    writeln!(
        out,
        "   nothing is left: no namespace, link, mount, process or file\n\nAll facts are as they must be."
    )?;
    Ok(())
}

struct Tour<'a> {
    lab: &'a Lab,
    objects: ObjectPlace,
    out: &'a mut dyn Write,
}

impl Tour<'_> {
    fn all(&mut self) -> Result<()> {
        self.heading("1. Two workers and a control-plane node come up; the seeds' v1 manifests are applied unchanged")?;
        let options = UpOptions {
            objects: self.objects,
            ..UpOptions::default()
        };
        let errors = self.lab.up(&options)?;
        expect("no manifest is refused", errors.is_empty(), &errors)?;
        self.apply(&V1)?;

        self.heading("2. Who holds which floating IP")?;
        let group = ObjectKey::namespaced(Kind::NetworkGatewayGroup, "kube-system", "default");
        let holder = self.until_held(&group)?;
        let source_node = if holder == "worker1" {
            "worker2"
        } else {
            "worker1"
        };
        let status = self.object(&group)?.at("/status").clone();
        writeln!(self.out, "{}", indent(&serde_yaml_ng::to_string(&status)?))?;

        self.heading("3. Selected pods reach 8.8.8.8 as 192.168.1.100, from the gateway node and from another")?;
        let (away, beside) = (self.frontend(source_node)?, self.frontend(&holder)?);
        for (pod, place) in [
            (&away, "not the gateway"),
            (&beside, "the gateway node itself"),
        ] {
            writeln!(self.out, "   {pod} ({place}):")?;
            self.until_source(pod, SERVER, FLOATING)?;
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Http] {
                self.fact(pod, SERVER, protocol, FLOATING)?;
            }
            self.ping(pod, FLOATING)?;
        }

        self.heading("4. Everything else leaves as before")?;
        let node_ip = self.node_address("worker1")?;
        let backend = pod("alice", "backend-0");
        writeln!(self.out, "   {backend}, which no policy selects:")?;
        self.fact(&backend, SERVER, Protocol::Tcp, node_ip)?;
        let other = pod("other", "client-0");
        writeln!(
            self.out,
            "   {other}, in a namespace that no policy selects:"
        )?;
        self.fact(&other, SERVER, Protocol::Tcp, node_ip)?;
        let away_ip = self.node_address(source_node)?;
        writeln!(
            self.out,
            "   {away}, to a destination that no policy names:"
        )?;
        self.fact(&away, OTHER_SERVER, Protocol::Tcp, away_ip)?;
        self.pod_to_pod(&away, &beside)?;

        self.heading("5. The gateway node loses its power under running traffic")?;
        let traffic = Traffic::start(&self.lab.namespace(&away)?, SERVER)?;
        traffic.wait_for_answers(25, PATIENCE)?;
        self.lab.power_off(&holder)?;
        let new_holder = self.until_moved(&group, &holder)?;
        self.until_source(&away, SERVER, FLOATING)?;
        traffic.wait_for_answers(25, PATIENCE)?;
        let observed = traffic.finish()?;
        let only: Vec<Ipv4Addr> = observed.sources.iter().copied().collect();
        writeln!(
            self.out,
            "   {} requests, {} answers; longest gap {} ms; the server saw {only:?}",
            observed.sent,
            observed.answered,
            observed.longest_gap.as_millis()
        )?;
        expect(
            "the server saw the floating IP and nothing else",
            only == [FLOATING],
            &only,
        )?;
        let status = self.object(&group)?.at("/status").clone();
        writeln!(
            self.out,
            "   {holder} held 192.168.1.100, {new_holder} holds it now:"
        )?;
        writeln!(self.out, "{}", indent(&serde_yaml_ng::to_string(&status)?))?;
        expect(
            "the status says that the node is down",
            status["nodes"][&holder] == "Down",
            &status,
        )?;
        self.fact(&away, SERVER, Protocol::Tcp, FLOATING)?;
        self.lab.power_on(&holder)?;

        self.heading(
            "6. The same with the v1alpha1 manifests, and an address that no gateway has",
        )?;
        self.delete(&V1)?;
        self.until_source(&away, SERVER, away_ip)?;
        writeln!(
            self.out,
            "   the v1 objects are deleted: {away} leaves as {away_ip}"
        )?;
        self.apply(&V1ALPHA1)?;
        let anthos = ObjectKey::namespaced(Kind::AnthosNetworkGateway, "kube-system", "default");
        let holder = self.until_held(&anthos)?;
        writeln!(
            self.out,
            "   AnthosNetworkGateway kube-system/default: {holder} holds 192.168.1.100"
        )?;
        self.until_source(&away, SERVER, FLOATING)?;
        self.fact(&away, SERVER, Protocol::Tcp, FLOATING)?;
        let unknown = V1ALPHA1[2].replace("192.168.1.100", "192.168.1.99");
        self.apply(&[&unknown])?;
        let event = until("the event UnknownEgressIP", PATIENCE, || {
            let events = self.lab.store().ok()?.list(Kind::Event).ok()?;
            events
                .into_iter()
                .find(|event| event.at("/reason") == "UnknownEgressIP")
        })?;
        writeln!(
            self.out,
            "   event UnknownEgressIP: {}",
            event.at("/message").as_str().unwrap_or_default()
        )?;
        self.until_source(&away, SERVER, away_ip)?;
        self.fact(&away, SERVER, Protocol::Tcp, away_ip)?;

        self.heading("7. Everything is taken down")
    }

    fn heading(&mut self, text: &str) -> Result<()> {
        Ok(writeln!(self.out, "\n{text}")?)
    }

    fn objects(manifests: &[&str]) -> Result<Vec<Object>> {
        let parse = |text: &&str| Ok(Object::from_value(serde_yaml_ng::from_str::<Value>(text)?)?);
        manifests.iter().map(parse).collect()
    }

    fn apply(&mut self, manifests: &[&str]) -> Result<()> {
        let outcome = self.lab.apply_objects(Self::objects(manifests)?)?;
        expect(
            "no manifest is refused",
            outcome.errors.is_empty(),
            &outcome.errors,
        )?;
        for (key, _) in outcome.applied {
            writeln!(self.out, "   applied {key}")?;
        }
        Ok(())
    }

    fn delete(&mut self, manifests: &[&str]) -> Result<()> {
        let store = self.lab.store()?;
        for object in Self::objects(manifests)? {
            store.delete(object.key())?;
        }
        Ok(())
    }

    fn object(&self, key: &ObjectKey) -> Result<Object> {
        self.lab
            .store()?
            .get(key)?
            .with_context(|| format!("there is no {key}"))
    }

    /// Who holds 192.168.1.100 by the group's status, once all three addresses are assigned.
    fn until_held(&self, group: &ObjectKey) -> Result<String> {
        until("an assignment in the status", PATIENCE, || {
            let status = self.object(group).ok()?.at("/status/floatingIPs").clone();
            let all = status.as_object().is_some_and(|held| held.len() == 3);
            let holder = status["192.168.1.100"].as_str().map(str::to_owned);
            holder.filter(|_| all)
        })
    }

    fn until_moved(&self, group: &ObjectKey, from: &str) -> Result<String> {
        until("the status to name another node", PATIENCE, || {
            let holder = self.object(group).ok()?.at("/status/floatingIPs")["192.168.1.100"]
                .as_str()?
                .to_owned();
            (holder != from).then_some(holder)
        })
    }

    /// A pod that the policy selects, on `node`.
    fn frontend(&self, node: &str) -> Result<Target> {
        let pods = self.lab.store()?.list(Kind::Pod)?;
        let found = pods.iter().find(|object| {
            object.at("/spec/nodeName") == node
                && object.namespace() == Some("alice")
                && object.name().starts_with("frontend")
        });
        found
            .map(|object| pod("alice", object.name()))
            .with_context(|| format!("no frontend pod on {node}"))
    }

    fn node_address(&self, node: &str) -> Result<Ipv4Addr> {
        let object = self.object(&ObjectKey::cluster(Kind::Node, node))?;
        Ok(object
            .at("/status/addresses/0/address")
            .as_str()
            .unwrap_or_default()
            .parse()?)
    }

    /// Changes travel from the objects to the kernel; what counts is where they end.
    fn until_source(&self, from: &Target, server: Ipv4Addr, want: Ipv4Addr) -> Result<()> {
        let namespace = self.lab.namespace(from)?;
        let what = format!("{from} to reach {server} as {want}");
        until(&what, PATIENCE, || {
            seen_source(&namespace, server, Protocol::Udp)
                .ok()
                .filter(|seen| *seen == want)
        })?;
        Ok(())
    }

    fn fact(
        &mut self,
        from: &Target,
        server: Ipv4Addr,
        protocol: Protocol,
        want: Ipv4Addr,
    ) -> Result<()> {
        let seen = seen_source(&self.lab.namespace(from)?, server, protocol)?;
        writeln!(
            self.out,
            "   {protocol:?} to {server}: the server saw {seen}"
        )?;
        expect(&format!("{server} sees {want}"), seen == want, &seen)
    }

    fn ping(&mut self, from: &Target, want: Ipv4Addr) -> Result<()> {
        let ping = self
            .lab
            .output(from, &["ping", "-c", "1", "-W", "2", &SERVER.to_string()])?;
        expect(
            "ping is answered",
            ping.status.success(),
            &String::from_utf8_lossy(&ping.stdout),
        )?;
        let seen = seen_pings(&self.lab.namespace(&Target::Outside)?, SERVER)?;
        let newest = seen.first().cloned().unwrap_or_default();
        writeln!(
            self.out,
            "   ping to {SERVER}: answered, the server saw {newest}"
        )?;
        expect(
            &format!("{SERVER} sees {want}"),
            newest == want.to_string(),
            &newest,
        )
    }

    fn pod_to_pod(&mut self, from: &Target, to: &Target) -> Result<()> {
        let address = |target: &Target| -> Result<Ipv4Addr> {
            let Target::Pod(namespace, name) = target else {
                bail!("{target} is no pod")
            };
            let object = self.object(&ObjectKey::namespaced(Kind::Pod, namespace, name))?;
            Ok(object
                .at("/status/podIP")
                .as_str()
                .unwrap_or_default()
                .parse()?)
        };
        let (from_ip, to_ip) = (address(from)?, address(to)?);
        let seen = crate::probe::seen_by_listener(
            &self.lab.namespace(from)?,
            &self.lab.namespace(to)?,
            to_ip,
        )?;
        writeln!(self.out, "   {from} to {to}: the pod saw {seen}")?;
        expect(
            "pods see each other's own addresses",
            seen == from_ip,
            &seen,
        )
    }
}

fn pod(namespace: &str, name: &str) -> Target {
    Target::Pod(namespace.to_owned(), name.to_owned())
}

fn expect(what: &str, holds: bool, observed: &dyn std::fmt::Debug) -> Result<()> {
    if holds {
        Ok(())
    } else {
        bail!("NOT SO: {what}; observed {observed:?}")
    }
}

fn indent(text: &str) -> String {
    text.trim_end()
        .lines()
        .map(|line| format!("   {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}
