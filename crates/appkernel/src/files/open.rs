//! Opening, duplicating and closing.

use std::{
    ffi::CStr,
    os::fd::{AsFd, BorrowedFd},
};

use process_vm_exec::Errno;
use rustix::{
    event::EventfdFlags,
    fs::{MemfdFlags, Mode, OFlags, ResolveFlags},
    io::fcntl_dupfd_cloexec,
    pipe::PipeFlags,
};

use super::{AT_FDCWD, Cloexec, Last};
use crate::{
    abi::{Answer, Args, PAGE, from_int, int, size, u64_at, uint},
    guest::GuestMemory,
    task::Task,
};

/// The flags of open(2) that Linux knows (`VALID_OPEN_FLAGS`, linux/fcntl.h), and those that count with `O_PATH`.
const VALID_FLAGS: u32 = 0x7f_ffc3;
const PATH_FLAGS: u32 =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).bits();

/// open(2)
pub(crate) fn open(task: &mut Task, [path, flags, mode, ..]: Args) -> Answer {
    openat(task, [from_int(AT_FDCWD), path, flags, mode, 0, 0])
}

/// creat(2)
pub(crate) fn creat(task: &mut Task, [path, mode, ..]: Args) -> Answer {
    let flags = from_int(libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC);
    openat(task, [from_int(AT_FDCWD), path, flags, mode, 0, 0])
}

/// openat(2)
pub(crate) fn openat(task: &mut Task, [dir, path, flags, mode, ..]: Args) -> Answer {
    // As in Linux, open(2) ignores what it does not know (fs/open.c, `build_open_how`).
    let mut flags = uint(flags) & VALID_FLAGS;
    if flags & OFlags::PATH.bits() != 0 {
        flags &= PATH_FLAGS;
    }
    let path = task.space.fetch_path(path)?;
    open_path(task, dir, &path, OFlags::from_bits_retain(flags), uint(mode), ResolveFlags::empty())
}

/// openat2(2)
pub(crate) fn openat2(task: &mut Task, [dir, path, how, len, ..]: Args) -> Answer {
    /// The size of `struct open_how` when it was new; what is added since must be zero.
    const HOW: usize = 24;
    if len < HOW as u64 {
        return Err(Errno::INVAL);
    }
    if len > PAGE {
        return Err(Errno::TOOBIG);
    }
    let mut how_bytes = vec![0; size(len)];
    task.space.fetch_into(how, &mut how_bytes)?;
    if how_bytes[HOW..].iter().any(|&byte| byte != 0) {
        return Err(Errno::TOOBIG);
    }
    let (Ok(flags), Ok(mode)) = (u32::try_from(u64_at(&how_bytes, 0)), u32::try_from(u64_at(&how_bytes, 8)))
    else {
        return Err(Errno::INVAL);
    };
    let resolve = ResolveFlags::from_bits_retain(u64_at(&how_bytes, 16));
    let flags = OFlags::from_bits_retain(flags);
    if flags.bits() & !VALID_FLAGS != 0 || mode & !0o7777 != 0 || (mode != 0 && !makes_a_file(flags)) {
        return Err(Errno::INVAL);
    }
    let path = task.space.fetch_path(path)?;
    open_path(task, dir, &path, flags, mode, resolve)
}

/// Does an open with these flags make a file, for which it needs a mode?
fn makes_a_file(flags: OFlags) -> bool {
    flags.contains(OFlags::CREATE) || flags.contains(OFlags::TMPFILE)
}

fn open_path(
    task: &mut Task,
    dir: u64,
    path: &CStr,
    flags: OFlags,
    mode: u32,
    resolve: ResolveFlags,
) -> Answer {
    let mode =
        if makes_a_file(flags) { Mode::from_raw_mode(mode & 0o7777 & !task.umask) } else { Mode::empty() };
    let file = task.open_at(dir, path, flags | OFlags::CLOEXEC, mode, resolve)?;
    task.files.insert(file, Cloexec::from_flags(flags.bits().cast_signed())).map(from_int)
}

/// close(2)
pub(crate) fn close(task: &mut Task, [fd, ..]: Args) -> Answer {
    task.files.close(int(fd)).map(|()| 0)
}

/// close_range(2)
pub(crate) fn close_range(task: &mut Task, [first, last, flags, ..]: Args) -> Answer {
    // linux/close_range.h
    const CLOEXEC: u32 = 4;
    let (first, last) = (uint(first), uint(last));
    if first > last || uint(flags) & !(CLOEXEC | 2) != 0 {
        return Err(Errno::INVAL);
    }
    for fd in task.files.in_use(first.into(), last.into()) {
        if uint(flags) & CLOEXEC != 0 {
            task.files.set_cloexec(fd, Cloexec::Yes)?;
        } else {
            task.files.close(fd)?;
        }
    }
    Ok(0)
}

