//! A space as its owner, and the contexts that run in it, share it.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use syscalls::Sysno;

use super::builder::Settings;
use super::scratch::Shelf;
use crate::arch::x86_64::{RFLAGS_TF, Registers};
use crate::attach::target::Target;
use crate::call::Call;
use crate::context::Home;
use crate::engine::Seat;
use crate::engine::native::Native;
use crate::engine::ptrace::Tracees;
use crate::engine::rewrite::{Closed, Guest};
use crate::engine::trap::{ExecutorSeat, Trampoline};
use crate::error::{Error, Result};
use crate::executor::keeper::Keeper;
use crate::executor::machine::Host;
use crate::executor::passage::Files;
use crate::executor::service::{Entry, Outcome, Service};
use crate::executor::task::Executor;
use crate::exit::{Fault, WaitStatus};
use crate::maps::FileId;
use crate::name::Engine;
use crate::sync::lock;

/// A space, shared by its owner and the contexts that run in it.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(super) origin: Origin,
    pub(super) service: Service,
    pub(super) settings: Settings,
    /// Executors that no context uses.
    free: Mutex<Vec<Arc<dyn Seat>>>,
    executors: AtomicU64,
    pub(super) trampoline: Trampoline,
    is_late: AtomicBool,
    /// What files it has, where the space was created here.
    pub(super) files: Mutex<Files>,
    pub(super) tracees: Tracees,
    native: Native,
    pub(super) shelf: Shelf,
}

/// Where a space comes from.
#[derive(Debug)]
pub(crate) enum Origin {
    /// It was made here: a process of the keeper's.
    Created(Arc<Keeper>),
    /// A live process has it.
    Attached(Arc<Target>),
}

impl Inner {
    pub(super) fn new(
        origin: Origin,
        service: Service,
        settings: Settings,
        trampoline: Trampoline,
        files: Files,
    ) -> Arc<Self> {
        let free = Mutex::default();
        let executors = AtomicU64::new(0);
        let is_late = AtomicBool::new(false);
        let files = Mutex::new(files);
        let (tracees, native, shelf) = <_>::default();
        Arc::new(Self {
            origin,
            service,
            settings,
            free,
            executors,
            trampoline,
            is_late,
            files,
            tracees,
            native,
            shelf,
        })
    }

    pub(crate) fn engine(&self) -> Engine {
        self.settings.engine
    }

    fn start_executor(&self) -> Result<Executor> {
        if let Origin::Attached(target) = &self.origin {
            target.prepare_to_run(&self.service)?;
        }
        let index = self.executors.fetch_add(1, Ordering::Relaxed);
        Executor::start(&self.service, Host::new(self.settings.spin_budget_ns), index)
    }

    /// Executes one call. Allocates nothing if no descriptors are passed.
    pub(super) fn call(&self, call: &Call<'_>) -> Result<Outcome> {
        let _closed = self.prepare_one(call)?;
        match &self.origin {
            Origin::Created(_) => self.execute(call),
            Origin::Attached(target) => target.execute_one(&self.service, call),
        }
    }

