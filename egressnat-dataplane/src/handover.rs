//! While a floating IP is between two nodes, its packets wait on the node that gave it away.
//!
//! Source nodes go on sending to that node until the next holder announces itself. It has the address no more, so it forwards
//! what comes, and asks for the new holder. The kernel keeps what waits for such an answer, and sends it as soon as the
//! announcement is there; but by default it keeps 208 KiB for each neighbor, which small packets fill with 166 of them. The next
//! holder gets them all at once, and may have to ask for its router first: there they wait again.

use std::time::Duration;

use tokio::task::JoinHandle;

use crate::family::Family;
use crate::network::NeighborQueues;

/// What one neighbor's packets may take while a handover runs, in bytes with the kernel's own overhead: more than 6,000 small packets.
/// The odd number tells a later run that it was us.
const WIDE: u32 = (8 << 20) + 119;

/// The kernel asks for a neighbor three times, a second apart, and then drops what waits for it.
const DURATION: Duration = Duration::from_secs(3);

/// The queues of the uplink for neighbors that are not known yet, for both address families.
pub(crate) struct HandoverQueue {
    queues: NeighborQueues,
    narrowing: Option<JoinHandle<()>>,
}

impl HandoverQueue {
    /// Of an interface. What an earlier run left wide is narrow again.
    pub(crate) async fn of(queues: NeighborQueues) -> Self {
        narrow(&queues).await;
        Self {
            queues,
            narrowing: None,
        }
    }

    /// Makes the queues wide for as long as a neighbor is asked for. Without it a move loses packets, and works: what goes wrong
    /// is logged only.
    pub(crate) async fn widen(&mut self) {
        if let Some(task) = self.narrowing.take() {
            task.abort();
        }
        for family in Family::ALL {
            if self.queues.length(family).is_none_or(|now| now >= WIDE) {
                continue;
            }
            if let Err(error) = self.queues.set_length(family, WIDE).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "a move of a floating IP may lose packets");
            }
        }
        let queues = self.queues.clone();
        self.narrowing = Some(tokio::spawn(async move {
            tokio::time::sleep(DURATION).await;
            narrow(&queues).await;
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
pub(crate) async fn narrow(queues: &NeighborQueues) -> usize {
    let mut changes = 0;
    for family in Family::ALL {
        if queues.length(family) == Some(WIDE)
            && let Some(usual) = NeighborQueues::usual(family)
            && queues.set_length(family, usual).await.is_ok()
        {
            changes += 1;
        }
    }
    changes
}
