//! What /proc/TID/stat tells of a task (proc_pid_stat(5)), and which tasks a process has.

use crate::procfs;

/// What it tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stat {
    state: char,
    flags: u32,
    /// The processor that it runs on or last ran on.
    pub(super) processor: usize,
}

impl Stat {
    /// `None` if there is no such task.
    pub(super) fn of(tid: i32) -> Option<Self> {
        let stat = procfs::read(format!("/proc/{tid}/stat")).ok()?;
        // The state is the first field behind the name, flags are the 7th, the processor is the 37th.
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        Some(Self {
            state: fields.first()?.chars().next()?,
            flags: fields.get(6)?.parse().ok()?,
            processor: fields.get(36)?.parse().ok()?,
        })
    }

    pub(super) fn is_running(self) -> bool {
        self.state == 'R'
    }

    /// Is it a living thread of a program?
    pub(super) fn lives(self) -> bool {
        /// It is on its way out, and has no memory any more or soon (include/linux/sched.h).
        const PF_EXITING: u32 = 4;
        !"ZX".contains(self.state) && self.flags & PF_EXITING == 0 && !self.is_kernels()
    }

    /// The same, and it is in no uninterruptible sleep, as threads are in a vfork(2).
    pub(super) fn can_stop(self) -> bool {
        self.lives() && self.state != 'D'
    }

    /// Does it run the kernel's code only? Programs have such threads too, for io_uring(7) above all: they never come
    /// to where a thread makes calls.
    pub(super) fn is_kernels(self) -> bool {
        // include/linux/sched.h; PF_USER_WORKER is known since Linux 6.4.
        const PF_IO_WORKER: u32 = 0x10;
        const PF_USER_WORKER: u32 = 0x4000;
        const PF_KTHREAD: u32 = 0x20_0000;
        self.flags & (PF_IO_WORKER | PF_USER_WORKER | PF_KTHREAD) != 0
    }
}

/// The entries of a directory of /proc that are numbers: processes, or the threads of one.
pub(super) fn numbers(path: &str) -> impl Iterator<Item = i32> + use<> {
    let entries = std::fs::read_dir(path).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// A thread of the process that lives: the main thread, unless that has ended before others.
pub(super) fn living_thread(pid: i32) -> Option<i32> {
    find_thread(pid, Stat::lives)
}

/// A thread of the process that can be stopped, or at least lives.
pub(super) fn thread_to_stop(pid: i32) -> Option<i32> {
    find_thread(pid, Stat::can_stop).or_else(|| living_thread(pid))
}

fn find_thread(pid: i32, is_good: impl Fn(Stat) -> bool) -> Option<i32> {
    let is_good = |tid: &i32| Stat::of(*tid).is_some_and(&is_good);
    if is_good(&pid) {
        return Some(pid);
    }
    numbers(&format!("/proc/{pid}/task")).find(is_good)
}
