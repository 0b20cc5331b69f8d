//! epoll(7), of the host's.

use std::time::Duration;

use process_vm_exec::Errno;
use rustix::{
    event::{PollFd, PollFlags, epoll},
    time::Timespec,
};

use super::Cloexec;
use crate::{
    abi::{Answer, Args, Record, field, from_int, int, size, u32_at, uint},
    guest::GuestMemory,
    task::Task,
};

/// The size of `struct epoll_event`, which is packed on x86-64.
const EVENT: usize = 12;
/// The most events that one call returns here.
const EVENTS_MAX: u64 = 4096;

/// epoll_create(2)
pub(crate) fn epoll_create(task: &mut Task, [size, ..]: Args) -> Answer {
    if int(size) <= 0 { Err(Errno::INVAL) } else { epoll_create1(task, [0; 6]) }
}

/// epoll_create1(2)
pub(crate) fn epoll_create1(task: &mut Task, [flags, ..]: Args) -> Answer {
    if int(flags) & !libc::EPOLL_CLOEXEC != 0 {
        return Err(Errno::INVAL);
    }
    let file = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    task.files.insert(file, Cloexec::from_flags(int(flags))).map(from_int)
}

/// epoll_ctl(2)
pub(crate) fn epoll_ctl(task: &mut Task, [fd, operation, other, event, ..]: Args) -> Answer {
    let epoll = task.files.get(int(fd))?;
    let other = task.files.get(int(other))?;
    if int(operation) == libc::EPOLL_CTL_DEL {
        return epoll::delete(epoll, other).map(|()| 0);
    }
    let event: [u8; EVENT] = task.space.fetch(event)?;
    let flags = epoll::EventFlags::from_bits_retain(u32_at(&event, 0));
    let data = epoll::EventData::new_u64(u64::from_ne_bytes(field(&event, 4)));
    match int(operation) {
        libc::EPOLL_CTL_ADD => epoll::add(epoll, other, data, flags)?,
        libc::EPOLL_CTL_MOD => epoll::modify(epoll, other, data, flags)?,
        _ => return Err(Errno::INVAL),
    }
    Ok(0)
}

/// epoll_wait(2)
pub(crate) fn epoll_wait(task: &mut Task, [fd, events, count, timeout, ..]: Args) -> Answer {
    let timeout = u64::try_from(int(timeout)).ok().map(Duration::from_millis);
    wait(task, fd, events, count, timeout)
}

/// epoll_pwait(2)
pub(crate) fn epoll_pwait(task: &mut Task, [fd, events, count, timeout, mask, mask_size]: Args) -> Answer {
    task.set_temporary_mask(mask, mask_size)?;
    epoll_wait(task, [fd, events, count, timeout, 0, 0])
}

/// epoll_pwait2(2)
pub(crate) fn epoll_pwait2(task: &mut Task, [fd, events, count, timeout, mask, mask_size]: Args) -> Answer {
    let timeout = if timeout == 0 { None } else { Some(task.fetch_duration(timeout)?) };
    task.set_temporary_mask(mask, mask_size)?;
    wait(task, fd, events, count, timeout)
}

fn wait(task: &Task, fd: u64, addr: u64, count: u64, timeout: Option<Duration>) -> Answer {
    if int(count) <= 0 {
        return Err(Errno::INVAL);
    }
    let epoll = task.files.get(int(fd))?;
    // An epoll descriptor is readable when it has events; so timers can end the wait as they end others.
    if timeout != Some(Duration::ZERO) {
        task.poll_host(&mut [PollFd::from_borrowed_fd(epoll, PollFlags::IN)], timeout)?;
    }
    let mut events = Vec::with_capacity(size(u64::from(uint(count)).min(EVENTS_MAX)));
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    epoll::wait(epoll, rustix::buffer::spare_capacity(&mut events), Some(&now))?;
    let mut bytes = Vec::with_capacity(events.len() * EVENT);
    for event in &events {
        let (flags, data) = (event.flags, event.data);
        let record =
            Record::<EVENT>::new().put(0, flags.bits().to_ne_bytes()).put(4, data.u64().to_ne_bytes());
        bytes.extend(record.bytes());
    }
    task.space.store(addr, &bytes)?;
    Ok(events.len() as u64)
}
