//! Where a live process has room for the executor's pages, and who is there if it has not.

use rustix::io::Errno;
use rustix::process::Pid;

use super::has_memory_of;
use super::quiescence::wait_until_quiescent;
use super::rights::refusal;
use crate::error::Error;
use crate::executor::region::Region;
use crate::maps::Map;
use crate::memory;
use crate::procfs;
use crate::refusal::AttachError;
use crate::stat::numbers;

/// The name of executors, and of the file that their pages are of.
pub(super) const NAME: &str = "pvx-executor";

/// Where the executor's pages are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) region: Region,
    /// Pages of an executor that was killed, so that nobody could remove them any more: where, and what they begin with.
    pub(super) left_over: Option<(Region, u64)>,
}

impl Room {
    /// Looks at what the process has mapped; `thread` is one that has its memory. The region is the one that is `wanted`,
    /// or else the first that is free.
    ///
    /// # Errors
    /// If somebody uses the addresses, or another supervisor has an executor there.
    pub(super) fn find(pid: Pid, thread: i32, maps: &[Map], wanted: Option<Region>) -> Result<Self, Error> {
        let number = pid.as_raw_pid();
        let refuse = |errno, why| Err(refusal(number, errno, why));
        let left_over = executors_region(maps);
        if let Some(region) = left_over {
            if let Some(executor) = executor_with_memory_of(thread) {
                return refuse(Errno::EXIST, AttachError::Attached { executor });
            }
            if wait_until_quiescent(number, region.range()).is_err() {
                return refuse(Errno::BUSY, AttachError::Busy);
            }
        }
        let left_over = left_over.and_then(|region| Some((region, mark_of(region, thread).ok()?)));
        let who_is_in = |region: Region| {
            let is_left_over = left_over.is_some_and(|(other, _)| other == region);
            if is_left_over { None } else { maps.iter().find(|map| region.touches(&map.range)) }
        };
        let region = match wanted {
            None => Region::all()
                .find(|&region| who_is_in(region).is_none())
                .ok_or_else(|| refusal(number, Errno::NOMEM, AttachError::NoRegion)),
            Some(region) => match who_is_in(region) {
                None => Ok(region),
                Some(map) => {
                    let what = if map.name.is_empty() { "memory without a name" } else { &map.name };
                    let what = format!("{what} at {:#x} to {:#x}", map.range.start, map.range.end);
                    let std::ops::Range { start, end } = region.range();
                    Err(refusal(number, Errno::EXIST, AttachError::Region { start, end, what }))
                }
            },
        };
        Ok(Self { region: region?, left_over })
    }
}

/// The region that nothing but pages of an executor is in.
fn executors_region(maps: &[Map]) -> Option<Region> {
    let is_executors = |map: &Map| map.name.starts_with(&format!("/memfd:{NAME}"));
    maps.iter()
        .filter(|map| is_executors(map))
        .filter_map(|map| Region::at(map.range.start).ok())
        .find(|region| maps.iter().filter(|map| region.touches(&map.range)).all(is_executors))
}

/// An executor that has the memory of this task.
fn executor_with_memory_of(task: i32) -> Option<i32> {
    numbers("/proc").find(|&other| {
        procfs::read(format!("/proc/{other}/comm")).is_ok_and(|name| name.trim_end() == NAME)
            && has_memory_of(other, task)
    })
}

/// What the region of a task begins with. Allocates nothing, and waits for nobody.
pub(super) fn mark_of(region: Region, task: i32) -> Result<u64, Errno> {
    let mut mark = [0; 8];
    memory::read_at_once(task, region.start(), &mut mark)?;
    Ok(u64::from_ne_bytes(mark))
}
