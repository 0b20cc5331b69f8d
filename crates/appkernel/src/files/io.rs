//! Reading and writing. All data passes through the task's one buffer.

use std::os::fd::BorrowedFd;

use process_vm_exec::Errno;
use rustix::fs::{FileType, RawDir, SeekFrom};

use crate::{
    abi::{Answer, Args, int, long, size},
    guest::{GuestMemory, Span},
    task::Task,
};

/// How much of one read or write is moved at a time.
const CHUNK: u64 = 1 << 20;
/// The most that one vectored call moves; callers expect a regular file to fill their vectors.
const VECTOR_MAX: u64 = 64 << 20;
/// The most that one call moves at all (`MAX_RW_COUNT`, linux/fs.h).
const TRANSFER_MAX: u64 = 0x7fff_f000;
/// The most that one `getdents64` fills.
const DIRECTORY_MAX: u64 = 1 << 20;
/// The length of `struct linux_dirent64` before its name.
const DIRENT_HEADER: usize = 19;

/// Where in the file.
#[derive(Clone, Copy, Debug)]
enum Position {
    /// At the descriptor's own offset, which moves on.
    Current,
    /// At this one.
    At(u64),
}

impl Position {
    fn at(offset: u64) -> Result<Self, Errno> {
        if long(offset) < 0 { Err(Errno::INVAL) } else { Ok(Self::At(offset)) }
    }

    fn read(self, file: BorrowedFd<'_>, buffer: &mut [u8], done: u64) -> Result<usize, Errno> {
        match self {
            Self::Current => rustix::io::read(file, buffer),
            Self::At(offset) => rustix::io::pread(file, buffer, offset + done),
        }
    }

    fn write(self, file: BorrowedFd<'_>, bytes: &[u8], done: u64) -> Result<usize, Errno> {
        match self {
            Self::Current => rustix::io::write(file, bytes),
            Self::At(offset) => rustix::io::pwrite(file, bytes, offset + done),
        }
    }
}

/// read(2)
pub(crate) fn read(task: &mut Task, [fd, addr, len, ..]: Args) -> Answer {
    read_span(task, int(fd), Span { addr, len }, Position::Current)
}

/// pread(2)
pub(crate) fn pread64(task: &mut Task, [fd, addr, len, offset, ..]: Args) -> Answer {
    read_span(task, int(fd), Span { addr, len }, Position::at(offset)?)
}

/// write(2)
pub(crate) fn write(task: &mut Task, [fd, addr, len, ..]: Args) -> Answer {
    let answer = write_span(task, int(fd), Span { addr, len }, Position::Current);
    raise_sigpipe(task, answer)
}

/// pwrite(2)
pub(crate) fn pwrite64(task: &mut Task, [fd, addr, len, offset, ..]: Args) -> Answer {
    write_span(task, int(fd), Span { addr, len }, Position::at(offset)?)
}

/// readv(2)
pub(crate) fn readv(task: &mut Task, [fd, vector, count, ..]: Args) -> Answer {
    read_vector(task, int(fd), vector, count, Position::Current)
}

/// preadv(2) and, without flags, preadv2(2)
pub(crate) fn preadv(task: &mut Task, [fd, vector, count, offset, ..]: Args) -> Answer {
    read_vector(task, int(fd), vector, count, Position::at(offset)?)
}

/// writev(2)
pub(crate) fn writev(task: &mut Task, [fd, vector, count, ..]: Args) -> Answer {
    let answer = write_vector(task, int(fd), vector, count, Position::Current);
    raise_sigpipe(task, answer)
}

/// pwritev(2) and, without flags, pwritev2(2)
pub(crate) fn pwritev(task: &mut Task, [fd, vector, count, offset, ..]: Args) -> Answer {
    write_vector(task, int(fd), vector, count, Position::at(offset)?)
}

