//! Waiting until nobody is in a bootstrap that a supervisor has left behind by dying: its tasks complete by themselves,
//! soon, but need its instructions until then.

use std::fs;
use std::ops::Range;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::share_memory;
use super::stop::Stopped;
use crate::ptrace::seize;
use crate::stat::{Stat, numbers};

/// Waits until no thread of the process, and no other process that shares its memory, is in the range.
pub(super) fn wait_until_quiescent(pid: i32, range: Range<u64>) -> Result<(), Errno> {
    const PATIENCE: Duration = Duration::from_secs(2);
    const NAP: Duration = Duration::from_millis(1);
    let deadline = Instant::now() + PATIENCE;
    while !is_quiescent(pid, &range) {
        if Instant::now() > deadline {
            return Err(Errno::BUSY);
        }
        std::thread::sleep(NAP);
    }
    Ok(())
}

fn is_quiescent(pid: i32, range: &Range<u64>) -> bool {
    let is_free_of = |tid: i32, running: &dyn Fn() -> bool| match whereabouts(tid) {
        Where::At(ip) => !range.contains(&ip),
        Where::Gone => true,
        Where::Running => !running(),
    };
    numbers(&format!("/proc/{pid}/task"))
        .filter(|&tid| Stat::of(tid).is_some_and(Stat::lives))
        .all(|tid| is_free_of(tid, &|| stopped_in(tid, range)))
        && numbers("/proc")
            .filter(|&other| other != pid && share_memory(pid, other))
            // An executor that has not run yet, say.
            .all(|other| is_free_of(other, &|| true))
}

/// Where a task is.
enum Where {
    /// In a system call that it made there.
    At(u64),
    /// Who knows.
    Running,
    Gone,
}

/// From /proc/PID/syscall (proc(5)).
fn whereabouts(tid: i32) -> Where {
    match fs::read_to_string(format!("/proc/{tid}/syscall")) {
        Err(_) => Where::Gone,
        Ok(text) => match text.trim_end().rsplit_once(" 0x").map(|(_, ip)| u64::from_str_radix(ip, 16)) {
            Some(Ok(ip)) => Where::At(ip),
            _ => Where::Running,
        },
    }
}

/// Stops a thread to see whether it is in the range. One that cannot be stopped may be.
fn stopped_in(tid: i32, range: &Range<u64>) -> bool {
    match seize(tid).and_then(|()| Stopped::stop(tid, None)) {
        Ok(thread) => {
            let is_there = range.contains(&thread.registers().rip);
            let _ = thread.leave_alone();
            is_there
        }
        Err(_) => !Stat::has_ended(tid),
    }
}
