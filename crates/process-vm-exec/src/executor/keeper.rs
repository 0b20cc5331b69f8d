//! The keeper: parent of all spaces. Started with the first space, and ended with the supervisor.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{ptr, thread};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions};

use super::arena::{Arena, Slot};
use super::filter::ServiceCalls;
use super::life::Life;
use super::machine::{DEFAULT_SPIN_BUDGET_NS, Host};
use super::passage::Files;
use super::region::Region;
use super::service::{Entry, Service};
use super::setup::{self, Params};
use super::signature::Key;
use super::{code, filter, layout};
use crate::arch::x86_64::USER_END;
use crate::error::{Error, Result};
use crate::exit::WaitStatus;
use crate::name::Engine;
use crate::signal::with_signals_blocked;
use crate::sync::lock;
use crate::{maps, procfs, registry};

/// The supervisor's end of the keeper and of the templates.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// What its spaces have reserved.
    region: Region,
    pid: Pid,
    /// That of its own process. A forked child of the one that started it has no part in it, and starts its own.
    life: Arc<Life>,
    arena: Arc<Arena>,
    /// The template whose copies may make every call.
    open: Template,
    /// A copy of it that is confined, once there is one.
    confined: Mutex<Option<Arc<Template>>>,
    /// Where the vDSO is in every space.
    pub(crate) vdso: Option<Range<u64>>,
    /// Where the vDSO and the kernel's data for it are.
    pub(crate) kernels_pages: Option<Range<u64>>,
    living: Arc<Mutex<Living>>,
}

/// A process that others are copies of.
#[derive(Debug)]
struct Template {
    service: Service,
    files: Mutex<Files>,
}

/// What a new process is to be like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Birth {
    pub(crate) engine: Engine,
    pub(crate) spin_budget_ns: u64,
    pub(crate) time_limit: Option<Duration>,
}

/// The processes that the keeper is the parent of.
#[derive(Debug, Default)]
struct Living {
    lives: HashMap<i32, Arc<Life>>,
    /// Processes that died before they were registered.
    stillborn: HashMap<i32, WaitStatus>,
    strays: Vec<Stray>,
    keeper_is_gone: bool,
}

/// A child that may have been born, or may yet be, of a parent that has been killed before it said so.
#[derive(Debug)]
struct Stray {
    /// Nobody else gets its slot before it is known that there is no such child.
    service: Service,
    parent: Arc<Life>,
}

impl Keeper {
    /// This process's keeper of spaces that have reserved this region.
    pub(crate) fn get(region: Region) -> Result<Arc<Self>> {
        static KEEPERS: Mutex<Vec<Arc<Keeper>>> = Mutex::new(Vec::new());
        let mut keepers = lock(&KEEPERS);
        let place = keepers.iter().position(|keeper| keeper.region == region);
        if let Some(place) = place {
            let keeper = &keepers[place];
            let template_lives = keeper.open.service.life.status().is_none();
            let keeper_lives = !lock(&keeper.living).keeper_is_gone;
            if keeper.life.slot.is_ours() && keeper_lives && template_lives {
                return Ok(Arc::clone(keeper));
            }
        }
        let new = Self::start(region)?;
        match place {
            // The old one ends with its last space, if it has any.
            Some(place) => keepers[place] = Arc::clone(&new),
            None => keepers.push(Arc::clone(&new)),
        }
        Ok(new)
    }

