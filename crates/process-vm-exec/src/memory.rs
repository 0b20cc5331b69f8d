//! What to map where: the arguments of [`AddressSpace::map`](crate::AddressSpace::map).

use std::os::fd::BorrowedFd;

use rustix::fs::OFlags;
use rustix::io::Errno;
use syscalls::Sysno;

use crate::call::{Call, File};
use crate::procfs;
use crate::registry::RegisteredFile;

bitflags::bitflags! {
    /// What a guest may do with a page (mmap(2), `PROT_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Protection: u32 {
        /// Read it.
        const READ = libc::PROT_READ as u32;
        /// Write it.
        const WRITE = libc::PROT_WRITE as u32;
        /// Execute it.
        const EXEC = libc::PROT_EXEC as u32;
    }
}

/// A mapping to make. Built with [`Mapping::anonymous`], [`Mapping::file`] or [`Mapping::registered`], then
/// refined:
///
/// ```
/// use process_vm_exec::{Mapping, Protection};
/// let stack = Mapping::anonymous(64 << 10, Protection::READ | Protection::WRITE).at(0x10_0000);
/// # let _ = stack;
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Mapping<'fd> {
    pub(crate) addr: Option<u64>,
    pub(crate) len: u64,
    pub(crate) protection: Protection,
    pub(crate) flags: u32,
    pub(crate) file: Option<(File<'fd>, u64)>,
}

impl<'fd> Mapping<'fd> {
    /// `len` bytes of zeroes, private to the space.
    pub const fn anonymous(len: u64, protection: Protection) -> Self {
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32;
        Self { addr: None, len, protection, flags, file: None }
    }

    /// `len` bytes of `fd` from byte `offset` on, copied on write. The supervisor keeps the descriptor: the
    /// guest gets the memory only.
    pub const fn file(fd: BorrowedFd<'fd>, offset: u64, len: u64, protection: Protection) -> Self {
        Self {
            addr: None,
            len,
            protection,
            flags: libc::MAP_PRIVATE as u32,
            file: Some((File::Borrowed(fd), offset)),
        }
    }

    /// The same of a file that spaces have: it is not passed, so this costs one call in the space and nothing more.
    pub const fn registered(file: RegisteredFile, offset: u64, len: u64, protection: Protection) -> Self {
        let file = Some((File::Registered(file), offset));
        Self { addr: None, len, protection, flags: libc::MAP_PRIVATE as u32, file }
    }

    /// The system call that makes it, for a batch.
    pub fn call(&self) -> Call<'fd> {
        let Self { addr, len, protection, flags, file } = *self;
        let (fd, offset) = match file {
            Some((_, offset)) => (0, offset),
            None => (u64::MAX, 0),
        };
        let (protection, flags) = (u64::from(protection.bits()), u64::from(flags));
        let call = Call::with_args(Sysno::mmap, [addr.unwrap_or(0), len, protection, flags, fd, offset]);
        match file {
            Some((file, _)) => call.file(4, file),
            None => call,
        }
    }

    /// At this address, and nowhere else: replaces what is mapped there (`MAP_FIXED`).
    #[must_use]
    pub const fn at(mut self, addr: u64) -> Self {
        self.addr = Some(addr);
        self.flags |= libc::MAP_FIXED as u32;
        self
    }

    /// Near this address if the kernel finds room there.
    #[must_use]
    pub const fn near(mut self, addr: u64) -> Self {
        self.addr = Some(addr);
        self
    }

    /// Writes go to the file, or to every space that shares the mapping (`MAP_SHARED` for `MAP_PRIVATE`).
    #[must_use]
    pub const fn shared(mut self) -> Self {
        self.flags = self.flags & !(libc::MAP_PRIVATE as u32) | libc::MAP_SHARED as u32;
        self
    }

    /// Further `MAP_*` flags of mmap(2), such as `MAP_NORESERVE`, `MAP_GROWSDOWN` or
    /// `MAP_FIXED_NOREPLACE`.
    #[must_use]
    pub const fn flags(mut self, flags: u32) -> Self {
        self.flags |= flags;
        self
    }
}

