//! Visits to a thread of a live process: what only a tracer can see of it is read, or it is sent on an [`errand`].

use std::sync::atomic::Ordering;
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use syscalls::Sysno;

use super::asleep::Asleep;
use super::errand;
use super::inject::result_of;
use super::janitor::Line;
use super::removal::Added;
use super::rights::Status;
use super::stop::{Patience, Stopped, go_on_with, rseq_configuration};
use super::thread::{Rseq, ThreadState, refusal};
use super::tracer::Tracer;
use super::verdict::require_allowed;
use crate::arch::x86_64::USER32_CS;
use crate::call::Call;
use crate::engine::ptrace::from_user;
use crate::error::{Error, Result};
use crate::executor::arena::Slot;
use crate::executor::filter::is_the_end_of_its_task;
use crate::executor::life::Life;
use crate::executor::service::Outcome;
use crate::exit::WaitStatus;
use crate::ptrace::{Stop, look_for_stop, seize, set_registers, set_signal_mask};
use crate::refusal::ThreadError;
use crate::signal::with_signals_blocked;
use crate::stat::Stat;
use crate::sync::lock;

/// The threads of one attached process, which are visited one after the other, and not while everything is removed.
#[derive(Debug)]
pub(crate) struct Visits {
    turn: Mutex<()>,
    added: &'static Added,
    /// Why what was added could not be removed.
    left: OnceLock<Errno>,
}

impl Visits {
    pub(super) fn new(added: &'static Added) -> Self {
        Self { turn: Mutex::new(()), added, left: OnceLock::new() }
    }

    /// Removes the attachment, and says so before anybody could visit again.
    pub(super) fn end(&self, life: &Life, line: Line) {
        let _turn = lock(&self.turn);
        if let Err(errno) = self.added.remove() {
            let _ = self.left.set(errno);
        }
        // Whoever waits for the end may exit then, and looks whether the janitor is still needed.
        drop(line);
        life.die(WaitStatus::Signaled(libc::SIGKILL));
    }

    /// Why the executor is still there after the [end](Self::end), if it is.
    pub(crate) fn left(&self) -> Option<Errno> {
        self.left.get().copied()
    }

    /// Reads the state of the thread `tid` of the process `pid`.
    pub(crate) fn look(&self, life: &Life, pid: i32, tid: i32) -> Result<ThreadState> {
        self.visit(life, pid, tid, |thread| {
            let state = state_of(&thread);
            thread.release().map_err(gone(tid))?;
            Ok(state)
        })
    }

