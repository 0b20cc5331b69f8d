//! Leases on files whose text is rewritten: nobody writes to such a file before the text is as it was.
//!
//! Rewriting makes private copies of a file's pages, and what somebody writes to the file later would not be seen there.
//! A read lease (fcntl(2), `F_SETLEASE`) can be had if nobody has the file open for writing, and holds whoever opens
//! it until it is given up: a thread of ours then restores the file's sites in all spaces and gives their copies back.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::thread;
use std::time::Duration;

use rustix::fs::{Access, AtFlags, accessat};
use rustix::io::Errno;
use rustix::process::Pid;

use super::Guest;
use crate::maps::{FileId, Map};
use crate::signal::with_signals_blocked;
use crate::sync::lock;

/// For how long whoever opens a file waits at most for spaces to give it up. One that does not answer does so later, and
/// is not waited for again.
const PATIENCE: Duration = Duration::from_millis(100);

/// Says that somebody is about to open a file for writing. Not one that queues: who gets it looks at all leases.
const BREAK: libc::c_int = libc::SIGSTKFLT;

/// That a file is not written to while its text is rewritten. Shared by all spaces; given up with the last one.
#[derive(Debug)]
pub(super) struct Lease {
    id: FileId,
    /// What the lease is on. None if the file can be written neither by us nor, with our leave, by anybody.
    file: Option<OwnedFd>,
    /// Who took the lease: a fork of the supervisor has a copy of this, and nothing to give up.
    holder: Pid,
    users: Mutex<Users>,
}

#[derive(Debug, Default)]
struct Users {
    /// Somebody wants to write to the file.
    is_broken: bool,
    spaces: Vec<Weak<dyn Guest>>,
}

/// The leases of this process.
#[derive(Debug)]
struct Leases {
    holder: Pid,
    /// The thread that waits for their ends.
    listener: Option<Pid>,
    by_file: HashMap<FileId, Weak<Lease>>,
}

static LEASES: Mutex<Option<Leases>> = Mutex::new(None);

/// The lease on the file that `map` of the process `pid` maps; none if somebody may be writing to it.
pub(super) fn on(map: &Map, pid: Pid) -> Option<Arc<Lease>> {
    let id = map.file?;
    let listener = {
        let mut leases = lock(&LEASES);
        let leases = Leases::of_this_process(&mut leases);
        if let Some(lease) = leases.in_force(id) {
            return Some(lease);
        }
        leases.listener()?
    };
    // Not with the lock: a file system that does not answer keeps no other space.
    let file = open(map, pid, id)?;
    let file = match take(&file, listener) {
        Ok(()) => Some(file),
        // Somebody else's, and we have no right to leases. If it is not ours to write either, only its owner can.
        Err(Errno::ACCESS) if !is_writable(&file) => None,
        // It is open for writing, or is in a file system that has no leases.
        Err(_) => return None,
    };
    let holder = rustix::process::getpid();
    let lease = Arc::new(Lease { id, file, holder, users: Mutex::default() });
    let mut leases = lock(&LEASES);
    let leases = Leases::of_this_process(&mut leases);
    leases.by_file.retain(|_, lease| lease.strong_count() != 0);
    let lease = match leases.in_force(id) {
        Some(other) => other,
        None => {
            leases.by_file.insert(id, Arc::downgrade(&lease));
            lease
        }
    };
    // Who has wanted it before it was among the leases will not be found there.
    (!lease.is_wanted()).then_some(lease)
}

impl Leases {
    fn of_this_process(leases: &mut Option<Self>) -> &mut Self {
        let holder = rustix::process::getpid();
        // A fork of the supervisor begins with none.
        leases.take_if(|leases| leases.holder != holder);
        leases.get_or_insert_with(|| Self { holder, listener: None, by_file: HashMap::new() })
    }

    /// The lease on a file, unless it has been given up: a space that does not answer may keep that for long, and others are
    /// not to go without.
    fn in_force(&self, id: FileId) -> Option<Arc<Lease>> {
        self.by_file.get(&id).and_then(Weak::upgrade).filter(|lease| !lease.is_broken())
    }

    fn listener(&mut self) -> Option<Pid> {
        if self.listener.is_none() {
            self.listener = listen();
        }
        self.listener
    }
}

impl Lease {
    /// From now on `space` is told before the file is written to; not if that is about to happen already.
    pub(super) fn join(&self, space: &Arc<impl Guest + 'static>) -> bool {
        let mut users = lock(&self.users);
        users.spaces.retain(|space| space.strong_count() != 0);
        let space: Weak<dyn Guest> = Arc::downgrade(space) as _;
        users.spaces.push(space);
        !users.is_broken
    }

    /// Has it been given up?
    pub(super) fn is_broken(&self) -> bool {
        lock(&self.users).is_broken
    }

