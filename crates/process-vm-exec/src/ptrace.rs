//! The requests of ptrace(2) that are used here. Nothing allocates: the janitor calls these in a forked process.

use std::ffi::c_void;

use rustix::io::Errno;

use crate::exit::WaitStatus;

pub(crate) const NT_X86_XSTATE: usize = 0x202;
pub(crate) const PTRACE_GET_SYSCALL_INFO: libc::c_uint = 0x420e;
const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
/// In `orig_rax`: the task is not in a system call that could be restarted.
pub(crate) const NO_SYSCALL: u64 = !0;

/// Why a traced task stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stop {
    Syscall,
    Signal(i32),
    /// An event of ptrace, such as the answer to `PTRACE_INTERRUPT`.
    Event,
    /// The same, while the whole process is stopped by job control.
    Group,
    /// The whole process has been killed; this is how.
    Gone(WaitStatus),
}

pub(crate) fn request(
    request: libc::c_uint,
    tid: libc::pid_t,
    addr: usize,
    data: usize,
) -> rustix::io::Result<libc::c_long> {
    // SAFETY: the callers pass for `data` what the request takes (ptrace(2)): nothing, options, or the address of a
    // live structure of its type; requests on tasks that are not ours fail.
    let result = unsafe { libc::ptrace(request, tid, addr as *mut c_void, data as *mut c_void) };
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

/// The signals that the task blocks; where it waits with others blocked (ppoll(2)), those it will block after that.
pub(crate) fn get_signal_mask(tid: libc::pid_t) -> rustix::io::Result<u64> {
    let mut mask = 0u64;
    request(PTRACE_GETSIGMASK, tid, size_of_val(&mask), (&raw mut mask) as usize)?;
    Ok(mask)
}

/// Sets the signals that the task blocks.
pub(crate) fn set_signal_mask(tid: libc::pid_t, mask: u64) -> rustix::io::Result<()> {
    request(PTRACE_SETSIGMASK, tid, size_of_val(&mask), (&raw const mask) as usize).map(drop)
}

pub(crate) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::SRCH)
}

pub(crate) fn get_registers(tid: libc::pid_t) -> rustix::io::Result<libc::user_regs_struct> {
    // SAFETY: integers, for which zeroes are a value.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    request(libc::PTRACE_GETREGS, tid, 0, (&raw mut registers) as usize)?;
    Ok(registers)
}

pub(crate) fn set_registers(tid: libc::pid_t, registers: &libc::user_regs_struct) -> rustix::io::Result<()> {
    request(libc::PTRACE_SETREGS, tid, 0, std::ptr::from_ref(registers) as usize).map(drop)
}

/// Waits until the task stops or is gone.
pub(crate) fn wait_for_stop(tid: libc::pid_t) -> Stop {
    loop {
        match wait(tid, 0) {
            Ok(Some(stop)) => return stop,
            Ok(None) | Err(Errno::INTR) => {}
            Err(_) => return Stop::Gone(WaitStatus::Signaled(libc::SIGKILL)),
        }
    }
}

/// Has the task stopped?
pub(crate) fn look_for_stop(tid: libc::pid_t) -> Option<Stop> {
    wait(tid, libc::WNOHANG).unwrap_or(Some(Stop::Gone(WaitStatus::Signaled(libc::SIGKILL))))
}

fn wait(tid: libc::pid_t, options: libc::c_int) -> rustix::io::Result<Option<Stop>> {
    wait_for(tid, options).map(|found| found.map(|(_, stop)| stop))
}

/// The next task of those that this thread traces to stop or end; `None` if `options` say not to wait.
pub(crate) fn wait_for_any(options: libc::c_int) -> rustix::io::Result<Option<(libc::pid_t, Stop)>> {
    wait_for(-1, libc::__WNOTHREAD | options)
}

fn wait_for(who: libc::pid_t, options: libc::c_int) -> rustix::io::Result<Option<(libc::pid_t, Stop)>> {
    let mut status = 0;
    // SAFETY: `status` is valid for the call.
    match unsafe { libc::waitpid(who, &raw mut status, libc::__WALL | options) } {
        0 => Ok(None),
        tid if tid > 0 => Ok(Some((tid, stop_of(status)))),
        _ => Err(last_errno()),
    }
}

fn stop_of(status: libc::c_int) -> Stop {
    if libc::WIFEXITED(status) {
        return Stop::Gone(WaitStatus::Exited(libc::WEXITSTATUS(status)));
    }
    if libc::WIFSIGNALED(status) {
        return Stop::Gone(WaitStatus::Signaled(libc::WTERMSIG(status)));
    }
    let is_event = status >> 16 != 0;
    match libc::WSTOPSIG(status) {
        libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU if is_event => Stop::Group,
        _ if is_event => Stop::Event,
        SYSCALL_STOP => Stop::Syscall,
        signal => Stop::Signal(signal),
    }
}

/// A system-call stop under `PTRACE_O_TRACESYSGOOD`.
const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;
