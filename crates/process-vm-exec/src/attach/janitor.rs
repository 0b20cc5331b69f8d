//! The janitor: a process that outlives the supervisor, and takes out of live processes what that has put in.
//!
//! It is a fork of the supervisor, made at the first attachment, that does nothing but wait for the supervisor's end.
//! The two share the table of attachments. It closes all descriptors, leaves process group and directory, and gives back
//! what large memory of the supervisor it has a copy of. As a child without an exit signal it disturbs no wait(2).

use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, Once};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, RawDir};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::removal::Added;
use crate::error::{Error, Result};
use crate::signal::with_signals_blocked;
use crate::sync::lock;
use crate::{maps, procfs};

/// As many attachments as one supervisor can have at once.
const ATTACHMENTS: usize = 1024;

/// The supervisor's side.
#[derive(Debug)]
pub(super) struct Janitor {
    supervisor: Pid,
    pid: i32,
    table: &'static [Added],
    free: Mutex<Vec<usize>>,
}

/// One attachment's line in the table.
#[derive(Debug)]
pub(super) struct Line {
    janitor: Arc<Janitor>,
    index: usize,
}

static JANITOR: Mutex<Option<Arc<Janitor>>> = Mutex::new(None);

impl Janitor {
    /// This process's.
    pub(super) fn get() -> Result<Arc<Self>> {
        let mut janitor = lock(&JANITOR);
        match &*janitor {
            Some(janitor) if janitor.is_there() => Ok(Arc::clone(janitor)),
            _ => Ok(Arc::clone(janitor.insert(Self::start()?))),
        }
    }

    fn is_there(&self) -> bool {
        // SAFETY: waitpid without a status only asks.
        let ended = || unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), libc::WNOHANG | libc::__WALL) };
        self.supervisor == rustix::process::getpid() && ended() == 0
    }

    /// A thread of its own is its parent, and stays: the kernel tells the janitor of its end, which is the supervisor's,
    /// although another thread may never get to its own.
    fn start() -> Result<Arc<Self>> {
        let (sender, receiver) = sync_channel(1);
        let parent = move || {
            let janitor = Self::fork();
            let is_there = janitor.is_ok();
            let _ = sender.send(janitor);
            if is_there {
                loop {
                    thread::park();
                }
            }
        };
        with_signals_blocked(|| thread::Builder::new().name("pvx-janitor".into()).spawn(parent)).map_err(
            |error| Error::Host {
                call: "starting the janitor's parent",
                errno: Errno::from_io_error(&error).unwrap_or(Errno::AGAIN),
            },
        )?;
        receiver.recv().unwrap_or(Err(Error::Dead))
    }

    fn fork() -> Result<Arc<Self>> {
        let supervisor = rustix::process::getpid();
        let table = shared_table()?;
        let large = large_memory()?;
        // SAFETY: a fork without handlers or an exit signal. The child makes system calls and nothing else: it
        // neither allocates nor locks, whatever other threads were about.
        let pid = unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) };
        match i32::try_from(pid).unwrap_or(-1) {
            0 => wait_for(supervisor, table, &large),
            pid if pid > 0 => {
                // Once for all: a forked child has the handler of its parent.
                static AT_EXIT: Once = Once::new();
                // SAFETY: `end` is a function that needs nothing and does not unwind.
                AT_EXIT.call_once(|| _ = unsafe { libc::atexit(end) });
                let free = Mutex::new((0..ATTACHMENTS).rev().collect());
                Ok(Arc::new(Self { supervisor, pid, table, free }))
            }
            _ => Err(Error::Host {
                call: "fork of the janitor",
                errno: Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::AGAIN),
            }),
        }
    }

    /// Has it nothing to do, now and when this process ends?
    fn is_idle(&self) -> bool {
        self.supervisor == rustix::process::getpid() && lock(&self.free).len() == ATTACHMENTS
    }

    /// A line for a new attachment.
    pub(super) fn line(self: &Arc<Self>) -> Result<Line> {
        let index = lock(&self.free).pop().ok_or(Error::TooMany("attached processes"))?;
        Ok(Line { janitor: Arc::clone(self), index })
    }
}

/// Ends the janitor of a process that exits, so that it is not left to init. Some never wait for anybody.
extern "C" fn end() {
    // A thread that has the lock is about to attach.
    let Ok(mut janitor) = JANITOR.try_lock() else { return };
    if let Some(janitor) = janitor.take_if(|janitor| janitor.is_idle()) {
        // SAFETY: the number is our child's, which nobody else waits for.
        unsafe {
            libc::kill(janitor.pid, libc::SIGKILL);
            libc::waitpid(janitor.pid, std::ptr::null_mut(), libc::__WALL);
        }
    }
}