    /// Does somebody want to open the file for writing?
    fn is_wanted(&self) -> bool {
        self.file.as_ref().is_some_and(|file| {
            // SAFETY: asks for a number; no memory is touched.
            let kind = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) };
            kind != libc::F_RDLCK
        })
    }

    /// Has all spaces give the file up, and lets go on who waits for that.
    fn give_up(&self) {
        let spaces: Vec<_> = {
            let mut users = lock(&self.users);
            if std::mem::replace(&mut users.is_broken, true) {
                return;
            }
            users.spaces.iter().filter_map(Weak::upgrade).collect()
        };
        let (done, are_done) = mpsc::channel::<()>();
        let awaited: Vec<_> = spaces.into_iter().map(|space| (space, Arc::<AtomicBool>::default())).collect();
        for (space, has_restored) in &awaited {
            let (id, space, has_restored) = (self.id, Arc::clone(space), Arc::clone(has_restored));
            let done = (!space.is_late().load(Ordering::SeqCst)).then(|| done.clone());
            let restore = move || {
                space.give_up_text_of(id);
                has_restored.store(true, Ordering::SeqCst);
                space.is_late().store(false, Ordering::SeqCst);
                drop(done);
            };
            // A thread for each: none waits because another's service task does not answer.
            let _ = thread::Builder::new().name("pvx-restore".into()).spawn(restore);
        }
        drop(done);
        // The end of the last one.
        let _ = are_done.recv_timeout(PATIENCE);
        for (space, has_restored) in awaited {
            let is_late = || !has_restored.load(Ordering::SeqCst);
            if is_late() {
                space.is_late().store(true, Ordering::SeqCst);
                // It may have answered meanwhile, and said before the line above that it is not late any more.
                if !is_late() {
                    space.is_late().store(false, Ordering::SeqCst);
                }
            }
        }
        self.release();
    }

    fn release(&self) {
        if let Some(file) = &self.file
            && self.holder == rustix::process::getpid()
        {
            // SAFETY: takes two integers; no memory is touched.
            unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.release();
    }
}

/// Opens the file `id` that `map` of the process `pid` maps.
fn open(map: &Map, pid: Pid, id: FileId) -> Option<OwnedFd> {
    let open = |path: &str| File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok();
    let is_it = |file: &File| {
        file.metadata().is_ok_and(|metadata| {
            let device = metadata.dev();
            id == FileId { device: (libc::major(device), libc::minor(device)), inode: metadata.ino() }
        })
    };
    // The first way leads to the very file, but takes rights; the second one is by its name.
    let Map { range, name, .. } = map;
    let exact = open(&format!("/proc/{}/map_files/{:x}-{:x}", pid.as_raw_nonzero(), range.start, range.end));
    let file = exact.or_else(|| open(name).filter(is_it))?;
    // Memory files have no name, and are not known to be open for writing although they are.
    file.metadata().is_ok_and(|metadata| metadata.nlink() != 0).then(|| OwnedFd::from(file))
}

/// Takes a lease of which `listener` is told when somebody wants to write.
fn take(file: &OwnedFd, listener: Pid) -> Result<(), Errno> {
    /// `struct f_owner_ex` (fcntl(2)).
    #[repr(C)]
    struct Owner {
        kind: libc::c_int,
        number: libc::c_int,
    }
    const F_SETSIG: libc::c_int = 10;
    const F_SETOWN_EX: libc::c_int = 15;
    const F_OWNER_TID: libc::c_int = 0;
    let owner = Owner { kind: F_OWNER_TID, number: listener.as_raw_pid() };
    let fd = file.as_raw_fd();
    let check = |result| if result == -1 { Err(crate::ptrace::last_errno()) } else { Ok(()) };
    // SAFETY: the second call reads `owner`, which is as the kernel has it; the others take integers.
    unsafe {
        check(libc::fcntl(fd, F_SETSIG, BREAK))?;
        check(libc::fcntl(fd, F_SETOWN_EX, &raw const owner))?;
        check(libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK))
    }
}

fn is_writable(file: &OwnedFd) -> bool {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    accessat(rustix::fs::CWD, path, Access::WRITE_OK, AtFlags::EACCESS) != Err(Errno::ACCESS)
}