fn read_span(task: &mut Task, fd: i32, span: Span, position: Position) -> Answer {
    task.wait_until_ready(fd, rustix::event::PollFlags::IN)?;
    let file = task.files.get(fd)?;
    let len = span.len.min(TRANSFER_MAX);
    let mut done = 0;
    loop {
        let part = (len - done).min(CHUNK);
        let buffer = grow(&mut task.buffer, part);
        let count = match position.read(file, buffer, done) {
            Ok(count) => count,
            Err(_) if done > 0 => return Ok(done),
            Err(errno) => return Err(errno),
        };
        task.space.store(span.addr.wrapping_add(done), &buffer[..count])?;
        done += count as u64;
        // What is no file gives what it has; the next read may have to wait.
        if (count as u64) < part || done == len || !is_regular(file) {
            return Ok(done);
        }
    }
}

fn write_span(task: &mut Task, fd: i32, span: Span, position: Position) -> Answer {
    task.wait_until_ready(fd, rustix::event::PollFlags::OUT)?;
    let file = task.files.get(fd)?;
    let len = span.len.min(TRANSFER_MAX);
    let mut done = 0;
    loop {
        let part = (len - done).min(CHUNK);
        let buffer = grow(&mut task.buffer, part);
        let written = task
            .space
            .fetch_into(span.addr.wrapping_add(done), buffer)
            .and_then(|()| position.write(file, buffer, done));
        match written {
            Ok(count) => done += count as u64,
            Err(_) if done > 0 => return Ok(done),
            Err(errno) => return Err(errno),
        }
        if done == len || !done.is_multiple_of(CHUNK) {
            return Ok(done);
        }
    }
}

fn read_vector(task: &mut Task, fd: i32, vector: u64, count: u64, position: Position) -> Answer {
    let spans = task.space.fetch_vector(vector, count)?;
    let total = total(&spans)?;
    task.wait_until_ready(fd, rustix::event::PollFlags::IN)?;
    let file = task.files.get(fd)?;
    let buffer = grow(&mut task.buffer, total);
    let count = position.read(file, buffer, 0)?;
    let mut rest = &buffer[..count];
    for span in spans {
        let (part, after) = rest.split_at(rest.len().min(size(span.len)));
        task.space.store(span.addr, part)?;
        rest = after;
    }
    Ok(count as u64)
}

fn write_vector(task: &mut Task, fd: i32, vector: u64, count: u64, position: Position) -> Answer {
    let spans = task.space.fetch_vector(vector, count)?;
    let total = total(&spans)?;
    task.wait_until_ready(fd, rustix::event::PollFlags::OUT)?;
    let file = task.files.get(fd)?;
    let buffer = grow(&mut task.buffer, total);
    let mut rest = &mut *buffer;
    for span in spans {
        let (part, after) = rest.split_at_mut(rest.len().min(size(span.len)));
        task.space.fetch_into(span.addr, part)?;
        rest = after;
    }
    position.write(file, buffer, 0).map(|count| count as u64)
}

/// How much a vectored call moves.
fn total(spans: &[Span]) -> Result<u64, Errno> {
    let total = spans.iter().try_fold(0u64, |total, span| total.checked_add(span.len)).ok_or(Errno::INVAL)?;
    if long(total) < 0 { Err(Errno::INVAL) } else { Ok(total.min(VECTOR_MAX)) }
}

/// The first `len` bytes of the buffer, which grows as needed and stays that large.
fn grow(buffer: &mut Vec<u8>, len: u64) -> &mut [u8] {
    let len = size(len);
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}

fn is_regular(file: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(file)
        .is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::RegularFile)
}

/// Writing to a pipe that nobody reads sends `SIGPIPE`; this process ignores its own.
pub(crate) fn raise_sigpipe(task: &mut Task, answer: Answer) -> Answer {
    if answer == Err(Errno::PIPE) {
        task.raise(libc::SIGPIPE, libc::SI_USER);
    }
    answer
}

