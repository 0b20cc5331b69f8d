//! What a thread keeps: a context in each target that it has used, and which of its pointers were good.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use process_vm_exec::Errno;

use crate::fork;
use crate::process::Process;
use crate::run::Guest;
use crate::target::{self, Identity, Target};
use crate::user::Pointer;
use crate::watch::Slot;

thread_local! {
    static THREAD: RefCell<Thread> = RefCell::default();
}

/// The state of one thread.
#[derive(Debug, Default)]
pub(crate) struct Thread {
    /// Whose thread it is. The thread of a forked child has a copy of its parent's state.
    process: Option<&'static Process>,
    guests: Vec<Seated>,
    pub(crate) pointers: Pointers,
}

/// One for each pointer of the caller.
#[derive(Debug, Default)]
pub(crate) struct Pointers {
    pub(crate) uctx: Pointer,
    pub(crate) fpstate: Pointer,
    pub(crate) fpstate_head: Pointer,
    pub(crate) siginfo: Pointer,
    pub(crate) sigmask: Pointer,
}

/// This thread's context in one target.
#[derive(Debug)]
pub(crate) struct Seated {
    pub(crate) guest: Guest,
    pub(crate) target: Arc<Target>,
    pub(crate) slot: Arc<Slot>,
}

/// How the caller names a target.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Name<'a> {
    Pid(i32),
    Pidfd(BorrowedFd<'a>),
}

/// Does `work` with this thread's state.
///
/// # Errors
/// `EBUSY` if the thread is in a call already: this is one from a signal handler. `EAGAIN` if the thread is ending.
pub(crate) fn with<T>(work: impl FnOnce(&mut Thread) -> Result<T, Errno>) -> Result<T, Errno> {
    let with = |thread: &RefCell<Thread>| work(&mut *thread.try_borrow_mut().map_err(|_| Errno::BUSY)?);
    THREAD.try_with(with).unwrap_or(Err(Errno::AGAIN))
}

impl Thread {
    /// This thread's context in the target with that name, and the pointers of its caller.
    ///
    /// The target is looked for at each call: its caller may know its end already, when the watcher has not run yet. But
    /// where a run only `goes_on`, and in search of an execve(2), once per tick: a look costs a system call.
    pub(crate) fn seat(
        &mut self,
        name: Name<'_>,
        goes_on: impl Fn(&Guest) -> bool,
    ) -> Result<(&mut Seated, &mut Pointers, &'static Process), Errno> {
        let process = self.process()?;
        if let Some(known) = self.guests.iter().position(|seated| seated.is(name)) {
            let Seated { guest, target, slot } = &self.guests[known];
            let is_due = slot.is_due(&process.watch);
            let has_ended = (is_due || !goes_on(guest)) && target.has_ended();
            if has_ended || is_due && !target.is_current() {
                process.forget(target);
            }
            if !self.guests[known].target.is_gone() {
                return Ok((&mut self.guests[known], &mut self.pointers, process));
            }
        }
        self.leave_gone_targets();
        let seated = Seated::attach(name, process)?;
        self.guests.push(seated);
        let seated = self.guests.last_mut().ok_or(Errno::SRCH)?;
        Ok((seated, &mut self.pointers, process))
    }

    /// The process, after what was another one's has been left behind.
    fn process(&mut self) -> Result<&'static Process, Errno> {
        let process = Process::current()?;
        if !self.process.is_some_and(|own| std::ptr::eq(own, process)) {
            self.abandon();
            self.process = Some(process);
        }
        Ok(process)
    }

    /// Forgets what is the parent's. To drop it would end the parent's executors.
    fn abandon(&mut self) {
        std::mem::forget(std::mem::take(&mut self.guests));
    }

    pub(crate) fn leave_gone_targets(&mut self) {
        let process = self.process;
        self.guests.retain(|seated| {
            if seated.target.is_gone()
                && let Some(process) = process
            {
                process.watch.remove(&seated.slot);
            }
            !seated.target.is_gone()
        });
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        match (self.process, fork::current()) {
            (Some(own), Some(current)) if std::ptr::eq(own, current) => {
                self.guests.iter().for_each(|seated| own.watch.remove(&seated.slot));
            }
            _ => self.abandon(),
        }
    }
}

impl Seated {
    fn attach(name: Name<'_>, process: &'static Process) -> Result<Self, Errno> {
        let opened;
        let pidfd = match name {
            Name::Pid(pid) => {
                opened = target::open(pid)?;
                opened.as_fd()
            }
            Name::Pidfd(pidfd) => pidfd,
        };
        let target = process.target(Identity::of(pidfd)?, pidfd)?;
        let guest = Guest::new();
        let slot = Arc::new(guest.slot());
        process.watch.add(Arc::clone(&slot));
        Ok(Self { guest, target, slot })
    }

    /// Is this the target with that name?
    fn is(&self, name: Name<'_>) -> bool {
        let identity = &self.target.identity;
        match name {
            Name::Pid(pid) => identity.pid == pid,
            Name::Pidfd(pidfd) => match target::inode(pidfd) {
                Some(inode) => identity.inode == Some(inode),
                None => Identity::of(pidfd).is_ok_and(|other| other == *identity),
            },
        }
    }
}
