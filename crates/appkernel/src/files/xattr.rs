//! Extended attributes (xattr(7)).

use process_vm_exec::Errno;
use rustix::fs::XattrFlags;

use super::{AT_FDCWD, Last, Object};
use crate::{
    abi::{Answer, Args, from_int, int, size, uint},
    guest::GuestMemory,
    task::Task,
};

/// The longest value and the longest list (`XATTR_SIZE_MAX`, linux/limits.h).
const SIZE_MAX: u64 = 65536;

/// The file that a call means.
fn object(task: &Task, addr: u64, last: Last) -> Result<Object, Errno> {
    task.object(from_int(AT_FDCWD), addr, last)
}

fn name(task: &Task, addr: u64) -> Result<Vec<u8>, Errno> {
    task.space.fetch_string(addr, 256, Errno::RANGE)
}

/// Returns the value that `get` puts into a buffer of the size that the guest has; 0 asks for the size.
fn deliver(task: &Task, addr: u64, len: u64, get: impl FnOnce(&mut [u8]) -> Result<usize, Errno>) -> Answer {
    let mut value = vec![0; size(len.min(SIZE_MAX))];
    let count = get(&mut value)?;
    if len > 0 {
        task.space.store(addr, &value[..count])?;
    }
    Ok(count as u64)
}

/// getxattr(2)
pub(crate) fn getxattr(task: &mut Task, [file, key, addr, len, ..]: Args) -> Answer {
    let (object, key) = (object(task, file, Last::Follow)?, name(task, key)?);
    deliver(task, addr, len, |value| rustix::fs::getxattr(object.path(), &key[..], value))
}

/// lgetxattr(2)
pub(crate) fn lgetxattr(task: &mut Task, [file, key, addr, len, ..]: Args) -> Answer {
    let (object, key) = (object(task, file, Last::Link)?, name(task, key)?);
    deliver(task, addr, len, |value| rustix::fs::getxattr(object.path(), &key[..], value))
}

/// fgetxattr(2)
pub(crate) fn fgetxattr(task: &mut Task, [fd, key, addr, len, ..]: Args) -> Answer {
    let (file, key) = (task.files.get(int(fd))?, name(task, key)?);
    deliver(task, addr, len, |value| rustix::fs::fgetxattr(file, &key[..], value))
}

/// listxattr(2)
pub(crate) fn listxattr(task: &mut Task, [file, addr, len, ..]: Args) -> Answer {
    let object = object(task, file, Last::Follow)?;
    deliver(task, addr, len, |list| rustix::fs::listxattr(object.path(), list))
}

/// llistxattr(2)
pub(crate) fn llistxattr(task: &mut Task, [file, addr, len, ..]: Args) -> Answer {
    let object = object(task, file, Last::Link)?;
    deliver(task, addr, len, |list| rustix::fs::listxattr(object.path(), list))
}

/// flistxattr(2)
pub(crate) fn flistxattr(task: &mut Task, [fd, addr, len, ..]: Args) -> Answer {
    let file = task.files.get(int(fd))?;
    deliver(task, addr, len, |list| rustix::fs::flistxattr(file, list))
}

fn value(task: &Task, addr: u64, len: u64) -> Result<Vec<u8>, Errno> {
    if len > SIZE_MAX {
        return Err(Errno::TOOBIG);
    }
    let mut value = vec![0; size(len)];
    task.space.fetch_into(addr, &mut value)?;
    Ok(value)
}

/// setxattr(2)
pub(crate) fn setxattr(task: &mut Task, [file, key, addr, len, flags, _]: Args) -> Answer {
    let (object, key) = (object(task, file, Last::Follow)?, name(task, key)?);
    let value = value(task, addr, len)?;
    rustix::fs::setxattr(object.path(), &key[..], &value, XattrFlags::from_bits_retain(uint(flags)))
        .map(|()| 0)
}

/// lsetxattr(2)
pub(crate) fn lsetxattr(task: &mut Task, [file, key, addr, len, flags, _]: Args) -> Answer {
    let (object, key) = (object(task, file, Last::Link)?, name(task, key)?);
    let value = value(task, addr, len)?;
    rustix::fs::setxattr(object.path(), &key[..], &value, XattrFlags::from_bits_retain(uint(flags)))
        .map(|()| 0)
}

/// fsetxattr(2)
pub(crate) fn fsetxattr(task: &mut Task, [fd, key, addr, len, flags, _]: Args) -> Answer {
    let (file, key) = (task.files.get(int(fd))?, name(task, key)?);
    let value = value(task, addr, len)?;
    rustix::fs::fsetxattr(file, &key[..], &value, XattrFlags::from_bits_retain(uint(flags))).map(|()| 0)
}

/// removexattr(2)
pub(crate) fn removexattr(task: &mut Task, [file, key, ..]: Args) -> Answer {
    let (object, key) = (object(task, file, Last::Follow)?, name(task, key)?);
    rustix::fs::removexattr(object.path(), &key[..]).map(|()| 0)
}

/// lremovexattr(2)
pub(crate) fn lremovexattr(task: &mut Task, [file, key, ..]: Args) -> Answer {
    let (object, key) = (object(task, file, Last::Link)?, name(task, key)?);
    rustix::fs::removexattr(object.path(), &key[..]).map(|()| 0)
}

/// fremovexattr(2)
pub(crate) fn fremovexattr(task: &mut Task, [fd, key, ..]: Args) -> Answer {
    let (file, key) = (task.files.get(int(fd))?, name(task, key)?);
    rustix::fs::fremovexattr(file, &key[..]).map(|()| 0)
}