    /// Executes calls in order in a space that was created.
    pub(super) fn calls(&self, calls: &[Call<'_>]) -> Result<Vec<Outcome>> {
        let _closed = self.prepare(calls)?;
        if calls.iter().any(Call::has_borrowed_files) {
            return calls.iter().map(|call| self.execute(call)).collect();
        }
        self.require_registered(calls.iter().map(Call::registered_files).max())?;
        self.service.request(&calls.iter().map(Entry::from).collect::<Vec<_>>())
    }

    /// See [`Self::prepare_one`].
    pub(super) fn prepare(&self, calls: &[Call<'_>]) -> Result<Vec<[Option<Closed<'_>>; 2]>> {
        calls.iter().map(|call| self.prepare_one(call)).collect()
    }

    /// Sees that a call is one for this space, touches nothing that is ours, and finds no rewritten text as long as the
    /// value is there.
    fn prepare_one(&self, call: &Call<'_>) -> Result<[Option<Closed<'_>>; 2]> {
        self.settings.require_call(call.nr())?;
        let mut closed = [None, None];
        for (range, closed) in changed_ranges(call).zip(&mut closed) {
            if self.service.life.slot.region().touches(&range) {
                return Err(Error::Reserved { addr: range.start, len: range.end - range.start });
            }
            if let Some(rewriter) = self.trampoline.rewriter() {
                *closed = Some(rewriter.before_change(self, range)?);
            }
        }
        Ok(closed)
    }

    /// Executes a call in a space that was created, and is prepared for it.
    fn execute(&self, call: &Call<'_>) -> Result<Outcome> {
        self.require_registered(Some(call.registered_files()))?;
        if call.has_borrowed_files() {
            lock(&self.files).carry(&self.service, call)
        } else {
            self.service.request_one(call.into())
        }
    }

    /// Sees that the space has so many registered files, in order.
    fn require_registered(&self, count: Option<usize>) -> Result<()> {
        match count {
            None | Some(0) => Ok(()),
            Some(count) => lock(&self.files).require_registered(&self.service, count),
        }
    }

    pub(super) fn before_step_is_seen(&self, fault: &Fault) {
        const DEBUG: u32 = 1;
        if fault.trapno == DEBUG
            && let Some(rewriter) = self.trampoline.rewriter()
        {
            rewriter.stop(self);
        }
    }

    /// The process is dead or dying, or its guest has done what nobody here does; how it ended.
    pub(super) fn end(&self) -> WaitStatus {
        self.service.life.kill();
        self.tracees.collect();
        self.service.life.wait_for_end();
        self.service.life.status().unwrap_or(WaitStatus::Signaled(libc::SIGKILL))
    }

    /// What a signal does that nobody catches (signal(7)): the end, or nothing.
    pub(super) fn default_action(&self, signal: i32) -> Option<WaitStatus> {
        match signal {
            libc::SIGCHLD | libc::SIGCONT | libc::SIGURG | libc::SIGWINCH => None,
            libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => {
                self.service.life.signal(libc::SIGSTOP);
                None
            }
            _ => Some(self.die_of(signal)),
        }
    }

    /// Kills the process, as if by `signal`. Not by the signal itself: SIGKILL overtakes those that dump core, and a
    /// live process would leave the executor's pages in its dump.
    pub(super) fn die_of(&self, signal: i32) -> WaitStatus {
        self.service.life.end_by(WaitStatus::Signaled(signal));
        self.end()
    }
}

impl Guest for Inner {
    fn service(&self) -> &Service {
        &self.service
    }

    fn is_late(&self) -> &AtomicBool {
        &self.is_late
    }

    fn give_up_text_of(&self, file: FileId) {
        if let Some(rewriter) = self.trampoline.rewriter() {
            rewriter.give_up(self, file);
        }
    }
}

impl Home for Inner {
    fn seat(self: Arc<Self>) -> Result<Arc<dyn Seat>> {
        match self.settings.engine {
            Engine::Ptrace => return self.tracees.seat(|| self.start_executor()),
            Engine::Native => return self.native.seat(&self.service.life, || self.start_executor()),
            Engine::Trap | Engine::Rewrite => {}
        }
        let free = lock(&self.free).pop();
        match free {
            Some(seat) => Ok(seat),
            None => Ok(Arc::new(ExecutorSeat::new(self.start_executor()?, self.trampoline.clone()))),
        }
    }

    fn give_back(&self, seat: Arc<dyn Seat>) {
        if !self.settings.engine.traces() {
            lock(&self.free).push(seat);
        }
    }

    fn kill(&self) {
        self.service.life.kill();
    }

    fn is_particular(&self) -> bool {
        self.settings.engine == Engine::Ptrace
    }

    fn original_registers(&self, registers: Registers) -> Registers {
        self.trampoline.rewriter().map_or(registers, |rewriter| rewriter.original_registers(registers))
    }

    fn present_registers(&self, registers: Registers) -> Registers {
        let Some(rewriter) = self.trampoline.rewriter() else { return registers };
        if registers.rflags & RFLAGS_TF != 0 || registers.gs_base != 0 {
            rewriter.stop(self);
        }
        Registers { rip: rewriter.present(registers.rip), ..registers }
    }
}

/// The ranges of memory whose mapping `call` changes, or may: a hint is where it goes if there is room.
fn changed_ranges(call: &Call<'_>) -> impl Iterator<Item = Range<u64>> + use<> {
    const FIXED: u64 = libc::MAP_FIXED as u64;
    let [first, second, third, fourth, fifth, _] = call.args();
    let moves = |flags: u64| flags & (libc::MREMAP_FIXED as u64) != 0;
    let range =
        |start: u64, len: u64| start..start.saturating_add(len.checked_next_multiple_of(4096).unwrap_or(len));
    let (one, other) = match call.nr() {
        Sysno::munmap
        | Sysno::mprotect
        | Sysno::pkey_mprotect
        | Sysno::madvise
        | Sysno::remap_file_pages
        | Sysno::mseal => (Some(range(first, second)), None),
        Sysno::mmap => ((first != 0 || fourth & FIXED != 0).then(|| range(first, second)), None),
        Sysno::mremap => (Some(range(first, second)), moves(fourth).then(|| range(fifth, third))),
        // How long the segment is, only the kernel knows.
        Sysno::shmat if third & (libc::SHM_REMAP as u64) != 0 => (Some(second..u64::MAX), None),
        Sysno::shmat => ((second != 0).then(|| range(second, 1)), None),
        _ => (None, None),
    };
    one.into_iter().chain(other)
}
