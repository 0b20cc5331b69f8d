//! The `native` engine: contexts run by process_vm_exec(2) itself, on a kernel that has it (`kernel/` in this project).
//!
//! The calling thread runs them, so nothing of a context is anywhere but here. The space's process only lends its
//! memory. A thread for each space in which something has run watches that process: its death ends the runs, and
//! signals that somebody sends it are the guest's.

mod frame;

use std::cell::Cell;
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use rustix::io::Errno;
use rustix::process::PidfdFlags;

use self::frame::{Fpu, Frame};
use super::ptrace::Parked;
use super::{Called, Event, Seat, trap};
use crate::arch::x86_64::Registers;
use crate::error::{Error, Result};
use crate::executor::code::{self, INTERRUPT_SIGNAL};
use crate::executor::life::Life;
use crate::executor::task::{Executor, Trap};
use crate::exit::{Arch, Syscall, WaitStatus};
use crate::ptrace::last_errno;
use crate::refusal::EngineError;
use crate::signal::with_signals_blocked;
use crate::signal::{SigInfo, SignalSet};
use crate::sync::lock;

/// Number and flags: include/uapi/linux/process_vm_exec.h, in `kernel/`.
const SYS_PROCESS_VM_EXEC: libc::c_long = 511;
const PIDFD: libc::c_ulong = 0x2;
const EXTENDED: libc::c_ulong = 0x4;
const QUERY: libc::c_ulong = 0x8000_0000;
/// `si_code` of a reported system call.
const SYS_USER_DISPATCH: i32 = 2;

/// What ends a run: what the code causes, and our own kick.
const SIGNALS: SignalSet = SignalSet::empty()
    .with(libc::SIGSEGV)
    .with(libc::SIGBUS)
    .with(libc::SIGILL)
    .with(libc::SIGFPE)
    .with(libc::SIGTRAP)
    .with(INTERRUPT_SIGNAL);

/// Asks the kernel, never its version.
pub(crate) fn lacks() -> Option<EngineError> {
    // SAFETY: with this flag the call looks at nothing and changes nothing. A kernel that has another call under this
    // number finds arguments that are zeroes, but for one.
    let known = unsafe { libc::syscall(SYS_PROCESS_VM_EXEC, 0u64, 0u64, QUERY, 0u64, 0u64, 0u64) };
    let wanted = QUERY | EXTENDED | PIDFD;
    let has = libc::c_ulong::try_from(known).is_ok_and(|known| known & wanted == wanted);
    (!has).then_some(EngineError::NoSystemCall)
}

/// What runs in one space by this engine.
#[derive(Debug, Default)]
pub(crate) struct Native {
    shared: Mutex<Option<Arc<Shared>>>,
}

/// What the seats of a space share with its watch.
#[derive(Debug)]
struct Shared {
    life: Arc<Life>,
    process: OwnedFd,
    /// Signals that were sent to the process, and that no run has reported.
    signals: Mutex<VecDeque<SigInfo>>,
    has_signals: AtomicBool,
    seats: RwLock<Vec<Weak<NativeSeat>>>,
}

impl Native {
    /// A seat; the first one has `start` make the executor by which the process is watched.
    pub(crate) fn seat(
        &self,
        life: &Arc<Life>,
        start: impl FnOnce() -> Result<Executor>,
    ) -> Result<Arc<dyn Seat>> {
        let mut shared = lock(&self.shared);
        if shared.is_none() {
            *shared = Some(Shared::watched(life, start()?)?);
        }
        let shared = Arc::clone(shared.as_ref().expect("just made"));
        let seat = Arc::new(NativeSeat {
            shared: Arc::clone(&shared),
            guest: Mutex::new(Guest { registers: Registers::default(), fpu: Fpu::initial(), has_run: false }),
            runner: AtomicI32::new(0),
            interrupt: AtomicBool::new(false),
        });
        let mut seats = shared.seats.write().unwrap_or_else(PoisonError::into_inner);
        seats.retain(|seat| seat.strong_count() != 0);
        seats.push(Arc::downgrade(&seat));
        Ok(Arc::clone(&seat) as Arc<dyn Seat>)
    }
}

