//! Waiting for descriptors: poll(2), ppoll(2), select(2), pselect6(2).

use std::time::{Duration, Instant};

use process_vm_exec::Errno;
use rustix::{
    event::{PollFd, PollFlags},
    time::Timespec,
};

use crate::{
    abi::{Answer, Args, field, from_int, int, size, u64_at},
    guest::GuestMemory,
    task::Task,
};

/// The size of `struct pollfd`.
const POLLFD: usize = 8;
/// The most descriptors of a select(2) (`FD_SETSIZE` is for programs; the kernel takes more).
const SELECT_MAX: u64 = 1 << 16;

/// poll(2)
pub(crate) fn poll(task: &mut Task, [fds, count, timeout, ..]: Args) -> Answer {
    let timeout = u64::try_from(int(timeout)).ok().map(Duration::from_millis);
    poll_for(task, fds, count, timeout)
}

/// ppoll(2)
pub(crate) fn ppoll(task: &mut Task, [fds, count, timeout, mask, mask_size, _]: Args) -> Answer {
    let timeout = if timeout == 0 { None } else { Some(task.fetch_duration(timeout)?) };
    task.set_temporary_mask(mask, mask_size)?;
    poll_for(task, fds, count, timeout)
}

fn poll_for(task: &mut Task, addr: u64, count: u64, timeout: Option<Duration>) -> Answer {
    if count > task.limits.descriptors() {
        return Err(Errno::INVAL);
    }
    let mut records = vec![0; size(count) * POLLFD];
    task.space.fetch_into(addr, &mut records)?;
    let wanted: Vec<_> = records
        .chunks_exact(POLLFD)
        .map(|record| (i32::from_ne_bytes(field(record, 0)), u16::from_ne_bytes(field(record, 4))))
        .collect();
    let (ready, results) = wait(task, &wanted, timeout)?;
    for (record, result) in records.chunks_exact_mut(POLLFD).zip(results) {
        record[6..].copy_from_slice(&result.to_ne_bytes());
    }
    task.space.store(addr, &records)?;
    Ok(ready)
}

/// Waits for any of the descriptors to become ready for what is wanted of it. Returns how many are, and for what.
fn wait(task: &Task, wanted: &[(i32, u16)], timeout: Option<Duration>) -> Result<(u64, Vec<u16>), Errno> {
    let mut results = vec![0; wanted.len()];
    let mut polled = Vec::with_capacity(wanted.len());
    let mut places = Vec::with_capacity(wanted.len());
    let mut invalid = 0;
    for (place, &(fd, events)) in wanted.iter().enumerate() {
        match task.files.get(fd) {
            Ok(file) => {
                polled.push(PollFd::from_borrowed_fd(file, PollFlags::from_bits_retain(events)));
                places.push(place);
            }
            Err(_) if fd < 0 => {}
            Err(_) => {
                results[place] = PollFlags::NVAL.bits();
                invalid += 1;
            }
        }
    }
    let timeout = if invalid > 0 { Some(Duration::ZERO) } else { timeout };
    let ready = task.poll_host(&mut polled, timeout)?;
    for (polled, place) in polled.iter().zip(places) {
        results[place] = polled.revents().bits();
    }
    Ok((ready + invalid, results))
}

