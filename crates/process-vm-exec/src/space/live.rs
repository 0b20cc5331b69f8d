//! Live processes, as address spaces in which calls are executed and code runs.

use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::Pid;

use super::Space;
use super::builder::{LiveProcessBuilder, Rewriting, Settings};
use super::function::{self, Tls};
use super::inner::{Inner, Origin};
use crate::attach::errand;
use crate::attach::owners::Owners;
use crate::attach::target::Target;
use crate::attach::thread::{ThreadState, refusal};
use crate::attach::visit::is_not_for_threads;
use crate::call::{Call, Returned};
use crate::engine::trap::Trampoline;
use crate::error::{DescriptorError, Error, Result};
use crate::executor::filter::ServiceCalls;
use crate::executor::region::Region;
use crate::name::Engine;
use crate::refusal::ThreadError;

/// A live process with an executor in its memory: calls are executed and code runs there beside its own threads.
///
/// Dropping the value, or the end of this process in whatever way, removes all that was added.
///
/// ```
/// use process_vm_exec::{Call, LiveProcess, Sysno};
///
/// # fn main() -> process_vm_exec::Result<()> {
/// # let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
/// # let pid = child.id() as i32;
/// # let process = match LiveProcess::attach_pid(pid) {
/// #     Ok(process) => process,
/// #     Err(error) => { println!("SKIP: {error}"); let _ = child.kill(); return Ok(()) }
/// # };
/// // A descriptor that is made in the process comes here.
/// let event = process.syscall(&Call::new(Sysno::eventfd2))?.into_file().expect("a descriptor");
/// let buffer = process.scratch(8)?;
/// process.write(buffer.addr(), &1u64.to_ne_bytes())?;
/// let write = Call::new(Sysno::write).fd(0, std::os::fd::AsFd::as_fd(&event)).arg(1, buffer.addr()).arg(2, 8);
/// assert_eq!(process.syscall(&write)?.value, 8);
/// # drop(buffer);
/// # process.detach()?;
/// # let _ = (child.kill(), child.wait());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct LiveProcess {
    space: Space,
    target: Arc<Target>,
}

impl LiveProcess {
    /// Puts an executor into the live process of `target`, a pidfd (pidfd_open(2)): from then on code and system
    /// calls run in its memory beside its own threads, which run on. One of them is stopped twice, for some 50
    /// microseconds each; a system call that it waits in goes on with the time that was left.
    ///
    /// Dropping the value, or the end of this process in whatever way, removes all that was added.
    ///
    /// The executor is an orphan: init is its parent, or the target itself if that adopts orphans, as the init of its pid
    /// namespace or by `PR_SET_CHILD_SUBREAPER` (prctl(2)). Such a target must then reap it.
    ///
    /// # Errors
    /// [`Error::Attach`] says why the process cannot be attached to; it is as it was then.
    pub fn attach(target: BorrowedFd<'_>) -> Result<Self> {
        Self::builder().attach(target)
    }

    /// As [`attach`](Self::attach), for the process with this number now.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach).
    pub fn attach_pid(pid: i32) -> Result<Self> {
        Self::builder().attach_pid(pid)
    }

    /// To attach with something else than the defaults.
    pub fn builder() -> LiveProcessBuilder {
        LiveProcessBuilder::default()
    }

    pub(super) fn with(
        pidfd: BorrowedFd<'_>,
        owners: Owners,
        region: Option<Region>,
        spin_budget_ns: u64,
    ) -> Result<Self> {
        // The target's text is not ours to rewrite, its signals are not ours to take, and a tracer besides the caretaker would
        // be in the way of the removal.
        let engine = Engine::Trap;
        engine.require()?;
        let (rewriting, service_calls) = (Rewriting::Off, ServiceCalls::All);
        let settings = Settings { engine, rewriting, spin_budget_ns, time_limit: None, service_calls };
        let (service, target) = Target::attach(pidfd, owners, region, engine, spin_budget_ns)?;
        let target = Arc::new(target);
        let origin = Origin::Attached(Arc::clone(&target));
        let space = Space(Inner::new(origin, service, settings, Trampoline::Unused, <_>::default()));
        Ok(Self { space, target })
    }

