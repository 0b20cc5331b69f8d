//! The keeper: parent of all spaces. Started with the first space, and ended with the supervisor.

use std::collections::{HashMap, hash_map};
use std::ffi::c_void;
use std::fs;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::{ptr, thread};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, WaitOptions};

use super::arena::{Arena, Slot};
use super::life::Life;
use super::machine::{DEFAULT_SPIN_BUDGET_NS, Host};
use super::passage::Passage;
use super::service::{Entry, Outcome, Service};
use super::setup::{self, Params};
use super::{code, layout};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::exit::WaitStatus;
use crate::sync::lock;
use crate::{maps, procfs};

/// The supervisor's end of the keeper and of the template.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// The process that started it; a forked child of that starts its own.
    supervisor: Pid,
    pid: Pid,
    arena: Arc<Arena>,
    template: Service,
    /// Files to map go to service tasks through it.
    pub(crate) files: Passage,
    /// Where the vDSO is in every space.
    pub(crate) vdso: Option<Range<u64>>,
    /// Held while a process is created, so that just one child of the keeper is not registered yet.
    birth: Mutex<()>,
    living: Arc<Mutex<Living>>,
}

/// The processes that the keeper is the parent of.
#[derive(Debug, Default)]
struct Living {
    lives: HashMap<i32, Arc<Life>>,
    /// Processes that died before they were registered.
    stillborn: HashMap<i32, WaitStatus>,
    keeper_is_gone: bool,
}

impl Keeper {
    /// This process's keeper.
    pub(crate) fn get() -> Result<Arc<Self>> {
        static KEEPER: Mutex<Option<Arc<Keeper>>> = Mutex::new(None);
        let mut keeper = lock(&KEEPER);
        if let Some(keeper) = &*keeper
            && keeper.supervisor == rustix::process::getpid()
            && !lock(&keeper.living).keeper_is_gone
        {
            return Ok(Arc::clone(keeper));
        }
        let new = Self::start()?;
        // In a forked child the old one is the parent's: its memory must not be released from here.
        if let Some(old) = keeper.replace(Arc::clone(&new)) {
            std::mem::forget(old);
        }
        Ok(new)
    }