impl Task {
    /// Polls the host's descriptors; `EINTR` when a signal arrives or a timer runs out before.
    pub(crate) fn poll_host(
        &self,
        polled: &mut [PollFd<'_>],
        timeout: Option<Duration>,
    ) -> Result<u64, Errno> {
        if self.signals.is_deliverable() && timeout != Some(Duration::ZERO) {
            return Err(Errno::INTR);
        }
        let timer = self.timers.remaining();
        let wait = match (timeout, timer) {
            (Some(timeout), Some(timer)) => Some(timeout.min(timer)),
            (timeout, timer) => timeout.or(timer),
        };
        let wait = wait.map(|wait| Timespec::try_from(wait).map_err(|_| Errno::INVAL)).transpose()?;
        let ready = rustix::event::poll(polled, wait.as_ref())?;
        let by_timer = ready == 0 && timer.is_some_and(|timer| timeout.is_none_or(|timeout| timer < timeout));
        if by_timer { Err(Errno::INTR) } else { Ok(ready as u64) }
    }

    /// Before a call that may block, while a timer runs: waits until it will not, or the timer has run out.
    pub(crate) fn wait_until_ready(&self, fd: i32, events: PollFlags) -> Result<(), Errno> {
        if self.timers.remaining().is_none() {
            return Ok(());
        }
        let file = self.files.get(fd)?;
        if rustix::fs::fcntl_getfl(file)?.contains(rustix::fs::OFlags::NONBLOCK) {
            return Ok(());
        }
        self.poll_host(&mut [PollFd::from_borrowed_fd(file, events)], None).map(|_| ())
    }
}

/// select(2)
pub(crate) fn select(task: &mut Task, [count, read, write, except, timeout, _]: Args) -> Answer {
    let limit = if timeout == 0 { None } else { Some(task.fetch_timeval(timeout)?) };
    let start = Instant::now();
    let answer = select_for(task, count, [read, write, except], limit);
    if let Some(limit) = limit {
        let rest = limit.saturating_sub(start.elapsed());
        let record = crate::abi::Record::<16>::new()
            .put(0, rest.as_secs().to_ne_bytes())
            .put(8, u64::from(rest.subsec_micros()).to_ne_bytes());
        // The result stands even where the time left cannot be written.
        let _ = task.space.store(timeout, record.bytes());
    }
    answer
}

/// pselect6(2)
pub(crate) fn pselect6(task: &mut Task, [count, read, write, except, timeout, mask]: Args) -> Answer {
    let timeout = if timeout == 0 { None } else { Some(task.fetch_duration(timeout)?) };
    if mask != 0 {
        let record: [u8; 16] = task.space.fetch(mask)?;
        task.set_temporary_mask(u64_at(&record, 0), u64_at(&record, 8))?;
    }
    select_for(task, count, [read, write, except], timeout)
}

/// What each of the three sets waits for, and what it takes as that (fs/select.c, `POLLIN_SET` and so on).
const SETS: [(PollFlags, PollFlags); 3] = [
    (PollFlags::IN, PollFlags::IN.union(PollFlags::HUP).union(PollFlags::ERR)),
    (PollFlags::OUT, PollFlags::OUT.union(PollFlags::ERR)),
    (PollFlags::PRI, PollFlags::PRI),
];

fn select_for(task: &mut Task, count: u64, addrs: [u64; 3], timeout: Option<Duration>) -> Answer {
    let count = u64::try_from(int(count)).map_err(|_| Errno::INVAL)?.min(SELECT_MAX);
    let bytes = size(count.div_ceil(64) * 8);
    let mut sets = [vec![0u8; bytes], vec![0u8; bytes], vec![0u8; bytes]];
    for (set, &addr) in sets.iter_mut().zip(&addrs) {
        if addr != 0 {
            task.space.fetch_into(addr, set)?;
        }
    }
    let mut wanted = Vec::new();
    for fd in 0..size(count) {
        let events = SETS
            .iter()
            .zip(&sets)
            .filter(|(_, set)| set[fd / 8] & 1 << (fd % 8) != 0)
            .fold(PollFlags::empty(), |events, ((wanted, _), _)| events | *wanted);
        if !events.is_empty() {
            let fd = int(fd as u64);
            task.files.get(fd)?;
            wanted.push((fd, events.bits()));
        }
    }
    let (_, results) = wait(task, &wanted, timeout)?;
    let mut ready = 0;
    for ((set, &addr), (events, means)) in sets.iter_mut().zip(&addrs).zip(SETS) {
        if addr == 0 {
            continue;
        }
        set.fill(0);
        for (&(fd, wanted), &result) in wanted.iter().zip(&results) {
            if wanted & events.bits() != 0 && result & means.bits() != 0 {
                let fd = size(from_int(fd));
                set[fd / 8] |= 1 << (fd % 8);
                ready += 1;
            }
        }
        task.space.store(addr, set)?;
    }
    Ok(ready)
}
