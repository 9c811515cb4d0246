//! What the process may do, looked at before the kernel refuses one thing after the other.

use std::fs;

use thiserror::Error;

/// Numbers of `linux/capability.h`, and what each is for.
const NEEDED: [(&str, u64, &str); 3] = [
    ("CAP_NET_ADMIN", 12, "links, addresses, rules and tables"),
    ("CAP_NET_RAW", 13, "announcements"),
    ("CAP_BPF", 39, "programs and maps"),
];

/// The number of `CAP_SYS_ADMIN`, which includes `CAP_BPF`.
const SYS_ADMIN: u64 = 21;

/// The process lacks capabilities.
#[derive(Debug, Error)]
#[error("this process lacks {0}: give it to the agent's container or service")]
pub struct CapabilitiesError(String);

/// Fails if a capability that the packet path takes is not effective in the calling thread. Where it cannot be read, the kernel
/// decides.
pub(crate) fn check() -> Result<(), CapabilitiesError> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    match missing(&status).as_slice() {
        [] => Ok(()),
        missing => Err(CapabilitiesError(missing.join(" and "))),
    }
}

fn missing(status: &str) -> Vec<String> {
    let effective = status.lines().find_map(|line| {
        let set = line.strip_prefix("CapEff:")?;
        u64::from_str_radix(set.trim(), 16).ok()
    });
    let effective = effective.unwrap_or(u64::MAX);
    let has = |number: u64| effective & (1 << number) != 0;
    let lacks = |(name, number, _): &&(&str, u64, &str)| {
        !(has(*number) || *name == "CAP_BPF" && has(SYS_ADMIN))
    };
    let missing = NEEDED.iter().filter(lacks);
    missing
        .map(|(name, _, purpose)| format!("{name} (for {purpose})"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_listed_and_what_includes_it_counts() {
        let status = |set: u64| format!("Name:\tx\nCapEff:\t{set:016x}\nCapBnd:\t0\n");
        let all = 1 << 12 | 1 << 13 | 1 << 39;
        assert_eq!(missing(&status(all)), [""; 0]);
        assert_eq!(missing(&status(1 << 12 | 1 << 13 | 1 << 21)), [""; 0]);
        assert_eq!(missing("nothing to read"), [""; 0]);
        let without_admin = missing(&status(all & !(1 << 12)));
        assert_eq!(without_admin.len(), 1);
        assert!(without_admin[0].starts_with("CAP_NET_ADMIN"));
        assert_eq!(missing(&status(0)).len(), 3);
    }
}