    /// Removes all that [`attach`](Self::attach) added to the process, and waits until that is done. Dropping the value does the
    /// same and says nothing.
    ///
    /// # Errors
    /// [`Error::Dead`] if the process is gone already. [`Error::Host`] if this process may not trace the executor any
    /// more, or another does: then it is removed when this process ends, if its first attachment was made with the
    /// right to do so.
    pub fn detach(self) -> Result<()> {
        let life = &self.space.0.service.life;
        let was_alive = life.status().is_none();
        life.kill();
        life.wait_for_end();
        if let Some(errno) = self.target.visits().left() {
            return Err(Error::Host { call: "removing the executor from a live process", errno });
        }
        if was_alive { Ok(()) } else { Err(Error::Dead) }
    }

    /// The process; `None` once it is dead, or we have detached from it.
    pub fn pid(&self) -> Option<Pid> {
        self.space.0.service.life.status().is_none().then(|| self.target.process())
    }

    /// The process that executes calls in the target's memory for this one, as this one's pid namespace knows it; `None` once
    /// it is gone.
    pub fn executor(&self) -> Option<Pid> {
        self.executing()
    }

    /// Has the process still the memory that it was attached in? It leaves it by execve(2), or by its end. Calls find that
    /// out themselves, some 10 ms late at most; this looks now.
    pub fn is_current(&self) -> bool {
        self.target.look_at_memory(&self.space.0.service).is_ok()
    }

    /// Executes a system call in the process's memory: system call mode. Addresses in it are the process's; whose descriptors,
    /// directory and signal handlers it means, [`LiveProcessBuilder`] says. What else belongs to a task, such as its number,
    /// signal mask and timers, is the executor's: `getpid` returns [`executor`](Self::executor). One of the process's own
    /// threads makes calls by [`batch_in_thread`](Self::batch_in_thread).
    ///
    /// # Errors
    /// [`Error::Space`] with the errno of the call; [`Error::Reserved`] if it would change the executor's pages;
    /// [`Error::EndOfTask`] if it would end the executor or make another; [`Error::Descriptor`] if a descriptor of the caller's is not
    /// passed as one, [`Error::Exposed`] if it may not be passed; [`Error::Dead`] if the process has ended.
    pub fn syscall(&self, call: &Call<'_>) -> Result<Returned> {
        self.space.0.prepare(std::slice::from_ref(call))?;
        let outcome = self.target.execute(&self.space.0.service, call)?;
        outcome.map_err(|errno| Error::Space { call: call.nr().name(), errno })
    }