    /// The keeper's parent is the thread that starts it: when that thread ends, `PR_SET_PDEATHSIG` kills the keeper.
    /// So a thread of its own starts it, and stays to see its end; another one has it make the template, and hears of the ends of
    /// its children from then on. The caller makes the template ready, so that it learns of the end of that, too.
    fn start(region: Region) -> Result<Arc<Self>> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let start = move || {
            let begun = match Begun::new(region) {
                Ok(begun) => begun,
                Err(error) => return drop(sender.send(Err(error))),
            };
            let (pid, life) = (begun.pid, Arc::clone(&begun.service.life));
            life.begin(pid);
            let reaper = thread::Builder::new().name("pvx-reaper".into()).spawn(move || {
                let Begun { pid, arena, service } = begun;
                let keeper = Self::with_template(pid, arena, &service).inspect_err(|_| service.life.kill());
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
        with_signals_blocked(|| thread::Builder::new().name("pvx-keeper".into()).spawn(start)).map_err(
            |error| Error::Host {
                call: "starting the keeper's thread",
                errno: Errno::from_io_error(&error).unwrap_or(Errno::AGAIN),
            },
        )?;
        // It ends with the value, if that is not what is wanted.
        let keeper = receiver.recv().unwrap_or(Err(Error::Dead))?;
        let template = &keeper.open.service;
        template.wait_for_start()?;
        setup::install_handlers(template)?;
        setup::register_barrier(template)?;
        Ok(Arc::new(keeper))
    }

    /// One that has begun, with a template that is not ready yet.
    fn with_template(pid: Pid, arena: Arc<Arena>, service: &Service) -> Result<Self> {
        service.wait_for_start()?;
        let region = service.life.slot.region();
        let maps = maps::of(pid)?;
        setup::empty_keeper(service, &besides_region(&maps, region))?;
        let kernels_pages = maps
            .iter()
            .filter(|map| is_the_kernels(map) && map.range.end <= USER_END)
            .map(|map| map.range.clone())
            .reduce(|one, other| one.start.min(other.start)..one.end.max(other.end));
        let vdso = maps.iter().find(|map| map.name == "[vdso]").map(|map| map.range.clone());

        let (slot, key) = (Arc::new(arena.slot()?), Key::new()?);
        params(pid).write(&slot);
        key.give(&slot);
        let life = Arc::new(Life::new(Arc::clone(&slot)));
        let template_pid = service
            .request_one(clone_process(&slot, 0))?
            .map_err(|errno| Error::Space { call: "clone", errno })?;
        let living = Arc::<Mutex<Living>>::default();
        let template_pid = pid_of(template_pid).ok_or(Error::Dead)?;
        life.begin(template_pid);
        lock(&living).lives.insert(template_pid.as_raw_pid(), Arc::clone(&life));
        let open = Service::new(life, Host::new(DEFAULT_SPIN_BUDGET_NS), key);
        Ok(Self {
            region,
            pid,
            life: Arc::clone(&service.life),
            arena,
            open: Template { service: open, files: Mutex::default() },
            confined: Mutex::default(),
            living,
            vdso,
            kernels_pages,
        })
    }

    /// A new process with an empty address space, whose service task may make these calls, and has these files.
    pub(crate) fn create(&self, calls: ServiceCalls, birth: Birth) -> Result<(Service, Files)> {
        match calls {
            ServiceCalls::All => self.copy(&self.open, birth),
            ServiceCalls::Memory => self.copy(&*self.confined()?, birth),
        }
    }

    fn copy(&self, template: &Template, birth: Birth) -> Result<(Service, Files)> {
        let files = {
            let mut files = lock(&template.files);
            files.require_registered(&template.service, registry::count())?;
            files.fork()
        };
        // Files that come to the template from now on the copy has, too, and does not know of.
        Ok((self.fork(&template.service, birth)?, files))
    }

    /// The template that is confined. No guest ever runs in one, so that nobody waits here for long.
    fn confined(&self) -> Result<Arc<Template>> {
        let mut confined = lock(&self.confined);
        if let Some(template) = &*confined
            && template.service.life.status().is_none()
        {
            return Ok(Arc::clone(template));
        }
        let birth = Birth { engine: Engine::Trap, spin_budget_ns: DEFAULT_SPIN_BUDGET_NS, time_limit: None };
        let (service, files) = self.copy(&self.open, birth)?;
        setup::confine(&service).inspect_err(|_| service.life.kill())?;
        let template = Arc::new(Template { service, files: Mutex::new(files) });
        Ok(Arc::clone(confined.insert(template)))
    }

    /// A new process with a copy of the memory of `parent`'s. Others are born meanwhile: only the parent itself is kept.
    pub(crate) fn fork(&self, parent: &Service, birth: Birth) -> Result<Service> {
        let Birth { engine, spin_budget_ns, time_limit } = birth;
        let (slot, key) = (Arc::new(self.arena.slot()?), Key::new()?);
        Params { engine, spin_budget_ns, parent: self.pid.as_raw_pid() }.write(&slot);
        key.give(&slot);
        let life = Arc::new(Life::new(Arc::clone(&slot)));
        let service =
            Service::new(Arc::clone(&life), Host::new(spin_budget_ns), key).with_time_limit(time_limit);
        self.look_for_strays();
        let mut turn = parent.turn()?;
        match turn.request_one(clone_process(&slot, filter::CLONE_PROCESS)) {
            Ok(Ok(pid)) => self.register(pid_of(pid).ok_or(Error::Dead)?, &life)?,
            Ok(Err(errno)) => return Err(Error::Space { call: "clone", errno }),
            Err(error) => {
                // A child looks whether it has the right parent first, and then for requests.
                slot.write(layout::PARAMS + layout::PARENT, 0u32);
                let stray = Stray { service, parent: Arc::clone(&parent.life) };
                stray.send_away();
                lock(&self.living).strays.push(stray);
                return Err(error);
            }
        }
        drop(turn);
        service.wait_for_start().inspect_err(|_| life.kill()).map_err(|error| match error {
            // It has ended before anybody could have killed it.
            Error::Dead if parent.life.status().is_none() => Error::Host {
                call: "starting a copy of an address space (has it as many mappings as vm.max_map_count allows?)",
                errno: Errno::NOMEM,
            },
            error => error,
        })?;
        Key::hide(&slot);
        Ok(service)
    }

    /// Sends strays away, and gives their slots back if there are none.
    fn look_for_strays(&self) {
        let mut living = lock(&self.living);
        if living.strays.is_empty() {
            return;
        }
        living.strays.iter().for_each(Stray::send_away);
        let keeper = self.pid.as_raw_nonzero();
        let Ok(children) = procfs::read(format!("/proc/{keeper}/task/{keeper}/children")) else { return };
        let mut children = children.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok());
        let Living { lives, strays, .. } = &mut *living;
        // Somebody unknown may be just being born to another, or be a stray.
        if children.all(|pid| lives.contains_key(&pid)) {
            strays.retain(|stray| lives.values().any(|life| Arc::ptr_eq(life, &stray.parent)));
        }
    }

    fn register(&self, pid: Pid, life: &Arc<Life>) -> Result<()> {
        let number = pid.as_raw_pid();
        let mut living = lock(&self.living);
        if let Some(status) = living.stillborn.remove(&number)
            && !is_child_of(pid, self.pid)
        {
            life.die(status);
            return Ok(());
        }
        if living.keeper_is_gone {
            return Err(Error::Dead);
        }
        life.begin(pid);
        living.lives.insert(number, Arc::clone(life));
        Ok(())
    }
}

/// Nobody wants spaces of it any more: it has been replaced, or was not what was wanted.
impl Drop for Keeper {
    fn drop(&mut self) {
        self.life.kill();
    }
}

impl Stray {
    /// It may have read the last request as the one that it starts with: so there has to be one more each time.
    fn send_away(&self) {
        self.service.leave(Entry::new(libc::SYS_exit_group, [0; 6]));
    }
}

fn pid_of(result: u64) -> Option<Pid> {
    i32::try_from(result).ok().and_then(Pid::from_raw)
}

/// A clone whose child becomes the service task of `slot`, in a process of its own.
fn clone_process(slot: &Slot, flags: libc::c_int) -> Entry {
    let args = [u64::from(flags.cast_unsigned()), 0, 0, 0, 0, 0];
    Entry { nr: libc::SYS_clone, args, child: slot.file_offset() + 1 }
}

/// Is there a living child of `parent` with this number? From /proc/PID/stat (proc(5)).
fn is_child_of(pid: Pid, parent: Pid) -> bool {
    let stat = procfs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    let Some((_, after_name)) = stat.rsplit_once(')') else { return false };
    let mut fields = after_name.split_ascii_whitespace();
    fields.next() != Some("Z") && fields.next() == Some(parent.as_raw_nonzero().to_string().as_str())
}

/// A keeper that has just been started.
struct Begun {
    pid: Pid,
    arena: Arc<Arena>,
    /// Its service task, which will do nothing but wait for children.
    service: Service,
}

impl Begun {
    fn new(region: Region) -> Result<Self> {
        let arena = Arena::new(region)?;
        let (slot, key) = (Arc::new(arena.slot()?), Key::new()?);
        assert_eq!(slot.file_offset(), 0, "the keeper's entry adopts the first slot");
        params(rustix::process::getpid()).write(&slot);
        key.give(&slot);
        let image = executable(&code::image(region))?;
        let pid = execute(&image, &arena)?;
        let service = Service::new(Arc::new(Life::new(slot)), Host::new(DEFAULT_SPIN_BUDGET_NS), key);
        Ok(Self { pid, arena, service })
    }
}

/// Of the keeper and the template, which run no guests.
fn params(parent: Pid) -> Params {
    Params { engine: Engine::Trap, spin_budget_ns: DEFAULT_SPIN_BUDGET_NS, parent: parent.as_raw_pid() }
}

/// A file with these contents that can be executed.
fn executable(image: &[u8]) -> Result<OwnedFd> {
    let create = |flags| rustix::fs::memfd_create("pvx-space", flags | MemfdFlags::CLOEXEC);
    // MFD_EXEC is known since Linux 6.3, and wanted where vm.memfd_noexec is 1.
    let file =
        create(MemfdFlags::EXEC).or_else(|_| create(MemfdFlags::empty())).map_err(|errno| match errno {
            Errno::ACCESS => {
                Error::host("memfd_create of the executor (is the sysctl vm.memfd_noexec 2?)")(errno)
            }
            _ => Error::host("memfd_create of the executor")(errno),
        })?;
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
fn execute(image: &OwnedFd, arena: &Arc<Arena>) -> Result<Pid> {
    struct Child {
        image: i32,
        arena: i32,
        /// What it could not do, and why.
        failed: Option<(&'static str, i32)>,
    }

    const DUPLICATE: &str = "fcntl of the executor's descriptors, of which 18 are needed";
    const EXECUTE: &str = "execveat of the executor's image (is the sysctl vm.memfd_noexec 2, or does a security module forbid it?)";

    extern "C" fn run(child: *mut c_void) -> libc::c_int {
        // SAFETY: `execute` passes a `Child` that outlives this call: CLONE_VFORK keeps it waiting. Only calls that
        // neither allocate nor lock are made; this task shares the parent's memory.
        unsafe {
            let child = &mut *child.cast::<Child>();
            // Out of the way first: ours may have the very numbers that are wanted.
            let above = |fd| libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 16);
            let (image, arena) = (above(child.image), above(child.arena));
            if image < 0 || arena < 0 {
                // EINVAL says the same of a limit that is lower still (fcntl(2)).
                child.failed = Some((DUPLICATE, libc::EMFILE));
                libc::_exit(127);
            }
            libc::dup2(arena, layout::ARENA_FD);
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
            child.failed = Some((EXECUTE, *libc::__errno_location()));
            libc::_exit(127)
        }
    }

    const STACK: usize = 64 << 10;
    let mut stack = vec![0u8; STACK];
    let mut child = Child { image: image.as_raw_fd(), arena: arena.fd().as_raw_fd(), failed: None };
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
    let Some((call, errno)) = child.failed else { return Ok(pid) };
    wait_for_end(pid);
    Err(Error::Host { call, errno: Errno::from_raw_os_error(errno) })
}

/// What the kernel has mapped for a new program besides its image: stack and heap. The vDSO and its data stay.
fn besides_region(maps: &[maps::Map], region: Region) -> Vec<Range<u64>> {
    maps.iter()
        .filter(|map| !region.touches(&map.range))
        .filter(|map| !is_the_kernels(map))
        .map(|map| map.range.clone())
        .collect()
}

/// The vDSO, what it reads, and the vsyscall page.
fn is_the_kernels(map: &maps::Map) -> bool {
    map.name.starts_with("[v")
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
        let address = service.life.slot.address(info);
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
        let life = {
            let mut living = lock(living);
            let life = living.lives.remove(&pid);
            if life.is_none() {
                living.stillborn.insert(pid, status);
            }
            life
        };
        // Not with the lock: spaces are born while this waits for those who use the number.
        if let Some(life) = life {
            life.die(status);
        }
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    use rustix::process::Signal;

    use super::*;

    const BIRTH: Birth = Birth { engine: Engine::Trap, spin_budget_ns: 0, time_limit: None };

    fn kill(service: &Service) {
        service.life.kill();
        service.life.wait_for_end();
    }

    #[test]
    fn a_template_that_has_been_killed_is_replaced() {
        // Nobody else's.
        let region = Region::at(0x2_0000_0000).expect("a region");
        let keeper = Keeper::get(region).expect("a keeper");
        kill(&keeper.confined().expect("a template").service);
        keeper.create(ServiceCalls::Memory, BIRTH).expect("a space");
        kill(&keeper.open.service);
        let another = Keeper::get(region).expect("a keeper");
        for calls in [ServiceCalls::All, ServiceCalls::Memory] {
            another.create(calls, BIRTH).expect("a space");
        }
        // The old one has no space any more.
        assert!(keeper.life.status().is_none());
        let life = Arc::clone(&keeper.life);
        drop(keeper);
        life.wait_for_end();
    }

    /// The children of all threads of a process (proc(5)).
    fn children_of(parent: Pid) -> Vec<Pid> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", parent.as_raw_nonzero()));
        let lists =
            tasks.into_iter().flatten().flatten().map(|task| procfs::read(task.path().join("children")));
        let number = |pid: &str| Pid::from_raw(pid.parse().ok()?);
        lists
            .flatten()
            .flat_map(|list| list.split_whitespace().filter_map(number).collect::<Vec<_>>())
            .collect()
    }

    #[test]
    fn a_keeper_or_template_that_is_killed_at_its_birth_is_an_error_and_the_next_one_works() {
        let region = Region::at(0x3_0000_0000).expect("a region");
        let has_region =
            |pid: &Pid| maps::of(*pid).is_ok_and(|maps| maps.iter().any(|map| region.touches(&map.range)));
        let keeper = || children_of(rustix::process::getpid()).into_iter().find(has_region);
        for round in 0..60 {
            let is_over = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    let victim = || match (keeper(), round % 2) {
                        (Some(keeper), 0) => Some(keeper),
                        (Some(keeper), _) => children_of(keeper).pop(),
                        (None, _) => None,
                    };
                    while !is_over.load(Ordering::SeqCst) {
                        if let Some(pid) = victim() {
                            thread::sleep(Duration::from_micros(round * 10));
                            let _ = rustix::process::kill_process(pid, Signal::KILL);
                            break;
                        }
                    }
                });
                // It comes back, whatever with.
                let _ = Keeper::get(region).and_then(|keeper| keeper.create(ServiceCalls::Memory, BIRTH));
                is_over.store(true, Ordering::SeqCst);
            });
        }
        let works =
            || Keeper::get(region).is_ok_and(|keeper| keeper.create(ServiceCalls::Memory, BIRTH).is_ok());
        let deadline = Instant::now() + Duration::from_secs(20);
        while !works() {
            assert!(Instant::now() < deadline, "no space can be created any more");
            thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_keeper_that_is_replaced_leaves_nothing() {
        let region = Region::at(0x4_0000_0000).expect("a region");
        let slots = || {
            let maps = maps::of(rustix::process::getpid()).expect("maps");
            // Others are made meanwhile, of other regions.
            maps.iter().filter(|map| map.name.starts_with("/memfd:process_vm_exec")).count()
        };
        let before = slots();
        for _ in 0..20 {
            let keeper = Keeper::get(region).expect("a keeper");
            keeper.life.kill();
            keeper.life.wait_for_end();
            while !lock(&keeper.living).keeper_is_gone {
                thread::yield_now();
            }
        }
        assert!(slots() < before + 20, "{} mappings after {before}", slots());
    }
}
