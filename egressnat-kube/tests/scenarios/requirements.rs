//! Which requirements the scenarios are about.

use std::collections::BTreeSet;
use std::path::Path;

use crate::scenario::{Scenario, directories, test_name};

/// Those that can be decided on paper; the others need packets, clocks, an API server or a kernel.
const ON_PAPER: [&str; 26] = [
    "E1", "E2", "E3", "E4", "E5", "E6", "E7", "E10", "E11", "E12", "E15", "E16", "E20", "E21",
    "E22", "E23", "E30", "E31", "E32", "E33", "E34", "E35", "E43", "E44", "E45", "E47",
];

/// The numbers in the first column of `docs/requirements.md`.
fn documented() -> BTreeSet<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/requirements.md");
    let text = std::fs::read_to_string(file).unwrap();
    let cells = text.lines().filter_map(|line| line.split('|').nth(1));
    cells
        .flat_map(|cell| cell.split(','))
        .map(|number| number.trim().to_owned())
        .filter(|number| number.starts_with('E'))
        .collect()
}

fn scenarios() -> Vec<Scenario> {
    let all = directories();
    all.iter().map(|name| Scenario::read(name)).collect()
}

#[test]
fn every_directory_has_a_test_and_every_test_a_directory() {
    let of_directories: BTreeSet<String> = directories().iter().map(|d| test_name(d)).collect();
    let tests: BTreeSet<String> = crate::TESTS.iter().map(|test| (*test).to_owned()).collect();
    assert_eq!(of_directories, tests);
    assert_eq!(of_directories.len(), directories().len());
}

#[test]
fn there_are_forty_scenarios_or_more() {
    assert!(directories().len() >= 40, "{}", directories().len());
}

#[test]
fn every_requirement_that_paper_can_decide_has_a_scenario() {
    let named: BTreeSet<String> = scenarios()
        .into_iter()
        .flat_map(|scenario| scenario.requirements)
        .collect();
    let missing: Vec<&str> = ON_PAPER
        .into_iter()
        .filter(|number| !named.contains(*number))
        .collect();
    assert!(missing.is_empty(), "no scenario names {missing:?}");
}

#[test]
fn every_number_of_a_scenario_is_documented() {
    let documented = documented();
    for scenario in scenarios() {
        assert!(
            scenario.requirements.is_subset(&documented),
            "{} names {:?}, of which docs/requirements.md does not have all",
            scenario.directory.display(),
            scenario.requirements
        );
        assert!(
            !scenario.steps.is_empty(),
            "{} has no steps",
            scenario.title
        );
    }
}