/// Starts the thread that waits for whoever wants to write to a leased file.
fn listen() -> Option<Pid> {
    let (started, start) = mpsc::channel();
    let listener = move || {
        // SAFETY: the set is initialised by the first call.
        let signals = unsafe {
            let mut signals = std::mem::zeroed();
            libc::sigemptyset(&raw mut signals);
            libc::sigaddset(&raw mut signals, BREAK);
            signals
        };
        let _ = started.send(rustix::thread::gettid());
        loop {
            // SAFETY: the set is initialised; nothing is asked to be written.
            unsafe { libc::sigwaitinfo(&raw const signals, std::ptr::null_mut()) };
            let wanted: Vec<_> = {
                let leases = lock(&LEASES);
                let all = leases.iter().flat_map(|leases| leases.by_file.values());
                all.filter_map(Weak::upgrade).filter(|lease| lease.is_wanted()).collect()
            };
            for lease in wanted {
                let its = Arc::clone(&lease);
                // Not here: the next file is not to wait for this one.
                if thread::Builder::new().name("pvx-lease".into()).spawn(move || its.give_up()).is_err() {
                    lease.give_up();
                }
            }
        }
    };
    with_signals_blocked(|| thread::Builder::new().name("pvx-leases".into()).spawn(listener)).ok()?;
    start.recv().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::time::Instant;

    use tempfile::NamedTempFile;

    use super::*;
    use crate::executor::service::Service;

    /// Gives a file up when the test lets it.
    #[derive(Debug, Default)]
    struct Space {
        is_late: AtomicBool,
        asked: AtomicU32,
        gate: Mutex<()>,
    }

    impl Guest for Space {
        fn service(&self) -> &Service {
            unreachable!("nothing is called in it")
        }

        fn is_late(&self) -> &AtomicBool {
            &self.is_late
        }

        fn give_up_text_of(&self, _: FileId) {
            self.asked.fetch_add(1, Ordering::SeqCst);
            drop(lock(&self.gate));
        }
    }

    impl Space {
        /// Is it soon not late any more?
        fn has_answered(&self) -> bool {
            let end = Instant::now() + Duration::from_secs(10);
            while self.is_late.load(Ordering::SeqCst) && Instant::now() < end {
                thread::yield_now();
            }
            !self.is_late.load(Ordering::SeqCst)
        }
    }

    /// A lease on no file.
    fn lease() -> Lease {
        let id = FileId { device: (0, 0), inode: 1 };
        Lease { id, file: None, holder: rustix::process::getpid(), users: Mutex::default() }
    }

    fn file() -> NamedTempFile {
        NamedTempFile::new().expect("a file")
    }

    /// What a process maps that has mapped `file`, by the name of `named`.
    fn map_of(file: &NamedTempFile, named: &NamedTempFile) -> Map {
        let metadata = file.as_file().metadata().expect("what the file is");
        let (major, minor) = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
        let (inode, name) = (metadata.ino(), named.path().display());
        crate::maps::parse(&format!("1000-2000 r-xp 00000000 {major:x}:{minor:x} {inode} {name}"))
            .expect("a line")
    }

    #[test]
    fn who_joins_a_lease_that_has_been_given_up_is_told_so() {
        let (lease, space) = (lease(), Arc::<Space>::default());
        assert!(lease.join(&space));
        lease.give_up();
        assert!(!lease.join(&space));
    }

    #[test]
    fn each_space_gives_a_file_up_once() {
        let (lease, spaces) = (lease(), [(); 3].map(|()| Arc::<Space>::default()));
        assert!(spaces.iter().all(|space| lease.join(space)));
        lease.give_up();
        assert!(spaces.iter().all(|space| space.has_answered()));
        lease.give_up();
        assert!(spaces.iter().all(|space| space.asked.load(Ordering::SeqCst) == 1), "{spaces:?}");
    }

    #[test]
    fn a_space_that_does_not_answer_is_waited_for_once_until_it_does() {
        let [late, prompt] = [(); 2].map(|()| Arc::<Space>::default());
        let give_up = || {
            let lease = lease();
            assert!(lease.join(&late) && lease.join(&prompt));
            let start = Instant::now();
            lease.give_up();
            start.elapsed()
        };
        for _ in 0..2 {
            let gate = lock(&late.gate);
            assert!(give_up() >= PATIENCE);
            assert!(late.is_late.load(Ordering::SeqCst));
            assert!(prompt.has_answered());
            // On a busy machine, the other one may take that long as well.
            assert!((0..50).any(|_| give_up() < PATIENCE), "nobody waits for who is late");
            drop(gate);
            assert!(late.has_answered());
            // All of its threads are done when it has been asked by each.
            while Arc::strong_count(&late) != 1 {
                thread::yield_now();
            }
        }
    }

    #[test]
    fn a_file_that_has_got_another_ones_name_has_no_lease() {
        let (mapped, named) = (file(), file());
        let map = map_of(&mapped, &named);
        let (_mapped, _named) = (mapped.into_temp_path(), named.into_temp_path());
        assert!(on(&map, rustix::process::getpid()).is_none());
    }

    #[test]
    fn leases_that_are_gone_are_forgotten_and_one_thread_waits_for_all() {
        let listener = || lock(&LEASES).as_ref().and_then(|leases| leases.listener);
        let files = [file(), file()];
        let maps = files.each_ref().map(|file| map_of(file, file));
        // Nobody has them open, and they are there until the end: their numbers are nobody else's.
        let _paths = files.map(NamedTempFile::into_temp_path);
        let [first, second] = maps.map(|map| move || on(&map, rustix::process::getpid()).expect("a lease"));
        let first = first();
        let (id, its_listener) = (first.id, listener());
        assert!(its_listener.is_some());
        drop(first);
        let _second = second();
        assert!(!lock(&LEASES).as_ref().is_some_and(|leases| leases.by_file.contains_key(&id)));
        assert_eq!(listener(), its_listener);
    }
}
