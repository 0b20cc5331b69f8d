//! Signals of a task: dispositions, mask, what is pending, and what happens to a task that gets one.

pub(crate) mod calls;
mod frame;

use std::collections::VecDeque;

use process_vm_exec::{Errno, Fault, SigInfo, SignalSet, Syscall, WaitStatus};
use syscalls::Sysno;

use crate::{
    abi::{Answer, Record},
    task::{GENERAL_PROTECTION, Next, Task},
};

/// How many signals there are.
const SIGNALS: usize = 64;
/// How many signals a task has pending, besides one of each: as many as its user may queue by default on a small
/// machine (`RLIMIT_SIGPENDING`).
const QUEUE_MAX: usize = 1024;
/// `SIG_DFL` and `SIG_IGN` (sigaction(2)).
const DEFAULT: u64 = 0;
const IGNORE: u64 = 1;

/// What to do when a signal arrives (`struct sigaction` of the kernel).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Action {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64,
}

impl Action {
    const fn has(&self, flag: i32) -> bool {
        self.flags & flag.cast_unsigned() as u64 != 0
    }
}

/// The stack for handlers (sigaltstack(2)).
#[derive(Clone, Copy, Debug)]
pub(crate) struct AlternateStack {
    addr: u64,
    flags: i32,
    len: u64,
}

impl AlternateStack {
    const NONE: Self = Self { addr: 0, flags: libc::SS_DISABLE, len: 0 };

    const fn contains(&self, pointer: u64) -> bool {
        self.flags & libc::SS_DISABLE == 0 && pointer > self.addr && pointer - self.addr <= self.len
    }

    fn to_record(self) -> Record<24> {
        Record::new()
            .put(0, self.addr.to_ne_bytes())
            .put(8, self.flags.to_ne_bytes())
            .put(16, self.len.to_ne_bytes())
    }
}

/// A signal on its way, and what only a fault knows.
#[derive(Clone, Copy, Debug)]
struct Pending {
    info: SigInfo,
    trap: Trap,
}

/// What the processor says about a fault (`trapno`, `err` and `cr2` of `struct sigcontext`).
#[derive(Clone, Copy, Debug, Default)]
struct Trap {
    number: u64,
    error: u64,
    addr: u64,
}

impl Trap {
    fn of(fault: &Fault) -> Self {
        Self { number: fault.trapno.into(), error: fault.error_code.into(), addr: fault.addr }
    }
}

/// The signal state of a task.
#[derive(Debug)]
pub(crate) struct Signals {
    actions: [Action; SIGNALS],
    mask: u64,
    pending: VecDeque<Pending>,
    alternate: AlternateStack,
    /// The mask to return to after `rt_sigsuspend` and `ppoll`.
    saved_mask: Option<u64>,
    /// The call that was just interrupted, if it may be made again.
    interrupted: Option<u64>,
}

impl Default for Signals {
    fn default() -> Self {
        Self {
            actions: [Action::default(); SIGNALS],
            mask: 0,
            pending: VecDeque::new(),
            alternate: AlternateStack::NONE,
            saved_mask: None,
            interrupted: None,
        }
    }
}

impl Signals {
    /// Makes a signal pending. Ignored signals are dropped, standard signals are pending once.
    pub(crate) fn post(&mut self, info: SigInfo) {
        self.post_with(info, Trap::default());
    }

    fn post_with(&mut self, info: SigInfo, trap: Trap) {
        let signal = info.signal();
        if !valid(signal) || (self.is_ignored(signal) && !self.is_blocked(signal)) {
            return;
        }
        // Where the queue is full, one of a kind still gets through (Linux: kernel/signal.c, `__send_signal_locked`).
        let once = signal < 32 || self.pending.len() >= QUEUE_MAX;
        if once && self.pending.iter().any(|pending| pending.info.signal() == signal) {
            return;
        }
        self.pending.push_back(Pending { info, trap });
    }