    /// Has the thread execute some calls.
    pub(crate) fn execute(
        &self,
        life: &Life,
        pid: i32,
        tid: i32,
        calls: &[Call<'_>],
    ) -> Result<Vec<Outcome>> {
        self.visit(life, pid, tid, |thread| {
            if let Err(error) = self.require_possible(&thread, calls) {
                thread.release().map_err(gone(tid))?;
                return Err(error);
            }
            let results = self.send(&thread, &life.slot, calls);
            results.map_err(|errno| refusal(tid, errno, why_not(errno)))
        })
    }

    /// Stops the thread for `work`, in a thread of our own, which traces.
    fn visit<T: Send>(
        &self,
        life: &Life,
        pid: i32,
        tid: i32,
        work: impl FnOnce(Stopped) -> Result<T> + Send,
    ) -> Result<T> {
        let _turn = lock(&self.turn);
        if life.status().is_some() {
            return Err(Error::Dead);
        }
        let tracer = Tracer::default();
        let visit = || {
            tracer.begin();
            let thread = self.admit(pid, tid)?;
            work(thread)
        };
        let result = thread::scope(|scope| {
            let visitor = with_signals_blocked(|| {
                thread::Builder::new().name("pvx-visitor".into()).spawn_scoped(scope, visit)
            });
            let visitor = visitor.map_err(|error| Error::Host {
                call: "starting a thread to visit another",
                errno: Errno::from_io_error(&error).unwrap_or(Errno::AGAIN),
            })?;
            visitor.join().unwrap_or(Err(Error::Dead))
        });
        if result.is_err() {
            tracer.wait_until_it_traces_nobody();
        }
        result
    }

    fn admit(&self, pid: i32, tid: i32) -> Result<Stopped> {
        let no_thread = || refusal(tid, Errno::SRCH, ThreadError::NoThread);
        let status = Status::of(tid).map_err(|_| no_thread())?;
        if !status.is_thread_of(pid) {
            return Err(no_thread());
        }
        if Stat::of(tid).is_none_or(Stat::is_kernels) {
            return Err(refusal(tid, Errno::OPNOTSUPP, ThreadError::Kernels));
        }
        if !self.added.recall() {
            return Err(refusal(tid, Errno::BUSY, ThreadError::Busy));
        }
        seize(tid).map_err(|errno| match errno {
            Errno::PERM => refusal(tid, errno, status.why_not_permitted().into()),
            _ => no_thread(),
        })?;
        // The number cannot become another's any more, and had not yet.
        if !Status::of(tid).is_ok_and(|status| status.is_thread_of(pid)) {
            return Err(no_thread());
        }
        Stopped::stop(tid, Asleep::look_at(tid).as_ref()).map_err(|errno| refusal(tid, errno, why_not(errno)))
    }

    /// That a stopped thread can make these calls. Its process may have executed another program just now.
    fn require_possible(&self, thread: &Stopped, calls: &[Call<'_>]) -> Result<()> {
        if thread.registers().cs == USER32_CS {
            return Err(refusal(thread.tid, Errno::NOEXEC, why_not(Errno::NOEXEC)));
        }
        if self.added.has_region(thread.tid) != Ok(true) {
            return Err(refusal(thread.tid, Errno::SRCH, ThreadError::OtherMemory));
        }
        require_allowed(thread.tid, calls)
    }

    /// Sends the thread on an errand, and takes it back.
    fn send(&self, thread: &Stopped, slot: &Slot, calls: &[Call<'_>]) -> rustix::io::Result<Vec<Outcome>> {
        let tid = thread.tid;
        let registers = errand::prepare(slot, thread, calls);
        self.added.errand.store(tid, Ordering::Release);
        // From here on it completes by itself.
        let ended = set_registers(tid, &registers)
            // Before the commit this could have outlived us.
            .and_then(|()| set_signal_mask(tid, !0))
            .and_then(|()| go_on_with(tid, 0))
            .and_then(|()| wait_for_end(tid, slot));
        let back = Stopped::stop(tid, None).and_then(|now| {
            let is_there = errand::range(slot.region()).contains(&now.registers().rip);
            if is_there { thread.release() } else { now.release() }
        });
        if matches!(back, Ok(()) | Err(Errno::SRCH)) {
            self.added.errand.store(0, Ordering::Release);
        }
        ended.and(back)?;
        Ok(errand::results(slot, calls.len()).into_iter().map(result_of).collect())
    }
}

/// Waits until the thread has made its calls.
fn wait_for_end(tid: i32, slot: &Slot) -> rustix::io::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let mut patience = Patience::until(Instant::now() + PATIENCE);
    while !errand::is_done(slot) {
        match look_for_stop(tid) {
            // The one that cannot be blocked: its stop comes, and does not keep the thread from going on.
            Some(Stop::Signal(stop)) => go_on_with(tid, stop)?,
            Some(Stop::Event | Stop::Group | Stop::Syscall) => go_on_with(tid, 0)?,
            Some(Stop::Gone(_)) => return Err(Errno::SRCH),
            None if patience.wait() => {}
            None => return Err(Errno::TIME),
        }
    }
    Ok(())
}

fn state_of(thread: &Stopped) -> ThreadState {
    let rseq = match rseq_configuration(thread.tid) {
        Err(_) => Rseq::Unknown,
        Ok(rseq) if rseq.pointer == 0 => Rseq::None,
        Ok(rseq) => Rseq::Registered { addr: rseq.pointer, len: rseq.size, signature: rseq.signature },
    };
    ThreadState { registers: from_user(thread.registers()), rseq }
}

fn gone(tid: i32) -> impl Fn(Errno) -> Error {
    move |errno| refusal(tid, errno, why_not(errno))
}

fn why_not(errno: Errno) -> ThreadError {
    match errno {
        Errno::BUSY => ThreadError::DoesNotStop,
        Errno::NOEXEC => ThreadError::Code32,
        Errno::TIME => ThreadError::TooLong,
        Errno::SRCH => ThreadError::Ended,
        _ => ThreadError::NotTraced,
    }
}

/// Calls that a thread does not come back from, that change what it gets back, or that use the kernel's one note of how
/// to restart a call, which may be about a call that the thread was in (`set_restart_fn` in the kernel).
pub(crate) fn is_not_for_threads(call: &Call<'_>) -> bool {
    use Sysno as S;
    const ARCH_SET: std::ops::RangeInclusive<u64> = 0x1001..=0x1002;
    const PR_SET_SYSCALL_USER_DISPATCH: u64 = 59;
    match call.nr() {
        S::rt_sigprocmask | S::rt_sigsuspend | S::seccomp | S::rseq => true,
        S::restart_syscall | S::nanosleep | S::clock_nanosleep | S::poll | S::futex => true,
        S::arch_prctl => ARCH_SET.contains(&call.args()[0]),
        S::prctl => [libc::PR_SET_SECCOMP as u64, PR_SET_SYSCALL_USER_DISPATCH].contains(&call.args()[0]),
        nr => is_the_end_of_its_task(nr),
    }
}
