//! The guest's view of `/proc/self` and `/dev/fd` (proc(5)).

use std::ffi::CString;

use super::host_path;
use crate::task::Task;
use std::os::fd::AsFd;

/// What a path in the guest's `/proc/self` stands for.
#[derive(Debug)]
pub(crate) enum Proc {
    /// Another path on the host.
    Path(CString),
    /// A link to this path.
    Link(Vec<u8>),
    /// A file of this name with these contents.
    Contents(&'static [u8], Vec<u8>),
}

/// What `path`, which is absolute, is in the guest's `/proc/self`; `None` if it leads elsewhere.
pub(super) fn translate(task: &Task, path: &[u8]) -> Option<Proc> {
    if let Some(name) = path.strip_prefix(b"/dev/") {
        return device(task, name);
    }
    let path = path.strip_prefix(b"/proc/")?;
    let mut pid = [0; 12];
    let pid = decimal(task.identity.pid, &mut pid);
    let rest = below(path, b"self").or_else(|| below(path, b"thread-self")).or_else(|| below(path, pid))?;
    let rest = rest.strip_prefix(b"task/").and_then(|rest| below(rest, pid)).unwrap_or(rest);
    entry(task, rest)
}

/// `/proc/self/NAME`
fn entry(task: &Task, name: &[u8]) -> Option<Proc> {
    let identity = &task.identity;
    match name {
        b"" => None,
        b"exe" => Some(Proc::Link(identity.exe.clone())),
        b"cmdline" => Some(Proc::Contents(b"cmdline", identity.cmdline.clone())),
        b"environ" => Some(Proc::Contents(b"environ", identity.environ.clone())),
        b"auxv" => Some(Proc::Contents(b"auxv", identity.auxv.clone())),
        b"comm" => Some(Proc::Contents(b"comm", [&identity.comm[..], b"\n"].concat())),
        b"cwd" => Some(Proc::Link(host_path(task.directory.as_fd()).ok()?)),
        _ if name.starts_with(b"fd/") => descriptor(task, &name[3..]),
        _ if name.starts_with(b"root/") => path([b"/", &name[5..]].concat()),
        _ => Some(Proc::Path(of(task.space.pid(), name))),
    }
}

/// `/dev/fd/N`, `/dev/stdin`, `/dev/stdout` and `/dev/stderr`
fn device(task: &Task, name: &[u8]) -> Option<Proc> {
    match name {
        b"stdin" => descriptor(task, b"0"),
        b"stdout" => descriptor(task, b"1"),
        b"stderr" => descriptor(task, b"2"),
        _ => descriptor(task, name.strip_prefix(b"fd/")?),
    }
}

/// A descriptor of the guest is a descriptor of this process under another number.
fn descriptor(task: &Task, name: &[u8]) -> Option<Proc> {
    let end = name.iter().position(|&byte| byte == b'/').unwrap_or(name.len());
    let number: i32 = std::str::from_utf8(&name[..end]).ok()?.parse().ok()?;
    let Some(host) = task.files.host_number(number) else {
        return path(b"/proc/self/fd/-1".to_vec());
    };
    path([format!("/proc/self/fd/{host}").as_bytes(), &name[end..]].concat())
}

/// What the host has for the process behind the guest's space.
pub(super) fn of(pid: i32, name: &[u8]) -> CString {
    let path = [format!("/proc/{pid}/").as_bytes(), name].concat();
    CString::new(path).unwrap_or_default()
}

fn path(bytes: Vec<u8>) -> Option<Proc> {
    CString::new(bytes).ok().map(Proc::Path)
}

/// What follows the component `first` and its slash.
fn below<'path>(path: &'path [u8], first: &[u8]) -> Option<&'path [u8]> {
    path.strip_prefix(first)?.strip_prefix(b"/")
}

/// `number` in decimal, without an allocation: every path in `/proc` comes by here.
fn decimal(number: i32, buffer: &mut [u8; 12]) -> &[u8] {
    let mut rest = number.unsigned_abs();
    let mut start = buffer.len();
    loop {
        start -= 1;
        buffer[start] = b'0' + u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
        if rest == 0 {
            return &buffer[start..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_whole() {
        assert_eq!(below(b"self/exe", b"self"), Some(&b"exe"[..]));
        assert_eq!(below(b"selfish/exe", b"self"), None);
        assert_eq!(decimal(1230, &mut [0; 12]), b"1230");
    }
}