impl Line {
    pub(super) fn added(&self) -> &'static Added {
        &self.janitor.table[self.index]
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.added().is_in_use() {
            // For the janitor to try again.
            return;
        }
        lock(&self.janitor.free).push(self.index);
    }
}

/// A table of zeroes that a fork shares.
fn shared_table() -> Result<&'static [Added]> {
    let len = ATTACHMENTS * size_of::<Added>();
    let flags = MapFlags::SHARED;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
    let mapped = unsafe {
        rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags)
    };
    let table = mapped.map_err(Error::host("mmap of the janitor's table"))?;
    // SAFETY: `len` bytes that are never unmapped; `Added` is made of atomic integers, for which zeroes are values.
    Ok(unsafe { std::slice::from_raw_parts(table.cast(), ATTACHMENTS) })
}

/// As many ranges of memory as the janitor gives back.
const LARGE: usize = 64;

/// Private memory of a megabyte and more, without this thread's stack.
fn large_memory() -> Result<[Range<usize>; LARGE]> {
    const MEGABYTE: usize = 1 << 20;
    let here = 0u8;
    let stack = (&raw const here).addr();
    let mut large = [const { 0..0 }; LARGE];
    let maps = maps::of(rustix::process::getpid())?;
    let ranges = maps.iter().filter(|map| map.is_private_data()).filter_map(|map| {
        let range = usize::try_from(map.range.start).ok()?..usize::try_from(map.range.end).ok()?;
        (range.len() >= MEGABYTE && !range.contains(&stack)).then_some(range)
    });
    for (place, range) in large.iter_mut().zip(ranges) {
        *place = range;
    }
    Ok(large)
}

/// The janitor's life.
fn wait_for(supervisor: Pid, table: &[Added], large: &[Range<usize>]) -> ! {
    for range in large.iter().filter(|range| !range.is_empty()) {
        // SAFETY: this process is alone in its copy of the memory, and uses its stack and the table only.
        let _ = unsafe { rustix::mm::madvise(range.start as *mut _, range.len(), Advice::LinuxDontNeed) };
    }
    let all = !0u64;
    // SAFETY: rt_sigprocmask reads 8 bytes; the name has its NUL; close_range takes numbers only, and nothing here
    // uses a descriptor from before.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const all, 0, size_of_val(&all));
        libc::prctl(libc::PR_SET_NAME, c"pvx-janitor".as_ptr());
        libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
    }
    let _ = rustix::process::setpgid(None, None);
    let _ = rustix::process::chdir(c"/");
    wait_for_end_of(supervisor);
    remove_all(table);
    // SAFETY: ends this process, which has nothing to clean up.
    unsafe { libc::_exit(0) }
}

/// Waits until the supervisor has ended, or cannot but end: the memory of a target may keep one of its threads, in a way
/// that even SIGKILL does not end.
fn wait_for_end_of(supervisor: Pid) {
    const NAP: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
    let Ok(pidfd) = rustix::process::pidfd_open(supervisor, PidfdFlags::empty()) else { return };
    let Ok(parents_end) = parents_end() else { return };
    // The number is still the supervisor's as long as it is our parent.
    if rustix::process::getppid() != Some(supervisor) {
        return;
    }
    let mut waits = [&pidfd, &parents_end].map(|fd| PollFd::new(fd, PollFlags::IN));
    // Waits for so many of them; has the supervisor ended?
    let mut wait = |count, limit| {
        while poll(&mut waits[..count], limit) == Err(Errno::INTR) {}
        !waits[0].revents().is_empty()
    };
    let mut has_ended = wait(2, None);
    // Who has been killed may still be about something in a target, and comes to an end with that soon.
    while !has_ended {
        has_ended = wait(1, Some(&NAP)) || is_about_to_end(supervisor.as_raw_pid());
    }
}

