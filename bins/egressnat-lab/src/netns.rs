//! Network namespaces by name, through iproute2.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::probe::until;

/// Where iproute2 keeps its namespaces.
const DIRECTORY: &str = "/run/netns";

/// How long a namespace that is to go may be busy.
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) fn path(namespace: &str) -> PathBuf {
    PathBuf::from(DIRECTORY).join(namespace)
}

pub(crate) fn exists(namespace: &str) -> bool {
    path(namespace).exists()
}

/// All namespaces whose name starts with `prefix`.
pub(crate) fn list(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names
}

/// Runs `ip` commands, one a line, in one go. The first that fails ends it.
pub(crate) fn ip(namespace: Option<&str>, commands: &[String]) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    // Ends with us: one that outlives a killed `up` would build what a `down` takes away at the same time.
    // SAFETY: prctl is async-signal-safe.
    unsafe {
        command.pre_exec(|| set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from));
    }
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("could not run ip: install iproute2")?;
    let text = commands.join("\n") + "\n";
    child
        .stdin
        .take()
        .context("ip has standard input")?
        .write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let place = namespace.unwrap_or("the root namespace");
        bail!(
            "ip in {place}: {}\n{text}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Makes a namespace with a working loopback.
pub(crate) fn add(namespace: &str) -> Result<()> {
    ip(None, &[format!("netns add {namespace}")])?;
    ip(Some(namespace), &["link set lo up".to_owned()])
}

/// Removes a namespace with everything in it.
pub(crate) fn delete(namespace: &str) -> Result<()> {
    if !exists(namespace) {
        return Ok(());
    }
    let mut outcome = Ok(());
    // Busy for a moment where somebody who was just killed had made it.
    let deleted = until(namespace, PATIENCE, || {
        outcome = ip(None, &[format!("netns delete {namespace}")]);
        (outcome.is_ok() || !exists(namespace)).then_some(())
    });
    deleted.or(outcome)
}

/// Runs `work` on a thread of its own inside a namespace.
///
/// # Errors
///
/// The namespace cannot be entered.
pub fn within<T: Send + 'static>(
    namespace: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let path = path(namespace);
    let file =
        File::open(&path).with_context(|| format!("there is no namespace {}", path.display()))?;
    let thread = thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET).map_err(anyhow::Error::from)?;
        Ok(work())
    });
    match thread.join() {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Sets sysctls of the namespace.
pub(crate) fn sysctl(
    namespace: &str,
    settings: &'static [(&'static str, &'static str)],
) -> Result<()> {
    within(namespace, move || {
        for (path, value) in settings {
            fs::write(format!("/proc/sys/net/ipv4/{path}"), value)
                .with_context(|| format!("sysctl {path}={value}"))?;
        }
        Ok(())
    })?
}
