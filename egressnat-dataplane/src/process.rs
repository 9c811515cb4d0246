//! Who else is at work on this node.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use nix::sys::stat::{major, minor};

/// A process, as far as it can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process(Option<u32>);

impl From<Option<u32>> for Process {
    fn from(id: Option<u32>) -> Self {
        Self(id)
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(id) => write!(f, "process {id}"),
            None => f.write_str("a process that cannot be seen from here"),
        }
    }
}

impl Process {
    /// The one that has a file locked by flock(2).
    pub(crate) fn that_locked(file: &File) -> Self {
        let found = file.metadata().ok().and_then(|metadata| {
            let (device, inode) = (metadata.dev(), metadata.ino());
            let file = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
            holder_of(&fs::read_to_string("/proc/locks").ok()?, &file)
        });
        Self(found)
    }
}

/// The process that holds a lock of a file, by the kernel's list of locks.
fn holder_of(locks: &str, file: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        // Number, way, kind, mode, process, file, range. Who waits for a lock has an arrow after the number.
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_it = words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&file);
        is_it.then(|| words.get(4)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{Flock, FlockArg};

    #[test]
    fn the_holder_of_a_lock_is_found_and_not_who_waits_for_it() {
        let locks = "1: POSIX  ADVISORY  WRITE 77 00:15:26 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 78 00:15:27 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 79 00:15:26 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 80 00:15:26 0 EOF\n";
        assert_eq!(holder_of(locks, "00:15:26"), Some(80));
        assert_eq!(holder_of(locks, "00:15:28"), None);
    }

    #[test]
    fn our_own_lock_is_of_our_own_process() {
        let file = tempfile::tempfile().unwrap();
        let lock = Flock::lock(file.try_clone().unwrap(), FlockArg::LockExclusive).unwrap();
        let own = Process(Some(std::process::id()));
        assert_eq!(Process::that_locked(&file), own);
        drop(lock);
        assert_eq!(Process::that_locked(&file), Process(None));
    }
}
