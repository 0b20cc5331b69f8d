//! Resource limits (getrlimit(2)): the host's, but for those that the guest has set for itself.

use rustix::process::Resource;

use crate::{
    abi::{Answer, Args, Record, size, u64_at},
    guest::GuestMemory,
    task::Task,
};
use process_vm_exec::Errno;

/// The resources of Linux, by number (asm-generic/resource.h).
const RESOURCES: [Resource; 16] = [
    Resource::Cpu,
    Resource::Fsize,
    Resource::Data,
    Resource::Stack,
    Resource::Core,
    Resource::Rss,
    Resource::Nproc,
    Resource::Nofile,
    Resource::Memlock,
    Resource::As,
    Resource::Locks,
    Resource::Sigpending,
    Resource::Msgqueue,
    Resource::Nice,
    Resource::Rtprio,
    Resource::Rttime,
];
const NOFILE: usize = 7;
/// `RLIM64_INFINITY`.
const INFINITY: u64 = u64::MAX;

/// A soft and a hard limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit {
    current: u64,
    maximum: u64,
}

/// The limits that a guest has set.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    own: [Option<Limit>; RESOURCES.len()],
}

impl Limits {
    fn get(&self, resource: usize) -> Result<Limit, Errno> {
        let own = self.own.get(resource).ok_or(Errno::INVAL)?;
        Ok(own.unwrap_or_else(|| {
            let host = rustix::process::getrlimit(RESOURCES[resource]);
            Limit { current: host.current.unwrap_or(INFINITY), maximum: host.maximum.unwrap_or(INFINITY) }
        }))
    }

    /// How many descriptors a guest may have.
    pub(crate) fn descriptors(&self) -> u64 {
        self.get(NOFILE).map_or(0, |limit| limit.current)
    }
}

/// getrlimit(2)
pub(crate) fn getrlimit(task: &mut Task, [resource, limit, ..]: Args) -> Answer {
    prlimit64(task, [0, resource, 0, limit, 0, 0])
}

/// setrlimit(2)
pub(crate) fn setrlimit(task: &mut Task, [resource, limit, ..]: Args) -> Answer {
    prlimit64(task, [0, resource, limit, 0, 0, 0])
}

/// prlimit(2)
pub(crate) fn prlimit64(task: &mut Task, [pid, resource, new, old, ..]: Args) -> Answer {
    if pid != 0 && pid != crate::abi::from_int(task.identity.pid) {
        return Err(Errno::SRCH);
    }
    let resource = size(resource);
    let before = task.limits.get(resource)?;
    if new != 0 {
        let record: [u8; 16] = task.space.fetch(new)?;
        let limit = Limit { current: u64_at(&record, 0), maximum: u64_at(&record, 8) };
        if limit.current > limit.maximum {
            return Err(Errno::INVAL);
        }
        if limit.maximum > before.maximum {
            return Err(Errno::PERM);
        }
        task.limits.own[resource] = Some(limit);
        task.files.set_limit(task.limits.descriptors());
    }
    if old != 0 {
        let record =
            Record::<16>::new().put(0, before.current.to_ne_bytes()).put(8, before.maximum.to_ne_bytes());
        task.space.store(old, record.bytes())?;
    }
    Ok(0)
}
