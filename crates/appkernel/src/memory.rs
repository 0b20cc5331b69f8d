//! Memory: mapped by the host kernel, in the guest's space, on the guest's behalf. Only the heap (brk(2)) is
//! kept here.

use process_vm_exec::{Errno, Mapping, Protection, Sysno};

use crate::{
    abi::{Answer, Args, int, page_up, uint},
    elf::ADDRESS_LIMIT,
    task::Task,
};

/// Where the executor's pages end; they begin at [`ADDRESS_LIMIT`].
const EXECUTOR_END: u64 = ADDRESS_LIMIT + 0x400_0000;

/// The heap of brk(2).
#[derive(Debug)]
pub(crate) struct Heap {
    start: u64,
    end: u64,
}

impl Heap {
    pub(crate) const fn new(start: u64) -> Self {
        Self { start, end: start }
    }
}

/// brk(2): the kernel's, which returns the end of the heap, new or unchanged.
pub(crate) fn brk(task: &mut Task, [wanted, ..]: Args) -> Answer {
    let Heap { start, end } = task.heap;
    if wanted < start {
        return Ok(end);
    }
    let (Some(mapped), Some(needed)) = (page_up(end), page_up(wanted)) else { return Ok(end) };
    let changed = if needed > mapped {
        let protection = Protection::READ | Protection::WRITE;
        let flags = libc::MAP_FIXED_NOREPLACE.cast_unsigned();
        task.space.map(Mapping::anonymous(needed - mapped, protection).near(mapped).flags(flags)).map(|_| ())
    } else if needed < mapped {
        task.space.unmap(needed, mapped - needed)
    } else {
        Ok(())
    };
    if changed.is_ok() {
        task.heap.end = wanted;
    }
    Ok(task.heap.end)
}

/// mmap(2)
pub(crate) fn mmap(task: &mut Task, [addr, len, protection, flags, fd, offset]: Args) -> Answer {
    const SHARING: u32 = libc::MAP_TYPE.cast_unsigned();
    let flags = uint(flags);
    let protection = Protection::from_bits_retain(uint(protection));
    let mapping = if flags & libc::MAP_ANONYMOUS.cast_unsigned() != 0 {
        Mapping::anonymous(len, protection)
    } else {
        Mapping::file(task.files.get(int(fd))?, offset, len, protection)
    };
    let mapping = match (flags & SHARING).cast_signed() {
        libc::MAP_PRIVATE => mapping,
        libc::MAP_SHARED | libc::MAP_SHARED_VALIDATE => mapping.shared(),
        _ => return Err(Errno::INVAL),
    };
    let fixed = libc::MAP_FIXED.cast_unsigned();
    let no_replace = libc::MAP_FIXED_NOREPLACE.cast_unsigned();
    let mapping = match addr {
        addr if flags & fixed != 0 => mapping.at(addr),
        0 => mapping,
        // A hint at what is taken means nothing.
        addr if flags & no_replace == 0 && keep_off_executor(addr, len).is_err() => mapping,
        addr => mapping.near(addr),
    };
    let mapping = mapping.flags(flags & !SHARING & !fixed);
    task.space.map(mapping).map_err(|error| error.errno())
}

/// munmap(2)
pub(crate) fn munmap(task: &mut Task, [addr, len, ..]: Args) -> Answer {
    task.space.unmap(addr, len).map(|()| 0).map_err(|error| error.errno())
}

/// mprotect(2)
pub(crate) fn mprotect(task: &mut Task, [addr, len, protection, ..]: Args) -> Answer {
    let protection = Protection::from_bits_retain(uint(protection));
    task.space.protect(addr, len, protection).map(|()| 0).map_err(|error| error.errno())
}

/// mremap(2)
pub(crate) fn mremap(task: &mut Task, args @ [old, old_len, new_len, flags, new, _]: Args) -> Answer {
    keep_off_executor(old, old_len.max(1))?;
    if int(flags) & libc::MREMAP_FIXED != 0 {
        keep_off_executor(new, new_len)?;
    } else {
        keep_off_executor(old, new_len)?;
    }
    task.space.syscall(Sysno::mremap, args).map_err(|error| error.errno())
}

/// madvise(2)
pub(crate) fn madvise(task: &mut Task, args: Args) -> Answer {
    on_range(task, Sysno::madvise, args)
}

/// mincore(2)
pub(crate) fn mincore(task: &mut Task, args: Args) -> Answer {
    on_range(task, Sysno::mincore, args)
}

/// msync(2)
pub(crate) fn msync(task: &mut Task, args: Args) -> Answer {
    on_range(task, Sysno::msync, args)
}

/// mlock(2)
pub(crate) fn mlock(task: &mut Task, args: Args) -> Answer {
    on_range(task, Sysno::mlock, args)
}

/// mlock2(2)
pub(crate) fn mlock2(task: &mut Task, args: Args) -> Answer {
    on_range(task, Sysno::mlock2, args)
}

/// munlock(2)
pub(crate) fn munlock(task: &mut Task, args: Args) -> Answer {
    on_range(task, Sysno::munlock, args)
}

/// A call about the range of pages that its first two arguments name, executed in the guest's space.
fn on_range(task: &Task, call: Sysno, args: Args) -> Answer {
    keep_off_executor(args[0], args[1])?;
    task.space.syscall(call, args).map_err(|error| error.errno())
}

/// Guests do nothing to the executor's pages.
fn keep_off_executor(addr: u64, len: u64) -> Result<(), Errno> {
    let end = addr.checked_add(len).ok_or(Errno::INVAL)?;
    if addr < EXECUTOR_END && end > ADDRESS_LIMIT { Err(Errno::NOMEM) } else { Ok(()) }
}