/// Reads all of `buffer` from the memory of a process (process_vm_readv(2)).
pub(crate) fn read(pid: i32, addr: u64, buffer: &mut [u8]) -> Result<(), Errno> {
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    transfer(addr, local, |local, remote| {
        // SAFETY: `local` is the rest of `buffer`, which is writable; the remote address needs no guarantee.
        unsafe { libc::process_vm_readv(pid, local, 1, remote, 1, 0) }
    })
}

/// Reads all of `buffer` from the memory of a task, by /proc/PID/mem (proc(5)), as far as that takes no waiting:
/// process_vm_readv(2) waits for pages that somebody holds back by userfaultfd(2), here they are `EFAULT`. Allocates nothing.
pub(crate) fn read_at_once(task: i32, addr: u64, buffer: &mut [u8]) -> Result<(), Errno> {
    let memory =
        procfs::open(format_args!("/proc/{task}/mem"), OFlags::RDONLY).map_err(|errno| match errno {
            Errno::NOENT => Errno::SRCH,
            // What has ended and not been waited for has none either, and its files are root's.
            Errno::ACCESS if has_no_memory(task) => Errno::SRCH,
            errno => errno,
        })?;
    match rustix::io::pread(memory, &mut *buffer, addr) {
        Ok(len) if len == buffer.len() => Ok(()),
        // It has none any more.
        Ok(0) => Err(Errno::SRCH),
        Ok(_) | Err(Errno::IO) => Err(Errno::FAULT),
        Err(errno) => Err(errno),
    }
}

/// Has a task ended, or is it the kernel's own? The kernel looks for the memory before it looks at rights or addresses
/// (`process_vm_rw_core` in mm/process_vm_access.c).
fn has_no_memory(task: i32) -> bool {
    const NOBODYS: u64 = !0xfff;
    read(task, NOBODYS, &mut [0]) == Err(Errno::SRCH)
}

/// Writes all of `bytes` to the memory of a process (process_vm_writev(2)).
pub(crate) fn write(pid: i32, addr: u64, bytes: &[u8]) -> Result<(), Errno> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    transfer(addr, local, |local, remote| {
        // SAFETY: `local` is the rest of `bytes`, and only read; the remote address needs no guarantee.
        unsafe { libc::process_vm_writev(pid, local, 1, remote, 1, 0) }
    })
}

/// Copies between `local` and a process's memory at `addr`, all of it.
fn transfer(
    addr: u64,
    mut local: libc::iovec,
    copy: impl Fn(*const libc::iovec, *const libc::iovec) -> isize,
) -> Result<(), Errno> {
    let mut remote = libc::iovec { iov_base: addr as *mut _, iov_len: local.iov_len };
    while local.iov_len != 0 {
        let copied = match usize::try_from(copy(&raw const local, &raw const remote)) {
            Ok(copied) if copied > 0 => copied,
            _ => return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::FAULT)),
        };
        local.iov_base = local.iov_base.wrapping_byte_add(copied);
        remote.iov_base = remote.iov_base.wrapping_byte_add(copied);
        local.iov_len -= copied;
        remote.iov_len -= copied;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Also for who is not root, to whom most of what is left of a process is not shown.
    #[test]
    fn a_process_that_has_ended_has_no_memory_although_nobody_has_waited_for_it() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().expect("cat(1)");
        let pid = i32::try_from(child.id()).expect("a pid");
        assert_eq!(read_at_once(pid, 0, &mut [0]), Err(Errno::FAULT), "it has some, but not there");
        drop(child.stdin.take());
        let id = rustix::process::WaitId::Pid(rustix::process::Pid::from_raw(pid).expect("a pid"));
        let looks = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(id, looks).expect("waitid");
        assert_eq!(read_at_once(pid, 0, &mut [0]), Err(Errno::SRCH));
        child.wait().expect("its status");
        assert_eq!(read_at_once(pid, 0, &mut [0]), Err(Errno::SRCH));
    }
}
