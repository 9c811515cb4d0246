//! An agent may do what the container of `deploy/agent.yaml` may do. All other tests of the lab show that it is enough.

use super::*;

#[test]
fn an_agent_of_the_lab_has_the_capabilities_of_its_container_and_no_more() {
    let lab = TestLab::with_policy();
    let agent = lab.agent_pid("worker1").unwrap();
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{agent}/{name}")).unwrap();
    let status = read("status");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let is_set = |line: &&str| line.starts_with(set);
        let line = status.lines().find(is_set).unwrap();
        // NET_ADMIN, NET_RAW, PERFMON and BPF (linux/capability.h).
        let want: u64 = match set {
            "CapInh" | "CapAmb" => 0,
            _ => 1 << 12 | 1 << 13 | 1 << 38 | 1 << 39,
        };
        assert_eq!(line, format!("{set}:\t{want:016x}"));
    }
    let mounts = read("mountinfo");
    let is_settings = |line: &&str| line.contains(" /proc/sys ro");
    assert!(mounts.lines().any(|line| is_settings(&line)), "{mounts}");
}
