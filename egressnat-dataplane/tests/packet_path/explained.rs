//! `nft list ruleset` says of each object of ours what it is for.

use std::time::{Duration, Instant};

use crate::ipv6;
use crate::network::{FLOATING, Network, SERVER};

/// The tables of ours in a listing.
fn ours(listing: &str) -> Vec<&str> {
    let tables = listing.split("\n}").map(str::trim);
    let ours = tables.filter(|table| {
        let first = table.lines().next().unwrap_or_default();
        first.contains(" egressnat ")
    });
    ours.collect()
}

/// The tables, chains, sets, maps and counters in a table that have no comment, the rules without one, and how many there are of all.
fn unexplained(table: &str) -> (Vec<String>, usize) {
    let is_comment = |line: &str| line.starts_with("comment \"");
    let mut missing = Vec::new();
    let mut all = 0;
    for object in table.split("\n\n").flat_map(|part| part.split("\n\t}")) {
        let lines = object.lines().map(str::trim);
        let mut lines = lines.skip_while(|line| !line.ends_with('{'));
        let Some(mut name) = lines.next() else {
            continue;
        };
        let mut body: Vec<&str> = lines.collect();
        if name.starts_with("table ") {
            all += 1;
            let mut own = body.iter().take_while(|line| !line.ends_with('{'));
            if !own.any(|line| is_comment(line)) {
                missing.push(name.to_owned());
            }
            // Behind its own lines comes its first object.
            let Some(first) = body.iter().position(|line| line.ends_with('{')) else {
                continue;
            };
            name = body[first];
            body.drain(..=first);
        }
        all += 1;
        if !body.iter().any(|line| is_comment(line)) {
            missing.push(name.to_owned());
        }
        if name.starts_with("chain ") {
            let is_rule = |line: &&&str| !is_comment(line) && !line.starts_with("type ");
            let rules = body.iter().filter(is_rule);
            all += rules.clone().count();
            let bare = rules.filter(|rule| !rule.contains(" comment \""));
            missing.extend(bare.map(|rule| format!("{name} {rule}")));
        }
    }
    (missing, all)
}

#[test]
fn every_table_chain_set_map_counter_and_rule_has_a_comment() {
    let network = Network::dual_stack();
    network.apply_both("n1");
    // Chains that are there for a while only: a running connection is decided otherwise.
    let mut connection = network.connect("10.10.2.2", SERVER).unwrap();
    assert_eq!(connection.ask().as_deref(), Some(FLOATING));
    let mut edited = ipv6::plan("n2", "n1");
    edited.destinations.clear();
    edited.deciders.clear();
    assert_eq!(network.apply("n2", edited).failures, []);
    // And the table of deadlines.
    network.open("n1", async |dataplane| {
        let soon = Instant::now() + Duration::from_secs(60);
        let address = FLOATING.parse().unwrap();
        dataplane.deadlines().hold_until(&[address], soon).unwrap();
    });
    for (node, tables, chains) in [
        ("n1", ["arp", "ip", "ip6"].as_slice(), ["input", "guard"]),
        ("n2", ["ip", "ip6"].as_slice(), ["answers", "begun_anew"]),
    ] {
        let listing = network.exec(node, "nft list ruleset");
        let found = ours(&listing);
        assert_eq!(found.len(), tables.len(), "{listing}");
        for family in tables {
            let begins = format!("table {family} egressnat ");
            assert!(found.iter().any(|table| table.starts_with(&begins)));
        }
        for chain in chains {
            assert!(listing.contains(&format!("chain {chain} {{")), "{listing}");
        }
        for table in found {
            let (missing, all) = unexplained(table);
            assert!(all > 5, "{table}");
            assert_eq!(missing, [""; 0], "{node}: {table}");
        }
    }
}
