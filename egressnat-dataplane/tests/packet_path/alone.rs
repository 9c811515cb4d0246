//! Two agents started on one node by mistake.

use std::process::{Child, Command};

use egressnat_dataplane::{Config, Dataplane, OpenError, TableOwnership, cleanup};

use crate::network::{FLOATING, Network, SERVER, eventually, plan, runtime};

fn refused(network: &Network) -> String {
    let config = network.config("n1");
    let opened = network.enter("n1", move || {
        runtime().block_on(async { Dataplane::open(config).await.map(drop) })
    });
    match opened {
        Err(OpenError::Lock(error)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_second_agent_refuses_whatever_it_shares_with_the_first() {
    let network = Network::new();
    network.apply_all("n2");
    let config = network.config("n1");
    // The same pins, or only the same namespace.
    let mut elsewhere = config.clone();
    elsewhere.bpffs = network.config("n2").bpffs;
    let told = network.enter("n1", move || {
        runtime().block_on(async {
            let mut first = Dataplane::open(config.clone()).await.unwrap();
            let mut told = Vec::new();
            for config in [config, elsewhere] {
                let second = Dataplane::open(config).await.map(drop);
                told.push(second.unwrap_err());
            }
            let report = first.apply(&plan("n1", "n2")).await;
            assert_eq!((report.changes, report.failures), (0, vec![]));
            told
        })
    });
    for error in told {
        let OpenError::Lock(error) = error else {
            panic!("{error:?}");
        };
        let text = error.to_string();
        assert!(
            text.contains("an agent of egressnat runs") && text.contains("stop it"),
            "{text}"
        );
    }
    // The first has ended.
    assert_eq!(network.apply("n1", plan("n1", "n2")).failures, []);
}

#[test]
fn cleanup_beside_an_agent_removes_nothing_and_names_it_whoever_owns_the_tables_e46() {
    let network = Network::new();
    network.apply_all("n2");
    let free = Config {
        table_ownership: TableOwnership::Never,
        ..network.config("n1")
    };
    // An agent whose pins are elsewhere has the same tables.
    let elsewhere = Config {
        bpffs: network.config("n2").bpffs,
        ..free.clone()
    };
    let state = || {
        let tables = network.exec("n1", "nft --stateless list ruleset");
        [
            tables,
            network.ip("n1", "rule"),
            network.ip("n1", "-o link"),
        ]
    };
    let before = state();
    for config in [free.clone(), elsewhere] {
        let open = free.clone();
        let report = network.enter("n1", move || {
            runtime().block_on(async {
                let agent = Dataplane::open(open).await.unwrap();
                let report = cleanup(&config).await;
                drop(agent);
                report
            })
        });
        let [failure] = &report.failures[..] else {
            panic!("{report:?}");
        };
        let named = format!("process {} has the lock", std::process::id());
        assert!(failure.message.contains(&named), "{failure:?}");
        assert_eq!((report.changes, state()), (0, before.clone()));
    }
    assert_eq!(
        network.seen_by_tcp("10.10.1.2", SERVER),
        Some(FLOATING.to_owned())
    );
    let report = network.enter("n1", move || runtime().block_on(cleanup(&free)));
    assert_eq!(report.failures, []);
    assert_eq!(network.exec("n1", "nft list tables"), "");
}

/// A process that holds the lock of a directory, killed when dropped.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_agent_that_was_killed_leaves_no_lock_behind() {
    let network = Network::new();
    network.apply_all("n2");
    let pins = network.pins("n1");
    let hold = Command::new("flock")
        .args(["--exclusive", "--no-fork"])
        .arg(&pins)
        .args(["sleep", "1000"])
        .spawn();
    let holder = Holder(hold.unwrap());
    eventually(false, || {
        let free = Command::new("flock")
            .arg("-n")
            .arg(&pins)
            .arg("true")
            .status();
        free.unwrap().success()
    });
    let told = refused(&network);
    assert!(told.contains(&pins.display().to_string()), "{told}");
    drop(holder);
    assert_eq!(network.apply("n1", plan("n1", "n2")).failures, []);
}
