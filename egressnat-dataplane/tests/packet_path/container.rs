//! A thread that may do what the container of `deploy/agent.yaml` may do: it has those capabilities, and a `/proc/sys` that is
//! read-only.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const MANIFEST: &str = include_str!("../../../deploy/agent.yaml");

/// Capabilities that a container may be given (`linux/capability.h`).
pub(crate) const NET_ADMIN: u32 = 12;
pub(crate) const NET_RAW: u32 = 13;
pub(crate) const SYS_ADMIN: u32 = 21;
pub(crate) const PERFMON: u32 = 38;
pub(crate) const BPF: u32 = 39;
const LAST: u32 = 40;

/// The capabilities that the manifest adds.
fn added() -> Vec<u32> {
    let line = MANIFEST
        .lines()
        .find_map(|line| line.trim().strip_prefix("add: ["));
    let names = line.unwrap().trim_end_matches(']').split(", ");
    let number = |name| match name {
        "NET_ADMIN" => NET_ADMIN,
        "NET_RAW" => NET_RAW,
        "SYS_ADMIN" => SYS_ADMIN,
        "PERFMON" => PERFMON,
        "BPF" => BPF,
        _ => panic!("{name}: say its number here"),
    };
    names.map(number).collect()
}

/// Takes capabilities from this thread, which alone has them no more.
pub(crate) fn drop_capabilities(dropped: &[u32]) {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let mut header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    // Effective, permitted and inheritable, for each half of the numbers.
    let mut data = [[0u32; 3]; 2];
    // SAFETY: both structures are as version 3 of the call has them, and outlive it.
    let read = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    assert_eq!(read, 0);
    for number in dropped {
        for set in &mut data[*number as usize / 32] {
            *set &= !(1 << (number % 32));
        }
    }
    // SAFETY: as above.
    let written = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    assert_eq!(written, 0);
}

/// Confines this thread.
pub(crate) fn confine() {
    const NOTHING: Option<&str> = None;
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
    let mount = |source, target: &str, flags: MsFlags| {
        mount(source, target, NOTHING, flags, NOTHING).unwrap();
    };
    mount(NOTHING, "/", MsFlags::MS_REC | MsFlags::MS_SLAVE);
    mount(Some("/proc/sys"), "/proc/sys", MsFlags::MS_BIND);
    let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(NOTHING, "/proc/sys", read_only);
    let added = added();
    let dropped: Vec<u32> = (0..=LAST).filter(|one| !added.contains(one)).collect();
    drop_capabilities(&dropped);
    let refused = std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}
