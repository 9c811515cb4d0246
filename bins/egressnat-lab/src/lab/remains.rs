//! What there is of a lab on the machine, and that nothing of it stays.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{Lab, ROOT};
use crate::process;

impl Lab {
    pub(super) fn mount_bpffs(&self) -> Result<()> {
        let path = self.bpffs();
        fs::create_dir_all(&path)?;
        let is_mounted = nix::sys::statfs::statfs(&path)
            .is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC);
        if !is_mounted {
            let mounted = mount(
                Some("bpf"),
                &path,
                Some("bpf"),
                MsFlags::empty(),
                None::<&str>,
            );
            mounted.with_context(|| format!("could not mount a bpffs at {}", path.display()))?;
        }
        Ok(())
    }

    pub(super) fn bpffs(&self) -> PathBuf {
        self.directory.join("bpf")
    }

    /// Everything that there is of the lab on the machine: namespaces, processes, mounts, files.
    pub fn remains(&self) -> Vec<String> {
        let mut remains: Vec<String> = self
            .topology
            .all()
            .iter()
            .map(|name| format!("namespace {name}"))
            .collect();
        let processes = process::list(&self.directory).into_iter();
        remains.extend(processes.map(|(pid, role)| format!("process {pid} ({role})")));
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let directory = self.directory.display().to_string();
        // The whole path: another lab's name may begin with this one's.
        let is_ours = |line: &&str| {
            let place = line.split(' ').nth(1).map(Path::new);
            place.is_some_and(|place| place.starts_with(&self.directory))
        };
        remains.extend(
            mounts
                .lines()
                .filter(is_ours)
                .map(|line| format!("mount {line}")),
        );
        if self.directory.exists() {
            remains.push(format!("directory {directory}"));
        }
        remains
    }

    /// Takes everything down, whatever state it is in. Doing it again does nothing.
    ///
    /// # Errors
    ///
    /// Something is left.
    pub fn down(&self) -> Result<()> {
        // Again until nobody is left: a process that was just being started may have been missed.
        for _ in 0..3 {
            process::kill_all(&self.directory, |_| true)?;
            for namespace in self.topology.all() {
                self.topology.remove(&namespace)?;
            }
            while umount2(&self.bpffs(), MntFlags::MNT_DETACH).is_ok() {}
            let _ = fs::remove_dir_all(&self.directory);
            // Stays while there are other labs.
            let _ = fs::remove_dir(ROOT);
            if self.remains().is_empty() {
                return Ok(());
            }
        }
        bail!("still there: {}", self.remains().join(", "))
    }
}
