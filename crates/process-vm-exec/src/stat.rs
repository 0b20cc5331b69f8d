//! What /proc/TID/stat tells of a task (proc_pid_stat(5)), and which tasks a process has.

use rustix::io::Errno;

use crate::procfs;

/// What it tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stat {
    state: char,
    flags: u32,
    /// The processor that it runs on or last ran on.
    pub(crate) processor: usize,
}

impl Stat {
    /// `None` if there is no such task.
    pub(crate) fn of(tid: i32) -> Option<Self> {
        Self::look(tid).ok()?
    }

    /// The same; whether it is there may not be known. Allocates nothing.
    fn look(tid: i32) -> Result<Option<Self>, Errno> {
        let mut text = [0; 1024];
        match procfs::read_start(format_args!("/proc/{tid}/stat"), &mut text) {
            Ok(len) => Ok(Self::parse(&text[..len])),
            Err(Errno::NOENT | Errno::SRCH) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn parse(stat: &[u8]) -> Option<Self> {
        // The name may have any bytes. The state is the first field behind it, flags are the 7th, the processor is the 37th.
        let name_end = stat.iter().rposition(|&byte| byte == b')')?;
        let mut fields = std::str::from_utf8(&stat[name_end + 1..]).ok()?.split_ascii_whitespace();
        Some(Self {
            state: fields.next()?.chars().next()?,
            flags: fields.nth(5)?.parse().ok()?,
            processor: fields.nth(29)?.parse().ok()?,
        })
    }

    /// Has this thread ended, or is it about to? Not if that cannot be known. Allocates nothing.
    pub(crate) fn has_ended(tid: i32) -> bool {
        Self::look(tid).is_ok_and(|stat| stat.is_none_or(Self::is_over))
    }

    pub(crate) fn is_running(self) -> bool {
        self.state == 'R'
    }

    /// Is it a living thread of a program?
    pub(crate) fn lives(self) -> bool {
        !self.is_over() && !self.is_kernels()
    }

    /// May it trace others? Until it is a zombie (`exit_notify` in kernel/exit.c).
    pub(crate) fn may_trace(self) -> bool {
        !"ZX".contains(self.state)
    }

    fn is_over(self) -> bool {
        /// It is on its way out, and has no memory any more or soon (include/linux/sched.h).
        const PF_EXITING: u32 = 4;
        "ZX".contains(self.state) || self.flags & PF_EXITING != 0
    }

    /// The same, and it is in no uninterruptible sleep, as threads are in a vfork(2).
    pub(crate) fn can_stop(self) -> bool {
        self.lives() && self.state != 'D'
    }

    /// Does it run the kernel's code only? Programs have such threads too, for io_uring(7) above all: they never come
    /// to where a thread makes calls.
    pub(crate) fn is_kernels(self) -> bool {
        // include/linux/sched.h; PF_USER_WORKER is known since Linux 6.4.
        const PF_IO_WORKER: u32 = 0x10;
        const PF_USER_WORKER: u32 = 0x4000;
        const PF_KTHREAD: u32 = 0x20_0000;
        self.flags & (PF_IO_WORKER | PF_USER_WORKER | PF_KTHREAD) != 0
    }
}

/// The entries of a directory of /proc that are numbers: processes, or the threads of one.
pub(crate) fn numbers(path: &str) -> impl Iterator<Item = i32> + use<> {
    let entries = std::fs::read_dir(path).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// A thread of the process that lives: the main thread, unless that has ended before others.
pub(crate) fn living_thread(pid: i32) -> Option<i32> {
    find_thread(pid, Stat::lives)
}

/// A thread of the process that can be stopped, or at least lives.
pub(crate) fn thread_to_stop(pid: i32) -> Option<i32> {
    find_thread(pid, Stat::can_stop).or_else(|| living_thread(pid))
}

fn find_thread(pid: i32, is_good: impl Fn(Stat) -> bool) -> Option<i32> {
    let is_good = |tid: &i32| Stat::of(*tid).is_some_and(&is_good);
    if is_good(&pid) {
        return Some(pid);
    }
    numbers(&format!("/proc/{pid}/task")).find(is_good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_behind_a_name_of_any_bytes() {
        let fields: String = (3..=52)
            .map(|field| format!(" {}", if field == 3 { "Z".into() } else { field.to_string() }))
            .collect();
        let stat = [b"7 (a) R \xff(".as_slice(), b")", fields.as_bytes()].concat();
        let parsed = Stat::parse(&stat).expect("a task");
        assert_eq!((parsed.state, parsed.flags, parsed.processor), ('Z', 9, 39));
        assert!(Stat::parse(b"7 (a) R 1").is_none() && Stat::parse(b"").is_none());
    }

    #[test]
    fn only_what_is_known_to_have_ended_has() {
        let own = std::process::id().cast_signed();
        assert!(!Stat::has_ended(own) && Stat::of(own).is_some_and(Stat::lives));
        let mut child = std::process::Command::new("true").spawn().expect("a child");
        let pid = child.id().cast_signed();
        while !Stat::has_ended(pid) {
            std::thread::yield_now();
        }
        child.wait().expect("its status");
        assert!(Stat::has_ended(pid) && Stat::of(pid).is_none(), "there is no such task");
    }
}