impl Shared {
    fn watched(life: &Arc<Life>, executor: Executor) -> Result<Arc<Self>> {
        let held = life.pid();
        let process = rustix::process::pidfd_open(held.ok_or(Error::Dead)?, PidfdFlags::empty())
            .map_err(Error::host("pidfd_open"))?;
        drop(held);
        let shared = Arc::new(Self {
            life: Arc::clone(life),
            process,
            signals: Mutex::default(),
            has_signals: AtomicBool::new(false),
            seats: RwLock::default(),
        });
        let (sender, ready) = sync_channel(1);
        let watched = Arc::clone(&shared);
        let watch = move || watched.watch(executor, &sender);
        with_signals_blocked(|| std::thread::Builder::new().name("pvx-watch".into()).spawn(watch)).map_err(
            |error| Error::Host {
                call: "starting the thread that watches a space",
                errno: Errno::from_io_error(&error).unwrap_or(Errno::AGAIN),
            },
        )?;
        ready.recv().unwrap_or(Err(Error::Dead))?;
        Ok(shared)
    }

    /// Traces one task of the process, which does nothing but take the signals that are sent there.
    fn watch(&self, executor: Executor, ready: &SyncSender<Result<()>>) {
        let parked = match Parked::seize(&executor) {
            Ok(parked) => parked,
            Err(error) => return drop(ready.send(Err(error))),
        };
        drop(ready.send(Ok(())));
        let status = loop {
            match parked.next_signal() {
                // Late, for a context that has been here.
                Ok(info) if info.signal() == INTERRUPT_SIGNAL => {}
                Ok(info) => {
                    lock(&self.signals).push_back(info);
                    self.has_signals.store(true, Ordering::SeqCst);
                    self.kick_all();
                }
                Err(status) => break status,
            }
        };
        self.life.die(status);
        self.kick_all();
    }

    fn kick_all(&self) {
        let seats = self.seats.read().unwrap_or_else(PoisonError::into_inner);
        for seat in seats.iter().filter_map(Weak::upgrade) {
            seat.kick();
        }
    }

    fn next_signal(&self) -> Option<SigInfo> {
        if !self.has_signals.load(Ordering::SeqCst) {
            return None;
        }
        let mut signals = lock(&self.signals);
        let info = signals.pop_front();
        self.has_signals.store(!signals.is_empty(), Ordering::SeqCst);
        info
    }
}

/// A seat: all the state of one context.
#[derive(Debug)]
struct NativeSeat {
    shared: Arc<Shared>,
    guest: Mutex<Guest>,
    /// The thread that runs it, or 0.
    runner: AtomicI32,
    interrupt: AtomicBool,
}

#[derive(Debug)]
struct Guest {
    registers: Registers,
    fpu: Fpu,
    has_run: bool,
}

impl Seat for NativeSeat {
    fn answer(&self, rax: u64) -> Event {
        let mut guest = lock(&self.guest);
        guest.registers.rax = rax;
        self.go(guest)
    }

    fn load(&self, registers: &Registers) -> Event {
        let mut guest = lock(&self.guest);
        guest.registers = *registers;
        self.go(guest)
    }

    fn read_call(&self, arch: Arch, call: &mut Syscall) {
        *call = super::call_of(&lock(&self.guest).registers, arch);
    }

    fn registers(&self) -> Registers {
        lock(&self.guest).registers
    }

    fn xstate(&self) -> Result<Vec<u8>> {
        Ok(lock(&self.guest).fpu.area())
    }

    fn set_xstate(&self, area: &[u8]) -> Result<()> {
        lock(&self.guest).fpu.set(area);
        Ok(())
    }

    fn has_initial_xstate(&self) -> bool {
        !lock(&self.guest).has_run
    }

    fn is_usable(&self) -> bool {
        true
    }

    fn interrupt(&self) {
        if !self.interrupt.swap(true, Ordering::SeqCst) {
            self.kick();
        }
    }

    fn kill(&self) {
        self.shared.life.kill();
    }

    fn take_interrupt(&self) -> bool {
        self.interrupt.swap(false, Ordering::SeqCst)
    }
}

