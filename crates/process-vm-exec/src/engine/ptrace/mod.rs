//! The `ptrace` engine: contexts run by tasks that the calling thread traces with `PTRACE_SYSEMU` (ptrace(2)).
//!
//! Slow and plain: the reference that the other engines are compared with. The traced tasks are executors that sleep
//! in their own code; while a context has one, its registers are the guest's. No signal is ever delivered there.
//!
//! Only the thread that attached may ask a traced task anything. A context that is run by another thread moves to
//! another task; so that it can, everything is fetched at each exit.

mod inference;

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use rustix::io::Errno;

use super::{Called, Event, Seat};
use crate::arch::x86_64::{Registers, xstate};
use crate::error::{Error, Result};
use crate::executor::code;
use crate::executor::life::Life;
use crate::executor::task::Executor;
use crate::exit::{Arch, Syscall, WaitStatus};
use crate::ptrace::{
    NO_SYSCALL, NT_X86_XSTATE, PTRACE_GET_SYSCALL_INFO, Stop, get_registers, request, set_signal_mask,
    wait_for_stop,
};
use crate::signal::SigInfo;
use crate::stat::Stat;
use crate::sync::lock;

/// The traced tasks of one space.
#[derive(Debug, Default)]
pub(crate) struct Tracees {
    tracees: Mutex<Vec<Weak<Tracee>>>,
    /// Executors that no thread traces.
    untraced: Arc<Mutex<Vec<Executor>>>,
}

impl Tracees {
    /// A task that the calling thread traces.
    pub(crate) fn seat(&self, start: impl FnOnce() -> Result<Executor>) -> Result<Arc<dyn Seat>> {
        Traced::release_unused();
        let untraced = lock(&self.untraced).pop();
        let executor = untraced.map_or_else(start, Ok)?;
        let tracee = Arc::new(Tracee::attach(executor, Arc::clone(&self.untraced))?);
        Traced::keep(&tracee);
        let mut tracees = lock(&self.tracees);
        tracees.retain(|tracee| tracee.strong_count() != 0);
        tracees.push(Arc::downgrade(&tracee));
        Ok(tracee)
    }

    /// The process has been killed: collects those of its tasks that the calling thread traces, for the kernel does
    /// not report a process dead before its last traced task has been waited for. Other tracer
    /// threads may not wait for theirs soon, so the process is assumed to be dead.
    pub(crate) fn collect(&self) {
        let tracees: Vec<_> = lock(&self.tracees).iter().filter_map(Weak::upgrade).collect();
        let (ours, others): (Vec<_>, Vec<_>) =
            tracees.into_iter().partition(|tracee| tracee.tracer == this_thread());
        for tracee in ours {
            tracee.collect();
        }
        if let Some(tracee) = others.first() {
            tracee.life.die(WaitStatus::Signaled(libc::SIGKILL));
        }
        Traced::release_unused();
    }
}

/// One traced task.
#[derive(Debug)]
struct Tracee {
    life: Arc<Life>,
    /// Taken when the task is let go.
    executor: Mutex<Option<Executor>>,
    tid: libc::pid_t,
    tracer: libc::pid_t,
    /// What the executor was doing when it was attached to.
    asleep: libc::user_regs_struct,
    guest: Mutex<Guest>,
    interrupt: AtomicBool,
    untraced: Arc<Mutex<Vec<Executor>>>,
}

/// The guest's state at its last exit.
#[derive(Debug)]
struct Guest {
    registers: Registers,
    xstate: Vec<u8>,
    has_run: bool,
}

/// Begins to trace an executor, which is asleep in its own code, and tells its registers. No signal passes it from then
/// on.
fn seize(executor: &Executor) -> Result<libc::user_regs_struct> {
    let tid = executor.tid.as_raw_pid();
    crate::ptrace::seize(tid).map_err(|errno| match errno {
        Errno::SRCH | Errno::PERM if Stat::has_ended(tid) => Error::Dead,
        errno => Error::host("PTRACE_SEIZE (is the sysctl kernel.yama.ptrace_scope 2 or 3?)")(errno),
    })?;
    stop_asleep(tid, &executor.life).map_err(|errno| match errno {
        // It has been killed, and its process does not end before this thread has waited for it.
        Errno::SRCH => {
            collect(tid, &executor.life);
            Error::Dead
        }
        errno => {
            let _ = request(libc::PTRACE_DETACH, tid, 0, 0);
            Error::host("stopping a task for the ptrace engine")(errno)
        }
    })
}

