use std::process::{Command, Stdio};

use super::*;

#[test]
fn two_labs_do_not_know_of_each_other() {
    let (one, other) = (TestLab::with_policy(), TestLab::with_policy());
    one.down().unwrap();
    assert_eq!(one.remains(), [""; 0]);
    assert_eq!(
        other.seen(&pod("frontend-0"), Protocol::Tcp).unwrap(),
        FLOATING
    );
}

#[test]
fn a_lab_goes_down_beside_one_whose_name_begins_like_its_own() {
    let one = TestLab::new();
    let longer = TestLab::named(&format!("{}z", one.name()));
    for lab in [&one, &longer] {
        assert_eq!(lab.up(&UpOptions::default()).unwrap(), [""; 0]);
    }
    one.down().unwrap();
    assert!(longer.agent_pid("worker1").is_ok());
}

#[test]
fn down_cleans_up_after_a_lab_that_was_killed_in_the_middle() {
    // Killed at several points of its way up: once the first namespace is there, once the first process is, ...
    for remains in [1, 4, 8] {
        let lab = TestLab::new();
        let mut up = Command::new(env!("CARGO_BIN_EXE_egressnat-lab"))
            .args(["up", "--name", lab.name()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let that_far =
            || (lab.remains().len() > remains || !matches!(up.try_wait(), Ok(None))).then_some(());
        until("the lab to be half up", PATIENCE, that_far).unwrap();
        up.kill().unwrap();
        up.wait().unwrap();
        assert!(!lab.remains().is_empty());
        lab.down().unwrap();
        assert_eq!(lab.remains(), [""; 0]);
        lab.down().expect("down twice is fine");
    }
}

#[test]
fn an_agents_cleanup_leaves_nothing_of_ours_in_the_kernel_e46() {
    let lab = TestLab::with_policy();
    let node = Target::Node(lab.holder());
    let state = || {
        let run = |command: &[&str]| {
            String::from_utf8(lab.output(&node, command).unwrap().stdout).unwrap()
        };
        // Deadlines come nearer by themselves.
        let tables = run(&["nft", "list", "ruleset"]);
        let lines = tables.lines().filter(|line| !line.contains(" expires "));
        [
            lines.collect::<Vec<_>>().join("\n"),
            run(&["ip", "rule"]),
            run(&["ip", "-o", "link"]),
            run(&["ip", "-o", "-4", "address"]),
            run(&["ip", "route", "show", "table", "all"]),
        ]
    };
    let full = state();
    assert!(
        full[0].contains("egressnat") && full[3].contains("192.168.1.100"),
        "{full:#?}"
    );

    lab.freeze(&lab.holder()).unwrap();
    // A frozen agent would bring everything back once it goes on.
    let process = lab.agent_pid(&lab.holder()).unwrap();
    let output = lab.clean_up(&lab.holder()).unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{told}");
    assert!(told.contains(&format!("process {process}")), "{told}");
    assert_eq!(state(), full);

    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(process),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    // Its tables are free when it is gone.
    until("a cleanup", PATIENCE, || {
        let output = lab.clean_up(&lab.holder()).unwrap();
        output.status.success().then_some(())
    })
    .unwrap();
    let empty = state();
    assert_eq!(empty[0], "");
    for (part, text) in [
        ("1190", &empty[1]),
        ("egressnat0", &empty[2]),
        ("192.168.1.100", &empty[3]),
        ("1190", &empty[4]),
    ] {
        assert!(!text.contains(part), "{part} in {text}");
    }
    let pins = lab.directory().join("bpf").join(lab.holder());
    assert_eq!(std::fs::read_dir(&pins).unwrap().count(), 0);
    // What is not ours is still there.
    assert!(
        empty[4].contains("default via 192.168.1.254"),
        "{}",
        empty[4]
    );
}
