//! Our tables belong to the agent while it lives.

use std::process::Command;
use std::time::{Duration, Instant};

use egressnat_core::Report;
use egressnat_dataplane::{Config, Dataplane, TableOwnership, cleanup};

use crate::network::{FLOATING, Network, SERVER, eventually, plan, runtime};

impl Network {
    pub(super) fn clean(&self, node: &str) -> Report {
        let config = self.config(node);
        self.enter(node, move || runtime().block_on(cleanup(&config)))
    }
}

/// What other tools do to a ruleset that they take for their own.
const ATTACKS: [&str; 5] = [
    "nft delete table ip egressnat",
    "nft flush table ip egressnat",
    "nft insert rule ip egressnat guard accept",
    "nft delete element ip egressnat egress_ips { 0x00020000 }",
    "nft delete table arp egressnat",
];

/// Runs a command in a node's namespace while its packet path is open. Returns whether it could be done.
pub(crate) fn can(namespace: &str, command: &str) -> bool {
    let words = ["netns", "exec", namespace].into_iter();
    let words = words.chain(command.split_whitespace());
    let output = Command::new("ip").args(words).output().unwrap();
    output.status.success()
}

fn seen(network: &Network) -> Option<String> {
    network.seen_by_tcp("10.10.1.2", SERVER)
}

#[test]
fn while_an_agent_lives_nobody_else_changes_its_tables() {
    let network = Network::new();
    network.apply_all("n2");
    network.exec("n2", "nft add table ip foreign");
    let (config, namespace) = (network.config("n2"), network.namespace("n2"));
    network.open("n2", async move |mut dataplane| {
        let soon = Instant::now() + Duration::from_secs(60);
        let address = FLOATING.parse().unwrap();
        dataplane.deadlines().hold_until(&[address], soon).unwrap();
        for attack in ATTACKS {
            assert!(!can(&namespace, attack), "{attack}");
        }
        assert!(can(&namespace, "nft flush ruleset"));
        assert!(!can(&namespace, "nft list table ip foreign"));

        let report = cleanup(&config).await;
        let told = &report.failures[0].message;
        assert!(told.contains(&std::process::id().to_string()), "{told}");
        assert_eq!(report.changes, 0);
        let second = Dataplane::open(config).await;
        assert!(second.is_err(), "two agents own one table");

        let again = dataplane.apply(&plan("n2", "n2")).await;
        assert_eq!((again.changes, again.failures), (0, vec![]));
    });
    assert_eq!(seen(&network).as_deref(), Some(FLOATING));
}

#[test]
fn a_table_outlives_its_agent_and_is_adopted_again() {
    let network = Network::new();
    network.apply_all("n2");
    let namespace = network.namespace("n2");
    network.open("n2", async move |mut dataplane| {
        let report = dataplane.apply(&plan("n2", "n2")).await;
        assert_eq!((report.changes, report.failures), (0, vec![]), "E45");
        assert!(!can(&namespace, ATTACKS[0]));
    });
    // Nobody protects it now. A process that another test starts has all sockets of this one for an instant.
    eventually(true, || can(&network.namespace("n2"), ATTACKS[0]));
    assert!(network.apply("n2", plan("n2", "n2")).changes > 0);
    assert_eq!(seen(&network).as_deref(), Some(FLOATING));
    eventually(vec![], || network.clean("n2").failures);
    assert_eq!(network.exec("n2", "nft list tables"), "");
}

#[test]
fn a_table_without_an_owner_is_replaced_by_one_that_has_one() {
    let network = Network::new();
    network.apply("n1", plan("n1", "n2"));
    // As on a kernel that cannot protect tables.
    let mut unowned = network.config("n2");
    unowned.table_ownership = TableOwnership::Never;
    let open = |config: Config, want: [bool; 2]| {
        let namespace = network.namespace("n2");
        network.enter("n2", move || {
            runtime().block_on(async {
                let mut dataplane = Dataplane::open(config).await.unwrap();
                let report = dataplane.apply(&plan("n2", "n2")).await;
                let can_attack = can(&namespace, "nft add chain ip egressnat foreign");
                assert_eq!((report.changes > 0, can_attack), want.into());
                assert_eq!(report.failures, []);
            })
        });
    };
    open(unowned.clone(), [true, true]);
    assert_eq!(seen(&network).as_deref(), Some(FLOATING));
    open(network.config("n2"), [true, false]);
    assert_eq!(seen(&network).as_deref(), Some(FLOATING));
    // One that lasts is right for who wants no owner.
    open(unowned, [false, true]);
}
