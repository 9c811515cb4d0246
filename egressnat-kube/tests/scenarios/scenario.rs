//! A scenario as it lies in its directory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::order::Order;

/// The directory that has `scenarios/` in it.
pub(crate) fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios/cases")
}

/// The name of every directory of a scenario, in order.
pub(crate) fn directories() -> BTreeSet<String> {
    let entries = std::fs::read_dir(cases()).expect("the directory of the scenarios can be read");
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

/// The name of the test of a directory: without its number, as an identifier.
pub(crate) fn test_name(directory: &str) -> String {
    let (_, words) = directory.split_once('-').unwrap_or(("", directory));
    words.replace('-', "_")
}

/// One directory of `cases/`.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) directory: PathBuf,
    /// The first line of `scenario.txt`, without the numbers.
    pub(crate) title: String,
    /// The requirements that it is about.
    pub(crate) requirements: BTreeSet<String>,
    pub(crate) steps: Vec<Step>,
}

/// What happens at once.
#[derive(Debug, Default)]
pub(crate) struct Step {
    /// The words of the names of its files.
    pub(crate) words: BTreeSet<String>,
    pub(crate) manifests: Vec<PathBuf>,
    pub(crate) orders: Vec<Order>,
}

impl Scenario {
    /// Reads a directory.
    ///
    /// # Panics
    ///
    /// A file in it is not as `main.rs` describes.
    pub(crate) fn read(directory: &str) -> Self {
        let path = cases().join(directory);
        let told = std::fs::read_to_string(path.join("scenario.txt"))
            .unwrap_or_else(|error| panic!("{directory}/scenario.txt: {error}"));
        let (title, requirements) = heading(directory, &told);
        let mut steps: BTreeMap<usize, Step> = BTreeMap::new();
        let mut files: Vec<PathBuf> = std::fs::read_dir(&path)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        for file in files {
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            if matches!(name.as_str(), "scenario.txt" | "expected.txt") {
                continue;
            }
            let stem = file.file_stem().unwrap().to_string_lossy().into_owned();
            let (number, words) = stem.split_once('-').unwrap_or((&stem, ""));
            let number: usize = number
                .parse()
                .unwrap_or_else(|_| panic!("{directory}/{name}: begins with no number"));
            let step = steps.entry(number).or_default();
            step.words.insert(words.replace('-', " "));
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("yaml") => step.manifests.push(file),
                Some("txt") => step.orders.extend(Order::read(&file)),
                _ => panic!("{directory}/{name}: neither .yaml nor .txt"),
            }
        }
        let numbers: Vec<usize> = steps.keys().copied().collect();
        assert_eq!(
            numbers,
            (0..numbers.len()).collect::<Vec<_>>(),
            "{directory}: steps are numbered from 00 without a gap"
        );
        Self {
            directory: path,
            title,
            requirements,
            steps: steps.into_values().collect(),
        }
    }
}

/// The sentence and the numbers: `A node that goes down … (E31, E32).`
fn heading(directory: &str, told: &str) -> (String, BTreeSet<String>) {
    let first = told.lines().next().unwrap_or_default();
    let heading = first
        .strip_suffix(").")
        .and_then(|line| line.rsplit_once(" ("));
    let Some((title, numbers)) = heading else {
        panic!(
            "{directory}/scenario.txt: write `One sentence (E31, E32).` in the first line, not {first:?}"
        );
    };
    let numbers: BTreeSet<String> = numbers.split(", ").map(str::to_owned).collect();
    (title.to_owned(), numbers)
}
