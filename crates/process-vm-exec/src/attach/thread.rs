//! Threads of a live process, as those see them who have its address space.

use rustix::io::Errno;
use syscalls::Sysno;

use super::errand;
use super::target::is_the_executors_end;
use super::visit::refusal;
use crate::arch::x86_64::Registers;
use crate::error::Result;
use crate::space::{AddressSpace, Call};

/// What only a tracer can see of a thread: see [`AddressSpace::thread`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadState {
    /// Its registers. Those of a thread that waits in a system call have what the kernel knows it by in `rax`:
    /// `-EINTR` or one of the numbers from -512 on with which it is restarted.
    pub registers: Registers,
    /// Its area of restartable sequences.
    pub rseq: Rseq,
}

/// A thread's registration of restartable sequences (rseq(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rseq {
    /// The kernel does not tell: it is older than Linux 5.13, or has no restartable sequences.
    Unknown,
    /// There is none.
    None,
    /// The kernel keeps an area up to date.
    Registered {
        /// Where it is.
        addr: u64,
        /// Its length in bytes.
        len: u32,
        /// What stands before abort handlers.
        signature: u32,
    },
}

impl AddressSpace {
    /// Reads the registers of the thread `tid` of a live process, and what else only its tracer can see. It is stopped
    /// for that, for some 30 microseconds; a system call that it waits in goes on with the time that was left.
    ///
    /// ```
    /// use process_vm_exec::{AddressSpace, Errno};
    ///
    /// # fn main() -> process_vm_exec::Result<()> {
    /// # let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
    /// # let pid = child.id() as i32;
    /// # let space = match AddressSpace::attach_pid(pid) {
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
    /// [`Error::Thread`](crate::Error::Thread) says why it cannot be had: there is no such thread in the process, or it
    /// is in an uninterruptible sleep and does not stop within two seconds. It is as it was then.
    pub fn thread(&self, tid: i32) -> Result<ThreadState> {
        let (target, service) = self.attached(tid)?;
        target.require_same_memory(service)?;
        target.visits().look(&service.life, target.pid(), tid)
    }

    /// Has the thread `tid` of a live process make these calls itself, in order, between two of its own instructions:
    /// for what the kernel tells or does to the calling thread alone. It goes on as if nothing had been, also if this
    /// process is killed meanwhile. The results are those of [`batch`](Self::batch). The calls are the thread's in
    /// everything: descriptors, credentials, seccomp filter. Buffers can be had by [`scratch`](Self::scratch).
    ///
    /// The thread stands still while it makes them, and what it blocks is everything: this is no place for calls that
    /// wait. After five seconds they are given up; the one that waits then was interrupted, and those after it were not
    /// made.
    ///
    /// ```
    /// use process_vm_exec::{AddressSpace, Call, Sysno};
    ///
    /// # fn main() -> process_vm_exec::Result<()> {
    /// # let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
    /// # let pid = child.id() as i32;
    /// # let space = match AddressSpace::attach_pid(pid) {
    /// #     Ok(space) => space,
    /// #     Err(error) => { println!("SKIP: {error}"); let _ = child.kill(); return Ok(()) }
    /// # };
    /// let gettid = Call { nr: Sysno::gettid, args: [0; 6] };
    /// assert_eq!(space.batch_in_thread(pid, &[gettid])?, [Ok(pid as u64)]);
    /// # space.detach()?;
    /// # let _ = (child.kill(), child.wait());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Thread`](crate::Error::Thread) says why nothing was done, and the thread is as it was: as for
    /// [`thread`](Self::thread); it runs 32-bit code, or dispatches its system calls to itself (prctl(2),
    /// `PR_SET_SYSCALL_USER_DISPATCH`); its seccomp filters do not allow one of the calls or rt_sigprocmask(2), or
    /// cannot be looked at, which takes CAP_SYS_ADMIN. `EOPNOTSUPP` for calls that would end the thread or take it
    /// elsewhere, and for those that change what it is given back afterwards, such as its signal mask; `E2BIG` for more
    /// than 1024. [`Error::Reserved`](crate::Error::Reserved) as for [`batch`](Self::batch). With `ETIME`, the calls
    /// were given up.
    pub fn batch_in_thread(&self, tid: i32, calls: &[Call]) -> Result<Vec<std::result::Result<u64, Errno>>> {
        let (target, service) = self.attached(tid)?;
        if let Some(call) = calls.iter().find(|call| is_not_for_threads(call)) {
            let why = format!("{} is not for a thread that is to go on as before", call.nr.name());
            return Err(refusal(tid, Errno::OPNOTSUPP, &why));
        }
        if calls.len() > errand::MAX_CALLS {
            return Err(refusal(tid, Errno::TOOBIG, "these are more calls than it can make at once"));
        }
        self.prepare(calls)?;
        target.require_same_memory(service)?;
        if calls.is_empty() {
            return Ok(Vec::new());
        }
        target.visits().execute(&service.life, target.pid(), tid, calls)
    }
}

/// Calls that a thread does not come back from, that change what it gets back, or that use the kernel's one note of how
/// to restart a call, which may be about a call that the thread was in (`set_restart_fn` in the kernel).
fn is_not_for_threads(call: &Call) -> bool {
    use Sysno as S;
    const ARCH_SET: std::ops::RangeInclusive<u64> = 0x1001..=0x1002;
    const PR_SET_SYSCALL_USER_DISPATCH: u64 = 59;
    match call.nr {
        S::rt_sigprocmask | S::rt_sigsuspend | S::seccomp | S::rseq => true,
        S::restart_syscall | S::nanosleep | S::clock_nanosleep | S::poll | S::futex => true,
        S::arch_prctl => ARCH_SET.contains(&call.args[0]),
        S::prctl => [libc::PR_SET_SECCOMP as u64, PR_SET_SYSCALL_USER_DISPATCH].contains(&call.args[0]),
        nr => is_the_executors_end(nr),
    }
}