/// Stops a task that we have just seized.
fn stop_asleep(tid: libc::pid_t, life: &Life) -> rustix::io::Result<libc::user_regs_struct> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0)?;
    match wait_for_stop(tid) {
        Stop::Gone(status) => {
            life.die(status);
            return Err(Errno::SRCH);
        }
        Stop::Event | Stop::Group | Stop::Syscall | Stop::Signal(_) => {}
    }
    let asleep = get_registers(tid)?;
    set_signal_mask(tid, 0)?;
    Ok(asleep)
}

/// Waits for the end of a task that we trace and that has been killed.
fn collect(tid: libc::pid_t, life: &Life) {
    loop {
        if let Stop::Gone(status) = wait_for_stop(tid) {
            return life.die(status);
        }
    }
}

/// An executor that runs nothing, but is there for the signals that somebody sends its process.
#[derive(Debug)]
pub(super) struct Parked(libc::pid_t);

impl Parked {
    pub(super) fn seize(executor: &Executor) -> Result<Self> {
        seize(executor).map(|_| Self(executor.tid.as_raw_pid()))
    }

    /// Waits for the next signal, which has no effect; or the end of the process.
    pub(super) fn next_signal(&self) -> std::result::Result<SigInfo, WaitStatus> {
        loop {
            // If that fails, the end is next.
            let _ = request(libc::PTRACE_CONT, self.0, 0, 0);
            match wait_for_stop(self.0) {
                Stop::Gone(status) => return Err(status),
                Stop::Signal(_) => {
                    if let Ok(info) = siginfo(self.0) {
                        return Ok(info);
                    }
                }
                Stop::Event | Stop::Group | Stop::Syscall => {}
            }
        }
    }
}

/// The signal for which a task has stopped.
fn siginfo(tid: libc::pid_t) -> rustix::io::Result<SigInfo> {
    let mut bytes = [0u8; 128];
    request(libc::PTRACE_GETSIGINFO, tid, 0, bytes.as_mut_ptr() as usize)?;
    Ok(SigInfo::from_bytes(bytes))
}

impl Tracee {
    fn attach(executor: Executor, untraced: Arc<Mutex<Vec<Executor>>>) -> Result<Self> {
        let tid = executor.tid.as_raw_pid();
        let mut asleep = seize(&executor)?;
        if asleep.orig_rax != NO_SYSCALL {
            // The sleep in a futex is not restarted but looks again.
            asleep.rax = (-i64::from(libc::EINTR)).cast_unsigned();
            asleep.orig_rax = NO_SYSCALL;
        }
        let tracer = this_thread();
        let guest = Mutex::new(Guest { registers: Registers::default(), xstate: Vec::new(), has_run: false });
        let interrupt = AtomicBool::new(false);
        let life = Arc::clone(&executor.life);
        let executor = Mutex::new(Some(executor));
        Ok(Self { life, executor, tid, tracer, asleep, guest, interrupt, untraced })
    }

    fn collect(&self) {
        collect(self.tid, &self.life);
    }

    /// Runs the guest to its next stop.
    fn resume(&self) -> Event {
        loop {
            // SYSEMU stops at the entry to a system call and skips the call.
            if request(libc::PTRACE_SYSEMU, self.tid, 0, 0).is_err() {
                return self.died();
            }
            let stop = wait_for_stop(self.tid);
            let event = match stop {
                Stop::Gone(status) => {
                    // Not when the process is reaped: that takes all who trace a task of it.
                    self.life.die(status);
                    return Event::Died;
                }
                Stop::Event | Stop::Group => continue,
                Stop::Syscall => self.fetch(stop).and_then(|()| self.called()),
                Stop::Signal(code::INTERRUPT_SIGNAL) if !self.interrupt.swap(false, Ordering::SeqCst) => {
                    continue;
                }
                Stop::Signal(code::INTERRUPT_SIGNAL) => {
                    self.fetch(stop).map(|()| Event::Interrupted { rax: lock(&self.guest).registers.rax })
                }
                Stop::Signal(_) => self.fetch(stop).and_then(|()| self.signal()),
            };
            return event.unwrap_or_else(|_| self.died());
        }
    }

