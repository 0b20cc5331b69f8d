//! The supervisor's machine, as the hand-off sees it: futexes, clocks, processors.

use std::arch::x86_64::{__rdtscp, _rdtsc};
use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use super::arena::Slot;
use super::handoff::{Budget, Half, Machine};
use super::layout;
use super::life::Life;

/// How long the two sides of a space wait for each other before they sleep, unless told otherwise. About what it
/// costs to wake a task on another processor of a virtual machine, so that waiting costs at most twice the best.
pub(crate) const DEFAULT_SPIN_BUDGET_NS: u64 = 50_000;

/// After this long without an answer the other side is likely not running: yield between looks.
pub(crate) const SPIN_WITHOUT_YIELD_NS: u64 = 3_000;

/// Two switches between tasks and some work take less, where each interrupt is an exit of a virtual machine, too; a time slice of
/// somebody else's is ten times as long. With 20 us, a space's own tasks were taken for somebody else.
pub(crate) const PATIENCE_NS: u64 = 100_000;

/// Looks before a waiter reads the clock, with a `pause` after each: up to 1 us.
pub(crate) const QUICK_LOOKS: u32 = 40;
/// Looks between two readings of the clock.
pub(crate) const LOOKS: u32 = 16;

/// The machine under the supervisor, with one space's budget.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host {
    budget: Budget,
}

impl Host {
    pub(crate) fn new(spin_budget_ns: u64) -> Self {
        let awake = ticks(spin_budget_ns);
        let spin = ticks(SPIN_WITHOUT_YIELD_NS).min(awake);
        Self {
            budget: Budget {
                quick_looks: QUICK_LOOKS,
                looks: LOOKS,
                spin,
                awake,
                patience: ticks(PATIENCE_NS),
            },
        }
    }
}

impl Machine for Host {
    fn sleep(&self, word: &AtomicU32, value: u32) {
        wait(word, value, None);
    }

    fn wake(&self, word: &AtomicU32) {
        wake(word);
    }

    fn now(&self) -> (u64, u32) {
        let mut aux = 0;
        // SAFETY: every x86-64 processor since 2008 has RDTSCP; Linux keeps the processor's number in TSC_AUX
        // (arch/x86/include/asm/segment.h, VDSO_CPUNODE_MASK).
        let ticks = unsafe { __rdtscp(&raw mut aux) };
        (ticks, aux & 0xfff)
    }

    fn give_way(&self) {
        rustix::thread::sched_yield();
    }

    fn budget(&self) -> Budget {
        self.budget
    }
}

/// The same machine, for a wait that ends with a life, or at a point in time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Until<'a> {
    pub(crate) host: Host,
    pub(crate) life: &'a Life,
    pub(crate) deadline: Option<Instant>,
}

impl Machine for Until<'_> {
    fn sleep(&self, word: &AtomicU32, value: u32) {
        wait(word, value, self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())));
    }

    fn wake(&self, word: &AtomicU32) {
        self.host.wake(word);
    }

    /// Whoever ends a life says so first and wakes the sleepers then: see [`Life::die`].
    fn is_in_vain(&self) -> bool {
        self.life.status().is_some() || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    fn now(&self) -> (u64, u32) {
        self.host.now()
    }

    fn give_way(&self) {
        self.host.give_way();
    }

    fn budget(&self) -> Budget {
        self.host.budget()
    }
}

/// Wakes all who sleep on `word`, on either side of a shared mapping: a guest may do so too, to be woken instead of others.
pub(crate) fn wake(word: &AtomicU32) {
    const ALL: u32 = i32::MAX.unsigned_abs();
    futex(word, libc::FUTEX_WAKE, ALL, None);
}

/// Sleeps until woken, unless `word` is not `value` any more, and no longer than `time`.
fn wait(word: &AtomicU32, value: u32, time: Option<Duration>) {
    futex(word, libc::FUTEX_WAIT, value, time);
}

fn futex(word: &AtomicU32, operation: libc::c_int, value: u32, time: Option<Duration>) {
    let time = time.map(|time| libc::timespec {
        tv_sec: time.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: time.subsec_nanos().into(),
    });
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `word` and the time are valid for the call, which only reads them. Errors mean "look again" (futex(2)).
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, time);
    }
}

/// The half at `offset` of a slot.
#[inline]
pub(crate) fn half(slot: &Slot, offset: u64) -> Half<'_> {
    const fn index(offset: u64) -> usize {
        (offset / 4) as usize
    }
    const WORD: usize = index(layout::WORD);
    const SLEEPING: usize = index(layout::SLEEPING);
    const CPU: usize = index(layout::CPU);
    const NO_YIELD: usize = index(layout::NO_YIELD);
    const PENALTY: usize = index(layout::PENALTY);
    const PAUSES: usize = index(layout::PAUSES);
    let words = slot.words(offset);
    Half {
        word: &words[WORD],
        sleeping: &words[SLEEPING],
        cpu: &words[CPU],
        no_yield: &words[NO_YIELD],
        penalty: &words[PENALTY],
        pauses: &words[PAUSES],
    }
}

/// `ns` in ticks of the time-stamp counter.
pub(crate) fn ticks(ns: u64) -> u64 {
    u64::try_from(u128::from(ns) * u128::from(ticks_per_ms()) / 1_000_000).unwrap_or(u64::MAX)
}

/// Measured once, against the monotonic clock: no interface tells it on every machine.
fn ticks_per_ms() -> u64 {
    static TICKS: OnceLock<u64> = OnceLock::new();
    *TICKS.get_or_init(|| {
        let measure = || {
            let (start, begin) = (Instant::now(), tsc());
            while start.elapsed() < Duration::from_micros(100) {
                std::hint::spin_loop();
            }
            let (elapsed, end) = (start.elapsed(), tsc());
            u64::try_from(u128::from(end - begin) * 1_000_000 / elapsed.as_nanos()).unwrap_or(u64::MAX)
        };
        let mut samples = [measure(), measure(), measure()];
        samples.sort_unstable();
        samples[1]
    })
}

/// The time-stamp counter.
#[inline]
pub(crate) fn tsc() -> u64 {
    // SAFETY: RDTSC is allowed to user space unless PR_TSC_SIGSEGV was asked for, and then nothing here works.
    unsafe { _rdtsc() }
}
