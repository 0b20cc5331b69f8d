//! A live process, as an address space: who executes a call in it, and with whose descriptors.

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdGetfdFlags};
use syscalls::Sysno;

use super::owners::{Exposure, Owner, Owners};
use super::rights::Status;
use super::visit::Visits;
use super::{Attachment, Tracing, differ_in_memory};
use crate::call::{Call, Returned};
use crate::descriptors::{self, Descriptors, Executed, Made};
use crate::error::{DescriptorError, Error, Result};
use crate::executor::passage::Passage;
use crate::executor::region::Region;
use crate::executor::service::{Entry, Outcome, Service};
use crate::executor::{layout, machine, setup};
use crate::name::Engine;
use crate::ptrace::last_errno;
use crate::refusal::EngineError;
use crate::stat::living_thread;
use crate::sync::lock;
use crate::{maps, memory, procfs};

/// One that executes calls for us in the target's memory.
#[derive(Clone, Copy, Debug)]
struct Worker<'a> {
    service: &'a Service,
    pidfd: &'a OwnedFd,
}

/// A live process with an executor in it, besides that executor's service.
#[derive(Debug)]
pub(crate) struct Target {
    pid: Pid,
    owners: Owners,
    /// The executor.
    executor: OwnedFd,
    /// Another that shares things with the target.
    sharer: Option<(Service, OwnedFd)>,
    /// Whose user would be given what is passed there, if that is not allowed.
    exposed_to: Option<u32>,
    fs_base: Option<u64>,
    tracing: Tracing,
    visits: Arc<Visits>,
    /// Whose turn it is to have descriptors in the worker's table: their numbers are those that are free there. And the
    /// way by which ours get there.
    passage: Mutex<Option<Passage>>,
    is_ready_to_run: OnceLock<()>,
    /// When it was last seen to have the memory that the executor has, in ticks of the time-stamp counter.
    seen: AtomicU64,
}

impl Target {
    /// Attaches, and makes the executor ready to serve.
    pub(crate) fn attach(
        pidfd: BorrowedFd<'_>,
        owners: Owners,
        region: Option<Region>,
        engine: Engine,
        spin_budget_ns: u64,
    ) -> Result<(Service, Self)> {
        let Attachment { pid, service, executor, sharer, fs_base, tracing, visits } =
            super::attach(pidfd, owners, region, engine, spin_budget_ns)?;
        let executing = service.life.pid().map_or(0, Pid::as_raw_pid);
        let exposed_to = match owners.exposure {
            Exposure::Allowed => None,
            Exposure::Refused => Status::of(executing).map_or(Some(u32::MAX), |status| status.weaker_user()),
        };
        let target = Self {
            pid,
            exposed_to,
            owners,
            executor,
            sharer,
            fs_base,
            tracing,
            visits,
            passage: Mutex::default(),
            is_ready_to_run: OnceLock::new(),
            seen: AtomicU64::new(machine::tsc()),
        };
        // Nobody else would remove it.
        target.make_ready(&service).inspect_err(|_| {
            service.life.kill();
            service.life.wait_for_end();
        })?;
        Ok((service, target))
    }

    fn make_ready(&self, service: &Service) -> Result<()> {
        service.wait_for_start()?;
        if let Some((sharer, _)) = &self.sharer {
            sharer.wait_for_start()?;
        }
        // Children of the target do not get our pages, nor do core dumps.
        let advise = |advice: i32| {
            let args =
                [service.life.slot.region().start(), layout::SIZE, u64::from(advice.unsigned_abs()), 0, 0, 0];
            Entry::new(libc::SYS_madvise, args)
        };
        for result in service.request(&[advise(libc::MADV_DONTFORK), advise(libc::MADV_DONTDUMP)])? {
            result.map_err(|errno| Error::Space { call: "madvise", errno })?;
        }
        // Copies of the target's handlers are neither the target's nor any use here.
        setup::install_handlers(service)?;
        if let Some((sharer, _)) = self.sharer.as_ref().filter(|_| self.owners.handlers == Owner::Caller) {
            setup::install_handlers(sharer)?;
        }
        match self.owners.directory {
            Owner::Target => Ok(()),
            Owner::Caller => self.go_to_our_directory(service),
        }
    }