    /// A request failed: the task has been killed.
    fn died(&self) -> Event {
        self.collect();
        Event::Died
    }

    /// Gets the guest's state, so that any thread can read it.
    fn fetch(&self, stop: Stop) -> rustix::io::Result<()> {
        let registers = get_registers(self.tid)?;
        let mut guest = lock(&self.guest);
        guest.registers = from_user(&registers);
        if let Stop::Syscall = stop {
            // The number is there, and rax says ENOSYS already.
            guest.registers.rax = registers.orig_rax;
        }
        guest.xstate.resize(xstate::size(), 0);
        let mut area =
            libc::iovec { iov_base: guest.xstate.as_mut_ptr().cast(), iov_len: guest.xstate.len() };
        request(libc::PTRACE_GETREGSET, self.tid, NT_X86_XSTATE, (&raw mut area) as usize)?;
        xstate::tidy(&mut guest.xstate);
        Ok(())
    }

    fn called(&self) -> rustix::io::Result<Event> {
        // struct ptrace_syscall_info: op, arch, ...
        let mut info = [0u32; 24];
        request(PTRACE_GET_SYSCALL_INFO, self.tid, size_of_val(&info), info.as_mut_ptr() as usize)?;
        Ok(Self::call_event(info[1]))
    }

    fn call_event(arch: u32) -> Event {
        let arch = if arch == code::AUDIT_ARCH_X86_64 { Arch::X86_64 } else { Arch::I386 };
        Event::Call { arch, how: Called::Trapped }
    }

    fn signal(&self) -> rustix::io::Result<Event> {
        let info = siginfo(self.tid)?;
        if info.signal() == libc::SIGSYS && info.code() > 0 {
            // The filter's: a call through the vsyscall page, which ptrace does not see.
            return Ok(Self::call_event(info.i32_at(28).cast_unsigned()));
        }
        let registers = lock(&self.guest).registers;
        if !code::is_synchronous(info.signal()) || info.code() <= 0 {
            return Ok(Event::Signal { rax: registers.rax, info });
        }
        let xstate = lock(&self.guest).xstate.clone();
        let process = self.life.pid();
        let fault = inference::fault(&info, &registers, &xstate, *process);
        Ok(Event::Fault { rax: registers.rax, fault })
    }
}

impl Seat for Tracee {
    fn answer(&self, rax: u64) -> Event {
        let registers = Registers { rax, ..self.registers() };
        self.load(&registers)
    }

    fn load(&self, registers: &Registers) -> Event {
        {
            let mut guest = lock(&self.guest);
            guest.registers = *registers;
            guest.has_run = true;
        }
        if self.interrupt.swap(false, Ordering::SeqCst) {
            return Event::Interrupted { rax: registers.rax };
        }
        let user = to_user(registers);
        match request(libc::PTRACE_SETREGS, self.tid, 0, (&raw const user) as usize) {
            Ok(_) => self.resume(),
            Err(_) => self.died(),
        }
    }

    fn read_call(&self, arch: Arch, call: &mut Syscall) {
        *call = super::call_of(&lock(&self.guest).registers, arch);
    }

    fn registers(&self) -> Registers {
        lock(&self.guest).registers
    }

    fn xstate(&self) -> Result<Vec<u8>> {
        let guest = lock(&self.guest);
        Ok(if guest.xstate.is_empty() { xstate::initial() } else { guest.xstate.clone() })
    }

    fn set_xstate(&self, area: &[u8]) -> Result<()> {
        // The kernel takes a whole one only. What contexts do not carry is as a processor has it at first.
        let mut area = area.to_vec();
        area.resize(xstate::regset_len(), 0);
        let local = libc::iovec { iov_base: area.as_mut_ptr().cast(), iov_len: area.len() };
        match request(libc::PTRACE_SETREGSET, self.tid, NT_X86_XSTATE, (&raw const local) as usize) {
            Ok(_) => Ok(()),
            Err(Errno::SRCH) => {
                self.collect();
                Err(Error::Dead)
            }
            Err(errno) => Err(Error::Host { call: "PTRACE_SETREGSET", errno }),
        }
    }

