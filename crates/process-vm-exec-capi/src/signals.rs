//! Signals of the calling thread: taking those that pend, raising one, and blocking all.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use process_vm_exec::{SigInfo, SignalSet};

/// The signals that instructions raise (signal(7)).
pub(crate) const FAULTS: [i32; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];

/// Bytes of the kernel's `sigset_t`.
pub(crate) const SET_LEN: usize = 8;

/// Signals that nobody can take: `SIGKILL`, `SIGSTOP`, and two with which C libraries cancel threads and change
/// their user (nptl(7)).
const UNTAKABLE: [i32; 4] = [libc::SIGKILL, libc::SIGSTOP, 32, 33];

/// The set that `bits` stand for, without signals that cannot be taken.
pub(crate) fn set(bits: u64) -> SignalSet {
    let all = (1..=64).filter(|signal| bits >> (signal - 1) & 1 != 0 && !UNTAKABLE.contains(signal));
    all.fold(SignalSet::empty(), SignalSet::with)
}

/// Takes one signal of `set` that pends for this thread or its process, as sigtimedwait(2) with a timeout of 0.
pub(crate) fn take(set: SignalSet) -> Option<SigInfo> {
    let (set, now) = (set.bits(), libc::timespec { tv_sec: 0, tv_nsec: 0 });
    let mut info = SigInfo::from_bytes([0; 128]);
    // SAFETY: the call reads a set of that length and a timespec, and writes the 128 bytes of a siginfo_t.
    let signal = unsafe {
        libc::syscall(libc::SYS_rt_sigtimedwait, &raw const set, &raw mut info, &raw const now, SET_LEN)
    };
    (signal > 0).then_some(info)
}

/// The signals that pend for this thread or its process.
pub(crate) fn pending() -> u64 {
    let mut set = 0u64;
    // SAFETY: the call writes a set of that length.
    unsafe { libc::syscall(libc::SYS_rt_sigpending, &raw mut set, SET_LEN) };
    set
}

/// A signalfd(2) for `signals`: `old`, if there is one. None if there is none to be had.
pub(crate) fn descriptor(old: Option<OwnedFd>, signals: u64) -> Option<OwnedFd> {
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    let fd = old.as_ref().map_or(-1, AsRawFd::as_raw_fd);
    // SAFETY: the call reads a set of that length.
    let new = unsafe { libc::syscall(libc::SYS_signalfd4, fd, &raw const signals, SET_LEN, flags) };
    old.or_else(|| {
        let new = i32::try_from(new).ok().filter(|&new| new >= 0)?;
        // SAFETY: the descriptor has just been made, and nobody else knows it.
        Some(unsafe { OwnedFd::from_raw_fd(new) })
    })
}

/// What happens to a call that a signal's handler interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Afterwards {
    /// The handler is to have calls restarted (`SA_RESTART`).
    Restart,
    /// It is not.
    Interrupted,
}

/// Raises in the calling thread a signal that an instruction caused, with all that it tells.
///
/// If the thread blocks or ignores it, the process dies of it, as the kernel has it for such signals
/// (`force_sig_info`, kernel/signal.c). Else its handler has run when this returns.
pub(crate) fn raise(info: &SigInfo) -> Afterwards {
    let signal = info.signal();
    // SAFETY: queries with valid places for the answers; then a signal to this very thread, which may carry any
    // information (rt_tgsigqueueinfo(2)); the process asked for whatever that does to it.
    unsafe {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        libc::sigaction(signal, ptr::null(), action.as_mut_ptr());
        let mut action = action.assume_init();
        let mut blocked = MaybeUninit::<libc::sigset_t>::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), blocked.as_mut_ptr());
        let is_blocked = libc::sigismember(blocked.as_ptr(), signal) == 1;
        if is_blocked || action.sa_sigaction == libc::SIG_IGN {
            action.sa_sigaction = libc::SIG_DFL;
            libc::sigaction(signal, &raw const action, ptr::null_mut());
            let mut only = MaybeUninit::<libc::sigset_t>::zeroed();
            libc::sigemptyset(only.as_mut_ptr());
            libc::sigaddset(only.as_mut_ptr(), signal);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, only.as_ptr(), ptr::null_mut());
        }
        libc::syscall(libc::SYS_rt_tgsigqueueinfo, libc::getpid(), libc::gettid(), signal, &raw const *info);
        if action.sa_flags & libc::SA_RESTART != 0 { Afterwards::Restart } else { Afterwards::Interrupted }
    }
}

/// Runs `work` while this thread blocks all signals, so that threads it starts block them for good: a signal for
/// this process is never theirs.
pub(crate) fn with_all_blocked<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: the sets are valid, and what was blocked before is restored.
    let old = unsafe {
        let (mut all, mut old) = (MaybeUninit::<libc::sigset_t>::zeroed(), MaybeUninit::zeroed());
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), old.as_mut_ptr());
        old.assume_init()
    };
    let result = work();
    // SAFETY: as above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old, ptr::null_mut()) };
    result
}
