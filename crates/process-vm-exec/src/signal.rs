//! Signals: sets of them, and what one carries.

use std::fmt;
use std::mem::MaybeUninit;

/// A set of signals, 1 to 64, as the kernel's 64-bit `sigset_t`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SignalSet(u64);

impl SignalSet {
    /// No signal.
    pub const fn empty() -> Self {
        Self(0)
    }

    /// Every signal.
    pub const fn all() -> Self {
        Self(!0)
    }

    /// This set and `signal`. Numbers outside 1 to 64 change nothing.
    #[must_use]
    pub const fn with(self, signal: i32) -> Self {
        Self(self.0 | Self::bit(signal))
    }

    /// This set but not `signal`.
    #[must_use]
    pub const fn without(self, signal: i32) -> Self {
        Self(self.0 & !Self::bit(signal))
    }

    /// Is `signal` in the set?
    pub const fn contains(self, signal: i32) -> bool {
        self.0 & Self::bit(signal) != 0
    }

    /// The kernel's representation: bit `n - 1` is signal `n`.
    pub const fn bits(self) -> u64 {
        self.0
    }

    const fn bit(signal: i32) -> u64 {
        if signal >= 1 && signal <= 64 { 1 << (signal - 1) } else { 0 }
    }
}

impl fmt::Debug for SignalSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries((1..=64).filter(|&signal| self.contains(signal))).finish()
    }
}

/// The 128 bytes of the kernel's `siginfo_t`, with accessors for what every signal has.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct SigInfo([u8; 128]);

impl SigInfo {
    /// From the kernel's bytes.
    pub const fn from_bytes(bytes: [u8; 128]) -> Self {
        Self(bytes)
    }

    /// The kernel's bytes (sigaction(2), `siginfo_t`).
    pub const fn as_bytes(&self) -> &[u8; 128] {
        &self.0
    }

    /// `si_signo`: the signal's number.
    pub fn signal(&self) -> i32 {
        self.i32_at(0)
    }

    /// `si_errno`.
    pub fn errno(&self) -> i32 {
        self.i32_at(4)
    }

    /// `si_code`: how it was sent; 0 and below by a process, above by the kernel.
    pub fn code(&self) -> i32 {
        self.i32_at(8)
    }

    /// `si_pid`: the sender, for signals from kill(2) and sigqueue(3).
    pub fn pid(&self) -> i32 {
        self.i32_at(16)
    }

    /// `si_addr`: the address, for faults.
    pub fn addr(&self) -> u64 {
        u64::from_ne_bytes(self.bytes_at(16))
    }

    /// `si_value`: the value that sigqueue(3) sent along.
    pub fn value(&self) -> u64 {
        u64::from_ne_bytes(self.bytes_at(24))
    }

    pub(crate) fn i32_at(&self, offset: usize) -> i32 {
        i32::from_ne_bytes(self.bytes_at(offset))
    }

    fn bytes_at<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[offset..offset + N]);
        bytes
    }
}

impl fmt::Debug for SigInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigInfo")
            .field("signal", &self.signal())
            .field("code", &self.code())
            .field("errno", &self.errno())
            .finish_non_exhaustive()
    }
}

/// Runs `work` while this thread blocks all signals, so that threads that it starts block them for good. Nothing in it may
/// last: this thread would not be interrupted.
pub(crate) fn with_signals_blocked<T>(work: impl FnOnce() -> T) -> T {
    let set = |new: &libc::sigset_t| {
        let mut old = MaybeUninit::zeroed();
        // SAFETY: both sets are valid for the call, which fills in the old one.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, new, old.as_mut_ptr());
            old.assume_init()
        }
    };
    let mut all = MaybeUninit::zeroed();
    // SAFETY: the call fills in the set. Not with what C libraries need themselves, to change all threads' user (nptl(7)).
    let all = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        all.assume_init()
    };
    let old = set(&all);
    let result = work();
    set(&old);
    result
}
