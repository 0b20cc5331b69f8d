//! The birth of an executor in a live process: one thread of that is stopped, makes it, and goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_setaffinity};

use super::asleep::Asleep;
use super::bootstrap::{self, Bootstrap};
use super::inject::{self, result_of};
use super::place::Place;
use super::stop::{ERESTARTNOINTR, Patience, Stopped, go_on_with, wait_until};
use crate::arch::x86_64::USER32_CS;
use crate::ptrace::{
    Stop, get_registers, look_for_any_beside, reap, request, set_registers, set_signal_mask,
};
use crate::stat::Stat;

/// Executors that have just been born: stopped, traced by this thread, about to end if nobody tells them otherwise.
#[derive(Debug)]
pub(super) struct Born {
    pub(super) executor: i32,
    /// One that shares things with the target, if that was asked for.
    pub(super) sharer: Option<i32>,
    /// The FS base of the thread that was stopped.
    pub(super) fs_base: u64,
}

/// For how long tasks that need only run may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Has `tid`, a thread of `pid` that we have seized, make executors with these flags for their clones.
pub(super) fn give_birth(pid: i32, tid: i32, place: &Place, executors: [i32; 2]) -> Result<Born, Errno> {
    let awake = Awake::processor_of(tid);
    let asleep = Asleep::look_at(tid);
    let thread = Stopped::stop(tid, asleep.as_ref())?;
    if let Err(errno) = commit(&thread, place, executors) {
        thread.release()?;
        return Err(errno);
    }
    let born = if thread.is_group_stopped {
        // It must not get back by itself: there it would run.
        let made = step_over_clone(tid, place);
        thread.release()?;
        made.and_then(|()| collect_executors(None, place, executors))
    } else {
        let mut passer = Passer { pid, thread: &thread, place, is_traced: true };
        passer.go_on()?;
        let born = collect_executors(Some(&mut passer), place, executors);
        passer.finish()?;
        born
    };
    drop(awake);
    let [executor, sharer] = born?;
    Ok(Born { executor: executor.ok_or(Errno::AGAIN)?, sharer, fs_base: thread.registers().fs_base })
}

/// From here on the thread, and what it makes, completes by itself.
fn commit(thread: &Stopped, place: &Place, executors: [i32; 2]) -> Result<(), Errno> {
    let registers = thread.registers();
    let is_ours = place.range().contains(&registers.rip);
    if registers.cs == USER32_CS || is_ours {
        return Err(if is_ours { Errno::BUSY } else { Errno::NOEXEC });
    }
    let executors = executors.map(|flags| match flags {
        0 => 0,
        flags => (flags | libc::CLONE_PTRACE).cast_unsigned(),
    });
    let bootstrap =
        Bootstrap { executors, signal_mask: thread.signal_mask, registers: &thread.registers_by_itself() };
    place.write(&bootstrap.bytes()).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    set_registers(thread.tid, &bootstrap::entry(registers, place.addr))
}

/// Lets the thread make its clone and nothing else. By the stops at the call's entry and end: if we die, the kernel lets
/// a thread go on from these, but delivers the `SIGTRAP` of a single step.
fn step_over_clone(tid: i32, place: &Place) -> Result<(), Errno> {
    // What a call has in rax until it returns.
    const ENTERED: i64 = -(libc::ENOSYS as i64);
    // Before the commit this could have outlived us.
    set_signal_mask(tid, !0)?;
    let deadline = Instant::now() + PATIENCE;
    let mut signal = 0;
    loop {
        request(libc::PTRACE_SYSCALL, tid, 0, signal)?;
        match wait_until(tid, deadline).ok_or(Errno::TIME)? {
            Stop::Syscall => {
                signal = 0;
                let registers = get_registers(tid)?;
                if registers.rip == place.addr + bootstrap::cloned() && registers.rax.cast_signed() != ENTERED
                {
                    return result_of(registers.rax).map(drop);
                }
            }
            // The one that cannot be blocked: its stop comes, and does not keep us from going on.
            Stop::Signal(stop) => signal = stop.unsigned_abs() as usize,
            Stop::Event | Stop::Group => signal = 0,
            Stop::Gone(_) => return Err(Errno::SRCH),
        }
    }
}

