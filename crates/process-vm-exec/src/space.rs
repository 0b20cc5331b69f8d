//! Address spaces: create, fork, map, read, write, and run in them.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;
use rustix::process::PidfdFlags;
use syscalls::Sysno;

use crate::arch::x86_64::{RFLAGS_TF, Registers};
use crate::attach::target::Target;
use crate::attach::{self, Tls, function};
use crate::builder::Builder;
use crate::context::Context;
use crate::engine::native::Native;
use crate::engine::ptrace::Tracees;
use crate::engine::rewrite::{Closed, Rewriter};
use crate::engine::trap::ExecutorSeat;
use crate::engine::{Called, Engine, Event, Seat};
use crate::error::{Error, Result};
use crate::executor::arena::Slot;
use crate::executor::keeper::Keeper;
use crate::executor::layout;
use crate::executor::machine::Host;
use crate::executor::passage::Passage;
use crate::executor::service::{Entry, Service};
use crate::executor::task::Executor;
use crate::exit::{Exit, Fault, WaitStatus};
use crate::maps::FileId;
use crate::memory::{self, Mapping, Protection};
use crate::scratch::Shelf;
use crate::signal::SignalSet;
use crate::sync::lock;

/// An address space of its own, in which the supervisor runs code.
///
/// It starts empty: nothing is mapped but the vDSO and the executor's pages, at `0x7000_0000_0000` to
/// `0x7000_0400_0000`, which cannot be changed. Code in it can ask the host kernel for nothing; every system call,
/// fault and signal comes out of [`run`](Self::run).
///
/// The space belongs to a process of the host that dies when the value is dropped, or when the supervisor ends in
/// whatever way.
///
/// ```
/// use process_vm_exec::{AddressSpace, Context, Exit, Mapping, Protection, SignalSet};
///
/// # fn main() -> process_vm_exec::Result<()> {
/// let space = AddressSpace::create()?;
/// let code = space.map(Mapping::anonymous(4096, Protection::READ | Protection::WRITE))?;
/// // mov $39, %eax; syscall; hlt
/// space.write(code, &[0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xf4])?;
/// space.protect(code, 4096, Protection::READ | Protection::EXEC)?;
///
/// let mut ctx = Context::new(code, 0);
/// let Exit::Syscall = space.run(&mut ctx, &SignalSet::all())? else { panic!() };
/// assert_eq!(ctx.syscall().nr, 39);
/// ctx.set_return(1);
/// let Exit::Fault(fault) = space.run(&mut ctx, &SignalSet::all())? else { panic!() };
/// assert_eq!((fault.signal, ctx.registers().rax), (libc::SIGSEGV, 1));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct AddressSpace(Arc<Inner>);

/// A space, shared by its owner and the contexts that run in it.
#[derive(Debug)]
pub(crate) struct Inner {
    origin: Origin,
    service: Service,
    settings: Builder,
    /// Executors that no context uses.
    free: Mutex<Vec<Arc<dyn Seat>>>,
    executors: AtomicU64,
    rewriter: Option<Arc<Rewriter>>,
    is_late: AtomicBool,
    /// The way of files to map, where the space was created here.
    passage: Mutex<Option<Passage>>,
    tracees: Tracees,
    native: Native,
    shelf: Shelf,
}

/// Where a space comes from.
#[derive(Debug)]
pub(crate) enum Origin {
    /// It was made here: a process of the keeper's.
    Created(Arc<Keeper>),
    /// A live process has it.
    Attached(Target),
}

/// A system call to execute in a space: see [`AddressSpace::batch`].
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its number.
    pub nr: Sysno,
    /// Its arguments; addresses are the space's.
    pub args: [u64; 6],
}

impl Call {
    /// As a service task takes it.
    pub(crate) fn entry(&self) -> Entry {
        Entry::new(i64::from(self.nr.id()), self.args)
    }
}

impl AddressSpace {
    /// An empty space with the best engine that works here.
    ///
    /// # Errors
    /// As for [`Builder::create`].
    pub fn create() -> Result<Self> {
        Self::builder().create()
    }

