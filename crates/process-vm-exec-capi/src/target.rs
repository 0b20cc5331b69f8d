//! Targets: which process is meant, and the executor in it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use process_vm_exec::{Errno, LiveProcess};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Which process it is, whoever gets its number later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) pid: i32,
    /// In clock ticks since the machine was started (proc_pid_stat(5)).
    start_time: u64,
    /// What pidfds of this process have in common, if they have (Linux 6.9 and newer).
    pub(crate) inode: Option<u64>,
}

/// A process that an executor is in.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) identity: Identity,
    pub(crate) pidfd: OwnedFd,
    pub(crate) space: LiveProcess,
    is_gone: AtomicBool,
}

/// Opens the process with this number.
///
/// # Errors
/// `EINVAL` if there can be none, or it is the caller; `ESRCH` if there is none.
pub(crate) fn open(pid: i32) -> Result<OwnedFd, Errno> {
    let pid = Pid::from_raw(pid.max(0)).ok_or(Errno::INVAL)?;
    // pidfd_open(2) says EINVAL (ENOENT since Linux 6.14) of a thread that does not lead its process.
    pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| match errno {
        Errno::INVAL | Errno::NOENT => Errno::SRCH,
        errno => errno,
    })
}

impl Identity {
    /// The process that `pidfd` refers to.
    ///
    /// # Errors
    /// `EBADF` if it is no pidfd, `ESRCH` if the process is gone, `EINVAL` if it is the caller.
    pub(crate) fn of(pidfd: BorrowedFd<'_>) -> Result<Self, Errno> {
        let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
        let info = std::fs::read_to_string(path).map_err(|_| Errno::BADF)?;
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).ok_or(Errno::BADF)?;
        // -1 when it has been reaped, 0 when it is not in our namespace.
        let pid = pid.trim().parse().ok().filter(|&pid: &i32| pid > 0).ok_or(Errno::SRCH)?;
        if pid.cast_unsigned() == std::process::id() {
            return Err(Errno::INVAL);
        }
        let stat = std::fs::read(format!("/proc/{pid}/stat")).map_err(|_| Errno::SRCH)?;
        let stat = String::from_utf8_lossy(&stat);
        // Behind the name, which may be any bytes, the start time is the 20th field.
        let field = stat.rsplit_once(") ").and_then(|(_, fields)| fields.split(' ').nth(19));
        let start_time = field.and_then(|field| field.parse().ok()).ok_or(Errno::SRCH)?;
        // If it lives still, it was its file that has been read.
        if has_ended(pidfd) {
            return Err(Errno::SRCH);
        }
        Ok(Self { pid, start_time, inode: inode(pidfd) })
    }
}

/// What identifies the process of a pidfd, where pidfds are a file system of their own.
pub(crate) fn inode(pidfd: BorrowedFd<'_>) -> Option<u64> {
    /// `PID_FS_MAGIC` (include/uapi/linux/magic.h).
    const PID_FS_MAGIC: i64 = 0x5049_4446;
    static IS_FILE_SYSTEM: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    let asks = || rustix::fs::fstatfs(pidfd).is_ok_and(|stat| stat.f_type == PID_FS_MAGIC);
    if !*IS_FILE_SYSTEM.get_or_init(asks) {
        return None;
    }
    rustix::fs::fstat(pidfd).ok().map(|stat| stat.st_ino)
}

/// Has the process of `pidfd` ended?
fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready != 0)
}

impl Target {
    pub(crate) fn attach(identity: Identity, pidfd: BorrowedFd<'_>) -> Result<Self, Errno> {
        let pidfd = pidfd.try_clone_to_owned().map_err(|_| Errno::MFILE)?;
        let space = LiveProcess::attach(pidfd.as_fd()).map_err(|error| error.errno())?;
        Ok(Self { identity, pidfd, space, is_gone: AtomicBool::new(false) })
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Acquire)
    }

    pub(crate) fn set_gone(&self) {
        self.is_gone.store(true, Ordering::Release);
    }

    /// Has the process ended?
    pub(crate) fn has_ended(&self) -> bool {
        has_ended(self.pidfd.as_fd())
    }

    /// Is the executor still in the memory of the target? Not if that has called execve(2).
    pub(crate) fn is_current(&self) -> bool {
        !self.is_gone() && self.space.is_current()
    }

    /// Takes the executor out.
    pub(crate) fn detach(self) {
        // What fails is that the target is gone, which is as good.
        let _ = self.space.detach();
    }
}
