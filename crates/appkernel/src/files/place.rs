//! Where a path leads: the guest's current directory and descriptors, and `/proc/self`, which is the guest's
//! and not the supervisor's.

use std::{
    ffi::{CStr, CString},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use process_vm_exec::Errno;

use super::proc::{self, Proc};
use crate::{abi::int, guest::GuestMemory, task::Task};

/// The descriptor that stands for the current directory.
pub(crate) const AT_FDCWD: i32 = libc::AT_FDCWD;

/// A path and the directory it starts from, both the host's.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    pub(crate) dir: BorrowedFd<'a>,
    pub(crate) path: CString,
}

impl Place<'_> {
    /// The place as a single path, for calls that take no directory.
    pub(crate) fn absolute(&self) -> Result<CString, Errno> {
        if self.path.to_bytes().starts_with(b"/") {
            return Ok(self.path.clone());
        }
        let mut path = format!("/proc/self/fd/{}", self.dir.as_raw_fd()).into_bytes();
        if !self.path.is_empty() {
            path.push(b'/');
            path.extend(self.path.to_bytes());
        }
        CString::new(path).map_err(|_| Errno::INVAL)
    }
}

/// Whether a link at the end of a path is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Last {
    Follow,
    Link,
}

impl Task {
    /// Where the path at `addr` leads, from the directory `dir`; links at its end are followed.
    pub(crate) fn place(&self, dir: u64, addr: u64) -> Result<Place<'_>, Errno> {
        self.place_of(dir, addr, Last::Follow)
    }

    /// Where the path at `addr` leads, from the directory `dir`.
    pub(crate) fn place_of(&self, dir: u64, addr: u64, last: Last) -> Result<Place<'_>, Errno> {
        let path = self.space.fetch_path(addr)?;
        self.place_at(dir, path, last)
    }

    pub(crate) fn place_at(&self, dir: u64, path: CString, last: Last) -> Result<Place<'_>, Errno> {
        if !path.to_bytes().starts_with(b"/") {
            return Ok(Place { dir: self.base(dir)?, path });
        }
        let path = match self.proc(&path) {
            None => path,
            Some(Proc::Path(path)) => path,
            Some(Proc::Link(target)) if last == Last::Follow => {
                CString::new(target).map_err(|_| Errno::INVAL)?
            }
            Some(Proc::Link(_)) => proc::of(self.space.pid(), b"exe"),
            Some(Proc::Contents(name, _)) => proc::of(self.space.pid(), name),
        };
        Ok(Place { dir: self.directory.as_fd(), path })
    }

    /// What the guest's `/proc/self` has at `path`, if the path leads there.
    pub(crate) fn proc(&self, path: &CStr) -> Option<Proc> {
        proc::translate(self, path.to_bytes())
    }

    /// The directory that `dir` stands for.
    fn base(&self, dir: u64) -> Result<BorrowedFd<'_>, Errno> {
        match int(dir) {
            AT_FDCWD => Ok(self.directory.as_fd()),
            fd => self.files.get(fd),
        }
    }
}

/// The path of an open file on the host.
pub(crate) fn host_path(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::readlink(link, Vec::new()).map(CString::into_bytes)
}
