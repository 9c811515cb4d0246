//! A network namespace for a whole agent: with an uplink, interfaces of pods and a place for pins. All of it is gone with this program.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use crate::cluster::{self, SEGMENT};

/// The uplink.
pub(crate) const UPLINK: &str = "up0";

/// Where a bpffs is mounted.
pub(crate) struct Node {
    pub(crate) bpffs: TempDir,
}

impl Node {
    /// Takes this process, and whatever it starts from now on, into namespaces of its own, with interfaces of so many pods. It needs root,
    /// and a process of one thread.
    pub(crate) fn enter(pods: usize) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
        let none: Option<&str> = None;
        // Or the mount would be everybody's.
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        let mut commands = format!(
            "link set lo up\n\
             link add {UPLINK} type veth peer name segment\n\
             address add {}/{} dev {UPLINK}\n\
             link set {UPLINK} up\n\
             link set segment up\n",
            cluster::address_of(0),
            SEGMENT.prefix_len(),
        );
        for pod in 0..pods {
            let address = cluster::pod_address(pod);
            write!(
                commands,
                "link add pod{pod} type veth peer name in{pod}\n\
                 link set pod{pod} up\n\
                 link set in{pod} up\n\
                 route add {address} dev pod{pod}\n"
            )?;
        }
        let mut ip = Command::new("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .context("ip, of iproute2")?;
        let mut stdin = ip.stdin.take().context("ip reads no commands")?;
        stdin.write_all(commands.as_bytes())?;
        drop(stdin);
        let status = ip.wait()?;
        if !status.success() {
            bail!("ip: {status}");
        }
        let bpffs = tempfile::tempdir()?;
        mount(none, bpffs.path(), Some("bpf"), MsFlags::empty(), none)?;
        Ok(Self { bpffs })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The pins go with it, and the directory can.
        let _ = umount(self.bpffs.path());
    }
}
