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

/// Lets the signals in `mask` end a run even if they are blocked, as sigtimedwait(2) does.
///
/// Returns those that were blocked. They are not ignored in the meantime.
pub(crate) fn unblock(mask: c_ulong) -> c_ulong {
    // SAFETY: There is always a current task, and only it changes its blocked signals.
    let blocked = unsafe { (*bindings::get_current()).blocked.sig[0] };
    let unblocked = blocked & mask;
    if unblocked != 0 {
        let _lock = SigLock::lock();
        // SAFETY: As above, and the lock is held.
        unsafe {
            let task = bindings::get_current();
            (*task).real_blocked = (*task).blocked;
            (*task).blocked.sig[0] &= !mask;
            bindings::recalc_sigpending();
        }
    }
    unblocked
}

/// Blocks again what [`unblock()`] has unblocked. What has been changed since then, stays.
pub(crate) fn block(unblocked: c_ulong) {
    if unblocked == 0 {
        return;
    }
    // SAFETY: There is always a current task, and only it changes its blocked signals.
    unsafe {
        let task = bindings::get_current();
        let mut blocked = (*task).blocked;
        blocked.sig[0] |= unblocked;
        bindings::__set_current_blocked(&blocked);
        let _lock = SigLock::lock();
        (*task).real_blocked.sig[0] = 0;
    }
}

/// Takes a pending signal that is in `mask`, blocked or not.
pub(crate) fn take(mask: c_ulong) -> Option<bindings::kernel_siginfo_t> {
    let others = bindings::sigset_t { sig: [!mask] };
    let mut kind: bindings::pid_type = 0;
    // SAFETY: Zeros are a valid value.
    let mut info: bindings::kernel_siginfo_t = unsafe { zeroed() };
    let _lock = SigLock::lock();
    // SAFETY: The lock is held; the function may write to `info` and `kind`, and does not write to `others`.
    let signal =
        unsafe { bindings::dequeue_signal((&raw const others).cast_mut(), &mut info, &mut kind) };
    (signal != 0).then_some(info)
}
