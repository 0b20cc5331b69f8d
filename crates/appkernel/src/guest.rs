//! Guest memory as system calls use it: records, strings and vectors at addresses the guest chose.

use std::ffi::CString;

use process_vm_exec::{AddressSpace, Errno};

use crate::abi::{PAGE, size, u64_at};

/// The longest path, its NUL included (`PATH_MAX`, linux/limits.h).
const PATH_MAX: u64 = 4096;
/// The most buffers of one `readv` or `writev` (`UIO_MAXIOV`, linux/uio.h).
const IOV_MAX: u64 = 1024;
/// How much of a string is read at first: most are short.
const STRING_CHUNK: u64 = 256;

/// One buffer of a vector (`struct iovec`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) addr: u64,
    pub(crate) len: u64,
}

/// Reading and writing guest memory; bad addresses get `EFAULT`.
pub(crate) trait GuestMemory {
    /// Fills `buf` from guest memory.
    fn fetch_into(&self, addr: u64, buf: &mut [u8]) -> Result<(), Errno>;

    /// Writes `bytes` to guest memory.
    fn store(&self, addr: u64, bytes: &[u8]) -> Result<(), Errno>;

    /// Reads a record of `N` bytes.
    fn fetch<const N: usize>(&self, addr: u64) -> Result<[u8; N], Errno> {
        let mut bytes = [0; N];
        self.fetch_into(addr, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads one word.
    fn fetch_u64(&self, addr: u64) -> Result<u64, Errno> {
        self.fetch(addr).map(u64::from_ne_bytes)
    }

    /// Reads a C `int`.
    fn fetch_i32(&self, addr: u64) -> Result<i32, Errno> {
        self.fetch(addr).map(i32::from_ne_bytes)
    }

    /// Reads bytes up to a NUL, which is not returned. `too_long` is the error for strings of `limit` bytes
    /// and more.
    fn fetch_string(&self, addr: u64, limit: u64, too_long: Errno) -> Result<Vec<u8>, Errno> {
        let mut string = Vec::new();
        let mut at = addr;
        let mut chunk = STRING_CHUNK;
        loop {
            let to_page_end = PAGE - at % PAGE;
            let len = chunk.min(to_page_end).min(limit - string.len() as u64);
            if len == 0 {
                return Err(too_long);
            }
            let start = string.len();
            string.resize(start + size(len), 0);
            self.fetch_into(at, &mut string[start..])?;
            if let Some(nul) = string[start..].iter().position(|&byte| byte == 0) {
                string.truncate(start + nul);
                return Ok(string);
            }
            at = at.checked_add(len).ok_or(Errno::FAULT)?;
            chunk = PAGE;
        }
    }

    /// Reads a path: at most `PATH_MAX` bytes with its NUL.
    fn fetch_path(&self, addr: u64) -> Result<CString, Errno> {
        let bytes = self.fetch_string(addr, PATH_MAX, Errno::NAMETOOLONG)?;
        CString::new(bytes).map_err(|_| Errno::INVAL)
    }

    /// Reads a vector of buffers.
    fn fetch_vector(&self, addr: u64, count: u64) -> Result<Vec<Span>, Errno> {
        if count > IOV_MAX {
            return Err(Errno::INVAL);
        }
        let mut bytes = vec![0; size(count) * 16];
        self.fetch_into(addr, &mut bytes)?;
        Ok(bytes
            .chunks_exact(16)
            .map(|entry| Span { addr: u64_at(entry, 0), len: u64_at(entry, 8) })
            .collect())
    }

    /// Reads a NULL-terminated array of strings, as `execve` gets them. `budget` is how many bytes are left
    /// for all of them.
    fn fetch_strings(&self, addr: u64, budget: &mut u64) -> Result<Vec<CString>, Errno> {
        let mut strings = Vec::new();
        if addr == 0 {
            return Ok(strings);
        }
        let mut at = addr;
        loop {
            let pointer = self.fetch_u64(at)?;
            if pointer == 0 {
                return Ok(strings);
            }
            let bytes = self.fetch_string(pointer, *budget, Errno::TOOBIG)?;
            *budget = budget.checked_sub(bytes.len() as u64 + 9).ok_or(Errno::TOOBIG)?;
            strings.push(CString::new(bytes).map_err(|_| Errno::INVAL)?);
            at = at.checked_add(8).ok_or(Errno::FAULT)?;
        }
    }
}

impl GuestMemory for AddressSpace {
    fn fetch_into(&self, addr: u64, buf: &mut [u8]) -> Result<(), Errno> {
        if buf.is_empty() {
            return Ok(());
        }
        self.read(addr, buf).map_err(|error| error.errno())
    }

    fn store(&self, addr: u64, bytes: &[u8]) -> Result<(), Errno> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.write(addr, bytes).map_err(|error| error.errno())
    }
}
