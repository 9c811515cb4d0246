//! While a floating IP is between two nodes, its packets wait on the node that gave it away.
//!
//! Source nodes go on sending to that node until the next holder announces itself. It has the address no more, so it forwards
//! what comes, and asks for the new holder. The kernel keeps what waits for such an answer, and sends it as soon as the
//! announcement is there; but by default it keeps 208 KiB for each neighbor, which small packets fill with 166 of them. The next
//! holder gets them all at once, and may have to ask for its router first: there they wait again.
//!
//! What the next holder's own pods send meanwhile waits there too, and comes back to it as packets from its own address, which the
//! kernel takes for forged unless it is told to accept them.

use std::time::Duration;

use tokio::task::JoinHandle;

use crate::family::Family;
use crate::network::{HandoverSettings, NetworkError};

/// What one neighbor's packets may take while a handover runs, in bytes with the kernel's own overhead: more than 6,000 small packets.
/// The odd number tells a later run that it was us.
const WIDE: u32 = (8 << 20) + 119;

/// `accept_local` while a handover runs: any number but 0 is yes, and this one says that it was us.
const OWN: u32 = 119;

/// The kernel asks for a neighbor three times, a second apart, and then drops what waits for it.
const DURATION: Duration = Duration::from_secs(3);

/// The settings of the uplink while a handover runs.
pub(crate) struct Handover {
    settings: HandoverSettings,
    end: Option<JoinHandle<()>>,
}

impl Handover {
    /// Of an interface. What an earlier run left is as it was.
    pub(crate) async fn of(settings: HandoverSettings) -> Self {
        restore(&settings).await;
        Self {
            settings,
            end: None,
        }
    }

    /// Gets ready to give floating IPs away: what comes for them waits for the next holder.
    pub(crate) async fn give(&mut self) {
        self.begin();
        self.widen().await;
    }

    /// Gets ready to take floating IPs: what waited comes all at once, that of this node's own pods too.
    pub(crate) async fn take(&mut self) {
        self.begin();
        self.widen().await;
        if self.settings.accept_own() == Some(0) {
            tell(self.settings.set_accept_own(OWN).await);
        }
    }

    async fn widen(&self) {
        for family in Family::ALL {
            let length = self.settings.length(family);
            if length.is_some_and(|now| now < WIDE) {
                tell(self.settings.set_length(family, WIDE).await);
            }
        }
    }

    /// From now on for as long as a neighbor is asked for.
    fn begin(&mut self) {
        if let Some(task) = self.end.take() {
            task.abort();
        }
        let settings = self.settings.clone();
        self.end = Some(tokio::spawn(async move {
            tokio::time::sleep(DURATION).await;
            restore(&settings).await;
        }));
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        // An agent that ends in the middle of a handover leaves the settings: the next one, or cleanup, finds them.
        if let Some(task) = self.end.take() {
            task.abort();
        }
    }
}

/// Without its settings a move loses packets, and works: what goes wrong is logged only.
fn tell(outcome: Result<(), NetworkError>) {
    if let Err(error) = outcome {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(error, "a move of a floating IP may lose packets");
    }
}

/// Puts back what a handover changed on an interface: the queues get the length that new interfaces have. Returns how many settings
/// that were.
pub(crate) async fn restore(settings: &HandoverSettings) -> usize {
    let mut changes = 0;
    for family in Family::ALL {
        if settings.length(family) == Some(WIDE)
            && let Some(usual) = HandoverSettings::usual(family)
            && settings.set_length(family, usual).await.is_ok()
        {
            changes += 1;
        }
    }
    if settings.accept_own() == Some(OWN) && settings.set_accept_own(0).await.is_ok() {
        changes += 1;
    }
    changes
}
