//! Files of proc(5): as text, and opened.

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::{fmt, fs, io};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// The file's text. The names of programs and files in it may be any bytes: what is no UTF-8 is replaced.
pub(crate) fn read(path: impl AsRef<Path>) -> io::Result<String> {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Opens one, whose path is short: it has a number or two in it. Allocates nothing.
pub(crate) fn open(path: fmt::Arguments<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut bytes = [0u8; 64];
    let last = bytes.len() - 1;
    (&mut bytes[..last]).write_fmt(path).map_err(|_| Errno::NAMETOOLONG)?;
    let path = CStr::from_bytes_until_nul(&bytes).map_err(|_| Errno::NAMETOOLONG)?;
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
}

/// Reads the file's start, if its path is as short, and says how long that is. Allocates nothing.
pub(crate) fn read_start(path: fmt::Arguments<'_>, text: &mut [u8]) -> Result<usize, Errno> {
    rustix::io::read(open(path, OFlags::RDONLY)?, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_opened_is_the_whole_path_or_nothing() {
        assert!(open(format_args!("/proc/{}/comm", std::process::id()), OFlags::RDONLY).is_ok());
        assert!(matches!(open(format_args!("/proc/{}/none", 1), OFlags::RDONLY), Err(Errno::NOENT)));
        let long = "/".repeat(64);
        assert!(matches!(open(format_args!("{long}"), OFlags::RDONLY), Err(Errno::NAMETOOLONG)));
    }
}
