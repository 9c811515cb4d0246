//! While a floating IP is between two nodes, its packets wait on the node that gave it away.
//!
//! Source nodes go on sending to that node until the next holder announces itself. It has the address no more, so it forwards
//! what comes, and asks for the new holder. The kernel keeps what waits for such an answer, and sends it as soon as the
//! announcement is there; but by default it keeps 208 KiB for each neighbor, which small packets fill with 166 of them. The next
//! holder gets them all at once, and may have to ask for its router first: there they wait again.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::task::JoinHandle;

/// What one neighbor's packets may take while a handover runs, in bytes with the kernel's own overhead: more than 6,000 small packets.
/// The odd number tells a later run that it was us.
const WIDE: u32 = (8 << 20) + 119;

/// The kernel asks for a neighbor three times, a second apart, and then drops what waits for it.
const DURATION: Duration = Duration::from_secs(3);

/// The queues of the uplink for neighbors that are not known yet, for both address families.
pub(crate) struct HandoverQueue {
    interface: String,
    narrowing: Option<JoinHandle<()>>,
}

impl HandoverQueue {
    /// Of an interface. What an earlier run left wide is narrow again.
    pub(crate) fn of(interface: &str) -> Self {
        narrow(interface);
        Self {
            interface: interface.to_owned(),
            narrowing: None,
        }
    }

    /// Makes the queues wide for as long as a neighbor is asked for. Without it a move loses packets, and works: what goes wrong
    /// is logged only.
    pub(crate) fn widen(&mut self) {
        if let Some(task) = self.narrowing.take() {
            task.abort();
        }
        for path in paths(&self.interface) {
            let widened = match read(&path) {
                Ok(now) if now < WIDE => fs::write(&path, WIDE.to_string()),
                Ok(_) => Ok(()),
                // No IPv6 on this host.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = widened {
                tracing::warn!(path = %path.display(), %error, "a move of a floating IP may lose packets");
            }
        }
        let interface = self.interface.clone();
        self.narrowing = Some(tokio::spawn(async move {
            tokio::time::sleep(DURATION).await;
            narrow(&interface);
        }));
    }
}

impl Drop for HandoverQueue {
    fn drop(&mut self) {
        // An agent that ends in the middle of a handover leaves the queues wide: the next one, or cleanup, finds them.
        if let Some(task) = self.narrowing.take() {
            task.abort();
        }
    }
}

/// Gives an interface's queues the length that new interfaces have, if we changed it. Returns how many were changed.
pub(crate) fn narrow(interface: &str) -> usize {
    let ours = paths(interface)
        .into_iter()
        .zip(paths("default"))
        .filter(|(path, _)| read(path).is_ok_and(|now| now == WIDE));
    ours.filter(|(path, default)| {
        let usual = read(default).and_then(|usual| fs::write(path, usual.to_string()));
        usual.is_ok()
    })
    .count()
}

fn paths(interface: &str) -> [PathBuf; 2] {
    ["ipv4", "ipv6"].map(|family| {
        PathBuf::from(format!(
            "/proc/sys/net/{family}/neigh/{interface}/unres_qlen_bytes"
        ))
    })
}

fn read(path: &PathBuf) -> io::Result<u32> {
    let text = fs::read_to_string(path)?;
    text.trim().parse().map_err(io::Error::other)
}
