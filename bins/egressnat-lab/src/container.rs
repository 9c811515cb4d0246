//! What a container of a manifest lets its process do: the lab's agents may do no more.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

/// The kernel's names of capabilities, each at its number (`linux/capability.h`).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The capabilities of a container that drops all and adds some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Container {
    capabilities: Vec<usize>,
}

impl Container {
    /// The one that agents run in: that of `deploy/agent.yaml`.
    ///
    /// # Errors
    ///
    /// It may do more than some capabilities.
    pub(crate) fn of_agent() -> Result<Self> {
        Self::read(include_str!("../../../deploy/agent.yaml")).context("deploy/agent.yaml")
    }

    /// The one that takes everything out of a node's kernel: that of `deploy/cleanup.yaml`.
    ///
    /// # Errors
    ///
    /// It may do more than some capabilities.
    pub(crate) fn of_cleanup() -> Result<Self> {
        Self::read(include_str!("../../../deploy/cleanup.yaml")).context("deploy/cleanup.yaml")
    }

    /// The first container of a workload, init containers first.
    fn read(manifest: &str) -> Result<Self> {
        Self::of(&serde_yaml_ng::from_str(manifest)?)
    }

    fn of(workload: &Value) -> Result<Self> {
        let pod = &workload["spec"]["template"]["spec"];
        let first = ["initContainers", "containers"]
            .iter()
            .find_map(|kind| pod[kind].get(0))
            .context("there is no container")?;
        let context = &first["securityContext"];
        let capabilities = &context["capabilities"];
        if context["privileged"] == true
            || context["allowPrivilegeEscalation"] != false
            || capabilities["drop"] != serde_json::json!(["ALL"])
        {
            bail!("the container is not one that has nothing but some capabilities");
        }
        let added = capabilities["add"].as_array().into_iter().flatten();
        let number = |name: &Value| {
            let known = CAPABILITIES.iter().position(|known| *name == **known);
            known.with_context(|| format!("there is no capability {name}"))
        };
        Ok(Self {
            capabilities: added.map(number).collect::<Result<_>>()?,
        })
    }

    /// Makes a command run as in the container: as root with its capabilities alone, and with a read-only `/proc/sys`.
    pub(crate) fn confine(&self, command: &mut Command) {
        let dropped: Vec<usize> = (0..CAPABILITIES.len())
            .filter(|number| !self.capabilities.contains(number))
            .collect();
        // SAFETY: only system calls between fork and exec, and nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                make_settings_read_only()?;
                // Of root, what is executed has what its bounding set leaves.
                dropped.iter().try_for_each(|number| drop_bounding(*number))
            });
        }
    }
}

/// In a mount namespace of its own. What is unmounted outside is unmounted there.
fn make_settings_read_only() -> io::Result<()> {
    const NOTHING: Option<&str> = None;
    const SETTINGS: Option<&str> = Some("/proc/sys");
    let make = |source, target: &str, flags| mount(source, target, NOTHING, flags, NOTHING);
    unshare(CloneFlags::CLONE_NEWNS)?;
    make(NOTHING, "/", MsFlags::MS_REC | MsFlags::MS_SLAVE)?;
    make(SETTINGS, "/proc/sys", MsFlags::MS_BIND)?;
    let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    Ok(make(NOTHING, "/proc/sys", read_only)?)
}

fn drop_bounding(number: usize) -> io::Result<()> {
    // SAFETY: takes numbers only.
    let outcome = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) };
    match outcome {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // A kernel without this capability.
            error if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn workload(context: &Value) -> Value {
        let container = json!({ "name": "agent", "securityContext": context });
        json!({ "spec": { "template": { "spec": { "containers": [container] } } } })
    }

    #[test]
    fn only_a_container_that_has_nothing_but_capabilities_is_taken() {
        let capabilities = json!({ "drop": ["ALL"], "add": ["NET_ADMIN", "BPF"] });
        let plain = json!({ "allowPrivilegeEscalation": false, "capabilities": capabilities });
        let taken = Container::of(&workload(&plain)).unwrap();
        assert_eq!(taken.capabilities, [12, 39]);
        for (field, value) in [
            ("privileged", json!(true)),
            ("allowPrivilegeEscalation", json!(null)),
            ("capabilities", json!({ "add": ["NET_ADMIN"] })),
            ("capabilities", json!({ "drop": ["ALL"], "add": ["ANY"] })),
        ] {
            let mut other = plain.clone();
            other[field] = value;
            assert!(Container::of(&workload(&other)).is_err(), "{other}");
        }
    }
}