impl NativeSeat {
    /// Runs the guest until something has happened.
    fn go(&self, mut guest: MutexGuard<'_, Guest>) -> Event {
        guest.has_run = true;
        let tid = this_thread();
        loop {
            let rax = guest.registers.rax;
            if self.take_interrupt() {
                return Event::Interrupted { rax };
            }
            if let Some(info) = self.shared.next_signal() {
                return Event::Signal { rax, info };
            }
            if self.shared.life.status().is_some() {
                return Event::Died;
            }
            // Whoever has something to tell does so before it looks for a runner, and we the other way round: the kick
            // is not lost. One that comes early pends, for this thread blocks it.
            self.runner.store(tid, Ordering::SeqCst);
            let event = if self.is_wanted() { None } else { self.run(&mut guest) };
            self.runner.store(0, Ordering::SeqCst);
            if let Some(event) = event {
                return event;
            }
        }
    }

    /// Is there something to report before the next run?
    fn is_wanted(&self) -> bool {
        self.interrupt.load(Ordering::SeqCst)
            || self.shared.has_signals.load(Ordering::SeqCst)
            || self.shared.life.status().is_some()
    }

    /// Ends the run that goes on, if one does; a run that has just ended is not hurt by it.
    fn kick(&self) {
        let tid = self.runner.load(Ordering::SeqCst);
        if tid != 0 {
            // SAFETY: tgkill only sends a signal; to a thread of ours, which blocks it, or to none.
            unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), tid, INTERRUPT_SIGNAL) };
        }
    }

    /// Goes to the guest; nothing if it came back without anything to report.
    fn run(&self, guest: &mut Guest) -> Option<Event> {
        let mut frame = Frame::new(&guest.registers, &mut guest.fpu);
        let mut info = [0u8; 128];
        let signals = SIGNALS.bits();
        // SAFETY: all addresses are those of live values of the types that the call takes (process_vm_exec(2)); the
        // extended state has room for all that its header says. The code runs in memory that is not ours.
        let result = unsafe {
            libc::syscall(
                SYS_PROCESS_VM_EXEC,
                self.shared.process.as_raw_fd(),
                &raw mut frame,
                PIDFD | EXTENDED,
                &raw mut info,
                &raw const signals,
                size_of_val(&signals),
            )
        };
        let errno = last_errno();
        guest.registers = frame.registers();
        if result < 0 {
            // A handler of this process has run meanwhile.
            return if errno == Errno::INTR { None } else { Some(self.died()) };
        }
        let (info, rax) = (SigInfo::from_bytes(info), guest.registers.rax);
        match (info.signal(), info.code()) {
            (libc::SIGSYS, SYS_USER_DISPATCH) => {
                let is_native = info.i32_at(28).cast_unsigned() == code::AUDIT_ARCH_X86_64;
                let arch = if is_native { Arch::X86_64 } else { Arch::I386 };
                Some(Event::Call { arch, how: Called::Trapped })
            }
            (signal, code) if code::is_synchronous(signal) && code > 0 => {
                let trap = Trap {
                    error_code: frame.get(libc::REG_ERR),
                    trapno: frame.get(libc::REG_TRAPNO),
                    cr2: frame.get(libc::REG_CR2),
                };
                Some(Event::Fault { rax, fault: trap::fault(&info, trap) })
            }
            // Somebody kicked.
            _ => None,
        }
    }

    /// The kernel has no such process any more, or will not run this in it.
    fn died(&self) -> Event {
        if self.shared.life.status().is_none() {
            self.shared.life.kill();
            self.shared.life.die(WaitStatus::Signaled(libc::SIGKILL));
        }
        Event::Died
    }
}

/// The calling thread, which from now on blocks the signal of kicks.
fn this_thread() -> libc::pid_t {
    thread_local!(static TID: Cell<libc::pid_t> = const { Cell::new(0) });
    if TID.get() == 0 {
        let kick = SignalSet::empty().with(INTERRUPT_SIGNAL).bits();
        // SAFETY: the kernel reads the eight bytes of a set that lives as long as the call.
        unsafe {
            libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, &raw const kick, 0, size_of_val(&kick))
        };
        TID.set(rustix::thread::gettid().as_raw_pid());
    }
    TID.get()
}
