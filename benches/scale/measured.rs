//! What processes and the API server say of themselves.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cluster::Cluster;

/// A process by its id.
pub(crate) struct Process(pub(crate) u32);

impl Process {
    /// Processor time so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.0))?;
        // The name before may hold spaces.
        let (_, fields) = text.rsplit_once(')').context("a stat has a name")?;
        let ticks: u64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>().unwrap_or_default())
            .sum();
        // Linux tells user space a hundredth of a second on every machine.
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Memory, what of it is no text of programs and libraries, and processor time so far.
    pub(crate) fn cost(&self) -> Result<String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0))?;
        let line = |name: &str| {
            let found = status.lines().find_map(|line| line.strip_prefix(name));
            let kilobytes = found.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            kilobytes.map_or(0.0, |kilobytes: f64| kilobytes / 1024.0)
        };
        Ok(format!(
            "{:.1} MB at most, {:.1} MB now, {:.1} MB of them its own, {:.2?} CPU",
            line("VmHWM:"),
            line("VmRSS:"),
            line("RssAnon:"),
            self.cpu()?
        ))
    }
}

/// How many requests the API server has answered, by verb and resource. Watches count when they end.
pub(crate) fn requests(cluster: &Cluster) -> Result<BTreeMap<String, u64>> {
    let mut requests = BTreeMap::new();
    for line in cluster.metrics()?.lines() {
        let Some(rest) = line.strip_prefix("apiserver_request_total{") else {
            continue;
        };
        let (labels, count) = rest.rsplit_once(' ').context("a sample has a value")?;
        let label = |name: &str| {
            let found = labels.split(&format!("{name}=\"")).nth(1);
            found
                .and_then(|rest| rest.split('"').next())
                .unwrap_or_default()
        };
        let key = format!("{} {} {}", label("verb"), label("resource"), label("code"));
        *requests.entry(key).or_default() += count.parse::<f64>()? as u64;
    }
    Ok(requests)
}

/// What was asked between two looks, looks themselves left out.
#[expect(clippy::print_stdout, reason = "this is what it is for")]
pub(crate) fn print_difference(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) {
    for (key, count) in after {
        let more = count - before.get(key).copied().unwrap_or_default();
        if more > 0 && !key.starts_with("GET  ") {
            println!("  {more} {key}");
        }
    }
}
