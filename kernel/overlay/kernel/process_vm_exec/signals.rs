// SPDX-License-Identifier: GPL-2.0-only

//! Signals that end a run.

use core::mem::zeroed;
use kernel::{
    bindings,
    ffi::{c_int, c_ulong},
};

/// `SYS_USER_DISPATCH`: a system call was caught by whom user mode has told to.
const SYS_USER_DISPATCH: c_int = 2;

/// What is said about the system call with which the code in `regs` has entered the kernel.
pub(crate) fn system_call(regs: &bindings::pt_regs) -> bindings::kernel_siginfo_t {
    // SAFETY: Zeros are a valid value.
    let mut info: bindings::kernel_siginfo_t = unsafe { zeroed() };
    let header = &mut info.__bindgen_anon_1;
    header.si_signo = bindings::SIGSYS as c_int;
    header.si_code = SYS_USER_DISPATCH;
    header._sifields._sigsys._call_addr = regs.ip as *mut _;
    header._sifields._sigsys._syscall = regs.orig_ax as c_int;
    // SAFETY: This reads how the current task has entered the kernel.
    header._sifields._sigsys._arch = unsafe { bindings::process_vm_exec_arch() };
    info
}

/// The signal that `info` is about, or 0.
pub(crate) fn number(info: &bindings::kernel_siginfo_t) -> c_int {
    info.__bindgen_anon_1.si_signo
}

/// Whether `info` comes from [`system_call()`], and not from an instruction that has failed.
pub(crate) fn is_system_call(info: &bindings::kernel_siginfo_t) -> bool {
    number(info) == bindings::SIGSYS as c_int && info.__bindgen_anon_1.si_code == SYS_USER_DISPATCH
}

/// Holds `sighand->siglock` of the current task.
struct SigLock;

impl SigLock {
    fn lock() -> Self {
        // SAFETY: No caller holds the lock. It is unlocked when this is dropped.
        unsafe { bindings::process_vm_exec_siglock() };
        SigLock
    }
}

impl Drop for SigLock {
    fn drop(&mut self) {
        // SAFETY: `lock()` has locked it.
        unsafe { bindings::process_vm_exec_sigunlock() };
    }
}

/// Lets the signals in `mask` end a run of `task`, the current one, whether they are blocked or not, as sigtimedwait(2) does:
/// in the meantime they are neither ignored, nor do they kill the process when they are sent.
///
/// Returns those that were blocked.
pub(crate) fn unblock(task: *mut bindings::task_struct, mask: c_ulong) -> c_ulong {
    // SAFETY: `task` is the current one, and only it changes its blocked signals.
    let blocked = unsafe { (*task).blocked.sig[0] };
    if blocked & mask == 0 {
        set_real_blocked(task, blocked | mask);
        return 0;
    }
    let _lock = SigLock::lock();
    set_real_blocked(task, blocked | mask);
    // SAFETY: The signals of the task, which is the current one, are locked.
    unsafe {
        (*task).blocked.sig[0] = blocked & !mask;
        bindings::recalc_sigpending();
    }
    blocked & mask
}

/// Says which signals others take for blocked when they send them. Who is sending one right now,
/// may or may not see it, as if the signal had come a little earlier.
fn set_real_blocked(task: *mut bindings::task_struct, blocked: c_ulong) {
    // SAFETY: `task` is the current one, and only it changes this.
    unsafe { (&raw mut (*task).real_blocked.sig[0]).write_volatile(blocked) };
}

/// Blocks again what [`unblock()`] has unblocked. What has been changed since then, stays.
///
/// If `mask` is not empty, takes a pending signal that is in it.
pub(crate) fn block(
    task: *mut bindings::task_struct,
    unblocked: c_ulong,
    mask: c_ulong,
) -> Option<bindings::kernel_siginfo_t> {
    let info = (mask != 0).then(|| take(mask)).flatten();
    if unblocked != 0 {
        // SAFETY: `task` is the current one, and only it changes its blocked signals.
        unsafe {
            let mut blocked = (*task).blocked;
            blocked.sig[0] |= unblocked;
            bindings::__set_current_blocked(&blocked);
        }
    }
    // Only now: a signal that comes before it is blocked again must not kill the process.
    set_real_blocked(task, 0);
    info
}

/// Takes a pending signal that is in `mask`, blocked or not.
fn take(mask: c_ulong) -> Option<bindings::kernel_siginfo_t> {
    let others = bindings::sigset_t { sig: [!mask] };
    let mut kind: bindings::pid_type = 0;
    // SAFETY: Zeros are a valid value.
    let mut info: bindings::kernel_siginfo_t = unsafe { zeroed() };
    let _lock = SigLock::lock();
    // SAFETY: The lock is held; the function may write to `info` and `kind`, and does not write to
    // `others`.
    let signal =
        unsafe { bindings::dequeue_signal((&raw const others).cast_mut(), &mut info, &mut kind) };
    (signal != 0).then_some(info)
}
