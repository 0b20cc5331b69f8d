//! A live process, as an address space: who executes a call in it, and with whose descriptors.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdGetfdFlags};
use syscalls::Sysno;

use super::descriptors::{self, Descriptors, Returned};
use super::rights::Status;
use super::stat::living_thread;
use super::visit::Visits;
use super::{Attachment, Exposure, Owner, Tracing, differ_in_memory};
use crate::builder::Owners;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::executor::passage::Passage;
use crate::executor::service::{Entry, Outcome, Service};
use crate::executor::{layout, machine, setup};
use crate::ptrace::last_errno;
use crate::space::{AddressSpace, Call, Origin};
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
        engine: Engine,
        spin_budget_ns: u64,
    ) -> Result<(Service, Self)> {
        let Attachment { pid, service, executor, sharer, fs_base, tracing, visits } =
            super::attach(pidfd, owners, engine, spin_budget_ns)?;
        let executing = service.life.pid().map_or(0, |pid| pid.as_raw_nonzero().get());
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
        target.make_ready(&service).inspect_err(|_| service.life.kill())?;
        Ok((service, target))
    }

    fn make_ready(&self, service: &Service) -> Result<()> {
        service.wait_for_start()?;
        if let Some((sharer, _)) = &self.sharer {
            sharer.wait_for_start()?;
        }
        // Children of the target do not get our pages, nor do core dumps.
        let advise = |advice: i32| {
            let args = [layout::BASE, layout::SIZE, u64::from(advice.unsigned_abs()), 0, 0, 0];
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
            let name = layout::BASE + layout::ARGUMENTS;
            let outcome = worker.call(libc::SYS_chdir, [name, 0, 0, 0, 0, 0])?.map(drop);
            return outcome
                .map_err(|errno| self.exposed("working directory").unwrap_or_else(|| there(errno)));
        }
        let directory =
            rustix::fs::open(".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(Error::host("open of the working directory"))?;
        let fchdir = |number| Ok(Entry::new(libc::SYS_fchdir, [number, 0, 0, 0, 0, 0]));
        self.execute_with_file(service, directory.as_fd(), fchdir)?.map(drop).map_err(there)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
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

    /// Executes a call with a file of ours, whose number `with_number` puts into it.
    pub(crate) fn execute_with_file(
        &self,
        service: &Service,
        file: BorrowedFd<'_>,
        with_number: impl FnOnce(u64) -> Result<Entry>,
    ) -> Result<Outcome> {
        if let Some(error) = self.exposed("descriptor") {
            return Err(error);
        }
        let mut passage = lock(&self.passage);
        let worker = self.with_own_table(service);
        let call = with_number(worker.open(&mut passage)?.number(0))?;
        worker.carry(&mut passage, &[file], call)
    }

    /// Sees to it that contexts can run beside `service`.
    pub(crate) fn prepare_to_run(&self, service: &Service) -> Result<()> {
        if self.tracing == Tracing::GoesOn {
            let why = "the target has a seccomp filter, which would judge the executor; only calls can be made there";
            return Err(Error::Engine { engine: Engine::Trap, why: why.to_owned() });
        }
        if self.is_ready_to_run.get().is_none() {
            setup::renounce_privileges(service)?;
            let _ = self.is_ready_to_run.set(());
        }
        Ok(())
    }

    /// Executes calls in order: with one hand-off, unless descriptors have to be passed.
    pub(crate) fn execute(&self, service: &Service, calls: &[Call]) -> Result<Vec<Outcome>> {
        self.require_possible(service, calls)?;
        if calls.iter().all(|call| self.descriptors_of(call) == Descriptors::NONE) {
            return self.worker(service).request(&calls.iter().map(Call::entry).collect::<Vec<_>>());
        }
        calls.iter().map(|call| self.execute_one(service, call)).collect()
    }

    /// Executes one call.
    pub(crate) fn execute_one(&self, service: &Service, call: &Call) -> Result<Outcome> {
        self.require_possible(service, std::slice::from_ref(call))?;
        match self.descriptors_of(call) {
            Descriptors::NONE => self.worker(service).request_one(call.entry()),
            Descriptors::Here => Ok(execute_here(call)),
            Descriptors::Some { arguments, returned } => {
                self.with_our_descriptors(service, call, arguments, returned)
            }
        }
    }

    /// The descriptors that have to be passed for a call.
    fn descriptors_of(&self, call: &Call) -> Descriptors {
        match self.owners.files {
            Owner::Target => Descriptors::NONE,
            Owner::Caller => Descriptors::of(call.nr, &call.args),
        }
    }

    /// The refusal to pass something to the target, if its user could take it.
    fn exposed(&self, what: &'static str) -> Option<Error> {
        self.exposed_to.map(|uid| Error::Exposed { what, pid: self.pid(), uid })
    }

    /// Has the call a descriptor of the caller's among its arguments?
    fn takes_descriptors(&self, call: &Call) -> bool {
        let Descriptors::Some { arguments, .. } = self.descriptors_of(call) else { return false };
        (0..call.args.len()).any(|n| arguments >> n & 1 != 0 && descriptors::number(call.args[n]).is_some())
    }

    /// That no call would be the executor's end, or expose what is ours, and that the target still has the executor's memory.
    fn require_possible(&self, service: &Service, calls: &[Call]) -> Result<()> {
        if let Some(error) = self.exposed("descriptor")
            && calls.iter().any(|call| self.takes_descriptors(call))
        {
            return Err(error);
        }
        match calls.iter().find(|call| is_the_executors_end(call.nr)) {
            Some(call) => Err(Error::Space { call: call.nr.name(), errno: Errno::OPNOTSUPP }),
            None => self.require_same_memory(service),
        }
    }

    /// Executes `call` with the caller's descriptors.
    fn with_our_descriptors(
        &self,
        service: &Service,
        call: &Call,
        arguments: u8,
        returned: Returned,
    ) -> Result<Outcome> {
        // Until the last of its descriptors is gone from there.
        let mut passage = lock(&self.passage);
        let worker = self.with_own_table(service);
        let mut entry = call.entry();
        let mut files = Vec::new();
        for (_, arg) in entry.args.iter_mut().enumerate().filter(|(n, _)| arguments >> n & 1 != 0) {
            let Some(number) = descriptors::number(*arg) else { continue };
            *arg = worker.open(&mut passage)?.number(files.len());
            // SAFETY: looked at by sendmsg alone, which says EBADF if it is none, before this function returns.
            files.push(unsafe { BorrowedFd::borrow_raw(number) });
        }
        let outcome = if files.is_empty() {
            worker.service.request_one(entry)?
        } else {
            match worker.carry(&mut passage, &files, entry) {
                Err(Error::Host { errno: Errno::BADF, .. }) => return Ok(Err(Errno::BADF)),
                outcome => outcome?,
            }
        };
        match (returned, outcome) {
            (Returned::Result, Ok(theirs)) => worker.hand_over(theirs).map(Ok),
            (Returned::Pair(arg), Ok(_)) => worker.hand_over_pair(call.args[arg]).map(|()| outcome),
            _ => Ok(outcome),
        }
    }

    /// Has the target executed another program? Then the executor is in memory that nobody else uses, and goes.
    pub(super) fn require_same_memory(&self, service: &Service) -> Result<()> {
        const OFTEN_NS: u64 = 10_000_000;
        let elapsed = machine::tsc().wrapping_sub(self.seen.load(Ordering::Relaxed));
        if elapsed < machine::ticks(OFTEN_NS) { Ok(()) } else { self.look_at_memory(service) }
    }

    fn look_at_memory(&self, service: &Service) -> Result<()> {
        let now = machine::tsc();
        let Some(executor) = *service.life.pid() else { return Err(Error::Dead) };
        if differ_in_memory(self.pid(), executor.as_raw_nonzero().get()) {
            service.life.kill();
            return Err(Error::Dead);
        }
        self.seen.store(now, Ordering::Relaxed);
        Ok(())
    }
}

impl AddressSpace {
    /// Is this still the memory of its process? A live process leaves it by execve(2), or by its end. Calls find that out
    /// themselves, some 10 ms late at most; this looks now. A space that was created is current as long as its process lives.
    pub fn is_current(&self) -> bool {
        match self.origin() {
            Origin::Created(_) => self.pid() != 0,
            Origin::Attached(target) => target.look_at_memory(self.service()).is_ok(),
        }
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
    fn carry(&self, passage: &mut Option<Passage>, files: &[BorrowedFd<'_>], call: Entry) -> Result<Outcome> {
        let outcome = self.open(passage)?.carry(self.service, files, call);
        if let Err(Error::Space { .. }) = outcome {
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

    /// Its descriptor, as one that the caller owns; it has it no longer.
    fn hand_over(&self, theirs: u64) -> Result<u64> {
        self.take(theirs).map(given_away)
    }

    /// The same for the two that it has written to `addr`.
    fn hand_over_pair(&self, addr: u64) -> Result<()> {
        let pid = self.service.life.pid().ok_or(Error::Dead)?.as_raw_nonzero().get();
        let mut bytes = [0u8; 8];
        let fault = |errno| Error::Space { call: "reading a pair of descriptors", errno };
        memory::read(pid, addr, &mut bytes).map_err(fault)?;
        let pair = u64::from_ne_bytes(bytes);
        // Both, whatever becomes of one: neither is to stay there.
        let (first, second) = (self.take(pair & 0xffff_ffff), self.take(pair >> 32));
        let (first, second) = (first?, second?);
        let (first, second) = (given_away(first), given_away(second));
        memory::write(pid, addr, &(first | second << 32).to_ne_bytes()).map_err(fault)
    }
}

/// The number of a descriptor that is the caller's from now on.
fn given_away(fd: OwnedFd) -> u64 {
    u64::from(fd.into_raw_fd().unsigned_abs())
}

/// Executes a call that is about the caller's descriptor table and nothing else.
fn execute_here(call: &Call) -> Outcome {
    let [a, b, c, ..] = call.args;
    // SAFETY: only `close`, `dup` and the like get here (`Descriptors::Here`), which take numbers. That the numbers
    // are the caller's to change is for the caller to know, as with libc's functions of those names.
    let result = unsafe { libc::syscall(i64::from(call.nr.id()), a, b, c) };
    u64::try_from(result).map_err(|_| last_errno())
}

/// Calls that a task with the target's memory must not make: they would end it with its pages left there, or make
/// tasks that nobody looks after.
pub(super) fn is_the_executors_end(nr: Sysno) -> bool {
    use Sysno as S;
    matches!(
        nr,
        S::execve
            | S::execveat
            | S::exit
            | S::exit_group
            | S::fork
            | S::vfork
            | S::clone
            | S::clone3
            | S::rt_sigreturn
    )
}