/// A thread that goes through the bootstrap by itself, from its commit on, and back to where it was. It is traced
/// meanwhile, so that a signal does not find it there.
struct Passer<'a> {
    pid: i32,
    thread: &'a Stopped,
    place: &'a Place,
    is_traced: bool,
}

impl Passer<'_> {
    fn go_on(&self) -> Result<(), Errno> {
        // Before the commit this could have outlived us.
        set_signal_mask(self.thread.tid, !0)?;
        go_on_with(self.thread.tid, 0)
    }

    /// It has stopped on its way, or after it.
    fn attend(&mut self, stop: Stop) -> Result<(), Errno> {
        match stop {
            Stop::Signal(signal) => self.meet(signal),
            // It stays where its process has been stopped, and is to be found at a place of its own there.
            Stop::Event | Stop::Group | Stop::Syscall => {
                if self.has_yet_to_clone()? {
                    step_over_clone(self.thread.tid, self.place)?;
                }
                self.leave_the_bootstrap()?;
                self.is_traced = false;
                request(libc::PTRACE_DETACH, self.thread.tid, 0, 0).map(drop)
            }
            Stop::Gone(_) => {
                self.is_traced = false;
                self.take_end()
            }
        }
    }

    /// A signal has come for it, all of which it blocks until it has cloned.
    fn meet(&self, signal: i32) -> Result<(), Errno> {
        // But for this one, which no handler sees.
        if signal != libc::SIGSTOP {
            self.leave_the_bootstrap()?;
        }
        go_on_with(self.thread.tid, signal)
    }

    /// It has ended: by itself, for it is not kept from that any more when it has cloned, or with its process.
    fn take_end(&self) -> Result<(), Errno> {
        let tid = self.thread.tid;
        // The process's own end is for its parent, which may be this process.
        if tid == self.pid {
            return Err(Errno::SRCH);
        }
        reap(tid);
        Ok(())
    }

    fn has_yet_to_clone(&self) -> Result<bool, Errno> {
        let registers = get_registers(self.thread.tid)?;
        let (start, cloned) = (self.place.addr, self.place.addr + bootstrap::cloned());
        Ok((start..cloned).contains(&registers.rip)
            || registers.rip == cloned && registers.rax.cast_signed() == -ERESTARTNOINTR)
    }

    /// Puts it where it was to come to, if it has not yet.
    fn leave_the_bootstrap(&self) -> Result<(), Errno> {
        if self.place.range().contains(&get_registers(self.thread.tid)?.rip) {
            self.thread.put_back()?;
        }
        Ok(())
    }

    /// Ends the tracing. It takes another stop: nothing else says that the thread needs the bootstrap no more.
    fn finish(self) -> Result<(), Errno> {
        if !self.is_traced {
            return Ok(());
        }
        let tid = self.thread.tid;
        let asleep = Asleep::look_at(tid);
        let again = match Stopped::stop_after(tid, asleep.as_ref(), &mut |signal| self.meet(signal)) {
            Err(Errno::SRCH) => return self.take_end(),
            again => again?,
        };
        if self.place.range().contains(&again.registers().rip) {
            self.thread.release()
        } else {
            again.leave_alone()
        }
    }
}

