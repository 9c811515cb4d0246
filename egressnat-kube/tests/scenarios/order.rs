//! What no manifest of the scenario tells: the lines of the numbered text files.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use egressnat_core::model::{MasqueradeAction, MasqueradeMatch, NodeName, PodKey, Protocol};
use egressnat_kube::{Kind, ObjectKey};
use ipnet::IpNet;

/// One line of a text file. `main.rs` describes them.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    /// Apply manifests that scenarios share.
    Apply(PathBuf),
    Delete(ObjectKey),
    Down(NodeName),
    Up(NodeName),
    ClusterRange(IpNet),
    Masquerade(MasqueradeMatch, MasqueradeAction),
    ForgetMasquerade(MasqueradeMatch),
    /// The controller forgets what it decided before, as one without a status to read.
    ForgetAssignment,
    Ask(Question),
    Must(Must),
}

/// What is answered at the end of the step.
#[derive(Debug, Clone)]
pub(crate) enum Question {
    Explain(PodKey, IpAddr, Option<Protocol>),
    Decide {
        node: NodeName,
        source: IpAddr,
        destination: IpAddr,
        protocol: Option<Protocol>,
    },
    Why(IpAddr),
    WhatIf {
        lost: Vec<NodeName>,
        drained: Vec<NodeName>,
    },
}

/// What a node must decide about a packet, whatever `expected.txt` says.
#[derive(Debug, Clone)]
pub(crate) struct Must {
    pub(crate) node: NodeName,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// As a [`Decision`](egressnat_core::Decision) is shown.
    pub(crate) decision: String,
}

impl Order {
    /// The lines of a file, without comments and empty ones.
    pub(crate) fn read(file: &Path) -> Vec<Self> {
        let text = std::fs::read_to_string(file).unwrap();
        let lines = text
            .lines()
            .map(|line| line.split('#').next().unwrap().trim());
        lines
            .filter(|line| !line.is_empty())
            .map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                Self::of(&words)
                    .unwrap_or_else(|| panic!("{}: {line:?} is no order", file.display()))
            })
            .collect()
    }

    fn of(words: &[&str]) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        Some(match *words {
            ["cluster", name] => {
                let file = format!("tests/scenarios/clusters/{name}.yaml");
                Self::Apply(root.join(file))
            }
            ["example", path] => Self::Apply(root.join("../examples").join(path)),
            ["delete", kind, name] => Self::Delete(key(kind, name)?),
            ["down", node] => Self::Down(node.parse().ok()?),
            ["up", node] => Self::Up(node.parse().ok()?),
            ["cluster-range", range] => Self::ClusterRange(range.parse().ok()?),
            ["masquerade", "forget", ref packets @ ..] => {
                Self::ForgetMasquerade(masquerade_match(packets)?)
            }
            ["masquerade", "keep", ref packets @ ..] => {
                Self::Masquerade(masquerade_match(packets)?, MasqueradeAction::Keep)
            }
            ["masquerade", "translate", ref packets @ ..] => {
                Self::Masquerade(masquerade_match(packets)?, MasqueradeAction::Masquerade)
            }
            ["forget", "assignment"] => Self::ForgetAssignment,
            ["explain", pod, destination] => Self::Ask(explain(pod, destination, None)?),
            ["explain", pod, destination, protocol] => {
                Self::Ask(explain(pod, destination, Some(self::protocol(protocol)?))?)
            }
            ["decide", node, source, destination] => {
                Self::Ask(decide(node, source, destination, None)?)
            }
            ["decide", node, source, destination, protocol] => Self::Ask(decide(
                node,
                source,
                destination,
                Some(self::protocol(protocol)?),
            )?),
            ["must", node, source, destination, ref decision @ ..] => Self::Must(Must {
                node: node.parse().ok()?,
                source: source.parse().ok()?,
                destination: destination.parse().ok()?,
                decision: decision.join(" "),
            }),
            ["why", address] => Self::Ask(Question::Why(address.parse().ok()?)),
            ["what-if", ref nodes @ ..] => Self::Ask(what_if(nodes)?),
            _ => return None,
        })
    }
}

fn key(kind: &str, name: &str) -> Option<ObjectKey> {
    let kind: Kind = kind.parse().ok()?;
    Some(match name.split_once('/') {
        Some((namespace, name)) if kind.is_namespaced() => {
            ObjectKey::namespaced(kind, namespace, name)
        }
        None if !kind.is_namespaced() => ObjectKey::cluster(kind, name),
        _ => return None,
    })
}

/// `10.0.0.0/8 [from 10.10.1.0/24] [tcp]`
fn masquerade_match(words: &[&str]) -> Option<MasqueradeMatch> {
    let (destination, mut rest) = words.split_first()?;
    let mut packets = MasqueradeMatch::to(destination.parse().ok()?);
    if let ["from", source, after @ ..] = rest {
        packets.source = Some(source.parse().ok()?);
        rest = after;
    }
    match rest {
        [] => {}
        [name] => packets.protocol = Some(protocol(name)?),
        _ => return None,
    }
    Some(packets)
}

fn protocol(name: &str) -> Option<Protocol> {
    let all = [
        Protocol::ICMP,
        Protocol::TCP,
        Protocol::UDP,
        Protocol::ICMPV6,
        Protocol::SCTP,
    ];
    all.into_iter()
        .find(|protocol| protocol.to_string() == name)
}

fn explain(pod: &str, destination: &str, protocol: Option<Protocol>) -> Option<Question> {
    let (namespace, name) = pod.split_once('/')?;
    let pod = PodKey::new(namespace.parse().ok()?, name.parse().ok()?);
    Some(Question::Explain(pod, destination.parse().ok()?, protocol))
}

fn decide(
    node: &str,
    source: &str,
    destination: &str,
    protocol: Option<Protocol>,
) -> Option<Question> {
    Some(Question::Decide {
        node: node.parse().ok()?,
        source: source.parse().ok()?,
        destination: destination.parse().ok()?,
        protocol,
    })
}

/// `lose worker1 drain worker2`
fn what_if(words: &[&str]) -> Option<Question> {
    let (mut lost, mut drained) = (Vec::new(), Vec::new());
    for pair in words.chunks(2) {
        match pair {
            ["lose", node] => lost.push(NodeName::from_str(node).ok()?),
            ["drain", node] => drained.push(NodeName::from_str(node).ok()?),
            _ => return None,
        }
    }
    Some(Question::WhatIf { lost, drained })
}