    /// Remembers a call that a signal interrupted, for `SA_RESTART`.
    pub(crate) fn note_answer(&mut self, call: &Syscall, answer: Answer) {
        self.interrupted = (answer == Err(Errno::INTR) && is_restarted(call.nr)).then_some(call.nr);
    }

    /// Is there a signal to deliver now?
    pub(crate) fn is_deliverable(&self) -> bool {
        self.pending.iter().any(|pending| !self.is_blocked(pending.info.signal()))
    }

    /// At `execve`: handlers are gone with the program, ignored signals stay ignored.
    pub(crate) fn reset_handlers(&mut self) {
        for action in &mut self.actions {
            let handler = if action.handler == IGNORE { IGNORE } else { DEFAULT };
            *action = Action { handler, ..Action::default() };
        }
        self.alternate = AlternateStack::NONE;
    }

    fn next(&mut self) -> Option<Pending> {
        let index = self.pending.iter().position(|pending| !self.is_blocked(pending.info.signal()))?;
        self.pending.remove(index)
    }

    fn action(&self, signal: i32) -> &Action {
        &self.actions[index(signal)]
    }

    const fn is_blocked(&self, signal: i32) -> bool {
        self.mask & bit(signal) != 0
    }

    fn is_ignored(&self, signal: i32) -> bool {
        match self.action(signal).handler {
            IGNORE => true,
            DEFAULT => ignored_by_default(signal),
            _ => false,
        }
    }

    const fn set_mask(&mut self, mask: u64) {
        self.mask = mask & !(bit(libc::SIGKILL) | bit(libc::SIGSTOP));
    }
}

impl Task {
    /// Are there signals to deliver, or timers that have run out?
    pub(crate) fn wants_attention(&mut self) -> bool {
        if self.timers.is_due() {
            self.timers.advance();
            self.signals.post(from_kernel(libc::SIGALRM));
        }
        !self.signals.pending.is_empty() || self.signals.saved_mask.is_some()
    }

    /// Sends the task a signal, as if by itself with `kill`.
    pub(crate) fn raise(&mut self, signal: i32, code: i32) {
        let sender = Record::<128>::new()
            .put(0, signal.to_ne_bytes())
            .put(8, code.to_ne_bytes())
            .put(16, self.identity.pid.to_ne_bytes())
            .put(20, rustix::process::getuid().as_raw().to_ne_bytes());
        self.signals.post(SigInfo::from_bytes(*sender.bytes()));
    }

    /// Sends the task the signal that a fault stands for. It cannot be blocked or ignored.
    pub(crate) fn raise_fault(&mut self, fault: &Fault) {
        self.next = Next::Jump;
        let signals = &mut self.signals;
        if !valid(fault.signal) {
            self.next = Next::End(WaitStatus::Signaled(libc::SIGKILL));
            return;
        }
        if signals.is_blocked(fault.signal) || signals.is_ignored(fault.signal) {
            signals.mask &= !bit(fault.signal);
            signals.actions[index(fault.signal)] = Action::default();
        }
        let info = Record::<128>::new()
            .put(0, fault.signal.to_ne_bytes())
            .put(8, fault.code.to_ne_bytes())
            .put(16, fault.addr.to_ne_bytes());
        signals.interrupted = None;
        signals
            .pending
            .push_front(Pending { info: SigInfo::from_bytes(*info.bytes()), trap: Trap::of(fault) });
    }

    /// Delivers what is pending and not blocked: runs a handler, or does what the default is.
    pub(crate) fn deliver_signals(&mut self) {
        while !matches!(self.next, Next::End(_)) {
            let Some(pending) = self.signals.next() else { break };
            let signal = pending.info.signal();
            let action = *self.signals.action(signal);
            if let Some(tracer) = &mut self.config.tracer {
                tracer.signal(&pending.info);
            }
            match action.handler {
                IGNORE => {}
                DEFAULT if ignored_by_default(signal) => {}
                DEFAULT => self.next = Next::End(WaitStatus::Signaled(signal)),
                _ => {
                    self.restart_interrupted_call(&action);
                    self.run_handler(&pending, &action);
                }
            }
        }
        if let Some(mask) = self.signals.saved_mask.take() {
            self.signals.set_mask(mask);
        }
    }