    /// Working directory and umask of the caller.
    fn go_to_our_directory(&self, service: &Service) -> Result<()> {
        let worker = self.worker(service);
        let status = procfs::read("/proc/self/status").unwrap_or_default();
        let umask =
            status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("Umask:")?.trim(), 8).ok());
        if let Some(umask) = umask {
            let _ = worker.call(libc::SYS_umask, [umask, 0, 0, 0, 0, 0])?;
        }
        let there = |errno| Error::Space { call: "chdir to the caller's directory", errno };
        if self.owners.files == Owner::Target || self.exposed_to.is_some() {
            // Nothing is put into a table where the target has it: only the name is left.
            let name = rustix::process::getcwd(Vec::new()).map_err(Error::host("getcwd"))?;
            let mut words = name.as_bytes_with_nul().to_vec();
            words.resize(words.len().next_multiple_of(8), 0);
            worker.life.slot.write_bytes(layout::ARGUMENTS, &words);
            let name = worker.life.slot.address(layout::ARGUMENTS);
            let outcome = worker.call(libc::SYS_chdir, [name, 0, 0, 0, 0, 0])?.map(drop);
            return outcome
                .map_err(|errno| self.exposed("working directory").unwrap_or_else(|| there(errno)));
        }
        let directory =
            rustix::fs::open(".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(Error::host("open of the working directory"))?;
        let fchdir = Call::new(Sysno::fchdir).fd(0, directory.as_fd());
        self.execute_one(service, &fchdir)?.map(drop).map_err(there)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.process().as_raw_pid()
    }

    pub(crate) fn process(&self) -> Pid {
        self.pid
    }

    /// Its threads.
    pub(crate) fn visits(&self) -> &Visits {
        &self.visits
    }

    /// FS base of the target's main thread, if that was the one that was stopped.
    pub(crate) fn fs_base(&self) -> Option<u64> {
        self.fs_base
    }

    pub(crate) fn vdso(&self) -> Option<Range<u64>> {
        let maps = maps::of_task(living_thread(self.pid())?).ok()?;
        maps.into_iter().find(|map| map.name == "[vdso]").map(|map| map.range)
    }

    /// The service that executes the caller's calls.
    pub(crate) fn worker<'a>(&'a self, service: &'a Service) -> &'a Service {
        self.sharer.as_ref().map_or(service, |(sharer, _)| sharer)
    }

    /// The worker whose descriptor table is its own.
    fn with_own_table<'a>(&'a self, service: &'a Service) -> Worker<'a> {
        match &self.sharer {
            Some((service, pidfd)) if self.owners.files == Owner::Caller => Worker { service, pidfd },
            _ => Worker { service, pidfd: &self.executor },
        }
    }

    /// Sees to it that contexts can run beside `service`.
    pub(crate) fn prepare_to_run(&self, service: &Service) -> Result<()> {
        if self.tracing == Tracing::GoesOn {
            return Err(Error::Engine { engine: Engine::Trap, why: EngineError::Seccomp });
        }
        if self.is_ready_to_run.get().is_none() {
            setup::renounce_privileges(service)?;
            let _ = self.is_ready_to_run.set(());
        }
        Ok(())
    }

    /// Executes calls in order: with one hand-off, unless descriptors have to be passed.
    pub(crate) fn execute_all(
        &self,
        service: &Service,
        calls: &[Call<'_>],
    ) -> Result<Vec<std::result::Result<Returned, Errno>>> {
        let descriptors: Vec<_> = calls.iter().map(|call| self.admit(call)).collect::<Result<_>>()?;
        self.require_same_memory(service)?;
        if calls.iter().zip(&descriptors).all(|(call, of)| *of == Descriptors::NONE && !call.has_files()) {
            let entries: Vec<_> = calls.iter().map(Entry::from).collect();
            let outcomes = self.worker(service).request(&entries)?;
            return Ok(outcomes.into_iter().map(|outcome| outcome.map(Returned::number)).collect());
        }
        calls.iter().zip(descriptors).map(|(call, of)| self.execute_admitted(service, call, of)).collect()
    }

    /// Executes one call that makes no descriptors.
    pub(crate) fn execute_one(&self, service: &Service, call: &Call<'_>) -> Result<Outcome> {
        Ok(self.execute(service, call)?.map(|returned| returned.value))
    }

    /// Executes one call.
    pub(crate) fn execute(
        &self,
        service: &Service,
        call: &Call<'_>,
    ) -> Result<std::result::Result<Returned, Errno>> {
        let descriptors = self.admit(call)?;
        self.require_same_memory(service)?;
        self.execute_admitted(service, call, descriptors)
    }

    fn execute_admitted(
        &self,
        service: &Service,
        call: &Call<'_>,
        descriptors: Descriptors,
    ) -> Result<std::result::Result<Returned, Errno>> {
        // SAFETY: whoever made the call with numbers of descriptors has promised that they are open.
        let call = unsafe { with_files(call, descriptors) };
        let outcome = match descriptors.executed {
            Executed::Here | Executed::HereByNumber => execute_here(&call),
            Executed::There if !call.has_files() && descriptors.made == Made::None => {
                return Ok(self.worker(service).request_one(Entry::from(&call))?.map(Returned::number));
            }
            Executed::There => return self.execute_with_descriptors(service, &call, descriptors.made),
        };
        Ok(outcome.map(|value| match descriptors.made {
            // SAFETY: the kernel has just made it for us.
            Made::Result => Returned::file(unsafe { OwnedFd::from_raw_fd(number_of(value)) }),
            Made::None | Made::Pair(_) => Returned::number(value),
        }))
    }

    /// Sees that a call does nothing with descriptors that it may not; says which it has.
    fn admit(&self, call: &Call<'_>) -> Result<Descriptors> {
        let refuse = |why| Err(Error::Descriptor { call: call.nr().name(), why });
        if self.owners.files == Owner::Target {
            return if call.has_files() { refuse(DescriptorError::Targets) } else { Ok(Descriptors::NONE) };
        }
        let descriptors = Descriptors::of(call.nr(), &call.args());
        let is_passed = |argument| call.files().any(|(n, _)| n == argument);
        let number = descriptors.among(call.args()).find(|&argument| !is_passed(argument));
        if let Some(error) = self.exposed("descriptor")
            && descriptors.executed == Executed::There
            && (number.is_some() || call.has_files())
        {
            return Err(error);
        }
        match (call.takes_numbers(), descriptors.executed, number) {
            (false, Executed::HereByNumber, _) => refuse(DescriptorError::Closes),
            (false, _, Some(argument)) => refuse(DescriptorError::Number(argument)),
            _ => Ok(descriptors),
        }
    }

    /// The refusal to pass something to the target, if its user could take it.
    fn exposed(&self, what: &'static str) -> Option<Error> {
        self.exposed_to.map(|uid| Error::Exposed { what, pid: self.pid(), uid })
    }

    /// Executes a call to which descriptors are passed, or that makes some.
    fn execute_with_descriptors(
        &self,
        service: &Service,
        call: &Call<'_>,
        made: Made,
    ) -> Result<std::result::Result<Returned, Errno>> {
        // Until the last of its descriptors is gone from there.
        let mut passage = lock(&self.passage);
        let worker = self.with_own_table(service);
        let outcome = if call.has_files() {
            match worker.carry(&mut passage, call) {
                // Of a number that is no descriptor's.
                Err(Error::Host { errno: Errno::BADF, .. }) => return Ok(Err(Errno::BADF)),
                outcome => outcome?,
            }
        } else {
            worker.service.request_one(Entry::from(call))?
        };
        let value = match outcome {
            Ok(value) => value,
            Err(errno) => return Ok(Err(errno)),
        };
        Ok(Ok(match made {
            Made::None => Returned::number(value),
            Made::Result => Returned::file(worker.take(value)?),
            Made::Pair(argument) => {
                Returned { value, files: worker.take_pair(call.args()[argument])?.into() }
            }
        }))
    }

    /// Has the target executed another program? Then the executor is in memory that nobody else uses, and goes.
    pub(crate) fn require_same_memory(&self, service: &Service) -> Result<()> {
        const OFTEN_NS: u64 = 10_000_000;
        let elapsed = machine::tsc().wrapping_sub(self.seen.load(Ordering::Relaxed));
        if elapsed < machine::ticks(OFTEN_NS) { Ok(()) } else { self.look_at_memory(service) }
    }

    pub(crate) fn look_at_memory(&self, service: &Service) -> Result<()> {
        let now = machine::tsc();
        let held = service.life.pid();
        let Some(executor) = *held else { return Err(Error::Dead) };
        if differ_in_memory(self.pid(), executor.as_raw_pid()) {
            service.life.kill();
            return Err(Error::Dead);
        }
        self.seen.store(now, Ordering::Relaxed);
        Ok(())
    }
}

