//! The lab's processes: each carries the lab's directory and its role in its environment, by which it is found again,
//! whatever happened to who started it.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setsid};

use crate::netns;
use crate::probe::until;

const LAB: &str = "EGRESSNAT_LAB";
const ROLE: &str = "EGRESSNAT_LAB_ROLE";

/// A command inside a namespace, marked as the lab's.
pub(crate) fn command(
    lab: &Path,
    role: &str,
    namespace: Option<&str>,
    program: &Path,
) -> Result<Command> {
    let mut command = Command::new(program);
    // A stack trace says nothing to who reads the log.
    command
        .env(LAB, lab)
        .env(ROLE, role)
        .env("RUST_BACKTRACE", "0");
    if let Some(namespace) = namespace {
        let path = netns::path(namespace);
        let file = File::open(&path)
            .with_context(|| format!("there is no namespace {}", path.display()))?;
        // SAFETY: only async-signal-safe calls between fork and exec.
        unsafe {
            command.pre_exec(move || {
                setns(file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)
            });
        }
    }
    Ok(command)
}

/// Starts a command that goes on when the lab's own process ends. What it prints goes to `log`.
pub(crate) fn start(mut command: Command, log: &Path) -> Result<()> {
    let log = File::options().create(true).append(true).open(log)?;
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    // SAFETY: setsid is async-signal-safe.
    unsafe {
        command.pre_exec(|| setsid().map(drop).map_err(std::io::Error::from));
    }
    let mut child = command
        .spawn()
        .with_context(|| format!("could not start {command:?}"))?;
    // Reaped by whoever lives longer: this thread, or init.
    std::thread::spawn(move || child.wait());
    Ok(())
}

/// The processes of a lab with their roles.
pub(crate) fn list(lab: &Path) -> Vec<(Pid, String)> {
    let marker = format!("{LAB}={}", lab.display()).into_bytes();
    let prefix = format!("{ROLE}=");
    let mut processes = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let mut variables = environment.split(|byte| *byte == 0);
        if !variables.clone().any(|variable| variable == marker) {
            continue;
        }
        let role = variables
            .find_map(|variable| std::str::from_utf8(variable).ok()?.strip_prefix(&prefix));
        processes.push((Pid::from_raw(pid), role.unwrap_or_default().to_owned()));
    }
    processes
}

/// The process of a role.
pub(crate) fn find(lab: &Path, role: &str) -> Option<Pid> {
    list(lab)
        .into_iter()
        .find(|(_, other)| other == role)
        .map(|(pid, _)| pid)
}

/// Kills the processes of a lab that `is_meant`, and waits until they are gone.
pub(crate) fn kill_all(lab: &Path, is_meant: impl Fn(&str) -> bool) -> Result<()> {
    until("processes to end", Duration::from_secs(10), || {
        let meant: Vec<Pid> = list(lab)
            .into_iter()
            .filter(|(_, role)| is_meant(role))
            .map(|(pid, _)| pid)
            .collect();
        // At every look: one that was being started by another is there only after that one has ended.
        for pid in &meant {
            let _ = signal(*pid, Signal::SIGKILL);
        }
        meant.is_empty().then_some(())
    })
}

/// Stops a process, and waits until it stands still.
pub(crate) fn stop(pid: Pid) -> Result<()> {
    signal(pid, Signal::SIGSTOP)?;
    until("a process to stand still", Duration::from_secs(10), || {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        state.contains(") T ").then_some(())
    })
}

/// Whether a process has the lock of a file somewhere below a directory (`/proc/locks`: number, kind, two words, process, device
/// and inode).
pub(crate) fn has_lock_below(pid: Pid, directory: &Path) -> bool {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let inode = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_of_process = words.get(4)? == &pid.to_string();
        let (_, inode) = words.get(5)?.rsplit_once(':')?;
        is_of_process.then(|| inode.parse::<u64>().ok()).flatten()
    };
    let locked: Vec<u64> = locks.lines().filter_map(inode).collect();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => directories.push(entry.path()),
                Ok(metadata) if locked.contains(&metadata.ino()) => return true,
                _ => {}
            }
        }
    }
    false
}

/// Sends a signal; a process that is gone already is fine.
pub(crate) fn signal(pid: Pid, signal: Signal) -> Result<()> {
    match kill(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => bail!("could not send {signal} to process {pid}: {errno}"),
    }
}

/// One of egressnat's programs: beside this one, or where `EGRESSNAT_BIN_DIR` says.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let beside = own.parent().map(Path::to_owned).unwrap_or_default();
    // Test executables are one directory further down.
    let above = beside.parent().map(Path::to_owned).unwrap_or_default();
    let given = std::env::var_os("EGRESSNAT_BIN_DIR").map(PathBuf::from);
    let candidates = given.into_iter().chain([beside, above]);
    let found = candidates
        .map(|directory| directory.join(name))
        .find(|path| path.is_file());
    found.with_context(|| format!("{name} is not beside this program: run 'cargo build --workspace', or set EGRESSNAT_BIN_DIR"))
}

#[cfg(test)]
mod tests {
    use nix::fcntl::{Flock, FlockArg};

    use super::*;

    #[test]
    fn who_has_a_lock_below_a_directory_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let locks = directory.path().join("locks");
        fs::create_dir(&locks).unwrap();
        let (own, path) = (Pid::this(), locks.join("7"));
        let has_lock = || has_lock_below(own, directory.path());
        assert!(!has_lock());
        let file = File::create(&path).unwrap();
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
        assert!(has_lock());
        assert!(!has_lock_below(Pid::from_raw(1), directory.path()));
        drop(lock);
        assert!(!has_lock());
    }
}
