//! The server leaves nothing behind, and says why it ended.

use std::fs;
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use egressnat_apiserver::{Listen, Programs};

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

#[test]
fn a_server_that_cannot_have_its_port_ends_and_says_why() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = Listen {
        etcd: taken.local_addr().unwrap().port(),
        ..Listen::anywhere().unwrap()
    };
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("server");
    let mut script = Programs::find().unwrap().serve(&directory, &listen);
    let mut child = script.stderr(Stdio::piped()).spawn().unwrap();
    // Held until it has ended: it ends by itself.
    let input = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(input);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(told.contains("address already in use"), "{told}");
    assert!(!directory.exists());
}
