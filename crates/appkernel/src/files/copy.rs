//! Copying between files without a way through the guest: sendfile(2), copy_file_range(2), splice(2), tee(2).

use rustix::pipe::SpliceFlags;

use super::io::raise_sigpipe;
use crate::{
    abi::{Answer, Args, int, size, uint},
    guest::GuestMemory,
    task::Task,
};

/// sendfile(2)
pub(crate) fn sendfile(task: &mut Task, [to, from, offset, len, ..]: Args) -> Answer {
    let mut from_offset = fetch_offset(task, offset)?;
    let answer = rustix::fs::sendfile(
        task.files.get(int(to))?,
        task.files.get(int(from))?,
        from_offset.as_mut(),
        size(len),
    )
    .map(|count| count as u64);
    store_offset(task, offset, from_offset)?;
    raise_sigpipe(task, answer)
}

/// copy_file_range(2)
pub(crate) fn copy_file_range(task: &mut Task, [from, from_at, to, to_at, len, _]: Args) -> Answer {
    let mut from_offset = fetch_offset(task, from_at)?;
    let mut to_offset = fetch_offset(task, to_at)?;
    let count = rustix::fs::copy_file_range(
        task.files.get(int(from))?,
        from_offset.as_mut(),
        task.files.get(int(to))?,
        to_offset.as_mut(),
        size(len),
    )?;
    store_offset(task, from_at, from_offset)?;
    store_offset(task, to_at, to_offset)?;
    Ok(count as u64)
}

/// splice(2)
pub(crate) fn splice(task: &mut Task, [from, from_at, to, to_at, len, flags]: Args) -> Answer {
    let mut from_offset = fetch_offset(task, from_at)?;
    let mut to_offset = fetch_offset(task, to_at)?;
    let answer = rustix::pipe::splice(
        task.files.get(int(from))?,
        from_offset.as_mut(),
        task.files.get(int(to))?,
        to_offset.as_mut(),
        size(len),
        SpliceFlags::from_bits_retain(uint(flags)),
    )
    .map(|count| count as u64);
    store_offset(task, from_at, from_offset)?;
    store_offset(task, to_at, to_offset)?;
    raise_sigpipe(task, answer)
}

/// tee(2)
pub(crate) fn tee(task: &mut Task, [from, to, len, flags, ..]: Args) -> Answer {
    let flags = SpliceFlags::from_bits_retain(uint(flags));
    let answer = rustix::pipe::tee(task.files.get(int(from))?, task.files.get(int(to))?, size(len), flags)
        .map(|count| count as u64);
    raise_sigpipe(task, answer)
}

/// The offset at `addr`; at 0 there is none, and the descriptor's own counts.
fn fetch_offset(task: &Task, addr: u64) -> Result<Option<u64>, process_vm_exec::Errno> {
    if addr == 0 { Ok(None) } else { task.space.fetch_u64(addr).map(Some) }
}

fn store_offset(task: &Task, addr: u64, offset: Option<u64>) -> Result<(), process_vm_exec::Errno> {
    match offset {
        Some(offset) => task.space.store(addr, &offset.to_ne_bytes()),
        None => Ok(()),
    }
}
