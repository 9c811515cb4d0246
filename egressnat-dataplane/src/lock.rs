//! One agent for each node: a second one would undo what the first does.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

use crate::process::Process;

/// How long an agent that was just killed may take to be gone.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
pub(crate) const PAUSE: Duration = Duration::from_millis(20);

/// The file that stands for the network namespace of the calling thread.
const NAMESPACE: &str = "/proc/thread-self/ns/net";

/// The packet path could not be had alone.
#[derive(Debug, Error)]
pub enum LockError {
    /// An agent has it.
    #[error(
        "an agent of egressnat runs on this node ({holder} has the lock of {path}): stop it first"
    )]
    Held {
        /// What is locked.
        path: PathBuf,
        /// By whom.
        holder: Process,
    },
    /// The lock could not be tried.
    #[error("could not lock {path}")]
    Io {
        /// What was to be locked.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The right to change the packet path of this namespace and the pins below a directory, for as long as it lives: the tables
/// and devices belong to the one, programs and maps to the other. The kernel takes the locks back from a process that ends, however
/// it ends.
pub(crate) struct Lock {
    _pins: Option<Flock<File>>,
    _namespace: Flock<File>,
}

impl Lock {
    /// Locks the directory `pins`, which is made if it is not there, and the network namespace.
    pub(crate) async fn take(pins: &Path) -> Result<Self, LockError> {
        fs::create_dir_all(pins).map_err(failed(pins))?;
        Ok(Self {
            _pins: Some(lock(pins).await?),
            _namespace: lock(Path::new(NAMESPACE)).await?,
        })
    }

    /// Locks what there is: the directory `pins`, if it exists, and the network namespace.
    pub(crate) async fn take_existing(pins: &Path) -> Result<Self, LockError> {
        let is_there = pins.try_exists().map_err(failed(pins))?;
        Ok(Self {
            _pins: match is_there {
                true => Some(lock(pins).await?),
                false => None,
            },
            _namespace: lock(Path::new(NAMESPACE)).await?,
        })
    }
}

async fn lock(path: &Path) -> Result<Flock<File>, LockError> {
    let mut file = File::open(path).map_err(failed(path))?;
    let start = tokio::time::Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((same, nix::Error::EWOULDBLOCK)) if start.elapsed() > PATIENCE => {
                return Err(LockError::Held {
                    path: path.to_owned(),
                    holder: Process::that_locked(&same),
                });
            }
            Err((same, nix::Error::EWOULDBLOCK)) => file = same,
            Err((_, error)) => return Err(failed(path)(error.into())),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> LockError {
    let path = path.to_owned();
    |source| LockError::Io { path, source }
}
