//! Live processes: getting an executor into one that nobody prepared, and out again.
//!
//! In the order of what happens: [`rights`] says whether it may be done, [`place`] finds room for the [`bootstrap`],
//! [`birth`] has one thread of the target, [`stop`]ped, make an executor, [`settle`] gives that its pages and sends it
//! into the resident code. The [`caretaker`] is the thread that does all this and stays; [`removal`] is the way back,
//! taken by the caretaker or, if the supervisor dies, by the [`janitor`].
//!
//! Meanwhile, a [`visit`] to a thread of the target reads what only its tracer can see, or sends it on an [`errand`], if
//! the [`verdict`] of its seccomp filters allows that.

mod asleep;
mod birth;
mod bootstrap;
mod caretaker;
pub(crate) mod errand;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod inject;
mod janitor;
pub(crate) mod owners;
mod place;
mod quiescence;
mod region;
mod removal;
mod rights;
mod settle;
mod stop;
pub(crate) mod target;
pub(crate) mod thread;
mod tracer;
pub(crate) mod verdict;
pub(crate) mod visit;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::error::{Error, Result};
use crate::executor::region::Region;
use crate::executor::service::Service;
use crate::name::Engine;
use crate::refusal::AttachError;
use crate::stat::{Stat, living_thread};
use owners::Owners;
use visit::Visits;

/// A live process with an executor in it.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) pid: Pid,
    pub(crate) service: Service,
    /// The executor's process.
    pub(crate) executor: OwnedFd,
    /// Another executor, that shares things with the target.
    pub(crate) sharer: Option<(Service, OwnedFd)>,
    /// FS base of the target's main thread, if that was stopped.
    pub(crate) fs_base: Option<u64>,
    pub(crate) tracing: Tracing,
    pub(crate) visits: Arc<Visits>,
}

/// Whether executors are traced when they are ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tracing {
    /// No: they are tasks like others.
    Ends,
    /// By the caretaker, as long as they live: it keeps the target's seccomp filter away from them.
    GoesOn,
}

/// Attaches to the process of `pidfd`.
pub(crate) fn attach(
    pidfd: BorrowedFd<'_>,
    owners: Owners,
    region: Option<Region>,
    engine: Engine,
    spin_budget_ns: u64,
) -> Result<Attachment> {
    let pid = caretaker::pid_of(pidfd)?;
    let pidfd = pidfd.try_clone_to_owned().map_err(|_| Error::TooMany("open descriptors"))?;
    let shared = owners.shared();
    let sharer = if shared == 0 { 0 } else { libc::CLONE_VM | shared };
    let executors = [libc::CLONE_VM, sharer];
    caretaker::attach(caretaker::Order { pid, pidfd, executors, region, engine, spin_budget_ns })
}

/// Has the process of this number other memory than the task `other`, for all that is known? Errors leave the matter open.
fn differ_in_memory(pid: i32, other: i32) -> bool {
    // 1, 2 and 3 mean that they differ (kcmp(2)). A main thread that has ended has no memory, but others may live.
    let differs = |tid| compare_memory(tid, other) > 0;
    differs(pid) && living_thread(pid).is_none_or(|tid| tid == pid || differs(tid) && lives(tid))
}

/// Are these two tasks known to have the same memory?
fn has_memory_of(tid: i32, other: i32) -> bool {
    compare_memory(tid, other) == 0 && lives(tid)
}

/// Are the memory of this process and that of the task `other` known to be the same?
fn share_memory(pid: i32, other: i32) -> bool {
    while let Some(thread) = living_thread(pid) {
        let is_same = compare_memory(thread, other) == 0;
        if lives(thread) {
            return is_same;
        }
    }
    false
}

/// A thread that has ended has no memory, so it has the same as zombies and the kernel's tasks.
fn lives(tid: i32) -> bool {
    Stat::of(tid).is_some_and(Stat::lives)
}

fn compare_memory(pid: i32, other: i32) -> libc::c_long {
    const KCMP_VM: libc::c_int = 1;
    // SAFETY: kcmp takes numbers only.
    unsafe { libc::syscall(libc::SYS_kcmp, pid, other, KCMP_VM, 0, 0) }
}

/// A pidfd for the process that has this number now.
pub(crate) fn open(pid: i32) -> Result<OwnedFd> {
    let refusal = |errno: Errno| rights::refusal(pid, errno, AttachError::NoProcess);
    let number = Pid::from_raw(pid.max(0)).ok_or_else(|| refusal(Errno::SRCH))?;
    rustix::process::pidfd_open(number, PidfdFlags::empty()).map_err(|errno| match errno {
        // Of a thread that leads no process.
        Errno::INVAL | Errno::NOENT => rights::refusal(pid, errno, AttachError::Thread),
        errno => refusal(errno),
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn ended() -> Child {
        let child = Command::new("true").spawn().expect("a child");
        while !Stat::has_ended(child.id().cast_signed()) {
            std::thread::yield_now();
        }
        child
    }

    /// A thread that is about to end is like them.
    #[test]
    fn zombies_are_not_known_to_have_the_same_memory() {
        let (mut one, mut other) = (ended(), ended());
        let [a, b] = [&one, &other].map(|child| child.id().cast_signed());
        assert!(!has_memory_of(a, b) && !share_memory(a, b));
        one.wait().expect("its status");
        other.wait().expect("its status");
        let own = std::process::id().cast_signed();
        assert!(has_memory_of(own, own) && share_memory(own, own));
    }
}