    /// The keeper's parent is the thread that starts it: when that thread ends, `PR_SET_PDEATHSIG` kills the keeper.
    /// So a thread of its own starts it, and stays to see its end; another one makes it ready, and hears of the ends of
    /// its children.
    fn start() -> Result<Arc<Self>> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let start = move || {
            let begun = match Begun::new() {
                Ok(begun) => begun,
                Err(error) => return drop(sender.send(Err(error))),
            };
            let (pid, life) = (begun.pid, Arc::clone(&begun.service.life));
            life.begin(pid);
            let reaper = thread::Builder::new().name("pvx-reaper".into()).spawn(move || {
                let Begun { pid, arena, ends, service } = begun;
                let keeper = Self::finish(pid, arena, ends, &service).inspect_err(|_| service.life.kill());
                let living = keeper.as_ref().ok().map(|keeper| Arc::clone(&keeper.living));
                let _ = sender.send(keeper);
                if let Some(living) = living {
                    reap(&service, &living);
                }
            });
            if reaper.is_err() {
                life.kill();
            }
            life.die(wait_for_end(pid));
        };
        thread::Builder::new().name("pvx-keeper".into()).spawn(start).map_err(|error| Error::Host {
            call: "starting the keeper's thread",
            errno: Errno::from_io_error(&error).unwrap_or(Errno::AGAIN),
        })?;
        receiver.recv().unwrap_or(Err(Error::Dead)).map(Arc::new)
    }

    /// Makes one that has begun ready, with the template.
    fn finish(pid: Pid, arena: Arc<Arena>, [ours, theirs]: [OwnedFd; 2], service: &Service) -> Result<Self> {
        service.wait_for_start()?;
        let maps = maps::of(pid)?;
        setup::empty_keeper(service, &besides_region(&maps))?;
        let vdso = maps.iter().find(|map| map.name == "[vdso]").map(|map| map.range.clone());

        let slot = Arc::new(arena.slot()?);
        params(pid).write(&slot);
        let life = Arc::new(Life::new(Arc::clone(&slot)));
        let template_pid = service
            .request_one(clone_process(&slot, 0))?
            .map_err(|errno| Error::Space { call: "clone", errno })?;
        let living = Arc::<Mutex<Living>>::default();
        let template_pid = i32::try_from(template_pid).expect("the keeper runs no guest");
        life.begin(Pid::from_raw(template_pid).expect("clone returned it"));
        lock(&living).lives.insert(template_pid, Arc::clone(&life));
        let template = Service::new(life, Host::new(DEFAULT_SPIN_BUDGET_NS));
        template.wait_for_start()?;
        setup::install_handlers(&template)?;
        setup::register_barrier(&template)?;

        // No service task has a descriptor below the arena's.
        let files = Passage::new(ours, theirs, layout::FILES_FD as u64, 0);
        Ok(Self {
            supervisor: rustix::process::getpid(),
            pid,
            arena,
            template,
            files,
            birth: Mutex::new(()),
            living,
            vdso,
        })
    }

    /// A new process with an empty address space.
    pub(crate) fn create(&self, engine: Engine, spin_budget_ns: u64) -> Result<Service> {
        self.give_birth(&self.template, engine, spin_budget_ns)
    }

    /// A new process with a copy of the memory of `parent`'s.
    pub(crate) fn fork(&self, parent: &Service, engine: Engine, spin_budget_ns: u64) -> Result<Service> {
        self.give_birth(parent, engine, spin_budget_ns)
    }

    fn give_birth(&self, parent: &Service, engine: Engine, spin_budget_ns: u64) -> Result<Service> {
        let slot = Arc::new(self.arena.slot()?);
        let parent_pid = self.pid.as_raw_nonzero().get();
        Params { engine, spin_budget_ns, parent: parent_pid }.write(&slot);
        let life = Arc::new(Life::new(Arc::clone(&slot)));
        let clone = clone_process(&slot, libc::CLONE_PARENT);
        {
            // The turn first: births are everybody's, and not to be kept from others while somebody's call goes on.
            let mut turn = parent.turn()?;
            let _birth = lock(&self.birth);
            match turn.request_one(clone) {
                Ok(Err(errno)) => return Err(Error::Space { call: "clone", errno }),
                reply => self.christen(parent, reply, &life).inspect_err(|_| self.disown(parent, &life))?,
            }
        }
        let service = Service::new(Arc::clone(&life), Host::new(spin_budget_ns));
        service.wait_for_start().inspect_err(|_| life.kill())?;
        Ok(service)
    }

    /// Registers the child whose birth has been reported. A guest can write where the pid comes from: nothing is taken
    /// that is not a new child of the keeper.
    fn christen(&self, parent: &Service, reply: Result<Outcome>, life: &Arc<Life>) -> Result<()> {
        let pid = reply?.ok().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let is_template = ptr::eq(parent, &self.template);
        let registered = match pid {
            Some(pid) if is_template || parent_of(pid) == Some(self.pid) => self.register(pid, life),
            _ => Err(Error::Dead),
        };
        registered.inspect_err(|_| {
            if !is_template {
                parent.life.kill()
            }
        })
    }

    /// There may be a child whose pid nobody has said. It must not go on, and its slot is nobody else's before its end.
    fn disown(&self, parent: &Service, life: &Arc<Life>) {
        let keeper = self.pid.as_raw_nonzero();
        let children =
            fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap_or_default();
        let mut living = lock(&self.living);
        let mut found = false;
        for child in children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()) {
            if let hash_map::Entry::Vacant(place) = living.lives.entry(child) {
                // SAFETY: kill only sends a signal. The number stays the child's until its end has been registered, which
                // takes the lock that we have.
                unsafe { libc::kill(child, libc::SIGKILL) };
                place.insert(Arc::clone(life));
                found = true;
            }
        }
        if !found && parent.life.status().is_none() {
            // It may be born yet. The slot is never used again.
            std::mem::forget(Arc::clone(life));
        }
    }

    fn register(&self, pid: Pid, life: &Arc<Life>) -> Result<()> {
        let number = pid.as_raw_nonzero().get();
        let mut living = lock(&self.living);
        if let Some(status) = living.stillborn.remove(&number) {
            life.die(status);
            return Ok(());
        }
        if living.keeper_is_gone || living.lives.contains_key(&number) {
            return Err(Error::Dead);
        }
        life.begin(pid);
        living.lives.insert(number, Arc::clone(life));
        Ok(())
    }
}

