//! Signals for the caller that arrive during a run, and targets that end.
//!
//! The native call would be the thread that runs the code, so a signal for the thread would end the run. Here the
//! thread waits for another one, in user space most of the time, and no signal that it blocks can wake it there. What
//! could be done:
//!
//! - *Ask the kernel before and after each run*, and wait in sigtimedwait(2) while another thread does the run: two
//!   system calls and two wake-ups for a round trip that takes less time than one of them.
//! - *Leave the signals to a thread with a signalfd(2)*: costs the caller nothing, but it sees signals for the process
//!   only. Those for one thread (pthread_kill(3)) are visible to that thread alone.
//! - *Have a thread remind the caller to look*: that is what happens here. While calls are made, one thread per
//!   process, the watcher, marks every context's [`Slot`] once per [`TICK`], and the next call looks by itself; a run
//!   that has lasted since the last tick is interrupted, looks, and goes on. A signalfd tells the watcher of signals
//!   for the process, so that those are taken at once.
//!
//! A call costs two atomic increments for it. When no calls have been made for some ticks, or only ones with an empty
//! mask, the watcher sleeps until the next call, which sees that and wakes it. A long run ticks on, but then a
//! processor is busy with it anyway: code that waits makes a system call, and comes out.
//!
//! Signals are taken only by the caller itself, so it is the caller's choice that they are blocked: one that is not
//! has its usual course, here as between calls.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use process_vm_exec::{Errno, Interrupter, SignalSet};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::process::Process;
use crate::signals;

/// How often callers look for signals, at least.
const TICK: Duration = Duration::from_millis(10);
/// How long signals stay out of sight that pend for someone who does not take them.
const REST: Duration = Duration::from_millis(1);
/// After this many ticks without calls the watcher sleeps.
const QUIET_TICKS: u32 = 10;

/// What the watcher and callers share.
#[derive(Debug)]
pub(crate) struct Watch {
    /// The watcher sleeps, or has not been started.
    parked: AtomicBool,
    wake: OwnedFd,
    slots: Mutex<Vec<Arc<Slot>>>,
    is_started: Mutex<bool>,
}

/// What the watcher sees of one context.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Odd during a run.
    sequence: AtomicU64,
    /// The signals that end the run, or the last one.
    signals: AtomicU64,
    /// The caller is to look for signals, and whether the target is still there.
    look: AtomicBool,
    interrupter: Interrupter,
    /// The watcher's: the sequence at the last tick.
    seen: AtomicU64,
}

/// Has the caller to look for signals?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    Now,
    NotYet,
}

impl Slot {
    pub(crate) fn new(interrupter: Interrupter) -> Self {
        let [sequence, signals, seen] = [(); 3].map(|()| AtomicU64::new(0));
        Self { sequence, signals, look: AtomicBool::new(true), interrupter, seen }
    }

    /// Is the next [`enter`](Self::enter) going to say [`Look::Now`], as far as is known?
    pub(crate) fn is_due(&self, watch: &Watch) -> bool {
        self.look.load(Ordering::Relaxed) || watch.parked.load(Ordering::Relaxed)
    }

    /// A run begins that these signals end.
    ///
    /// The sequence is written before the flags are read, and the watcher does it the other way round: one of both
    /// sees the other.
    #[inline]
    pub(crate) fn enter(&self, signals: SignalSet, watch: &Watch) -> Look {
        self.signals.store(signals.bits(), Ordering::Relaxed);
        self.sequence.fetch_add(1, Ordering::SeqCst);
        let is_parked = watch.parked.load(Ordering::SeqCst);
        if is_parked {
            watch.wake();
        }
        let is_marked = self.look.load(Ordering::SeqCst) && self.look.swap(false, Ordering::SeqCst);
        if is_parked || is_marked { Look::Now } else { Look::NotYet }
    }

    /// The run is over.
    #[inline]
    pub(crate) fn leave(&self) {
        self.sequence.fetch_add(1, Ordering::SeqCst);
    }

    /// Has the caller look, at its next run, or now if one goes on that has lasted since `since`.
    fn remind(&self, since: u64) {
        self.look.store(true, Ordering::SeqCst);
        if self.sequence.load(Ordering::SeqCst) == since && is_run(since) {
            self.interrupter.interrupt();
        }
    }
}

