//! Settings of the host that the path needs. They are not ours: what is wrong is told with the command that makes it right.

use std::fs;

use egressnat_core::Failure;

/// How much of the connection table may be in use before it is told, in percent.
const FULL: u64 = 90;

/// What about the host keeps traffic from flowing as planned. `holds` says whether this node has floating IPs, `pods` names
/// the host-side interfaces of pods.
pub(crate) fn wrong_settings<'a>(
    holds: bool,
    pods: impl IntoIterator<Item = &'a str>,
) -> Vec<Failure> {
    let mut failures = Vec::new();
    let mut tell = |setting: &str, message: String| {
        failures.push(Failure {
            object: format!("sysctl {setting}"),
            message,
        });
    };
    if holds && read("net/netfilter/nf_conntrack_tcp_loose") == Some(0) {
        tell(
            "net.netfilter.nf_conntrack_tcp_loose",
            "it is 0, so running TCP connections end when a floating IP comes to this node: run \
             'sysctl -w net.netfilter.nf_conntrack_tcp_loose=1'"
                .to_owned(),
        );
    }
    if let Some(most) = read("net/netfilter/nf_conntrack_max")
        && let Some(message) = nearly_full(tracked_connections(), most)
    {
        tell("net.netfilter.nf_conntrack_max", message);
    }
    // The kernel takes the larger rp_filter of `all` and the interface, and any src_valid_mark.
    for name in pods {
        let is_strict = of_interface("rp_filter", name).max() == Some(1);
        let asks_mark = of_interface("src_valid_mark", name).max() == Some(1);
        if is_strict && asks_mark {
            tell(
                &format!("net.ipv4.conf.{name}.src_valid_mark"),
                format!(
                    "it is 1 for {name} or for all, while rp_filter is strict: the kernel looks for the pod in the tunnel \
                     and drops what it sends: run 'sysctl -w net.ipv4.conf.{name}.rp_filter=2', or switch \
                     src_valid_mark off"
                ),
            );
        }
    }
    failures
}

/// What to say of a connection table that has so many of at most so many.
fn nearly_full(now: u64, most: u64) -> Option<String> {
    (now * 100 >= most * FULL).then(|| {
        format!(
            "{now} of {most} connections are tracked, and what comes behind the last is dropped: run \
             'sysctl -w net.netfilter.nf_conntrack_max={}'",
            most * 2
        )
    })
}

/// A setting of an interface, and of all.
fn of_interface(setting: &str, name: &str) -> impl Iterator<Item = u64> {
    ["all", name]
        .map(|name| read(&format!("net/ipv4/conf/{name}/{setting}")))
        .into_iter()
        .flatten()
}

/// A setting of this thread's network namespace.
fn read(path: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/sys/{path}")).ok()?;
    text.trim().parse().ok()
}

/// How many connections the kernel tracks now.
pub(crate) fn tracked_connections() -> u64 {
    read("net/netfilter/nf_conntrack_count").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_table_is_told_before_it_is_full_with_what_makes_it_larger() {
        assert_eq!(nearly_full(0, 262_144), None);
        assert_eq!(nearly_full(899, 1000), None);
        let told = nearly_full(900, 1000).unwrap();
        assert!(told.starts_with("900 of 1000 connections"), "{told}");
        assert!(
            told.contains("sysctl -w net.netfilter.nf_conntrack_max=2000"),
            "{told}"
        );
    }
}