/// A clone whose child becomes the service task of `slot`, in a process of its own.
fn clone_process(slot: &Slot, flags: libc::c_int) -> Entry {
    let args = [u64::from(flags.cast_unsigned()), 0, 0, 0, 0, 0];
    Entry { nr: libc::SYS_clone, args, child: slot.file_offset() + 1 }
}

/// The parent of `pid`, from /proc/PID/stat (proc(5)).
fn parent_of(pid: Pid) -> Option<Pid> {
    let stat = procfs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    Pid::from_raw(after_name.split_ascii_whitespace().nth(1)?.parse().ok()?)
}

/// A keeper that has just been started.
struct Begun {
    pid: Pid,
    arena: Arc<Arena>,
    /// Our end of the socket for files, and a copy of the keeper's.
    ends: [OwnedFd; 2],
    /// Its service task, which will do nothing but wait for children.
    service: Service,
}

impl Begun {
    fn new() -> Result<Self> {
        let arena = Arena::new()?;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
                .map_err(Error::host("socketpair for files"))?;
        let slot = Arc::new(arena.slot()?);
        assert_eq!(slot.file_offset(), 0, "the keeper's entry adopts the first slot");
        params(rustix::process::getpid()).write(&slot);
        let image = executable(&code::image())?;
        let pid = execute(&image, &arena, &theirs)?;
        let service = Service::new(Arc::new(Life::new(slot)), Host::new(DEFAULT_SPIN_BUDGET_NS));
        Ok(Self { pid, arena, ends: [ours, theirs], service })
    }
}

/// Of the keeper and the template, which run no guests.
fn params(parent: Pid) -> Params {
    Params {
        engine: Engine::Trap,
        spin_budget_ns: DEFAULT_SPIN_BUDGET_NS,
        parent: parent.as_raw_nonzero().get(),
    }
}

/// A file with these contents that can be executed.
fn executable(image: &[u8]) -> Result<OwnedFd> {
    let create = |flags| rustix::fs::memfd_create("pvx-space", flags | MemfdFlags::CLOEXEC);
    // MFD_EXEC is known since Linux 6.3, and wanted where vm.memfd_noexec is 1.
    let file = create(MemfdFlags::EXEC)
        .or_else(|_| create(MemfdFlags::empty()))
        .map_err(Error::host("memfd_create of the executor (is the sysctl vm.memfd_noexec 2?)"))?;
    let mut rest = image;
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest).map_err(Error::host("write of the executor's image"))?;
        rest = &rest[written..];
    }
    Ok(file)
}

/// Starts `image` as a child of this thread, with the descriptors that the resident code expects, nothing else of
/// ours, and all signals blocked. The child shares our memory until it executes, so this costs the same however
/// large we are.
fn execute(image: &OwnedFd, arena: &Arc<Arena>, files: &OwnedFd) -> Result<Pid> {
    struct Child {
        image: i32,
        arena: i32,
        files: i32,
        /// Why it could not execute the image.
        errno: i32,
    }

    extern "C" fn run(child: *mut c_void) -> libc::c_int {
        // SAFETY: `execute` passes a `Child` that outlives this call: CLONE_VFORK keeps it waiting. Only calls that
        // neither allocate nor lock are made; this task shares the parent's memory.
        unsafe {
            let child = &mut *child.cast::<Child>();
            // Out of the way first: ours may have the very numbers that are wanted.
            let above = |fd| libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 16);
            let (image, arena, files) = (above(child.image), above(child.arena), above(child.files));
            libc::dup2(arena, layout::ARENA_FD);
            libc::dup2(files, layout::FILES_FD);
            let nothing = [ptr::null::<libc::c_char>()];
            let name = [c"pvx-space".as_ptr(), ptr::null()];
            let empty = c"".as_ptr();
            libc::syscall(
                libc::SYS_execveat,
                image,
                empty,
                name.as_ptr(),
                nothing.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
            child.errno = *libc::__errno_location();
            libc::_exit(127)
        }
    }

    const STACK: usize = 64 << 10;
    let mut stack = vec![0u8; STACK];
    let mut child =
        Child { image: image.as_raw_fd(), arena: arena.fd().as_raw_fd(), files: files.as_raw_fd(), errno: 0 };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack is big enough for `run`, aligned by the mask, and used by the child only; masks are valid
    // for the calls; the old mask comes back.
    let pid = unsafe {
        let top = stack.as_mut_ptr().add(STACK).map_addr(|addr| addr & !15);
        let (mut all, mut old) = (std::mem::zeroed::<libc::sigset_t>(), std::mem::zeroed::<libc::sigset_t>());
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old);
        let pid = libc::clone(run, top.cast(), flags, (&raw mut child).cast());
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old, ptr::null_mut());
        pid
    };
    let pid = Pid::from_raw(pid.max(0)).ok_or_else(|| Error::Host {
        call: "clone of the keeper",
        errno: Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::AGAIN),
    })?;
    if child.errno == 0 {
        return Ok(pid);
    }
    wait_for_end(pid);
    Err(Error::Host {
        call: "execveat of the executor's image (is the sysctl vm.memfd_noexec 2, or does a security module forbid it?)",
        errno: Errno::from_raw_os_error(child.errno),
    })
}

