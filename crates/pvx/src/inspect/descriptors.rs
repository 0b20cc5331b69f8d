//! Open descriptors: /proc/PID/fd and /proc/PID/fdinfo.

use std::{fs, path::Path};

use appkernel::calls::open_flags;
use serde::Serialize;

/// One descriptor.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Descriptor {
    pub(crate) fd: u32,
    /// A path, or what the kernel says instead: `pipe:[1234]`.
    pub(crate) target: String,
    /// As open(2) has them: `O_RDWR|O_CLOEXEC`.
    pub(crate) flags: Option<String>,
    /// In bytes from the start.
    pub(crate) position: Option<u64>,
}

/// All descriptors of `pid`, by number. One that is closed meanwhile is left out.
pub(crate) fn descriptors(pid: i32) -> Result<Vec<Descriptor>, String> {
    let directory = Path::new("/proc").join(pid.to_string());
    let mut descriptors = Vec::new();
    let entries = fs::read_dir(directory.join("fd")).map_err(|error| format!("{error}: /proc/{pid}/fd"))?;
    for entry in entries.flatten() {
        let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let info = fs::read_to_string(directory.join("fdinfo").join(entry.file_name())).unwrap_or_default();
        let (flags, position) = parse(&info);
        descriptors.push(Descriptor { fd, target: target.display().to_string(), flags, position });
    }
    descriptors.sort_by_key(|descriptor| descriptor.fd);
    Ok(descriptors)
}

/// Flags, in octal there, and position.
fn parse(info: &str) -> (Option<String>, Option<u64>) {
    let field = |key| {
        let value = info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        value.map(str::trim)
    };
    let flags = field("flags").and_then(|flags| u32::from_str_radix(flags, 8).ok());
    (flags.map(open_flags), field("pos").and_then(|position| position.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_octal_and_named() {
        let (flags, position) = parse("pos:\t1513\nflags:\t02100002\nmnt_id:\t27\n");
        assert_eq!(flags.as_deref(), Some("O_RDWR|O_LARGEFILE|O_CLOEXEC"));
        assert_eq!(position, Some(1513));
        assert_eq!(parse(""), (None, None));
    }

    #[test]
    fn an_open_file_of_this_process_is_found() {
        let file = fs::File::open("/proc/self/status").unwrap();
        let found = descriptors(std::process::id().try_into().unwrap()).unwrap();
        assert!(found.iter().any(|descriptor| descriptor.target.ends_with("/status")), "{found:?}");
        drop(file);
    }
}
