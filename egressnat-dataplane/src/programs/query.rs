//! Which programs are on an interface.
//!
//! By the system call itself: aya opens each program that it finds, which takes CAP_SYS_ADMIN, and we need no more than ids.

use std::io;

use aya::programs::TcAttachType;

/// `BPF_PROG_QUERY`, `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS` (`linux/bpf.h`).
const PROG_QUERY: libc::c_long = 16;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;

/// As many programs as one side of an interface can have (`BPF_MPROG_MAX`).
const MOST: usize = 64;

/// The `query` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Query {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    count: u32,
    padding: u32,
    program_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// The ids of the TCX programs on one side of an interface.
pub(super) fn attached(ifindex: u32, side: TcAttachType) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; MOST];
    let mut query = Query {
        ifindex,
        attach_type: match side {
            TcAttachType::Egress => TCX_EGRESS,
            _ => TCX_INGRESS,
        },
        program_ids: ids.as_mut_ptr() as u64,
        count: MOST as u32,
        ..Query::default()
    };
    let (attributes, size) = (&raw mut query, size_of::<Query>());
    // SAFETY: the attributes are as large as we say, `ids` has room for `count`, and both outlive the call.
    if unsafe { libc::syscall(libc::SYS_bpf, PROG_QUERY, attributes, size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let count = (query.count as usize).min(MOST);
    Ok(ids[..count].to_vec())
}
