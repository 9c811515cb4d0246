//! What the guard needs, in a file: after a reboot it holds before the first plan.
//!
//! The kernel keeps tables and programs while an agent restarts, and forgets them with a reboot. Until the agent has seen its
//! objects nobody would know which destinations are strict: it takes those of the last plan.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use egressnat_core::NodePlan;
use ipnet::IpNet;
use thiserror::Error;

/// The file could not be read or written.
#[derive(Debug, Error)]
#[error("could not use the guard file {path}")]
pub struct GuardFileError {
    /// The file.
    path: PathBuf,
    /// What the system said.
    #[source]
    source: io::Error,
}

/// The ranges that the guard works with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct GuardedRanges {
    pub(crate) pods: BTreeSet<IpNet>,
    pub(crate) internal: BTreeSet<IpNet>,
    pub(crate) strict: BTreeSet<IpNet>,
}

impl GuardedRanges {
    pub(crate) fn of(plan: &NodePlan) -> Self {
        Self {
            pods: plan.pod_ranges.clone(),
            internal: plan.internal_ranges.clone(),
            strict: plan.guard_ranges.clone(),
        }
    }

    fn to_text(&self) -> String {
        let mut text =
            "# Written by egressnat-agent: what it guards until it has seen its objects.\n"
                .to_owned();
        for (word, ranges) in [
            ("pods", &self.pods),
            ("internal", &self.internal),
            ("strict", &self.strict),
        ] {
            for range in ranges {
                text.push_str(&format!("{word} {range}\n"));
            }
        }
        text
    }

    /// What makes no sense is left out: a guard that knows less is better than none.
    fn from_text(text: &str) -> Self {
        let mut ranges = Self::default();
        for line in text.lines() {
            let Some((word, Ok(range))) = line
                .split_once(' ')
                .map(|(word, range)| (word, range.parse::<IpNet>()))
            else {
                continue;
            };
            match word {
                "pods" => ranges.pods.insert(range),
                "internal" => ranges.internal.insert(range),
                "strict" => ranges.strict.insert(range),
                _ => false,
            };
        }
        ranges
    }
}

/// The file, and what was written to it last.
pub(crate) struct GuardFile {
    path: PathBuf,
    written: Option<GuardedRanges>,
}

impl GuardFile {
    /// Reads the file. One that is not there is empty.
    pub(crate) fn open(path: &Path) -> Result<Self, GuardFileError> {
        let written = match fs::read_to_string(path) {
            Ok(text) => Some(GuardedRanges::from_text(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => {
                let path = path.to_owned();
                return Err(GuardFileError { path, source });
            }
        };
        Ok(Self {
            path: path.to_owned(),
            written,
        })
    }

    /// What it holds.
    pub(crate) fn ranges(&self) -> Option<&GuardedRanges> {
        self.written.as_ref()
    }

    /// Writes what is guarded now, if that has changed. A crash leaves the old file or the new one.
    pub(crate) fn keep(&mut self, ranges: GuardedRanges) -> Result<(), GuardFileError> {
        if self.written.as_ref() == Some(&ranges) {
            return Ok(());
        }
        let new = self.path.with_extension("new");
        let replace = || {
            let mut file = fs::File::create(&new)?;
            file.write_all(ranges.to_text().as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &self.path)
        };
        replace().map_err(|source| GuardFileError {
            path: self.path.clone(),
            source,
        })?;
        self.written = Some(ranges);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_back_and_written_only_when_it_changed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("guard");
        let mut file = GuardFile::open(&path).unwrap();
        assert_eq!(file.ranges(), None);
        let ranges = GuardedRanges {
            pods: ["10.10.1.0/24".parse().unwrap()].into(),
            internal: ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()].into(),
            strict: ["0.0.0.0/0".parse().unwrap()].into(),
        };
        file.keep(ranges.clone()).unwrap();
        let before = fs::metadata(&path).unwrap();
        file.keep(ranges.clone()).unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!(fs::metadata(&path).unwrap().ino(), before.ino());
        let again = GuardFile::open(&path).unwrap();
        assert_eq!(again.ranges(), Some(&ranges));
    }

    #[test]
    fn lines_without_sense_are_left_out() {
        let text = "# strict 1.0.0.0/8\nstrict\nstrict 8.8.8.0/24\nstrict x\nother 8.0.0.0/8\n";
        let ranges = GuardedRanges::from_text(text);
        assert_eq!(ranges.strict, ["8.8.8.0/24".parse().unwrap()].into());
        assert!(ranges.pods.is_empty() && ranges.internal.is_empty());
    }
}