impl Worker<'_> {
    /// The way of our files to its table, which has nothing but the pair in it.
    fn open<'a>(&self, passage: &'a mut Option<Passage>) -> Result<&'a Passage> {
        const FIRST_FILE: u64 = 2;
        match passage {
            Some(passage) => Ok(passage),
            None => Ok(passage.insert(Passage::open(self.service, self.pidfd, FIRST_FILE)?)),
        }
    }

    /// Executes a call with files of ours.
    fn carry(&self, passage: &mut Option<Passage>, call: &Call<'_>) -> Result<Outcome> {
        let outcome = self.open(passage)?.carry(self.service, call, call.files());
        if !matches!(outcome, Ok(Ok(_)) | Err(Error::TooMany(_))) {
            // Files may lie in it, or others' files.
            *passage = None;
        }
        outcome
    }

    /// Its descriptor, as one of ours.
    fn fetch(&self, theirs: u64) -> Result<OwnedFd> {
        let theirs = i32::try_from(theirs).map_err(|_| Error::Dead)?;
        rustix::process::pidfd_getfd(self.pidfd, theirs, PidfdGetfdFlags::empty())
            .map_err(Error::host("pidfd_getfd from the executor"))
    }

    /// The same; it has it no longer.
    fn take(&self, theirs: u64) -> Result<OwnedFd> {
        let ours = self.fetch(theirs);
        let _ = self.service.call(libc::SYS_close, [theirs, 0, 0, 0, 0, 0])?;
        ours
    }

    /// The same for the two that it has written to `addr`, where their new numbers are then.
    fn take_pair(&self, addr: u64) -> Result<[OwnedFd; 2]> {
        let held = self.service.life.pid();
        let pid = held.ok_or(Error::Dead)?.as_raw_pid();
        let mut bytes = [0u8; 8];
        let fault = |errno| Error::Space { call: "reading a pair of descriptors", errno };
        memory::read_at_once(pid, addr, &mut bytes).map_err(fault)?;
        let pair = u64::from_ne_bytes(bytes);
        // Both, whatever becomes of one: neither is to stay there.
        let (first, second) = (self.take(pair & 0xffff_ffff), self.take(pair >> 32));
        let files = [first?, second?];
        let numbers: Vec<u8> = files.iter().flat_map(|file| file.as_raw_fd().to_ne_bytes()).collect();
        memory::write(pid, addr, &numbers).map_err(fault)?;
        Ok(files)
    }
}

