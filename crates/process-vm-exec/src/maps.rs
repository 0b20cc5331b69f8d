//! What a process has mapped: /proc/PID/maps (proc(5)).

use std::ops::Range;

use rustix::io::Errno;
use rustix::process::Pid;

use crate::error::{Error, Result};
use crate::procfs;

/// One line of the file.
#[derive(Clone, Debug)]
pub(crate) struct Map {
    pub(crate) range: Range<u64>,
    /// As shown: `r-xp`.
    permissions: [u8; 4],
    /// The file that is mapped, if one is.
    pub(crate) file: Option<FileId>,
    pub(crate) name: String,
}

/// Which file it is: its device's major and minor number, and its inode's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    pub(crate) device: (u32, u32),
    pub(crate) inode: u64,
}

impl Map {
    /// Private memory that can be written.
    pub(crate) fn is_private_data(&self) -> bool {
        let [_, write, _, private] = self.permissions;
        write == b'w' && private == b'p'
    }

    pub(crate) fn is_executable(&self) -> bool {
        self.permissions[2] == b'x'
    }

    /// Is anything at all allowed there?
    pub(crate) fn is_accessible(&self) -> bool {
        self.permissions[..3] != *b"---"
    }

    /// Private memory that can be executed and not written: the text of a program.
    pub(crate) fn is_private_text(&self) -> bool {
        let [_, write, execute, private] = self.permissions;
        write == b'-' && execute == b'x' && private == b'p'
    }
}

/// What `pid` has mapped, by address.
pub(crate) fn of(pid: Pid) -> Result<Vec<Map>> {
    of_task(pid.as_raw_pid())
}

/// The same, by any thread.
pub(crate) fn of_task(tid: i32) -> Result<Vec<Map>> {
    let text = procfs::read(format!("/proc/{tid}/maps")).map_err(|error| Error::Host {
        call: "reading /proc/PID/maps",
        errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
    })?;
    Ok(text.lines().filter_map(parse).collect())
}

pub(crate) fn parse(line: &str) -> Option<Map> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let number = |digits| u64::from_str_radix(digits, 16).ok();
    let mut words = rest.splitn(5, ' ');
    let permissions = words.next()?.as_bytes().try_into().ok()?;
    let (major, minor) = words.nth(1)?.split_once(':')?;
    let device = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let inode = words.next()?.parse().ok()?;
    Some(Map {
        range: number(start)?..number(end)?,
        permissions,
        file: (inode != 0).then_some(FileId { device, inode }),
        name: words.next().unwrap_or("").trim_start().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_gives_range_permissions_file_and_name() {
        let map =
            parse("7ffe5d1c2000-7ffe5d1c4000 r-xp 00000000 00:00 0                          [vdso]").unwrap();
        assert_eq!(map.range, 0x7ffe_5d1c_2000..0x7ffe_5d1c_4000);
        assert_eq!(map.name, "[vdso]");
        assert!(map.is_private_text());
        assert_eq!(map.file, None);
        let anonymous = parse("10000-20000 rw-s 00000000 00:01 12 ").unwrap();
        assert_eq!(anonymous.name, "");
        assert!(!anonymous.is_private_text());
        assert_eq!(anonymous.file, Some(FileId { device: (0, 1), inode: 12 }));
    }

    #[test]
    fn the_own_maps_have_a_stack() {
        let maps = of(rustix::process::getpid()).unwrap();
        assert!(maps.iter().any(|map| map.name == "[stack]"));
    }
}