/// Readable when the thread that is the janitor's parent ends (prctl(2), `PR_SET_PDEATHSIG`). All signals are blocked here.
fn parents_end() -> std::io::Result<OwnedFd> {
    rustix::process::set_parent_process_death_signal(Some(Signal::HUP))?;
    // SAFETY: the set is filled in before it is used, and the descriptor is a new one.
    unsafe {
        let mut set = MaybeUninit::zeroed();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGHUP);
        match libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC) {
            -1 => Err(std::io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Have all threads of a process ended, or been killed?
fn is_about_to_end(pid: i32) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let Ok(tasks) = procfs::open(format_args!("/proc/{pid}/task"), flags) else { return true };
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(tasks, &mut buffer);
    while let Some(Ok(entry)) = entries.next() {
        let tid = entry.file_name().to_str().ok().and_then(|name| name.parse::<i32>().ok());
        if tid.is_some_and(|tid| !has_ended_or_will(pid, tid)) {
            return false;
        }
    }
    true
}

fn has_ended_or_will(pid: i32, tid: i32) -> bool {
    let mut text = [0; 4096];
    let status = procfs::read_start(format_args!("/proc/{pid}/task/{tid}/status"), &mut text);
    status.is_err() || status.is_ok_and(|len| is_ended_or_killed(&text[..len]))
}

/// What the status of a thread says of that (proc(5)).
fn is_ended_or_killed(status: &[u8]) -> bool {
    const KILL: u64 = 1 << (libc::SIGKILL - 1);
    let field = |name: &str| {
        let lines = status.split(|&byte| byte == b'\n');
        let value = lines.filter_map(|line| line.strip_prefix(name.as_bytes())).next()?;
        std::str::from_utf8(value).ok().map(str::trim)
    };
    // A process's own, and each thread's: who is killed has it pending there until it gets to its end.
    let pending = field("SigPnd:").and_then(|set| u64::from_str_radix(set, 16).ok());
    field("State:").is_none_or(|state| state.starts_with(['Z', 'X']))
        || pending.is_none_or(|set| set & KILL != 0)
}

/// Removes each attachment in a process of its own: a target may keep the one that is about it waiting for ever.
fn remove_all(table: &[Added]) {
    const PATIENCE: Duration = Duration::from_secs(30);
    const NAP: Duration = Duration::from_millis(1);
    let mut children = 0;
    for added in table.iter().filter(|added| added.is_in_use()) {
        // SAFETY: as for the janitor itself, which is one task: a fork without handlers or an exit signal.
        match unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) } {
            0 => {
                // There is nobody to tell.
                let _ = added.remove();
                // SAFETY: ends this process, which has nothing to clean up.
                unsafe { libc::_exit(0) }
            }
            -1 => _ = added.remove(),
            _ => children += 1,
        }
    }
    let deadline = Instant::now() + PATIENCE;
    while children > 0 && Instant::now() < deadline {
        // SAFETY: waitpid without a status only asks.
        match unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG | libc::__WALL) } {
            0 => thread::sleep(NAP),
            -1 => break,
            _ => children -= 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_over_when_it_has_ended_or_been_killed() {
        let status = |state: &str, pending: &str| {
            format!("Name:\tx\nState:\t{state}\nSigPnd:\t{pending}\nShdPnd:\t0100\n")
        };
        for (state, pending, is_over) in [
            ("S (sleeping)", "0000000000000000", false),
            ("R (running)", "0000000000004000", false),
            ("D (disk sleep)", "0000000000000100", true),
            ("Z (zombie)", "0000000000000000", true),
            ("X (dead)", "0000000000000000", true),
        ] {
            assert_eq!(is_ended_or_killed(status(state, pending).as_bytes()), is_over, "{state} {pending}");
        }
        // Of one that was there and is not any more.
        assert!(is_ended_or_killed(b""));
        assert!(!is_about_to_end(rustix::process::getpid().as_raw_pid()));
    }

    #[test]
    fn each_attachment_has_a_line_of_its_own_as_long_as_there_are_any() {
        let supervisor = rustix::process::getpid();
        let table = shared_table().expect("a table");
        let free = Mutex::new((0..ATTACHMENTS).rev().collect());
        let janitor = Arc::new(Janitor { supervisor, pid: 0, table, free });
        let mut lines: Vec<_> = (0..ATTACHMENTS).map(|_| janitor.line().expect("a line")).collect();
        let places: std::collections::BTreeSet<_> =
            lines.iter().map(|line| &raw const *line.added()).collect();
        assert_eq!(places.len(), ATTACHMENTS);
        assert!(matches!(janitor.line(), Err(Error::TooMany(_))));
        drop(lines.pop());
        assert!(!janitor.is_idle());
        lines.push(janitor.line().expect("the line that came back"));
        drop(lines);
        assert!(janitor.is_idle());
    }
}