/// The call with what its numbers stand for.
///
/// # Safety
/// As for [`Call::with_descriptor_numbers`], if it takes numbers.
unsafe fn with_files<'fd>(call: &Call<'fd>, descriptors: Descriptors) -> Call<'fd> {
    if !call.takes_numbers() || descriptors.executed != Executed::There {
        return *call;
    }
    descriptors.among(call.args()).fold(*call, |with_files, argument| {
        if call.files().any(|(n, _)| n == argument) {
            return with_files;
        }
        // SAFETY: the caller promises that it is open, for as long as the call lasts.
        with_files.fd(argument, unsafe { BorrowedFd::borrow_raw(number_of(call.args()[argument])) })
    })
}

/// A descriptor's number in a register: its lower half.
fn number_of(argument: u64) -> i32 {
    descriptors::number(argument).unwrap_or(-1)
}

/// Executes a call that is about the caller's descriptor table and nothing else.
fn execute_here(call: &Call<'_>) -> Outcome {
    let mut args = call.args();
    for (argument, file) in call.files() {
        args[argument] = u64::from(file.as_raw_fd().unsigned_abs());
    }
    let [a, b, c, ..] = args;
    // SAFETY: only `close`, `dup` and the like get here (`Executed::Here`), which take numbers: of descriptors that are
    // borrowed, and of which they make copies, or that the maker of the call has promised to be the caller's to close
    // (`Call::with_descriptor_numbers`).
    let result = unsafe { libc::syscall(i64::from(call.nr().id()), a, b, c) };
    u64::try_from(result).map_err(|_| last_errno())
}
