//! Taking everything out of a live process again. By the supervisor, or by the janitor if that is dead: so nothing here
//! allocates or locks.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, RawDir};
use rustix::io::Errno;

use super::region::mark_of;
use super::stop::{Patience, Stopped, wait_asleep_until};
use super::{errand, inject};
use crate::executor::region::Region;
use crate::executor::{code, layout};
use crate::ptrace::{Stop, get_registers, look_for_any_beside, request, seize};
use crate::{memory, procfs};

/// What one attachment has added to its target: all that its removal needs. Lies in memory that the janitor shares.
#[derive(Debug, Default)]
pub(super) struct Added {
    /// The executor, or 0 if there is no attachment here. Written last.
    pub(super) executor: AtomicI32,
    /// The executor that shares things with the target, or 0.
    pub(super) sharer: AtomicI32,
    /// A `syscall` that the executor may come by when it is not in the resident code.
    pub(super) site: AtomicU64,
    /// Where the region begins.
    pub(super) region: AtomicU64,
    /// What the region begins with if it is this attachment's.
    pub(super) mark: AtomicU64,
    /// Options to seize its tasks with.
    pub(super) options: AtomicU64,
    /// A thread of the target that may be in the region, on an errand; or 0.
    pub(super) errand: AtomicI32,
}

impl Added {
    /// Removes the pages, then the tasks. Those that this thread does not trace it seizes.
    ///
    /// # Errors
    /// If the executor lives and cannot be stopped. Then it, and this line about it, stay.
    pub(super) fn remove(&self) -> Result<(), Errno> {
        let executor = self.executor.load(Ordering::Acquire);
        let sharer = self.sharer.load(Ordering::Relaxed);
        if executor == 0 {
            return Ok(());
        }
        let site = self.site.load(Ordering::Relaxed);
        let stop = |pid| stop_all(pid, self.options.load(Ordering::Relaxed), self.region());
        if sharer != 0 && stop(sharer)? && self.is_ours(sharer) {
            kill(sharer);
        }
        let is_quiescent = self.recall();
        if stop(executor)? && self.is_ours(executor) {
            // Whoever died while doing this may have come further: then there is nothing, or already another's.
            if is_quiescent && self.has_region(executor) == Ok(true) {
                // Its next instruction is gone then. It stops before that, and is never resumed.
                let region = [self.region().start(), layout::SIZE, 0, 0, 0, 0];
                let _ = inject::call_soon(executor, code::syscall(self.region()), libc::SYS_munmap, region)
                    .or_else(|_| inject::call_soon(executor, site, libc::SYS_munmap, region));
            }
            kill(executor);
        }
        self.errand.store(0, Ordering::Relaxed);
        self.executor.store(0, Ordering::Release);
        Ok(())
    }

    /// Is there something that has not been removed?
    pub(super) fn is_in_use(&self) -> bool {
        self.executor.load(Ordering::Acquire) != 0
    }

    /// Brings back a thread whose errand nobody has seen end, before the instructions of that are gone. Says whether it
    /// is known not to be there.
    pub(super) fn recall(&self) -> bool {
        const NAP: Duration = Duration::from_millis(10);
        const PATIENCE: Duration = Duration::from_secs(1);
        /// It may be in a handler, that returns to an errand which is about to begin or to end. Handlers are short.
        const LOOKS_ELSEWHERE: u32 = 3;
        let deadline = Instant::now() + PATIENCE;
        let mut elsewhere = 0;
        while Instant::now() < deadline {
            let tid = self.errand.load(Ordering::Acquire);
            if tid == 0 {
                return true;
            }
            elsewhere += match self.look_for(tid) {
                Whereabouts::Back => LOOKS_ELSEWHERE,
                Whereabouts::Elsewhere => 1,
                Whereabouts::Unknown => 0,
            };
            if elsewhere >= LOOKS_ELSEWHERE {
                self.errand.store(0, Ordering::Release);
            } else {
                std::thread::sleep(NAP);
            }
        }
        false
    }