    fn has_initial_xstate(&self) -> bool {
        // The task may have been taken over anywhere in its own code.
        false
    }

    fn is_usable(&self) -> bool {
        self.tracer == this_thread() && lock(&self.executor).is_some()
    }

    fn interrupt(&self) {
        if !self.interrupt.swap(true, Ordering::SeqCst)
            && let Some(executor) = &*lock(&self.executor)
        {
            executor.send_interrupt_signal();
        }
    }

    fn kill(&self) {
        self.life.kill();
    }

    fn take_interrupt(&self) -> bool {
        self.interrupt.swap(false, Ordering::SeqCst)
    }
}

impl Tracee {
    /// Lets the executor go on sleeping, for another thread. What the guest left stays here. Only for the tracer.
    fn release(&self) {
        let mut executor = lock(&self.executor);
        let asleep = (&raw const self.asleep) as usize;
        let released = executor.is_some()
            && self.set_xstate(&xstate::initial()).is_ok()
            && request(libc::PTRACE_SETREGS, self.tid, 0, asleep).is_ok()
            && set_signal_mask(self.tid, code::ASYNCHRONOUS).is_ok()
            && request(libc::PTRACE_DETACH, self.tid, 0, 0).is_ok();
        let executor = executor.take();
        if released {
            lock(&self.untraced).extend(executor);
        }
    }
}

/// The tasks that this thread traces. When the thread ends, the kernel detaches from them, and a guest would run on
/// by itself: so they are released before.
#[derive(Default)]
struct Traced(Vec<Arc<Tracee>>);

thread_local!(static TRACED: RefCell<Traced> = RefCell::default());

impl Traced {
    fn keep(tracee: &Arc<Tracee>) {
        TRACED.with_borrow_mut(|traced| traced.0.push(Arc::clone(tracee)));
    }

    /// Releases those that no context uses any more.
    fn release_unused() {
        // A thread that ends releases everything anyway.
        let _ = TRACED.try_with(|traced| {
            traced.borrow_mut().0.retain(|tracee| {
                let in_use = Arc::strong_count(tracee) > 1;
                if !in_use {
                    tracee.release();
                }
                in_use
            });
        });
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        for tracee in &self.0 {
            tracee.release();
        }
    }
}

fn this_thread() -> libc::pid_t {
    thread_local!(static TID: Cell<libc::pid_t> = Cell::new(rustix::thread::gettid().as_raw_pid()));
    TID.get()
}

pub(crate) fn from_user(user: &libc::user_regs_struct) -> Registers {
    Registers {
        rax: user.rax,
        rdi: user.rdi,
        rsi: user.rsi,
        rdx: user.rdx,
        r10: user.r10,
        r8: user.r8,
        r9: user.r9,
        rip: user.rip,
        cs: user.cs,
        rflags: user.eflags,
        rsp: user.rsp,
        ss: user.ss,
        rbx: user.rbx,
        rbp: user.rbp,
        r12: user.r12,
        r13: user.r13,
        r14: user.r14,
        r15: user.r15,
        rcx: user.rcx,
        r11: user.r11,
        fs_base: user.fs_base,
        gs_base: user.gs_base,
    }
}

fn to_user(registers: &Registers) -> libc::user_regs_struct {
    libc::user_regs_struct {
        r15: registers.r15,
        r14: registers.r14,
        r13: registers.r13,
        r12: registers.r12,
        rbp: registers.rbp,
        rbx: registers.rbx,
        r11: registers.r11,
        r10: registers.r10,
        r9: registers.r9,
        r8: registers.r8,
        rax: registers.rax,
        rcx: registers.rcx,
        rdx: registers.rdx,
        rsi: registers.rsi,
        rdi: registers.rdi,
        orig_rax: NO_SYSCALL,
        rip: registers.rip,
        cs: registers.cs,
        eflags: registers.rflags,
        rsp: registers.rsp,
        ss: registers.ss,
        fs_base: registers.fs_base,
        gs_base: registers.gs_base,
        ds: 0,
        es: 0,
        fs: 0,
        gs: 0,
    }
}
