//! What all claims share: attaching, turns, a watchdog, waiting, and a source of numbers.

use std::{
    env,
    ffi::OsStr,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use process_vm_exec::{Call, LiveProcess, LiveProcessBuilder, Result, Returned, Sysno};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::trace::{Trace, has_region, traces};

/// The time without a new round after which a claim counts as hung.
const WATCHDOG: Duration = Duration::from_secs(200);
/// How many rounds have been begun, of all claims.
static ROUNDS: AtomicU64 = AtomicU64::new(0);

/// Attaches with the defaults.
#[track_caller]
pub(crate) fn attached(pid: i32) -> LiveProcess {
    with_our_pages(pid, LiveProcess::attach_pid(pid))
}

/// Attaches as `builder` says.
#[track_caller]
pub(crate) fn attached_with(builder: LiveProcessBuilder, pid: i32) -> LiveProcess {
    let pidfd = pidfd_open(Pid::from_raw(pid).expect("a pid"), PidfdFlags::empty()).expect("a live process");
    with_our_pages(pid, builder.attach(std::os::fd::AsFd::as_fd(&pidfd)))
}

#[track_caller]
fn with_our_pages(pid: i32, attached: Result<LiveProcess>) -> LiveProcess {
    let space = attached.expect("attaching");
    assert!(has_region(pid), "attached to {pid}, and the library's pages are not there");
    space
}

/// Calls in which descriptors are numbers, as a program would make them itself.
pub(crate) trait Execute {
    fn execute(&self, nr: Sysno, args: [u64; 6]) -> Result<u64>;
}

impl Execute for LiveProcess {
    fn execute(&self, nr: Sysno, args: [u64; 6]) -> Result<u64> {
        // SAFETY: claims name descriptors that they have opened, or that are not open.
        let call = unsafe { Call::with_descriptor_numbers(nr, args) };
        self.syscall(&call).map(Returned::into_number)
    }
}

/// The number of the executor.
#[track_caller]
pub(crate) fn executor_of(space: &LiveProcess) -> i32 {
    space.executor().expect("a live executor").as_raw_pid()
}

/// Says that something is not tested on this machine.
pub(crate) fn skip(why: &str) {
    eprintln!("SKIP: {why}");
}

/// The right to have targets; others wait.
#[derive(Debug)]
pub(crate) struct Turn {
    _turn: MutexGuard<'static, ()>,
    _done: mpsc::Sender<()>,
}

/// Waits for the turn of this claim, which is watched from then on.
pub(crate) fn turn() -> Turn {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (done, watched) = mpsc::channel::<()>();
    let claim = thread::current().name().unwrap_or("a claim").to_owned();
    thread::spawn(move || {
        let mut seen = None;
        while watched.recv_timeout(WATCHDOG) == Err(mpsc::RecvTimeoutError::Timeout) {
            let rounds = Some(ROUNDS.load(Ordering::Relaxed));
            if rounds == seen {
                // Not captured, as what the harness prints of an aborted test program would be.
                let _ = writeln!(io::stderr(), "HUNG: {claim}: nothing done for {} s", WATCHDOG.as_secs());
                process::abort();
            }
            seen = rounds;
        }
    });
    Turn { _turn: turn, _done: done }
}

/// How long storms are asked to last, if they are.
pub(crate) fn soak() -> Option<Duration> {
    let seconds = env::var("PVX_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    seconds.map(Duration::from_secs)
}

/// Counts rounds from 0: at least `least`, and more until the soak is over.
pub(crate) fn rounds(least: u32) -> impl Iterator<Item = u32> {
    let end = soak().map(|time| Instant::now() + time);
    let is_one = move |&round: &u32| round < least || end.is_some_and(|end| Instant::now() < end);
    (0..).take_while(is_one).inspect(|_| {
        ROUNDS.fetch_add(1, Ordering::Relaxed);
    })
}

/// A directory that is removed at the end of this process.
pub(crate) fn scratch() -> &'static Path {
    static SCRATCH: OnceLock<PathBuf> = OnceLock::new();
    extern "C" fn remove() {
        if let Some(path) = SCRATCH.get() {
            let _ = std::fs::remove_dir_all(path);
        }
    }
    SCRATCH.get_or_init(|| {
        let path = env::temp_dir().join(format!("pvx-attach-{}", process::id()));
        std::fs::create_dir_all(&path).expect("a directory for the targets");
        // SAFETY: `remove` is a function of this program, needs no thread and does not unwind.
        unsafe { libc::atexit(remove) };
        path
    })
}

/// Is there such a command?
pub(crate) fn has(command: impl AsRef<OsStr>) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join(command.as_ref()).is_file())
}

/// A child that does not outlive its value.
#[derive(Debug)]
pub(crate) struct Killed(pub(crate) Child);

impl Killed {
    pub(crate) fn pid(&self) -> i32 {
        self.0.id().try_into().expect("a pid")
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The command that runs one test of this very program, and no other.
pub(crate) fn this_program(test: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("this program"));
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command.stdin(Stdio::null());
    command
}

/// Ends all that have the memory of a process: executors that nobody else removes, say.
pub(crate) fn kill_sharers_of_memory(pid: i32) {
    for trace in traces(pid) {
        if let Trace::SameMemory(tid) = trace {
            kill(tid, libc::SIGKILL);
        }
    }
}

/// Waits for something that takes a little.
#[track_caller]
pub(crate) fn soon(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "still not: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Numbers that look random and are the same in every run (xorshift64*).
#[derive(Debug)]
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }
}

/// Sends `signal` to the process `pid`, as kill(2) does.
pub(crate) fn kill(pid: i32, signal: i32) {
    // SAFETY: kill(2) takes two integers and touches no memory of this process.
    let result = unsafe { libc::kill(pid, signal) };
    assert_eq!(result, 0, "kill({pid}, {signal}): {}", std::io::Error::last_os_error());
}