fn is_run(sequence: u64) -> bool {
    sequence & 1 != 0
}

impl Watch {
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self {
            parked: AtomicBool::new(true),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            slots: Mutex::default(),
            is_started: Mutex::new(false),
        })
    }

    /// Starts the watcher, if there is none.
    pub(crate) fn start(&self, process: &'static Process) -> Result<(), Errno> {
        let mut is_started = lock(&self.is_started);
        if !*is_started {
            let watcher = std::thread::Builder::new().name("pvx-watcher".into());
            signals::with_all_blocked(|| watcher.spawn(move || run(process))).map_err(|_| Errno::AGAIN)?;
            *is_started = true;
        }
        Ok(())
    }

    pub(crate) fn add(&self, slot: Arc<Slot>) {
        lock(&self.slots).push(slot);
    }

    pub(crate) fn remove(&self, slot: &Arc<Slot>) {
        lock(&self.slots).retain(|other| !Arc::ptr_eq(other, slot));
    }

    /// Wakes the watcher: there are calls again, or other targets.
    #[cold]
    pub(crate) fn wake(&self) {
        self.parked.store(false, Ordering::SeqCst);
        // It fails only when the counter is full, and then the watcher is awake.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// The watcher.
fn run(process: &'static Process) {
    let watch = &process.watch;
    let (mut quiet_ticks, mut signalfd, mut hit) = (0, None::<OwnedFd>, false);
    loop {
        let slots = lock(&watch.slots).clone();
        let (mut wanted, mut is_busy) = (0, false);
        for slot in &slots {
            let (signals, now) = (slot.signals.load(Ordering::Relaxed), slot.sequence.load(Ordering::SeqCst));
            let before = slot.seen.swap(now, Ordering::Relaxed);
            if now != before || is_run(now) && signals != 0 {
                is_busy = true;
                wanted |= signals;
                if !hit {
                    slot.remind(before);
                }
            }
        }
        quiet_ticks = if is_busy { 0 } else { quiet_ticks + 1 };
        let is_parking = quiet_ticks > QUIET_TICKS;
        if is_parking {
            watch.parked.store(true, Ordering::SeqCst);
            if slots
                .iter()
                .any(|slot| slot.sequence.load(Ordering::SeqCst) != slot.seen.load(Ordering::Relaxed))
            {
                watch.parked.store(false, Ordering::SeqCst);
                continue;
            }
        }
        if wanted != 0 {
            signalfd = signals::descriptor(signalfd, wanted);
        }
        let timeout = match (is_parking, hit) {
            (true, _) => None,
            (false, true) => Some(REST),
            (false, false) => Some(TICK),
        };
        let listens = wanted != 0 && !hit;
        hit = wait(process, signalfd.as_ref().filter(|_| listens), timeout);
        if hit {
            let pending = signals::pending();
            for slot in slots.iter().filter(|slot| slot.signals.load(Ordering::Relaxed) & pending != 0) {
                slot.remind(slot.sequence.load(Ordering::SeqCst));
            }
        }
    }
}

/// Waits until something happens, drops targets that have ended, and says whether a signal pends.
fn wait(process: &'static Process, signalfd: Option<&OwnedFd>, timeout: Option<Duration>) -> bool {
    let targets = process.targets();
    let mut fds = vec![PollFd::new(&process.watch.wake, PollFlags::IN)];
    fds.extend(targets.iter().map(|target| PollFd::from_borrowed_fd(target.pidfd.as_fd(), PollFlags::IN)));
    fds.extend(signalfd.map(|fd| PollFd::new(fd, PollFlags::IN)));
    let timeout = timeout.map(|timeout| Timespec { tv_sec: 0, tv_nsec: timeout.subsec_nanos().into() });
    let _ = poll(&mut fds, timeout.as_ref());
    let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
    if is_ready(&fds[0]) {
        let _ = rustix::io::read(&process.watch.wake, &mut [0; 8]);
    }
    for (target, _) in targets.iter().zip(&fds[1..]).filter(|(_, fd)| is_ready(fd)) {
        process.forget(target);
    }
    signalfd.is_some() && is_ready(&fds[fds.len() - 1])
}

/// Locks; a thread that panicked with the lock has left nothing half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
