//! The server leaves nothing behind.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::server::Server;

/// The processes that have this directory in their command line.
fn processes_of(directory: &Path) -> Vec<PathBuf> {
    let name = directory.file_name().unwrap().as_encoded_bytes();
    let entries = fs::read_dir("/proc").unwrap();
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|process| {
            let line = fs::read(process.join("cmdline")).unwrap_or_default();
            line.windows(name.len()).any(|window| window == name)
        })
        .collect()
}

#[test]
fn a_server_leaves_no_process_and_no_file_when_its_test_panics() {
    let server = Server::start();
    let directory = server.directory().to_owned();
    // The script, etcd and kube-apiserver; a reader of the script's input.
    assert!(processes_of(&directory).len() >= 3);
    let result = catch_unwind(AssertUnwindSafe(move || {
        server.ok(&["get", "--raw", "/no-such-path"]);
    }));
    assert!(result.is_err());
    assert_eq!(processes_of(&directory), Vec::<PathBuf>::new());
    assert!(!directory.exists());
}
