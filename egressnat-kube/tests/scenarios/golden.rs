//! The text that is expected.

use std::fmt::Write;
use std::path::Path;

/// Set to write what is instead of comparing.
const BLESS: &str = "EGRESSNAT_BLESS";

/// Compares, or writes anew if `EGRESSNAT_BLESS` is set.
///
/// # Panics
///
/// The text is another, with the lines that differ.
pub(crate) fn compare(file: &Path, text: &str) {
    if std::env::var_os(BLESS).is_some() {
        std::fs::write(file, text).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(file).unwrap_or_default();
    assert!(
        expected == text,
        "{} is not what is planned now (- expected, + planned). If the plan is right: {BLESS}=1 cargo test -p egressnat-kube \
         --test scenarios, and read the diff\n{}",
        file.display(),
        line_diff(&expected, text)
    );
}

/// The lines that differ with the line before and after, by the longest common subsequence.
fn line_diff(expected: &str, found: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    // common[i][j]: how many lines a[i..] and b[j..] share.
    let mut common = vec![vec![0u32; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i][j] = if a[i] == b[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut lines: Vec<(char, &str)> = Vec::new();
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            lines.push((' ', a[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == b.len() || (i < a.len() && common[i + 1][j] >= common[i][j + 1]) {
            lines.push(('-', a[i]));
            i += 1;
        } else {
            lines.push(('+', b[j]));
            j += 1;
        }
    }
    let mut text = String::new();
    for (at, (sign, line)) in lines.iter().enumerate() {
        let near = at.saturating_sub(1)..(at + 2).min(lines.len());
        // The heading of a step is always shown: it says where the others are.
        if *sign != ' '
            || line.starts_with("== ")
            || lines[near].iter().any(|(sign, _)| *sign != ' ')
        {
            let _ = writeln!(text, "{sign} {line}");
        }
    }
    text
}

#[test]
fn a_line_diff_shows_what_differs_and_where() {
    let expected = "== 0\na\nb\nc\nd\n== 1\ne\n";
    let found = "== 0\na\nB\nc\nd\n== 1\ne\nf\n";
    assert_eq!(
        line_diff(expected, found),
        "  == 0\n  a\n- b\n+ B\n  c\n  == 1\n  e\n+ f\n"
    );
}