/// dup(2)
pub(crate) fn dup(task: &mut Task, [fd, ..]: Args) -> Answer {
    task.files.duplicate(int(fd), 0, Cloexec::No).map(from_int)
}

/// dup2(2)
pub(crate) fn dup2(task: &mut Task, [fd, to, ..]: Args) -> Answer {
    let (fd, to) = (int(fd), int(to));
    if fd == to {
        task.files.get(fd)?;
    } else {
        task.files.duplicate_to(fd, to, Cloexec::No)?;
    }
    Ok(from_int(to))
}

/// dup3(2)
pub(crate) fn dup3(task: &mut Task, [fd, to, flags, ..]: Args) -> Answer {
    let (fd, to, flags) = (int(fd), int(to), int(flags));
    if fd == to || flags & !libc::O_CLOEXEC != 0 {
        return Err(Errno::INVAL);
    }
    task.files.duplicate_to(fd, to, Cloexec::from_flags(flags))?;
    Ok(from_int(to))
}

/// pipe(2)
pub(crate) fn pipe(task: &mut Task, [ends, ..]: Args) -> Answer {
    pipe2(task, [ends, 0, 0, 0, 0, 0])
}

/// pipe2(2)
pub(crate) fn pipe2(task: &mut Task, [ends, flags, ..]: Args) -> Answer {
    let cloexec = Cloexec::from_flags(int(flags));
    let (reader, writer) =
        rustix::pipe::pipe_with(PipeFlags::from_bits_retain(uint(flags)) | PipeFlags::CLOEXEC)?;
    task.insert_pair(ends, reader, writer, cloexec)
}

/// eventfd(2)
pub(crate) fn eventfd(task: &mut Task, [value, ..]: Args) -> Answer {
    eventfd2(task, [value, 0, 0, 0, 0, 0])
}

/// eventfd2(2)
pub(crate) fn eventfd2(task: &mut Task, [value, flags, ..]: Args) -> Answer {
    let host_flags = EventfdFlags::from_bits_retain(uint(flags)) | EventfdFlags::CLOEXEC;
    let file = rustix::event::eventfd(uint(value), host_flags)?;
    task.files.insert(file, Cloexec::from_flags(int(flags))).map(from_int)
}

/// memfd_create(2)
pub(crate) fn memfd_create(task: &mut Task, [name, flags, ..]: Args) -> Answer {
    let name = task.space.fetch_string(name, 250, Errno::INVAL)?;
    let host_flags = MemfdFlags::from_bits_retain(uint(flags)) | MemfdFlags::CLOEXEC;
    let cloexec = if uint(flags) & MemfdFlags::CLOEXEC.bits() != 0 { Cloexec::Yes } else { Cloexec::No };
    let file = rustix::fs::memfd_create(name, host_flags)?;
    task.files.insert(file, cloexec).map(from_int)
}

/// chdir(2)
pub(crate) fn chdir(task: &mut Task, [path, ..]: Args) -> Answer {
    let object = task.object(from_int(AT_FDCWD), path, Last::Follow)?;
    enter(task, object.file.as_fd())
}

/// fchdir(2)
pub(crate) fn fchdir(task: &mut Task, [fd, ..]: Args) -> Answer {
    let directory = fcntl_dupfd_cloexec(task.files.get(int(fd))?, 0)?;
    enter(task, directory.as_fd())
}

/// Makes `directory` the current one, for which it must be one that may be searched.
fn enter(task: &mut Task, directory: BorrowedFd<'_>) -> Answer {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(directory, c".", flags, Mode::empty())?;
    rustix::fs::accessat(&directory, c".", rustix::fs::Access::EXEC_OK, rustix::fs::AtFlags::EACCESS)?;
    task.directory = directory;
    Ok(0)
}

/// getcwd(2)
pub(crate) fn getcwd(task: &mut Task, [addr, len, ..]: Args) -> Answer {
    let mut path = super::shown_path(task, task.directory.as_fd())?;
    if rustix::fs::fstat(&task.directory)?.st_nlink == 0 {
        return Err(Errno::NOENT);
    }
    path.push(0);
    if size(len) < path.len() {
        return Err(Errno::RANGE);
    }
    task.space.store(addr, &path)?;
    Ok(path.len() as u64)
}

/// umask(2)
pub(crate) fn umask(task: &mut Task, [mask, ..]: Args) -> Answer {
    Ok(std::mem::replace(&mut task.umask, uint(mask) & 0o777).into())
}