    /// Executes several system calls in order, each whatever the results of those before: with one hand-off, unless
    /// descriptors are passed.
    ///
    /// # Errors
    /// As for [`syscall`](Self::syscall), but errnos of calls are among the results. If one call would change the
    /// executor's pages, none is executed.
    pub fn batch(&self, calls: &[Call<'_>]) -> Result<Vec<std::result::Result<Returned, Errno>>> {
        self.space.0.prepare(calls)?;
        self.target.execute_all(&self.space.0.service, calls)
    }

    /// Calls the function at `addr` in the space with up to six integer arguments, as the System V ABI has it, on a
    /// stack of its own, and returns what it leaves in `rax`. The system calls that it makes are executed in the
    /// space.
    ///
    /// # Safety
    /// System calls of the function mean the caller's descriptors, unless
    /// [`files`](LiveProcessBuilder::files) says otherwise, by their numbers: as for
    /// [`Call::with_descriptor_numbers`].
    ///
    /// # Errors
    /// [`Error::Function`] if it does not return, but faults.
    pub unsafe fn call(&self, addr: u64, args: &[u64], tls: Tls) -> Result<u64> {
        // SAFETY: the caller promises the same.
        unsafe { function::call(self, addr, args, tls, self.target.fs_base()) }
    }

    /// Reads the registers of the thread `tid` of a live process, and what else only its tracer can see. It is stopped
    /// for that, for some 30 microseconds; a system call that it waits in goes on with the time that was left.
    ///
    /// ```
    /// use process_vm_exec::LiveProcess;
    ///
    /// # fn main() -> process_vm_exec::Result<()> {
    /// # let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
    /// # let pid = child.id() as i32;
    /// # let space = match LiveProcess::attach_pid(pid) {
    /// #     Ok(space) => space,
    /// #     Err(error) => { println!("SKIP: {error}"); let _ = child.kill(); return Ok(()) }
    /// # };
    /// let state = space.thread(pid)?;
    /// println!("{:#x}, {:?}", state.registers.rip, state.rseq);
    /// # space.detach()?;
    /// # let _ = (child.kill(), child.wait());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Thread`] says why it cannot be had: there is no such thread in the process, or it
    /// is in an uninterruptible sleep and does not stop within two seconds. It is as it was then.
    pub fn thread(&self, tid: i32) -> Result<ThreadState> {
        let service = &self.space.0.service;
        self.target.require_same_memory(service)?;
        self.target.visits().look(&service.life, self.target.pid(), tid)
    }

    /// Has the thread `tid` of a live process make these calls itself, in order, between two of its own instructions:
    /// for what the kernel tells or does to the calling thread alone. It goes on as if nothing had been, also if this
    /// process is killed meanwhile. The results are those of [`batch`](Self::batch). The calls are the thread's in
    /// everything: descriptors, credentials, seccomp filter. Buffers can be had by [`scratch`](Space::scratch).
    ///
    /// The thread stands still while it makes them, and what it blocks is everything: this is no place for calls that
    /// wait. After five seconds they are given up; the one that waits then was interrupted, and those after it were not
    /// made.
    ///
    /// ```
    /// use process_vm_exec::{Call, LiveProcess, Sysno};
    ///
    /// # fn main() -> process_vm_exec::Result<()> {
    /// # let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
    /// # let pid = child.id() as i32;
    /// # let space = match LiveProcess::attach_pid(pid) {
    /// #     Ok(space) => space,
    /// #     Err(error) => { println!("SKIP: {error}"); let _ = child.kill(); return Ok(()) }
    /// # };
    /// let gettid = Call::new(Sysno::gettid);
    /// assert_eq!(space.batch_in_thread(pid, &[gettid])?, [Ok(pid as u64)]);
    /// # space.detach()?;
    /// # let _ = (child.kill(), child.wait());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Thread`] says why nothing was done, and the thread is as it was: as for
    /// [`thread`](Self::thread); it runs 32-bit code, or dispatches its system calls to itself (prctl(2),
    /// `PR_SET_SYSCALL_USER_DISPATCH`); its seccomp filters do not allow one of the calls or rt_sigprocmask(2), or
    /// cannot be looked at, which takes CAP_SYS_ADMIN. `EOPNOTSUPP` for calls that would end the thread or take it
    /// elsewhere, and for those that change what it is given back afterwards, such as its signal mask; `E2BIG` for more
    /// than 1024. [`Error::Reserved`] as for [`batch`](Self::batch). With `ETIME`, the calls
    /// were given up.
    pub fn batch_in_thread(
        &self,
        tid: i32,
        calls: &[Call<'_>],
    ) -> Result<Vec<std::result::Result<u64, Errno>>> {
        if let Some(call) = calls.iter().find(|call| is_not_for_threads(call)) {
            return Err(refusal(tid, Errno::OPNOTSUPP, ThreadError::Unsuitable(call.nr().name())));
        }
        if calls.len() > errand::MAX_CALLS {
            return Err(refusal(tid, Errno::TOOBIG, ThreadError::TooManyCalls));
        }
        if let Some(call) = calls.iter().find(|call| call.has_files()) {
            return Err(Error::Descriptor { call: call.nr().name(), why: DescriptorError::Targets });
        }
        self.space.0.prepare(calls)?;
        let service = &self.space.0.service;
        self.target.require_same_memory(service)?;
        if calls.is_empty() {
            return Ok(Vec::new());
        }
        self.target.visits().execute(&service.life, self.target.pid(), tid, calls)
    }
}

impl Deref for LiveProcess {
    type Target = Space;

    fn deref(&self) -> &Space {
        &self.space
    }
}