    /// Puts an executor into the live process of `target`, a pidfd (pidfd_open(2)): from then on code and system
    /// calls run in its memory beside its own threads, which run on. One of them is stopped twice, for some 50
    /// microseconds each; a system call that it waits in goes on with the time that was left.
    ///
    /// Dropping the value, or the end of this process in whatever way, removes all that was added.
    ///
    /// To the system the executor is an orphan. So it is nobody's child that a program knows, unless the target gets orphans: as
    /// the init of its pid namespace, or by `PR_SET_CHILD_SUBREAPER` (prctl(2)). Such a program can wait for it, and has to
    /// take its end.
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
        Self::attach(attach::open(pid)?.as_fd())
    }

    /// Removes all that [`attach`](Self::attach) added to a live process, or ends a space that was created, and waits
    /// until that is done. Dropping the value does the same and says nothing.
    ///
    /// # Errors
    /// [`Error::Dead`] if the process is gone already. [`Error::Host`] if this process may not trace the executor any
    /// more, or another does: then it is removed when this process ends, if its first attachment was made with the
    /// right to do so.
    pub fn detach(self) -> Result<()> {
        let life = &self.0.service.life;
        let was_alive = life.status().is_none();
        life.kill();
        self.0.tracees.collect();
        life.wait_for_end();
        if let Origin::Attached(target) = &self.0.origin
            && let Some(errno) = target.visits().left()
        {
            return Err(Error::Host { call: "removing the executor from a live process", errno });
        }
        if was_alive { Ok(()) } else { Err(Error::Dead) }
    }

    /// Calls the function at `addr` in the space with up to six integer arguments, as the System V ABI has it, on a
    /// stack of its own, and returns what it leaves in `rax`. The system calls that it makes are executed in the
    /// space.
    ///
    /// # Errors
    /// [`Error::Function`] if it does not return, but faults.
    pub fn call(&self, addr: u64, args: &[u64], tls: Tls) -> Result<u64> {
        let main_fs_base = match &self.0.origin {
            Origin::Created(_) => None,
            Origin::Attached(target) => target.fs_base(),
        };
        function::call(self, addr, args, tls, main_fs_base)
    }

    /// To create a space with something else than the defaults.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The live process whose space this is, and the executor there, for its thread `tid`.
    pub(crate) fn attached(&self, tid: i32) -> Result<(&Target, &Service)> {
        match &self.0.origin {
            Origin::Attached(target) => Ok((target, &self.0.service)),
            Origin::Created(_) => Err(Error::Thread {
                tid,
                why: "the space was created here, and is no live process's".to_owned(),
                errno: Errno::OPNOTSUPP,
            }),
        }
    }

    pub(crate) fn origin(&self) -> &Origin {
        &self.0.origin
    }

    pub(crate) fn service(&self) -> &Service {
        &self.0.service
    }

    pub(crate) fn shelf(&self) -> &Shelf {
        &self.0.shelf
    }

    pub(crate) fn slot(&self) -> &Slot {
        &self.0.service.life.slot
    }

    /// That calls change nothing of ours.
    pub(crate) fn prepare(&self, calls: &[Call]) -> Result<()> {
        calls.iter().try_for_each(|call| self.0.prepare(call).map(drop))
    }

    pub(crate) fn new(
        origin: Origin,
        service: Service,
        settings: Builder,
        rewriter: Option<Arc<Rewriter>>,
    ) -> Self {
        let free = Mutex::default();
        let executors = AtomicU64::new(0);
        let (passage, tracees, native, shelf) = <_>::default();
        Self(Arc::new(Inner {
            origin,
            service,
            settings,
            free,
            executors,
            rewriter,
            is_late: AtomicBool::new(false),
            passage,
            tracees,
            native,
            shelf,
        }))
    }

    /// The engine that runs contexts here.
    pub fn engine(&self) -> Engine {
        self.0.settings.engine_in_use()
    }

    /// The host's process that the space belongs to; 0 once it is dead, or we have detached from it.
    pub fn pid(&self) -> i32 {
        if let Origin::Attached(target) = &self.0.origin
            && self.0.service.life.status().is_none()
        {
            return target.pid();
        }
        self.executor()
    }

    /// The process that executes calls in the space for this one, as this one's pid namespace knows it: in a live
    /// process's memory another than that process, which is [`pid`](Self::pid). 0 once it is gone.
    pub fn executor(&self) -> i32 {
        self.0.service.life.pid().map_or(0, |pid| pid.as_raw_nonzero().get())
    }

    /// Where the kernel's vDSO is mapped (vdso(7)): for `AT_SYSINFO_EHDR`.
    pub fn vdso(&self) -> Option<Range<u64>> {
        match &self.0.origin {
            Origin::Created(keeper) => keeper.vdso.clone(),
            Origin::Attached(target) => target.vdso(),
        }
    }

    /// Maps memory and returns its address.
    ///
    /// # Errors
    /// [`Error::Space`] with the errno of mmap(2), [`Error::Reserved`] if the executor's pages would be replaced.
    pub fn map(&self, mapping: Mapping<'_>) -> Result<u64> {
        let Mapping { addr, len, protection, flags, file } = mapping;
        let (fd, offset) = match file {
            Some((_, offset)) => (0, offset),
            None => (u64::MAX, 0),
        };
        let (protection, flags) = (u64::from(protection.bits()), u64::from(flags));
        let args = [addr.unwrap_or(0), len, protection, flags, fd, offset];
        let call = Call { nr: Sysno::mmap, args };
        let result = match file {
            Some((file, _)) => self.0.call_with_file(call, file)?,
            None => self.0.call(call)?,
        };
        result.map_err(|errno| Error::Space { call: "mmap", errno })
    }

    /// Removes what is mapped in `len` bytes from `addr` on (munmap(2)).
    ///
    /// # Errors
    /// As for [`map`](Self::map).
    pub fn unmap(&self, addr: u64, len: u64) -> Result<()> {
        self.syscall_named("munmap", Sysno::munmap, [addr, len, 0, 0, 0, 0]).map(drop)
    }

    /// Changes what the guest may do with `len` bytes from `addr` on (mprotect(2)).
    ///
    /// # Errors
    /// As for [`map`](Self::map).
    pub fn protect(&self, addr: u64, len: u64, protection: Protection) -> Result<()> {
        let args = [addr, len, u64::from(protection.bits()), 0, 0, 0];
        self.syscall_named("mprotect", Sysno::mprotect, args).map(drop)
    }

    /// Copies from the space's memory at `addr`, as far as the guest may read there.
    ///
    /// # Errors
    /// [`Error::Space`] with `EFAULT` if it may not read all of it; `buffer`'s contents are unspecified then.
    pub fn read(&self, addr: u64, buffer: &mut [u8]) -> Result<()> {
        let pid = self.0.service.life.pid().ok_or(Error::Dead)?.as_raw_nonzero().get();
        memory::read(pid, addr, buffer).map_err(|errno| Error::Space { call: "process_vm_readv", errno })
    }

    /// Copies `bytes` to the space's memory at `addr`, as far as the guest may write there.
    ///
    /// # Errors
    /// [`Error::Space`] with `EFAULT` if it may not write all of it; what comes before that is written.
    pub fn write(&self, addr: u64, bytes: &[u8]) -> Result<()> {
        let pid = self.0.service.life.pid().ok_or(Error::Dead)?.as_raw_nonzero().get();
        memory::write(pid, addr, bytes).map_err(|errno| Error::Space { call: "process_vm_writev", errno })
    }

    /// A new space with a copy of this one's memory (shared mappings stay shared), engine and settings. Contexts
    /// stay here: [`Context::try_clone`] makes some to run there.
    ///
    /// # Errors
    /// As for [`Builder::create`]; `EOPNOTSUPP` for a live process's.
    pub fn fork(&self) -> Result<Self> {
        let Inner { origin, service, settings, rewriter, .. } = &*self.0;
        let Origin::Created(keeper) = origin else {
            return Err(Error::Host { call: "fork of a live process's memory", errno: Errno::OPNOTSUPP });
        };
        let fork = || keeper.fork(service, settings.birth());
        let (service, rewriter) = match rewriter {
            Some(rewriter) => rewriter.fork(fork).map(|(service, copy)| (service, Some(Arc::new(copy))))?,
            None => (fork()?, None),
        };
        let fork = Self::new(Origin::Created(Arc::clone(keeper)), service, *settings, rewriter);
        if let Some(rewriter) = &fork.0.rewriter {
            rewriter.adopt(&fork.0);
        }
        Ok(fork)
    }

    /// Executes a system call in the space: system call mode. Addresses in it are the space's; descriptors are those
    /// of the space's service task, which has none that a guest could use.
    ///
    /// # Errors
    /// [`Error::Space`] with the errno of the call; [`Error::Reserved`] if it would change the executor's pages.
    pub fn syscall(&self, nr: Sysno, args: [u64; 6]) -> Result<u64> {
        self.syscall_named(nr.name(), nr, args)
    }

    fn syscall_named(&self, name: &'static str, nr: Sysno, args: [u64; 6]) -> Result<u64> {
        self.0.call(Call { nr, args })?.map_err(|errno| Error::Space { call: name, errno })
    }

    /// Executes several system calls in order with one hand-off, each whatever the results of those before.
    ///
    /// # Errors
    /// As for [`syscall`](Self::syscall), but errnos of calls are among the results. If one call would change the
    /// executor's pages, none is executed.
    pub fn batch(&self, calls: &[Call]) -> Result<Vec<std::result::Result<u64, Errno>>> {
        self.0.calls(calls)
    }

    /// How many stretches of the guest's text are rewritten now.
    pub fn rewritten_sites(&self) -> usize {
        self.0.rewriter.as_ref().map_or(0, |rewriter| rewriter.count())
    }

    /// Kills the space's process, from any thread: calls and runs in it end. For a guest that an
    /// [`Interrupter`](crate::Interrupter) does not reach, because it has jumped into the executor's code to stay there. In
    /// a live process it removes the executor. Says nothing if it is dead already.
    pub fn kill(&self) {
        self.0.service.life.kill();
    }

    /// Runs `ctx` until something happens that the supervisor has to know, and says what.
    ///
    /// `signals` are those that end the run and are reported, faults among them; others take their default action
    /// in the guest's process, as if it had no handler: nothing, or its death.
    ///
    /// Several threads may run contexts in one space at the same time, each its own.
    ///
    /// # Errors
    /// [`Error::Context`] if the context cannot be loaded; it is unchanged then. [`Error::TooMany`] or
    /// [`Error::Space`] if it is new here and no task can be had for it.
    #[inline]
    pub fn run(&self, ctx: &mut Context, signals: &SignalSet) -> Result<Exit> {
        if let Some(status) = self.0.service.life.status() {
            return Ok(Exit::Died(status));
        }
        // How often a breakpoint that is gone by now has sent the context on. Only a guest that makes them up meets many.
        const MOST_TRIES: u32 = 1000;
        let mut tries = 0;
        loop {
            // Matched where it is: to move an event costs more than to find out which one it is.
            match ctx.enter(&self.0) {
                Ok(Event::Call { arch, how }) => {
                    ctx.called(arch);
                    ctx.count(how);
                    if how == Called::Trapped
                        && let Some(rewriter) = &self.0.rewriter
                    {
                        ctx.move_with_text(|registers| rewriter.after_trap(&self.0, registers, arch));
                    }
                    return Ok(Exit::Syscall);
                }
                Ok(Event::Interrupted { rax }) => {
                    ctx.left(rax);
                    return Ok(Exit::Interrupted);
                }
                Ok(Event::Fault { rax, mut fault }) => {
                    ctx.left(rax);
                    if let Some(rewriter) = &self.0.rewriter {
                        if tries < MOST_TRIES
                            && let Some(site) = rewriter.caused(&self.0, ctx.registers(), &fault)
                        {
                            tries += 1;
                            ctx.try_again_at(site);
                            if ctx.take_interrupt() {
                                return Ok(Exit::Interrupted);
                            }
                            continue;
                        }
                        rewriter.place(&mut fault);
                    }
                    self.0.before_step_is_seen(&fault);
                    if signals.contains(fault.signal) {
                        return Ok(Exit::Fault(fault));
                    }
                    return Ok(Exit::Died(self.0.die_of(fault.signal)));
                }
                Ok(Event::Signal { rax, info }) => {
                    ctx.left(rax);
                    if signals.contains(info.signal()) {
                        return Ok(Exit::Signal(info));
                    }
                    if let Some(status) = self.0.default_action(info.signal()) {
                        return Ok(Exit::Died(status));
                    }
                }
                Ok(Event::Died) | Err(Error::Dead) => return Ok(Exit::Died(self.0.end())),
                // Not the supervisor's registers, which have been loaded before, but what the guest has reported.
                Err(Error::Context(_)) if tries > 0 => return Ok(Exit::Died(self.0.end())),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        self.0.service.life.kill();
        self.0.tracees.collect();
        // Another attachment may follow at once, and finds the target as it was.
        if let Origin::Attached(_) = self.0.origin {
            self.0.service.life.wait_for_end();
        }
    }
}

impl Inner {
    pub(crate) fn service(&self) -> &Service {
        &self.service
    }

    pub(crate) fn engine(&self) -> Engine {
        self.settings.engine_in_use()
    }

    /// A task for a context.
    pub(crate) fn seat(self: &Arc<Self>) -> Result<Arc<dyn Seat>> {
        match self.settings.engine_in_use() {
            Engine::Ptrace => return self.tracees.seat(|| self.start_executor()),
            Engine::Native => return self.native.seat(&self.service.life, || self.start_executor()),
            Engine::Trap | Engine::Rewrite => {}
        }
        let free = lock(&self.free).pop();
        match free {
            Some(seat) => Ok(seat),
            None => Ok(Arc::new(ExecutorSeat::new(self.start_executor()?, self.rewriter.clone()))),
        }
    }

    fn start_executor(&self) -> Result<Executor> {
        if let Origin::Attached(target) = &self.origin {
            target.prepare_to_run(&self.service)?;
        }
        let index = self.executors.fetch_add(1, Ordering::Relaxed);
        Executor::start(&self.service, Host::new(self.settings.spin_budget_ns), index)
    }

    /// A context is done with its task.
    pub(crate) fn give_back(&self, seat: Arc<dyn Seat>) {
        if !self.settings.engine_in_use().traces() {
            lock(&self.free).push(seat);
        }
    }

    /// Executes one call. Allocates nothing if it has no descriptors.
    fn call(&self, call: Call) -> Result<std::result::Result<u64, Errno>> {
        let _closed = self.prepare(&call)?;
        match &self.origin {
            Origin::Created(_) => self.service.request_one(call.entry()),
            Origin::Attached(target) => target.execute_one(&self.service, &call),
        }
    }

    fn calls(&self, calls: &[Call]) -> Result<Vec<std::result::Result<u64, Errno>>> {
        let _closed = calls.iter().map(|call| self.prepare(call)).collect::<Result<Vec<_>>>()?;
        match &self.origin {
            Origin::Created(_) => self.service.request(&calls.iter().map(Call::entry).collect::<Vec<_>>()),
            Origin::Attached(target) => target.execute(&self.service, calls),
        }
    }

    /// Sees that a call is one for this space, touches nothing that is ours, and finds no rewritten text as long as the
    /// value is there.
    fn prepare(&self, call: &Call) -> Result<[Option<Closed<'_>>; 2]> {
        if let Origin::Created(_) = self.origin {
            self.settings.require_call(call.nr)?;
        }
        let mut closed = [None, None];
        for (range, closed) in changed_ranges(call).zip(&mut closed) {
            let len = range.end - range.start;
            if layout::overlaps_region(range.start, len) {
                return Err(Error::Reserved { addr: range.start, len });
            }
            if let Some(rewriter) = &self.rewriter {
                *closed = Some(rewriter.before_change(self, range)?);
            }
        }
        Ok(closed)
    }

    /// Executes a call for which `file` is to be mapped; its descriptor is filled in.
    fn call_with_file(
        &self,
        mut call: Call,
        file: BorrowedFd<'_>,
    ) -> Result<std::result::Result<u64, Errno>> {
        const DESCRIPTOR: usize = 4;
        let mut closed = [None, None];
        let mut with_number = |number| {
            call.args[DESCRIPTOR] = number;
            closed = self.prepare(&call)?;
            Ok(call.entry())
        };
        match &self.origin {
            Origin::Created(_) => {
                let mut passage = lock(&self.passage);
                let way = match passage.take() {
                    Some(way) => way,
                    None => self.open_passage()?,
                };
                let call = with_number(way.number(0))?;
                let outcome = way.carry(&self.service, &[file], call);
                if let Ok(_) | Err(Error::Host { .. }) = outcome {
                    *passage = Some(way);
                }
                outcome
            }
            Origin::Attached(target) => target.execute_with_file(&self.service, file, with_number),
        }
    }

    fn open_passage(&self) -> Result<Passage> {
        let pid = self.service.life.pid().ok_or(Error::Dead)?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .map_err(Error::host("pidfd_open of the space's process"))?;
        const FIRST_FILE: u64 = layout::ARENA_FD.unsigned_abs() as u64 + 1;
        Passage::open(&self.service, pidfd, FIRST_FILE)
    }

    /// Has this space not yet restored the text of a file that somebody wanted to write to? See [`Self::give_up_text_of`].
    pub(crate) fn is_late(&self) -> &AtomicBool {
        &self.is_late
    }

    /// Somebody is about to write to a file, which waits until this is done.
    pub(crate) fn give_up_text_of(&self, file: FileId) {
        if let Some(rewriter) = &self.rewriter {
            rewriter.give_up(self, file);
        }
    }

    /// The registers of a context as they are in the guest's own text.
    pub(crate) fn original_registers(&self, registers: Registers) -> Registers {
        self.rewriter.as_ref().map_or(registers, |rewriter| rewriter.original_registers(registers))
    }

    /// The registers with which to go where `registers` say, now that sites are rewritten.
    pub(crate) fn present_registers(&self, registers: Registers) -> Registers {
        let Some(rewriter) = &self.rewriter else { return registers };
        if registers.rflags & RFLAGS_TF != 0 || registers.gs_base != 0 {
            rewriter.stop(self);
        }
        Registers { rip: rewriter.present(registers.rip), ..registers }
    }

    fn before_step_is_seen(&self, fault: &Fault) {
        const DEBUG: u32 = 1;
        if fault.trapno == DEBUG
            && let Some(rewriter) = &self.rewriter
        {
            rewriter.stop(self);
        }
    }

    /// The process is dead or dying, or its guest has done what nobody here does; how it ended.
    fn end(&self) -> WaitStatus {
        self.service.life.kill();
        self.tracees.collect();
        self.service.life.wait_for_end();
        self.service.life.status().unwrap_or(WaitStatus::Signaled(libc::SIGKILL))
    }

    /// What a signal does that nobody catches (signal(7)): the end, or nothing.
    fn default_action(&self, signal: i32) -> Option<WaitStatus> {
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
    fn die_of(&self, signal: i32) -> WaitStatus {
        self.service.life.end_by(WaitStatus::Signaled(signal));
        self.end()
    }
}

/// The ranges of memory whose mapping `call` changes, or may: a hint is where it goes if there is room.
fn changed_ranges(call: &Call) -> impl Iterator<Item = Range<u64>> + use<> {
    const FIXED: u64 = libc::MAP_FIXED as u64;
    let [first, second, third, fourth, fifth, _] = call.args;
    let moves = |flags: u64| flags & (libc::MREMAP_FIXED as u64) != 0;
    let range =
        |start: u64, len: u64| start..start.saturating_add(len.checked_next_multiple_of(4096).unwrap_or(len));
    let (one, other) = match call.nr {
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