/// Lets helper and parent run to their ends, and keeps the executors.
fn collect_executors(
    mut passer: Option<&mut Passer<'_>>,
    place: &Place,
    executors: [i32; 2],
) -> Result<[Option<i32>; 2], Errno> {
    /// How long a task that has been made may take to be seen.
    const SOON: Duration = Duration::from_secs(3);
    let mut patience = Patience::until(Instant::now() + PATIENCE);
    // The helper, then the parent.
    let mut elders = Vec::new();
    let mut born = [None; 2];
    let mut helper_is_there = true;
    while helper_is_there || born.map(|tid| tid.is_some()) != executors.map(|flags| flags != 0) {
        const NOBODY: i32 = 0;
        let traced = passer.as_ref().filter(|passer| passer.is_traced);
        let thread = traced.map_or(NOBODY, |passer| passer.thread.tid);
        let found = look_for_any_beside(thread).map_err(|errno| match errno {
            // All have ended with the process.
            Errno::CHILD => Errno::SRCH,
            errno => errno,
        })?;
        match found {
            Some((tid, stop)) if tid == thread => {
                if let Some(passer) = &mut passer {
                    passer.attend(stop)?;
                }
            }
            Some((tid, Stop::Gone(_))) if elders.first() == Some(&tid) => {
                helper_is_there = false;
                patience = Patience::until(Instant::now() + SOON);
            }
            Some((_, Stop::Gone(_))) => {}
            Some((tid, stop)) if elders.contains(&tid) || elders.len() < 2 => {
                if !elders.contains(&tid) {
                    elders.push(tid);
                }
                let signal = match stop {
                    // The helper is a thread of the target, and this one cannot be blocked: it is the target's. It does not
                    // keep the helper from going on.
                    Stop::Signal(signal @ libc::SIGSTOP) if elders.first() == Some(&tid) => signal,
                    _ => 0,
                };
                go_on_with(tid, signal)?;
            }
            // They come in any order.
            Some((tid, _)) if !born.contains(&Some(tid)) => {
                let which = receive(tid, place, executors)?;
                born[which] = Some(tid);
            }
            Some(_) => {}
            None if patience.wait() => {}
            // The parent could not make them all.
            None => return Err(Errno::AGAIN),
        }
    }
    Ok(born)
}

/// Which of the executors a newborn is: it still has in `rdi` with which flags it was made. Unless it shares the
/// target's descriptors, it has copies of them, which keep pipes open that the target closes: they go at once.
fn receive(tid: i32, place: &Place, executors: [i32; 2]) -> Result<usize, Errno> {
    let flags = get_registers(tid)?.rdi & !u64::from(libc::CLONE_PTRACE.unsigned_abs());
    let which = executors.iter().position(|&wanted| u64::from(wanted.unsigned_abs()) == flags);
    let which = which.ok_or(Errno::AGAIN)?;
    if executors[which] & libc::CLONE_FILES == 0 {
        let all = [0, u64::from(u32::MAX), 0, 0, 0, 0];
        inject::call_soon(tid, place.addr + bootstrap::site_exit(), libc::SYS_close_range, all)?;
    }
    Ok(which)
}

/// Keeps the processor of a running thread from going to sleep while that is stopped: to wake one takes longer than
/// all that is done meanwhile, on virtual machines above all. It runs only when nobody else wants to.
struct Awake {
    done: Arc<AtomicBool>,
}

impl Awake {
    /// `None` if the thread is not running, or its processor is not one of ours.
    fn processor_of(tid: i32) -> Option<Self> {
        let stat = Stat::of(tid).filter(|stat| stat.is_running())?;
        let mut there = CpuSet::new();
        there.set(stat.processor);
        let done = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = sync_channel(1);
        let is_done = Arc::clone(&done);
        let spin = move || {
            let is_there = set_idle_priority() && sched_setaffinity(None, &there).is_ok();
            let _ = sender.send(());
            while is_there && !is_done.load(Ordering::Relaxed) {
                // Whoever was woken here has not got the processor yet if it has had its share just before (EEVDF),
                // which is looked at again in the next tick, ms later, or when this task yields.
                rustix::thread::sched_yield();
            }
        };
        std::thread::Builder::new().name("pvx-awake".into()).spawn(spin).ok()?;
        let _ = receiver.recv_timeout(Duration::from_micros(200));
        Some(Self { done })
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

/// Below all others (sched(7), `SCHED_IDLE`).
fn set_idle_priority() -> bool {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters are valid for the call, which is about the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) == 0 }
}
