//! Whether there is room in a live process for the executor's pages, which have to be at one place, and who is there if not.

use rustix::io::Errno;
use rustix::process::Pid;

use super::has_memory_of;
use super::quiescence::wait_until_quiescent;
use super::rights::refusal;
use super::stat::numbers;
use crate::error::Error;
use crate::executor::layout::{BASE, SIZE};
use crate::maps::Map;
use crate::memory;
use crate::procfs;

/// The name of executors, and of the file that their pages are of.
pub(super) const NAME: &str = "pvx-executor";

/// What is where the executor's pages are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Region {
    Free,
    /// Pages of an executor that was killed, so that nobody could remove them any more: this is what they begin with.
    LeftOver {
        mark: u64,
    },
}

impl Region {
    /// Looks at what the process has mapped; `thread` is one that has its memory.
    ///
    /// # Errors
    /// If somebody uses the addresses.
    pub(super) fn of(pid: Pid, thread: i32, maps: &[Map]) -> Result<Self, Error> {
        let number = pid.as_raw_pid();
        let refuse = |errno, why: &str| Err(refusal(number, errno, why));
        let end = BASE + SIZE;
        let mut there = maps.iter().filter(|map| map.range.start < end && map.range.end > BASE).peekable();
        if there.peek().is_none() {
            return Ok(Self::Free);
        }
        if let Some(map) = there.find(|map| !map.name.starts_with(&format!("/memfd:{NAME}"))) {
            let what = if map.name.is_empty() { "memory without a name" } else { &map.name };
            let why = format!(
                "the program uses addresses that the library needs, {BASE:#x} to {end:#x}: it has {what} at {:#x} to \
                 {:#x}; programs built with -fsanitize=thread or memory do, build it without",
                map.range.start, map.range.end
            );
            return refuse(Errno::EXIST, &why);
        }
        let is_executor = |&other: &i32| {
            procfs::read(format!("/proc/{other}/comm")).is_ok_and(|name| name.trim_end() == NAME)
                && has_memory_of(other, thread)
        };
        if let Some(executor) = numbers("/proc").find(is_executor) {
            let why = format!(
                "another supervisor is attached to it, whose executor is process {executor}; wait until that has \
                 detached or ended"
            );
            return refuse(Errno::EXIST, &why);
        }
        match (wait_until_quiescent(number, BASE..end), mark_of(thread)) {
            (Ok(()), Ok(mark)) => Ok(Self::LeftOver { mark }),
            _ => {
                refuse(Errno::BUSY, "a thread of it is still busy with calls of a supervisor that has ended")
            }
        }
    }
}

/// What the region of a task begins with.
pub(super) fn mark_of(task: i32) -> Result<u64, Errno> {
    let mut mark = [0; 8];
    memory::read(task, BASE, &mut mark)?;
    Ok(u64::from_ne_bytes(mark))
}
