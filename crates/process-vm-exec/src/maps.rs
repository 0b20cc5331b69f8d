//! What a process has mapped: /proc/PID/maps (proc(5)).

use std::ops::Range;

use rustix::io::Errno;
use rustix::process::Pid;

use crate::error::{Error, Result};
use crate::procfs;

/// One line of the file.
#[derive(Debug)]
pub(crate) struct Map {
    pub(crate) range: Range<u64>,
    /// As shown: `r-xp`.
    permissions: [u8; 4],
    pub(crate) name: String,
}

impl Map {
    /// Private memory that can be written.
    pub(crate) fn is_private_data(&self) -> bool {
        let [_, write, _, private] = self.permissions;
        write == b'w' && private == b'p'
    }

    /// Private memory that can be executed and not written: the text of a program.
    pub(crate) fn is_private_text(&self) -> bool {
        let [_, write, execute, private] = self.permissions;
        write == b'-' && execute == b'x' && private == b'p'
    }
}

/// What `pid` has mapped, by address.
pub(crate) fn of(pid: Pid) -> Result<Vec<Map>> {
    of_task(pid.as_raw_nonzero().get())
}

/// The same, by any thread.
pub(crate) fn of_task(tid: i32) -> Result<Vec<Map>> {
    let text = procfs::read(format!("/proc/{tid}/maps")).map_err(|error| Error::Host {
        call: "reading /proc/PID/maps",
        errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
    })?;
    Ok(text.lines().filter_map(parse).collect())
}

fn parse(line: &str) -> Option<Map> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let number = |digits| u64::from_str_radix(digits, 16).ok();
    Some(Map {
        range: number(start)?..number(end)?,
        permissions: rest.get(..4)?.as_bytes().try_into().ok()?,
        name: rest.splitn(5, ' ').nth(4).unwrap_or("").trim_start().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_gives_range_permissions_and_name() {
        let map =
            parse("7ffe5d1c2000-7ffe5d1c4000 r-xp 00000000 00:00 0                          [vdso]").unwrap();
        assert_eq!(map.range, 0x7ffe_5d1c_2000..0x7ffe_5d1c_4000);
        assert_eq!(map.name, "[vdso]");
        assert!(map.is_private_text());
        let anonymous = parse("10000-20000 rw-s 00000000 00:01 12 ").unwrap();
        assert_eq!(anonymous.name, "");
        assert!(!anonymous.is_private_text());
    }

    #[test]
    fn the_own_maps_have_a_stack() {
        let maps = of(rustix::process::getpid()).unwrap();
        assert!(maps.iter().any(|map| map.name == "[stack]"));
    }
}