    /// Looks for a thread, and takes it back if it is still on its errand: its state is the one from before.
    fn look_for(&self, tid: i32) -> Whereabouts {
        match self.has_region(tid) {
            Ok(true) => {}
            // Yama lets the supervisor trace a descendant, and not the janitor; or there is no descriptor.
            Err(Errno::PERM | Errno::ACCESS | Errno::MFILE | Errno::NFILE | Errno::NOMEM) => {
                return Whereabouts::Unknown;
            }
            Ok(false) | Err(_) => return Whereabouts::Back,
        }
        let _ = seize(tid);
        let Ok(thread) = Stopped::stop(tid, None) else { return Whereabouts::Unknown };
        if !errand::range(self.region()).contains(&thread.registers().rip) {
            let _ = thread.release();
            return Whereabouts::Elsewhere;
        }
        if let Some(state) = errand::state_of(self.region(), tid) {
            let _ = state.release();
        }
        Whereabouts::Back
    }

    /// Does a task have the memory with this attachment's pages?
    pub(super) fn has_region(&self, task: i32) -> Result<bool, Errno> {
        mark_of(self.region(), task).map(|mark| mark == self.mark.load(Ordering::Relaxed))
    }

    pub(super) fn region(&self) -> Region {
        // Before there is one, nobody is there either.
        Region::at(self.region.load(Ordering::Relaxed)).unwrap_or(Region::DEFAULT)
    }

    /// Is the stopped task where only an executor can be? A process that has ended may have left its number to another.
    fn is_ours(&self, tid: i32) -> bool {
        const NEARBY: u64 = 64;
        get_registers(tid).is_ok_and(|registers| {
            code::range(self.region()).contains(&registers.rip)
                || registers.rip.abs_diff(self.site.load(Ordering::Relaxed)) < NEARBY
        })
    }
}

/// Where a thread is that was sent on an errand.
enum Whereabouts {
    /// Back, now at the latest; or it has ended, or has other memory by now.
    Back,
    /// Not in the errand.
    Elsewhere,
    /// It does not stop, or may not be traced.
    Unknown,
}

/// Stops all tasks of a process: one that ran on without its pages would fault, and the kernel would tell everybody.
/// Says whether there is such a process.
fn stop_all(pid: i32, options: u64, region: Region) -> Result<bool, Errno> {
    let tasks = match procfs::open(format_args!("/proc/{pid}/task"), OFlags::RDONLY | OFlags::DIRECTORY) {
        Err(Errno::NOENT | Errno::SRCH) => return Ok(false),
        tasks => tasks?,
    };
    // Memory of the target's, which it may hold back (userfaultfd(2)), is waited for without being stopped.
    const PATIENCE: Duration = Duration::from_secs(2);
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(tasks, &mut buffer);
    let mut main = Err(Errno::SRCH);
    while let Some(Ok(entry)) = entries.next() {
        let Some(tid) = entry.file_name().to_str().ok().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let _ = request(libc::PTRACE_SEIZE, tid, 0, usize::try_from(options).unwrap_or(0));
        // One that has stopped for us already stops no second time, and only then tells its registers.
        let stop = get_registers(tid).map(|_| Stop::Event).or_else(|_| {
            request(libc::PTRACE_INTERRUPT, tid, 0, 0)
                .and_then(|_| wait_asleep_until(tid, deadline).ok_or(Errno::BUSY))
        });
        if tid == pid {
            main = stop;
        }
    }
    match main {
        Ok(stop) => Ok(!matches!(stop, Stop::Gone(_))),
        Err(Errno::BUSY) => Err(Errno::BUSY),
        // It has ended, or another traces it, or may only we not (ptrace(2)): then it has memory.
        Err(_) if memory::read_at_once(pid, region.start(), &mut [0]) == Err(Errno::SRCH) => Ok(false),
        Err(_) => Err(Errno::PERM),
    }
}

fn kill(pid: i32) {
    // SAFETY: kill only sends a signal.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    // As its tracer we are told first; its parent is told after that. We are not told before all its tasks that we
    // trace have been waited for; nor while another traces one, and does not wait for that.
    const PATIENCE: Duration = Duration::from_secs(2);
    const NOBODY: i32 = 0;
    let mut patience = Patience::until(Instant::now() + PATIENCE);
    loop {
        match look_for_any_beside(NOBODY) {
            Ok(Some((tid, Stop::Gone(_)))) if tid == pid => break,
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) if patience.wait() => {}
            Ok(None) | Err(_) => break,
        }
    }
}
