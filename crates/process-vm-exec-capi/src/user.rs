//! The caller's pointers: a system call answers a bad one by `EFAULT` and does not crash, and so does this.
//!
//! The kernel tells whether memory is there: process_vm_readv(2) and process_vm_writev(2) on ourselves. They cost
//! more than a whole round trip to a guest, and loops pass the same addresses again and again. So what was good in
//! the last call of this thread is taken to be good still.

use std::ptr;

use process_vm_exec::{Errno, SigInfo};

use crate::abi::{Bases, ExtendedContext, SigContext};

/// Types of which each pattern of bits is a value, and which have no padding.
///
/// # Safety
/// That is so.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: integers, without padding: the sizes are tested.
unsafe impl Plain for SigContext {}
// SAFETY: as above.
unsafe impl Plain for ExtendedContext {}
// SAFETY: as above.
unsafe impl Plain for Bases {}
// SAFETY: an array of bytes.
unsafe impl Plain for SigInfo {}
// SAFETY: an integer.
unsafe impl Plain for u64 {}

/// One of the caller's pointers, and what is known of where it has pointed.
#[derive(Debug, Default)]
pub(crate) struct Pointer {
    good: Option<Memory>,
}

/// A stretch of the caller's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Memory {
    start: usize,
    len: usize,
    access: Access,
}

/// What is done with the caller's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// It is read only.
    Read,
    /// It is written, and perhaps read.
    Write,
}

impl Pointer {
    /// Makes sure that `len` bytes at `start` can be accessed.
    ///
    /// # Errors
    /// `EFAULT` if not.
    pub(crate) fn check(&mut self, start: *const u8, len: usize, access: Access) -> Result<(), Errno> {
        let memory = Memory { start: start.addr(), len, access };
        if self.good != Some(memory) {
            self.good = None;
            probe(start, len, access)?;
            self.good = Some(memory);
        }
        Ok(())
    }

    /// Copies a value from `from`, which will be accessed like this.
    ///
    /// # Errors
    /// As for [`check`](Self::check).
    pub(crate) fn read<T: Plain>(&mut self, from: *const T, access: Access) -> Result<T, Errno> {
        self.check(from.cast(), size_of::<T>(), access)?;
        // SAFETY: the memory is readable; any bytes in it are a `T`. It need not be aligned.
        Ok(unsafe { ptr::read_unaligned(from) })
    }

    /// Copies `value` to `to`.
    ///
    /// # Errors
    /// As for [`check`](Self::check).
    pub(crate) fn write<T: Plain>(&mut self, to: *mut T, value: T) -> Result<(), Errno> {
        self.check(to.cast(), size_of::<T>(), Access::Write)?;
        // SAFETY: the memory is writable, and the caller's contract gives it to us. It need not be aligned.
        unsafe { ptr::write_unaligned(to, value) };
        Ok(())
    }

    /// Copies `len` bytes from `from`, which will be written too.
    ///
    /// # Errors
    /// As for [`check`](Self::check).
    pub(crate) fn read_bytes(&mut self, from: *const u8, len: usize) -> Result<Vec<u8>, Errno> {
        self.check(from, len, Access::Write)?;
        let mut bytes = vec![0; len];
        // SAFETY: the memory is readable, and `bytes` has just been made that long.
        unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), len) };
        Ok(bytes)
    }

    /// Copies `bytes` to `to`.
    ///
    /// # Errors
    /// As for [`check`](Self::check).
    pub(crate) fn write_bytes(&mut self, to: *mut u8, bytes: &[u8]) -> Result<(), Errno> {
        self.check(to, bytes.len(), Access::Write)?;
        // SAFETY: the memory is writable, and the caller's contract gives it to us.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }
}

/// Has the kernel read all of the memory, and if it is to be written, write back what it has read.
fn probe(start: *const u8, len: usize, access: Access) -> Result<(), Errno> {
    let mut copy = vec![0u8; len];
    let local = libc::iovec { iov_base: copy.as_mut_ptr().cast(), iov_len: len };
    let remote = libc::iovec { iov_base: start.cast_mut().cast(), iov_len: len };
    let pid = std::process::id().cast_signed();
    let is_all = |copied: isize| if copied.cast_unsigned() == len { Ok(()) } else { Err(Errno::FAULT) };
    // SAFETY: `local` is `copy`; the kernel checks the remote address.
    is_all(unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) })?;
    if access == Access::Write {
        // SAFETY: as above; and what is written is what is there.
        is_all(unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_not_there_is_found_without_a_crash() {
        let mut place = Pointer::default();
        assert_eq!(place.read(ptr::null::<u64>(), Access::Read), Err(Errno::FAULT));
        assert_eq!(place.read(ptr::dangling::<u64>(), Access::Read), Err(Errno::FAULT));
        assert_eq!(place.write(ptr::without_provenance_mut(1 << 47), 1u64), Err(Errno::FAULT));
    }

    #[test]
    fn read_only_memory_is_not_written() {
        static CONSTANT: u64 = 5;
        let mut place = Pointer::default();
        assert_eq!(place.read(&raw const CONSTANT, Access::Read), Ok(5));
        assert_eq!(place.write((&raw const CONSTANT).cast_mut(), 6), Err(Errno::FAULT));
    }
}