/// lseek(2)
pub(crate) fn lseek(task: &mut Task, [fd, offset, whence, ..]: Args) -> Answer {
    let file = task.files.get(int(fd))?;
    let position = match int(whence) {
        libc::SEEK_SET => SeekFrom::Start(u64::try_from(long(offset)).map_err(|_| Errno::INVAL)?),
        libc::SEEK_CUR => SeekFrom::Current(long(offset)),
        libc::SEEK_END => SeekFrom::End(long(offset)),
        libc::SEEK_DATA => SeekFrom::Data(offset),
        libc::SEEK_HOLE => SeekFrom::Hole(offset),
        _ => return Err(Errno::INVAL),
    };
    rustix::fs::seek(file, position)
}

/// getdents64(2)
pub(crate) fn getdents64(task: &mut Task, [fd, addr, len, ..]: Args) -> Answer {
    let file = task.files.get(int(fd))?;
    let len = size(u64::from(crate::abi::uint(len)).min(DIRECTORY_MAX));
    let mut space = Vec::<u8>::with_capacity(len);
    let mut directory = RawDir::new(file, &mut space.spare_capacity_mut()[..len]);
    task.buffer.clear();
    while let Some(entry) = directory.next() {
        let entry = entry?;
        let kind = match entry.file_type() {
            FileType::Unknown => 0,
            // The types of `d_type` are those of `st_mode`, shifted.
            kind => kind.as_raw_mode() >> 12,
        };
        let name = entry.file_name().to_bytes_with_nul();
        let record_len = (DIRENT_HEADER + name.len()).next_multiple_of(8);
        let start = task.buffer.len();
        task.buffer.extend(entry.ino().to_ne_bytes());
        task.buffer.extend(entry.next_entry_cookie().to_ne_bytes());
        task.buffer.extend(u16::try_from(record_len).map_err(|_| Errno::INVAL)?.to_ne_bytes());
        task.buffer.push(u8::try_from(kind).unwrap_or_default());
        task.buffer.extend(name);
        task.buffer.resize(start + record_len, 0);
        if directory.is_buffer_empty() {
            break;
        }
    }
    task.space.store(addr, &task.buffer)?;
    Ok(task.buffer.len() as u64)
}

/// fsync(2)
pub(crate) fn fsync(task: &mut Task, [fd, ..]: Args) -> Answer {
    rustix::fs::fsync(task.files.get(int(fd))?).map(|()| 0)
}

/// fdatasync(2)
pub(crate) fn fdatasync(task: &mut Task, [fd, ..]: Args) -> Answer {
    rustix::fs::fdatasync(task.files.get(int(fd))?).map(|()| 0)
}

/// syncfs(2)
pub(crate) fn syncfs(task: &mut Task, [fd, ..]: Args) -> Answer {
    rustix::fs::syncfs(task.files.get(int(fd))?).map(|()| 0)
}

/// sync(2)
pub(crate) fn sync(_: &mut Task, _: Args) -> Answer {
    rustix::fs::sync();
    Ok(0)
}

/// ftruncate(2)
pub(crate) fn ftruncate(task: &mut Task, [fd, len, ..]: Args) -> Answer {
    let len = u64::try_from(long(len)).map_err(|_| Errno::INVAL)?;
    rustix::fs::ftruncate(task.files.get(int(fd))?, len).map(|()| 0)
}

/// fallocate(2)
pub(crate) fn fallocate(task: &mut Task, [fd, mode, offset, len, ..]: Args) -> Answer {
    let mode = rustix::fs::FallocateFlags::from_bits_retain(crate::abi::uint(mode));
    rustix::fs::fallocate(task.files.get(int(fd))?, mode, offset, len).map(|()| 0)
}

/// posix_fadvise(2): advice, which may be ignored.
pub(crate) fn fadvise64(task: &mut Task, [fd, ..]: Args) -> Answer {
    task.files.get(int(fd)).map(|_| 0)
}

/// readahead(2)
pub(crate) fn readahead(task: &mut Task, [fd, ..]: Args) -> Answer {
    task.files.get(int(fd)).map(|_| 0)
}
