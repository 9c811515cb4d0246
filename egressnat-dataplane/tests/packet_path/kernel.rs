//! A kernel, or a container runtime, that does not have what the packet path takes.

use crate::failures::{assert_names, refusal_of};
use crate::network::{FLOATING, Network, SERVER, plan};

/// Has a system call fail in this thread from now on, as on a kernel that does not have it, or by a container's seccomp profile.
fn refuse(call: libc::c_long, code: libc::c_int) {
    // Where `struct seccomp_data` has the number of the call.
    const NUMBER: u32 = 0;
    let statement = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, NUMBER, 0, 0),
        statement(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            call as u32,
            0,
            1,
        ),
        statement(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_ERRNO | code as u32,
            0,
            0,
        ),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the program and its filter outlive the call, which copies them.
    let set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn without_bpf_it_is_told_from_which_kernel_on_there_is_one_and_what_else_may_be_in_the_way() {
    let network = Network::new();
    for code in [libc::ENOSYS, libc::EPERM, libc::EINVAL] {
        let text = refusal_of(&network, network.config("n1"), move || {
            refuse(libc::SYS_bpf, code);
        });
        assert_names(&text, &["Linux 5.18", "CAP_BPF", "seccomp"]);
    }
    // Nothing was harmed.
    network.apply("n2", plan("n2", "n2"));
    assert_eq!(network.apply("n1", plan("n1", "n2")).failures, []);
    let seen = network.seen_by_tcp("10.10.1.2", SERVER);
    assert_eq!(seen.as_deref(), Some(FLOATING));
}
