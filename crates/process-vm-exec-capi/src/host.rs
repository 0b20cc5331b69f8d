//! Calls of the host for which there is no safe function.

use std::ffi::c_int;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use process_vm_exec::{Call, Engine, Sysno};

use crate::call::Arguments;

/// The kernel's own process_vm_exec(2), where the engine `native` is the best that works: the result, with errno set.
pub(crate) fn process_vm_exec(arguments: &Arguments) -> Option<c_int> {
    const SYS_PROCESS_VM_EXEC: libc::c_long = 511;
    static IS_NATIVE: OnceLock<bool> = OnceLock::new();
    if !IS_NATIVE.get_or_init(|| Engine::detect().is_ok_and(|detection| detection.best == Engine::Native)) {
        return None;
    }
    let &Arguments { pid, uctx, flags, siginfo, sigmask, sizemask } = arguments;
    // SAFETY: the caller's promise is that of the system call, which looks at the addresses itself.
    let result = unsafe { libc::syscall(SYS_PROCESS_VM_EXEC, pid, uctx, flags, siginfo, sigmask, sizemask) };
    Some(if result < 0 { -1 } else { 0 })
}

/// Has `function` called when the process exits (atexit(3)).
pub(crate) fn at_exit(function: extern "C" fn()) {
    // SAFETY: the function is there until the process ends: the library is never unmapped (`-z nodelete`).
    unsafe { libc::atexit(function) };
}

/// The descriptor of a caller, which it lends for the call, and does not close meanwhile. If it is none, the kernel will say
/// so.
pub(crate) fn borrow<'a>(fd: i32) -> Option<BorrowedFd<'a>> {
    // SAFETY: it is not -1, and whoever calls from C answers for it: nothing is closed here.
    (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
}

/// A call of a caller, whose descriptors it names by their numbers as in any call of libc's.
pub(crate) fn call(nr: Sysno, args: [u64; 6]) -> Call<'static> {
    // SAFETY: whoever calls `process_vm_exec` from C answers for the numbers: the manual page says whose they are.
    unsafe { Call::with_descriptor_numbers(nr, args) }
}