/// What the kernel has mapped for a new program besides its image: stack and heap. The vDSO and its data stay.
fn besides_region(maps: &[maps::Map]) -> Vec<Range<u64>> {
    maps.iter()
        .filter(|map| !layout::overlaps_region(map.range.start, map.range.end - map.range.start))
        .filter(|map| !map.name.starts_with("[v"))
        .map(|map| map.range.clone())
        .collect()
}

/// Sleeps until the keeper ends.
fn wait_for_end(keeper: Pid) -> WaitStatus {
    loop {
        match rustix::process::waitpid(Some(keeper), WaitOptions::empty()) {
            Err(Errno::INTR) => {}
            Ok(Some((_, status))) => {
                return match status.exit_status() {
                    Some(status) => WaitStatus::Exited(status),
                    None => WaitStatus::Signaled(status.terminating_signal().unwrap_or(libc::SIGKILL)),
                };
            }
            // Somebody else has reaped it: a supervisor that waits for any child.
            _ => return WaitStatus::Signaled(libc::SIGKILL),
        }
    }
}

/// Waits for children of the keeper to die, through its service task, until the keeper itself is gone.
fn reap(service: &Service, living: &Mutex<Living>) {
    let info = layout::SCRATCH;
    let wait = |which: u64, pid: i32, options: libc::c_int| {
        let options = u64::from((options | libc::WEXITED | libc::__WALL).cast_unsigned());
        let address = layout::BASE + info;
        Entry::new(libc::SYS_waitid, [which, u64::from(pid.cast_unsigned()), address, options, 0, 0])
    };
    let next = wait(u64::from(libc::P_ALL), 0, libc::WNOWAIT);
    let mut entries = vec![next];
    while let Ok(results) = service.request(&entries) {
        match results.last() {
            Some(Ok(_)) => {}
            Some(Err(Errno::INTR)) => continue,
            _ => break,
        }
        let (pid, status) = dead_child(&service.life.slot, info);
        let mut living = lock(living);
        match living.lives.remove(&pid) {
            Some(life) => life.die(status),
            None => drop(living.stillborn.insert(pid, status)),
        }
        drop(living);
        // Only now may the number be used again.
        entries = vec![wait(u64::from(libc::P_PID), pid, 0), next];
    }
    let mut living = lock(living);
    living.keeper_is_gone = true;
    for (_, life) in living.lives.drain() {
        life.die(WaitStatus::Signaled(libc::SIGKILL));
    }
}

/// The pid and the status in the `siginfo_t` that waitid(2) filled in.
fn dead_child(slot: &Slot, info: u64) -> (i32, WaitStatus) {
    let field = |offset| slot.read::<u32>(info + offset).cast_signed();
    let (code, pid, status) = (field(8), field(16), field(24));
    match code {
        libc::CLD_EXITED => (pid, WaitStatus::Exited(status)),
        _ => (pid, WaitStatus::Signaled(status)),
    }
}
