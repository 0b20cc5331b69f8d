//! Opening, duplicating and closing.

use std::{ffi::CString, os::fd::OwnedFd};

use process_vm_exec::Errno;
use rustix::{
    event::EventfdFlags,
    fs::{MemfdFlags, Mode, OFlags, ResolveFlags, SeekFrom},
    pipe::PipeFlags,
};

use super::{AT_FDCWD, Cloexec, Last, proc::Proc};
use crate::{
    abi::{Answer, Args, from_int, int, size, u64_at, uint},
    guest::GuestMemory,
    task::Task,
};

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
    let path = task.space.fetch_path(path)?;
    open_path(task, dir, path, int(flags), uint(mode), ResolveFlags::empty())
}

/// openat2(2)
pub(crate) fn openat2(task: &mut Task, [dir, path, how, len, ..]: Args) -> Answer {
    if len < 24 {
        return Err(Errno::INVAL);
    }
    let how: [u8; 24] = task.space.fetch(how)?;
    let path = task.space.fetch_path(path)?;
    let resolve = ResolveFlags::from_bits_retain(u64_at(&how, 16));
    open_path(task, dir, path, int(u64_at(&how, 0)), uint(u64_at(&how, 8)), resolve)
}

fn open_path(
    task: &mut Task,
    dir: u64,
    path: CString,
    flags: i32,
    mode: u32,
    resolve: ResolveFlags,
) -> Answer {
    let last = if flags & libc::O_NOFOLLOW != 0 { Last::Link } else { Last::Follow };
    let host_flags = OFlags::from_bits_retain(flags.cast_unsigned()) | OFlags::CLOEXEC;
    let mode = if flags & (libc::O_CREAT | libc::O_TMPFILE & !libc::O_DIRECTORY) != 0 {
        Mode::from_raw_mode(mode & 0o7777 & !task.umask)
    } else {
        Mode::empty()
    };
    let file = if let Some(Proc::Contents(name, contents)) = task.proc(&path) {
        file_with(name, &contents)?
    } else {
        let place = task.place_at(dir, path, last)?;
        if resolve.is_empty() {
            rustix::fs::openat(place.dir, &place.path, host_flags, mode)?
        } else {
            rustix::fs::openat2(place.dir, &place.path, host_flags, mode, resolve)?
        }
    };
    task.files.insert(file, Cloexec::from_flags(flags)).map(from_int)
}

/// A file that has these contents.
fn file_with(name: &[u8], contents: &[u8]) -> Result<OwnedFd, Errno> {
    let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?;
    let mut rest = contents;
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest)?;
        rest = &rest[written..];
    }
    rustix::fs::seek(&file, SeekFrom::Start(0))?;
    Ok(file)
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
    let reader = task.files.insert(reader, cloexec)?;
    let writer = match task.files.insert(writer, cloexec) {
        Ok(writer) => writer,
        Err(errno) => {
            task.files.close(reader)?;
            return Err(errno);
        }
    };
    let mut record = [0; 8];
    record[..4].copy_from_slice(&reader.to_ne_bytes());
    record[4..].copy_from_slice(&writer.to_ne_bytes());
    task.space.store(ends, &record)?;
    Ok(0)
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
    let place = task.place(from_int(AT_FDCWD), path)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(place.dir, &place.path, flags, Mode::empty())?;
    enter(task, directory)
}

/// fchdir(2)
pub(crate) fn fchdir(task: &mut Task, [fd, ..]: Args) -> Answer {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(task.files.get(int(fd))?, c".", flags, Mode::empty())?;
    enter(task, directory)
}

/// A directory that cannot be searched is none to be in.
fn enter(task: &mut Task, directory: OwnedFd) -> Answer {
    rustix::fs::accessat(&directory, c".", rustix::fs::Access::EXEC_OK, rustix::fs::AtFlags::EACCESS)?;
    task.directory = directory;
    Ok(0)
}

/// getcwd(2)
pub(crate) fn getcwd(task: &mut Task, [addr, len, ..]: Args) -> Answer {
    use std::os::fd::AsFd;
    let mut path = super::host_path(task.directory.as_fd())?;
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