    fn run_handler(&mut self, pending: &Pending, action: &Action) {
        let signal = pending.info.signal();
        let mask = self.signals.saved_mask.take().unwrap_or(self.signals.mask);
        if frame::push(self, pending, action, mask).is_err() {
            // No room for the frame. A handler of SIGSEGV may have a stack of its own, but not a second time.
            if signal == libc::SIGSEGV {
                self.signals.actions[index(signal)] = Action::default();
            }
            self.signals.set_mask(mask);
            self.raise_fault(&GENERAL_PROTECTION);
            return;
        }
        let own = if action.has(libc::SA_NODEFER) { 0 } else { bit(signal) };
        self.signals.set_mask(self.signals.mask | action.mask | own);
        if action.has(libc::SA_RESETHAND) {
            self.signals.actions[index(signal)] = Action::default();
        }
    }

    /// `SA_RESTART`: goes back to the `syscall` instruction, two bytes long, with the call's number.
    fn restart_interrupted_call(&mut self, action: &Action) {
        if let Some(number) = self.signals.interrupted.take()
            && action.has(libc::SA_RESTART)
        {
            let registers = self.context.registers_mut();
            registers.rip = registers.rip.wrapping_sub(2);
            registers.rax = number;
        }
    }
}

/// A signal that the kernel sends for a reason of its own (`SI_KERNEL`).
fn from_kernel(signal: i32) -> SigInfo {
    let info = Record::<128>::new().put(0, signal.to_ne_bytes()).put(8, libc::SI_KERNEL.to_ne_bytes());
    SigInfo::from_bytes(*info.bytes())
}

/// Calls that `SA_RESTART` makes again (signal(7)); sleeping and polling are not among them.
fn is_restarted(number: u64) -> bool {
    const RESTARTED: [Sysno; 12] = [
        Sysno::read,
        Sysno::readv,
        Sysno::write,
        Sysno::writev,
        Sysno::open,
        Sysno::openat,
        Sysno::flock,
        Sysno::fcntl,
        Sysno::accept,
        Sysno::connect,
        Sysno::recvfrom,
        Sysno::futex,
    ];
    RESTARTED.iter().any(|&call| call as u64 == number)
}

const fn valid(signal: i32) -> bool {
    signal >= 1 && signal <= 64
}

/// The place of a valid signal in a table.
fn index(signal: i32) -> usize {
    usize::try_from(signal - 1).unwrap_or_default()
}

const fn bit(signal: i32) -> u64 {
    SignalSet::empty().with(signal).bits()
}

/// Signals that do nothing by default (signal(7)); stopping is not supported, so these do nothing either.
const fn ignored_by_default(signal: i32) -> bool {
    matches!(
        signal,
        libc::SIGCHLD
            | libc::SIGCONT
            | libc::SIGURG
            | libc::SIGWINCH
            | libc::SIGTSTP
            | libc::SIGTTIN
            | libc::SIGTTOU
            | libc::SIGSTOP
    )
}

impl Task {
    /// The mask that holds while a call waits (`ppoll` and the like); the old one returns after it.
    pub(crate) fn set_temporary_mask(&mut self, addr: u64, size: u64) -> Result<(), Errno> {
        if addr == 0 {
            return Ok(());
        }
        if size != 8 {
            return Err(Errno::INVAL);
        }
        let mask = crate::guest::GuestMemory::fetch_u64(&*self.space, addr)?;
        self.signals.saved_mask = Some(self.signals.mask);
        self.signals.set_mask(mask);
        Ok(())
    }
}
