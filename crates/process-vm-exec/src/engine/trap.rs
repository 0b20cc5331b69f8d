//! The `trap` engine, and what `rewrite` adds to it on the way back: contexts run by executors.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::rewrite::Rewriter;
use super::{Called, Event, Seat};
use crate::arch::x86_64::{Registers, page_fault};
use crate::error::Result;
use crate::executor::code;
use crate::executor::service::Service;
use crate::executor::task::{Executor, Report, Trap};
use crate::exit::{Arch, Fault, Syscall};
use crate::signal::SigInfo;

/// Who has rewritten sites lead to the trampoline. While anybody does, GS is the trampoline's, as long as the guest does
/// not set its base.
#[derive(Clone, Debug)]
pub(crate) enum Trampoline {
    Unused,
    /// The supervisor, by plans, until it says that it has stopped.
    Planned(Arc<AtomicBool>),
    /// The engine, unless it has stopped.
    Rewritten(Arc<Rewriter>),
}

impl Trampoline {
    /// Forks a process with `fork`, and what this is for it.
    pub(crate) fn fork(&self, fork: impl FnOnce() -> Result<Service>) -> Result<(Service, Self)> {
        match self {
            Self::Unused => fork().map(|service| (service, Self::Unused)),
            Self::Planned(have_stopped) => {
                let service = fork()?;
                let have_stopped = AtomicBool::new(have_stopped.load(Ordering::Relaxed));
                Ok((service, Self::Planned(Arc::new(have_stopped))))
            }
            Self::Rewritten(rewriter) => {
                rewriter.fork(fork).map(|(service, copy)| (service, Self::Rewritten(Arc::new(copy))))
            }
        }
    }

    pub(crate) fn rewriter(&self) -> Option<&Arc<Rewriter>> {
        match self {
            Self::Rewritten(rewriter) => Some(rewriter),
            Self::Unused | Self::Planned(_) => None,
        }
    }

    /// The supervisor applies no plans any more.
    pub(crate) fn stop_plans(&self) {
        if let Self::Planned(have_stopped) = self {
            have_stopped.store(true, Ordering::Relaxed);
        }
    }

    fn is_in_use(&self) -> bool {
        match self {
            Self::Unused => false,
            Self::Planned(have_stopped) => !have_stopped.load(Ordering::Relaxed),
            Self::Rewritten(rewriter) => !rewriter.is_off(),
        }
    }
}

/// A seat on an executor.
#[derive(Debug)]
pub(crate) struct ExecutorSeat {
    executor: Executor,
    trampoline: Trampoline,
    used: AtomicBool,
}

impl ExecutorSeat {
    pub(crate) fn new(executor: Executor, trampoline: Trampoline) -> Self {
        Self { executor, trampoline, used: AtomicBool::new(false) }
    }

    /// What a guest that has not set GS sees as its base: 0, though the trampoline keeps its mailbox there.
    fn guest_gs(&self, base: u64) -> u64 {
        let is_shared = !matches!(self.trampoline, Trampoline::Unused);
        if is_shared && base == self.executor.gs_base() { 0 } else { base }
    }

    fn host_gs(&self, base: u64) -> u64 {
        if base == 0 && self.trampoline.is_in_use() { self.executor.gs_base() } else { base }
    }
}

impl Seat for ExecutorSeat {
    #[inline]
    fn answer(&self, rax: u64) -> Event {
        self.event(self.executor.answer(rax))
    }

    fn load(&self, registers: &Registers) -> Event {
        self.used.store(true, Ordering::Relaxed);
        let registers = Registers { gs_base: self.host_gs(registers.gs_base), ..*registers };
        self.event(self.executor.load(&registers))
    }

    #[inline]
    fn read_call(&self, arch: Arch, call: &mut Syscall) {
        match arch {
            // One cache line.
            Arch::X86_64 => {
                let [nr, args @ ..] = self.executor.call();
                *call = Syscall { nr, args, arch };
            }
            Arch::I386 => *call = super::call_of(&self.executor.registers(), arch),
        }
    }

    fn registers(&self) -> Registers {
        let registers = self.executor.registers();
        Registers { gs_base: self.guest_gs(registers.gs_base), ..registers }
    }

    fn xstate(&self) -> Result<Vec<u8>> {
        self.executor.save_xstate()
    }

    fn set_xstate(&self, area: &[u8]) -> Result<()> {
        self.executor.load_xstate(area)
    }

    fn has_initial_xstate(&self) -> bool {
        !self.used.load(Ordering::Relaxed)
    }

    fn is_usable(&self) -> bool {
        true
    }

    fn is_ours(&self) -> bool {
        self.executor.life.slot.is_ours()
    }

    fn interrupt(&self) {
        self.executor.interrupt();
    }

    fn kill(&self) {
        self.executor.life.kill();
    }

    fn take_interrupt(&self) -> bool {
        self.executor.take_interrupt()
    }
}

impl ExecutorSeat {
    #[inline]
    pub(super) fn event(&self, report: Report) -> Event {
        match report {
            Report::Call { rewritten: true } => Event::Call { arch: Arch::X86_64, how: Called::Rewritten },
            Report::Call { rewritten: false } => {
                Event::Call { arch: self.executor.call_arch(), how: Called::Trapped }
            }
            Report::Signal => self.signal(),
            Report::Interrupted => {
                self.executor.take_interrupt();
                Event::Interrupted { rax: self.executor.call()[0] }
            }
            Report::Done | Report::Dead => Event::Died,
        }
    }

    fn signal(&self) -> Event {
        let rax = self.executor.call()[0];
        let Some(info) = self.executor.siginfo() else {
            self.executor.end();
            return Event::Died;
        };
        if code::is_synchronous(info.signal()) && info.code() > 0 {
            Event::Fault { rax, fault: fault(&info, self.executor.trap()) }
        } else {
            Event::Signal { rax, info }
        }
    }
}

/// The fault that a signal and what the processor said about it mean.
pub(super) fn fault(info: &SigInfo, trap: Trap) -> Fault {
    // A guest that made them up gets something else.
    let [trapno, error_code] =
        [trap.trapno, trap.error_code].map(|word| u32::try_from(word).unwrap_or(u32::MAX));
    let is_page_fault = trapno == page_fault::VECTOR;
    Fault {
        signal: info.signal(),
        code: info.code(),
        addr: if is_page_fault { trap.cr2 } else { info.addr() },
        access: is_page_fault.then(|| page_fault::access(error_code)),
        trapno,
        error_code,
    }
}
