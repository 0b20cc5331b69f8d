//! The crate `process-vm-exec` for C: the function `process_vm_exec`, and `spaces`, in which a supervisor runs code.
//!
//! `include/process_vm_exec.h` declares it and `man/process_vm_exec.2` describes it. What it does, from the outside
//! in: `call` checks arguments and copies them, `thread` has what this thread keeps of its targets, `target`
//! finds and attaches them, `run` loads a context and says why it came back, `watch` sees to signals that arrive
//! meanwhile.

#![deny(unsafe_code)]

use std::ffi::{c_int, c_ulong, c_void};

mod abi;
mod call;
#[allow(unsafe_code, reason = "what a forked child does not inherit")]
mod fork;
mod fpstate;
#[allow(unsafe_code, reason = "calls of the host for which there is no safe function")]
mod host;
#[allow(unsafe_code, reason = "errno and segment bases of the calling thread")]
mod own;
mod process;
mod run;
#[allow(unsafe_code, reason = "signals of the calling thread")]
mod signals;
#[allow(unsafe_code, reason = "pointers of the caller")]
mod spaces;
mod target;
#[cfg(test)]
#[allow(unsafe_code, reason = "tests send signals")]
mod tests;
mod thread;
#[allow(unsafe_code, reason = "pointers of the caller")]
mod user;
mod watch;

/// Runs code or a system call in the memory of another process: `process_vm_exec(2)`, which `process_vm_exec.h`
/// declares.
///
/// # Safety
/// As for a system call: `uctx`, `siginfo` and, if `uctx` has one, `fpstate` point to memory of the size that `flags`
/// ask for, which nobody else uses during the call. Addresses where no memory is are found and answered by `EFAULT`,
/// unless this thread's last call had the same ones and they were good then.
#[allow(unsafe_code, reason = "C calls it by this name")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn process_vm_exec(
    pid: libc::pid_t,
    uctx: *mut c_void,
    flags: c_ulong,
    siginfo: *mut libc::siginfo_t,
    sigmask: *const libc::sigset_t,
    sizemask: libc::size_t,
) -> c_int {
    let arguments = call::Arguments {
        pid,
        uctx: uctx.cast(),
        flags,
        siginfo: siginfo.cast(),
        sigmask: sigmask.cast(),
        sizemask,
    };
    if let Some(result) = host::process_vm_exec(&arguments) {
        return result;
    }
    match call::process_vm_exec(&arguments) {
        Ok(()) => 0,
        Err(errno) => {
            own::set_errno(errno);
            -1
        }
    }
}
