//! Whether the process of a space is alive, and what its end means to those who wait for it.

use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::arena::Slot;
use super::{layout, machine};
use crate::exit::WaitStatus;
use crate::sync::lock;

/// The life of one process and of the slot it writes to.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) slot: Arc<Slot>,
    /// The process, until it is dead; else 0.
    pid: AtomicI32,
    /// How many have been told the number and may still use it. The process is reaped after that, and its number not another's
    /// before.
    holders: AtomicU32,
    ended: (Mutex<bool>, Condvar),
    /// 0 while alive.
    end: AtomicU64,
    /// How to say that the process is to go, if it lives in the memory of another: who kills it must first take out
    /// what it has there.
    removal: Option<Arc<OwnedFd>>,
    /// How many executors have been started, hence whose mailboxes may be waited on.
    pub(crate) executors: AtomicU32,
}

/// The number of a process, which is not another's as long as the value is there.
#[derive(Debug)]
pub(crate) struct HeldPid<'a> {
    pid: Option<Pid>,
    holders: &'a AtomicU32,
}

impl Deref for HeldPid<'_> {
    type Target = Option<Pid>;

    fn deref(&self) -> &Option<Pid> {
        &self.pid
    }
}

impl Drop for HeldPid<'_> {
    fn drop(&mut self) {
        self.holders.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How long users of a dead process's number keep it from being reaped. They take less than that, unless a file system
/// does not answer, and the reports of other deaths must not wait for one.
const PATIENCE: Duration = Duration::from_secs(1);

const DIED: u64 = 1 << 63;
const BY_SIGNAL: u64 = 1 << 62;

impl Life {
    pub(crate) fn new(slot: Arc<Slot>) -> Self {
        Self {
            slot,
            pid: AtomicI32::new(0),
            holders: AtomicU32::new(0),
            ended: <_>::default(),
            end: AtomicU64::new(0),
            removal: None,
            executors: AtomicU32::new(0),
        }
    }

    /// The life of an executor in a live process, whose caretaker waits for `removal`.
    pub(crate) fn of_guest_in(slot: Arc<Slot>, removal: Arc<OwnedFd>) -> Self {
        Self { removal: Some(removal), ..Self::new(slot) }
    }

    /// The process has been created.
    pub(crate) fn begin(&self, pid: Pid) {
        self.pid.store(pid.as_raw_pid(), Ordering::SeqCst);
    }

    /// Its pid while it lives, which stays its own as long as the value is held: not for longer than [`PATIENCE`].
    pub(crate) fn pid(&self) -> HeldPid<'_> {
        self.holders.fetch_add(1, Ordering::SeqCst);
        let pid = Pid::from_raw(self.pid.load(Ordering::SeqCst));
        HeldPid { pid, holders: &self.holders }
    }

    /// Its guest has done what no guest does: nothing is asked of the process from now on, and it is killed.
    pub(crate) fn condemn(&self) {
        self.end_by(WaitStatus::Signaled(libc::SIGKILL));
        self.kill();
    }

    /// Kills the process, if it still lives. A forked child of the supervisor has no say in that.
    pub(crate) fn kill(&self) {
        if !self.slot.is_ours() {
            return;
        }
        match &self.removal {
            // The caretaker waits for any value.
            Some(removal) => drop(rustix::io::write(removal, &1u64.to_ne_bytes())),
            None => self.signal(libc::SIGKILL),
        }
    }

    /// Sends it a signal, if it still lives.
    pub(crate) fn signal(&self, signal: i32) {
        if let Some(pid) = *self.pid() {
            // To the process, not by tgkill(2) to its service task: that may have ended before the others, and what is sent
            // to it alone then reaches nobody.
            // SAFETY: kill only sends a signal. The process may have died meanwhile; that is as good.
            unsafe { libc::kill(pid.as_raw_pid(), signal) };
        }
    }

    /// Waits until the process is known to be dead. It has been killed.
    pub(crate) fn wait_for_end(&self) {
        let (ended, changed) = &self.ended;
        let ended = lock(ended);
        drop(changed.wait_while(ended, |ended| !*ended).unwrap_or_else(PoisonError::into_inner));
    }

    /// How it ended, if it did.
    #[inline]
    pub(crate) fn status(&self) -> Option<WaitStatus> {
        let end = self.end.load(Ordering::SeqCst);
        let number = i32::try_from(end & 0xffff_ffff).unwrap_or(i32::MAX);
        match end {
            0 => None,
            end if end & BY_SIGNAL != 0 => Some(WaitStatus::Signaled(number)),
            _ => Some(WaitStatus::Exited(number)),
        }
    }

    /// How it is about to end. Only the first to say so is believed.
    pub(crate) fn end_by(&self, status: WaitStatus) {
        let end = match status {
            WaitStatus::Exited(status) => DIED | u64::from(status.unsigned_abs()),
            WaitStatus::Signaled(signal) => DIED | BY_SIGNAL | u64::from(signal.unsigned_abs()),
        };
        let _ = self.end.compare_exchange(0, end, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Its process is gone, or killed: ends every wait, and waits until nobody uses its number.
    pub(crate) fn die(&self, status: WaitStatus) {
        self.end_by(status);
        self.pid.store(0, Ordering::SeqCst);
        let deadline = Instant::now() + PATIENCE;
        while self.holders.load(Ordering::SeqCst) != 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_micros(50));
        }
        let (ended, changed) = &self.ended;
        *lock(ended) = true;
        changed.notify_all();
        let executors = u64::from(self.executors.load(Ordering::SeqCst));
        let mailboxes = (0..executors).map(|index| layout::MAILBOXES + index * layout::MAILBOX_STRIDE);
        for half in mailboxes.chain([layout::RESULT, layout::RESULT + layout::SHARER]) {
            let word = self.slot.u32(half + layout::WORD);
            word.store(layout::DEAD, Ordering::SeqCst);
            machine::wake(word);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::executor::arena::Arena;
    use crate::executor::region::Region;

    #[test]
    fn a_process_is_not_reaped_while_somebody_uses_its_number() {
        let slot = Arena::new(Region::DEFAULT).and_then(|arena| arena.slot()).expect("a slot");
        let life = Life::new(Arc::new(slot));
        life.begin(rustix::process::getpid());
        let held = life.pid();
        assert!(held.is_some());
        thread::scope(|scope| {
            let (ended, end) = mpsc::channel();
            scope.spawn(|| {
                life.die(WaitStatus::Signaled(libc::SIGKILL));
                drop(ended);
            });
            while life.pid().is_some() {
                thread::yield_now();
            }
            // Nobody gets it any more, and who has it keeps it.
            assert_eq!(end.recv_timeout(PATIENCE / 10), Err::<(), _>(mpsc::RecvTimeoutError::Timeout));
            drop(held);
            assert_eq!(end.recv(), Err(mpsc::RecvError));
        });
    }
}
