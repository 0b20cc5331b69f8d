//! Files that address spaces have once and for all.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::sync::lock;

/// A file that each address space is given once, so that it can be mapped there again and again without being passed: the
/// memory of all guests of a kernel, say.
///
/// Spaces that are created from now on have it from the start, others get it when it is first used there. Guests have no
/// descriptor of it, as of no file. It stays open until this process ends.
///
/// ```
/// use process_vm_exec::{AddressSpace, Mapping, Protection, RegisteredFile};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let memory = tempfile::tempfile()?;
/// memory.set_len(8192)?;
/// let memory = RegisteredFile::new(&memory)?;
/// let space = AddressSpace::create()?;
/// for (at, offset) in [(0x10_0000, 0), (0x20_0000, 4096)] {
///     space.map(Mapping::registered(memory, offset, 4096, Protection::READ | Protection::WRITE).shared().at(at))?;
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct RegisteredFile {
    file: &'static OwnedFd,
    /// Its place in the order of registration.
    index: usize,
}

/// All of them, in order.
static FILES: Mutex<Vec<RegisteredFile>> = Mutex::new(Vec::new());

/// The first number in a space's process that the library itself does not use.
pub(crate) const FIRST_FILE: u64 = 3;

/// As many files as can be registered. Each is a descriptor in each space's process.
const MOST_FILES: usize = 128;

impl RegisteredFile {
    /// Registers a file, of which it keeps a descriptor of its own.
    ///
    /// # Errors
    /// [`Error::TooMany`] after 128 files; [`Error::Host`] if no descriptor is free.
    pub fn new(file: impl AsFd) -> Result<Self> {
        let file = file.as_fd().try_clone_to_owned().map_err(|error| Error::Host {
            call: "duplicating a file to register",
            errno: Errno::from_io_error(&error).unwrap_or(Errno::MFILE),
        })?;
        let mut files = lock(&FILES);
        if files.len() == MOST_FILES {
            return Err(Error::TooMany("registered files"));
        }
        let registered = Self { file: Box::leak(Box::new(file)), index: files.len() };
        files.push(registered);
        Ok(registered)
    }

    /// Its descriptor, which is never closed.
    pub(crate) fn borrow_for_ever(self) -> BorrowedFd<'static> {
        self.file.as_fd()
    }

    /// How many files, in order, a space has that has this one.
    pub(crate) fn count(self) -> usize {
        self.index + 1
    }

    /// The number that it has in the process of each space which has it: the first are the library's own.
    pub(crate) const fn descriptor(self) -> u64 {
        FIRST_FILE + self.index as u64
    }
}

impl AsFd for RegisteredFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// How many there are.
pub(crate) fn count() -> usize {
    lock(&FILES).len()
}

/// Those in this range of the order.
pub(crate) fn files(range: Range<usize>) -> Vec<BorrowedFd<'static>> {
    lock(&FILES)[range].iter().map(|registered| registered.file.as_fd()).collect()
}
