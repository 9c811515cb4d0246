//! Watches of a directory: inotify says that something changed, a scan says what.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::scan::Scan;
use crate::object::{Object, ObjectKey};
use crate::store::{StoreError, Watch, WatchEvent, WatchRequest};

/// How often the directory is looked at although nothing was told, for file systems that tell nothing.
const AUDIT: Duration = Duration::from_secs(5);

/// How long to wait for the rest of a burst of writes.
const SETTLE: Duration = Duration::from_millis(3);

pub(super) fn start(directory: &Path, request: &WatchRequest) -> Result<Watch, StoreError> {
    let failed = |error: notify::Error| StoreError::Io {
        operation: format!("watch {}", directory.display()),
        source: std::io::Error::other(error),
    };
    let (wake, woken) = std::sync::mpsc::channel();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reading is no change.
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = wake.send(());
        }
    })
    .map_err(failed)?;
    watcher
        .watch(directory, RecursiveMode::Recursive)
        .map_err(failed)?;
    let (events, receiver) = mpsc::unbounded_channel();
    let follower = Follower {
        directory: directory.to_owned(),
        request: request.clone(),
        scan: Scan::default(),
        told: BTreeMap::new(),
        told_errors: Vec::new(),
        events,
    };
    // Ends when the watch is dropped: with the watcher goes the sender that the thread waits on.
    std::thread::spawn(move || follower.run(&woken));
    Ok(Watch::new(receiver, watcher))
}

struct Follower {
    directory: PathBuf,
    request: WatchRequest,
    scan: Scan,
    told: BTreeMap<ObjectKey, Object>,
    told_errors: Vec<crate::manifest::ManifestError>,
    events: mpsc::UnboundedSender<WatchEvent>,
}

impl Follower {
    fn run(mut self, woken: &Receiver<()>) {
        self.scan.refresh(&self.directory);
        self.tell_changes();
        let _ = self.events.send(WatchEvent::Synced);
        self.tell_errors();
        loop {
            match woken.recv_timeout(AUDIT) {
                Ok(()) => {
                    std::thread::sleep(SETTLE);
                    while woken.try_recv().is_ok() {}
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.scan.refresh(&self.directory);
            self.tell_changes();
            self.tell_errors();
        }
    }

    fn objects(&self) -> BTreeMap<ObjectKey, Object> {
        let mut objects = self.scan.objects();
        objects.retain(|_, object| self.request.asks_for(object));
        objects
    }

    fn tell_changes(&mut self) {
        let now = self.objects();
        for key in self.told.keys().filter(|key| !now.contains_key(*key)) {
            let _ = self.events.send(WatchEvent::Deleted(key.clone()));
        }
        for (key, object) in &now {
            if self.told.get(key) != Some(object) {
                let _ = self.events.send(WatchEvent::Applied(object.clone()));
            }
        }
        self.told = now;
    }

    fn tell_errors(&mut self) {
        let errors = self.scan.errors();
        for error in errors
            .iter()
            .filter(|error| !self.told_errors.contains(error))
        {
            let _ = self.events.send(WatchEvent::Failed(error.clone()));
        }
        self.told_errors = errors;
    }
}
