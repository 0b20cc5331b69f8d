//! Where a sandbox refuses Syscall User Dispatch (prctl(2)), the guest's calls are caught by its seccomp filter.

use std::{
    env, io,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use crate::common::passed;

use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter, sock_fprog};

/// Set where dispatch is refused.
const REFUSED: &str = "PVX_TEST_NO_DISPATCH";
const PR_SET_SYSCALL_USER_DISPATCH: u32 = 59;

/// Can no filter see a call with this number? The kernel's own return probes make it, and whoever else does gets a
/// SIGILL: `uretprobe` and `uprobe` (`seccomp_uprobe_exception` in kernel/seccomp.c).
pub(crate) fn is_unseen(nr: u64) -> bool {
    env::var_os(REFUSED).is_some() && (335..=336).contains(&nr)
}

#[test]
fn claims_about_trap_hold_without_syscall_user_dispatch() {
    const SUBJECTS: [&str; 8] =
        ["entries", "faults", "flags", "interrupts", "registers", "segments", "signals", "xstate"];
    for subject in SUBJECTS {
        let mut command = Command::new(env::current_exe().expect("this program"));
        command.arg(format!("{subject}::trap::")).stdin(Stdio::null()).env(REFUSED, "1");
        // SAFETY: between fork and exec only prctl(2) is called, with a filter on the stack.
        unsafe { command.pre_exec(refuse_dispatch) };
        assert_ne!(passed(&mut command), 0, "no claim about {subject}");
    }
}

/// Has every prctl of that kind fail with `EINVAL`, as on a kernel without it.
fn refuse_dispatch() -> io::Result<()> {
    const NR: u32 = 0;
    const ARG0: u32 = 16;
    let load = |k| instruction(BPF_LD | BPF_W | BPF_ABS, k, 0, 0);
    let unless = |k, jf| instruction(BPF_JMP | BPF_JEQ | BPF_K, k, 0, jf);
    let say = |k| instruction(BPF_RET | BPF_K, k, 0, 0);
    let mut filter = [
        load(NR),
        unless(u32::try_from(libc::SYS_prctl).expect("a number"), 3),
        load(ARG0),
        unless(PR_SET_SYSCALL_USER_DISPATCH, 1),
        say(libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32),
        say(libc::SECCOMP_RET_ALLOW),
    ];
    let program = sock_fprog {
        len: u16::try_from(filter.len()).expect("a short program"),
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program is valid for the call (seccomp(2)).
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: u16::try_from(code).expect("an opcode of BPF"), jt, jf, k }
}
