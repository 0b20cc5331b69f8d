//! The guest's view of `/proc` (proc(5)).
//!
//! What a path leads to there is known by the file that it led to, by its place in the host's `/proc`. Files of the
//! guest's own process are those of the process behind its space, or made here; none can be written to, as the host
//! would not keep to what the guest may do. Files of the supervisor, of its threads and of its descendants are
//! nobody's business. What is left, other processes and the machine, is for the host to allow.

use std::{
    ffi::CString,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use process_vm_exec::Errno;
use rustix::{
    fs::{CWD, MemfdFlags, Mode, OFlags, SeekFrom},
    io::fcntl_dupfd_cloexec,
};

use super::place::{Last, Object, host_path, is_in_proc, look, path_of};
use crate::task::Task;

/// Files and directories of the guest's process that the process behind its space stands in for. They tell nothing
/// that the guest could not find out. What is not here is refused: `map_files` leads to memory that the library
/// shares with the space, `syscall` shows registers of its tasks.
const READABLE: &[&str] = &[
    "",
    "arch_status",
    "attr",
    "cgroup",
    "coredump_filter",
    "cpuset",
    "exe",
    "cwd",
    "fd",
    "fdinfo",
    "io",
    "limits",
    "loginuid",
    "maps",
    "mem",
    "mountinfo",
    "mounts",
    "mountstats",
    "net",
    "ns",
    "numa_maps",
    "oom_adj",
    "oom_score",
    "oom_score_adj",
    "pagemap",
    "personality",
    "projid_map",
    "gid_map",
    "root",
    "sched",
    "schedstat",
    "sessionid",
    "setgroups",
    "smaps",
    "smaps_rollup",
    "stat",
    "statm",
    "status",
    "task",
    "timerslack_ns",
    "uid_map",
    "wchan",
];
/// Directories all of whose files are as readable.
const READABLE_BELOW: &[&str] = &["attr/", "net/", "ns/"];

/// A file of the guest's own process, by its path below `/proc/PID`, or below `/proc/PID/task/PID`.
#[derive(Debug)]
pub(super) struct Own(Vec<u8>);

/// Where a link of the guest's own process leads.
#[derive(Debug)]
pub(super) enum Jump {
    Path(Vec<u8>),
    File(OwnedFd),
}

/// Whose a file in `/proc` is.
#[derive(Debug)]
enum Owner {
    Guest(Own),
    Stranger,
    Machine,
}

/// Whose `file` is, which is in some `/proc`.
///
/// # Errors
/// `EACCES` if it is none of the guest's business.
fn owner(task: &Task, file: BorrowedFd<'_>) -> Result<Owner, Errno> {
    let path = host_path(file)?;
    // Elsewhere it is perhaps a directory of a process that somebody has mounted, and does not say whose.
    let path = path.strip_prefix(b"/proc").ok_or(Errno::ACCESS)?;
    let (first, rest) = split(path.strip_prefix(b"/").unwrap_or(path));
    match number(first) {
        None => Ok(Owner::Machine),
        // Another pid namespace's knows this process by another number.
        Some(_) if !is_our_proc(task, file) => Err(Errno::ACCESS),
        Some(pid) if pid == task.identity.pid || pid == task.space_pid() => {
            let rest = match split(rest) {
                (b"task", thread) if !thread.is_empty() => split(thread).1,
                _ => rest,
            };
            Ok(Owner::Guest(Own(rest.to_vec())))
        }
        Some(pid) if is_ours(task, pid)? => Err(Errno::ACCESS),
        Some(_) => Ok(Owner::Stranger),
    }
}

/// Is `file` in the `/proc` of this process's pid namespace?
fn is_our_proc(task: &Task, file: BorrowedFd<'_>) -> bool {
    let device = rustix::fs::fstat(file).map(|status| status.st_dev);
    let ours = rustix::fs::stat(c"/proc").map(|status| status.st_dev);
    let pid = rustix::fs::readlink(c"/proc/self", Vec::new());
    device == ours && pid.is_ok_and(|pid| number(pid.as_bytes()) == Some(task.identity.pid))
}

/// Is the process or thread `pid` this process's, or a descendant's?
///
/// # Errors
/// `ENOENT` if there is none.
pub(crate) fn is_ours(task: &Task, mut pid: i32) -> Result<bool, Errno> {
    let own = task.identity.pid;
    while pid > 0 {
        let process = procfs::process::Process::new(pid).map_err(|_| Errno::NOENT)?;
        let status = process.status().map_err(|_| Errno::NOENT)?;
        if status.tgid == own || status.ppid == own {
            return Ok(true);
        }
        pid = status.ppid;
    }
    Ok(false)
}

/// Is `file`, a link in `/proc`, one of a process's, which lead where no text says?
pub(super) fn is_magic(task: &Task, file: BorrowedFd<'_>) -> Result<bool, Errno> {
    match owner(task, file)? {
        Owner::Guest(own) => own.check().map(|()| true),
        Owner::Stranger => Ok(true),
        Owner::Machine => Ok(false),
    }
}

/// What `name` in the directory `dir` is, if that is the guest's own process's.
pub(super) fn own_entry(task: &Task, dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Own>, Errno> {
    if !is_in_proc(dir)? {
        return Ok(None);
    }
    let Owner::Guest(Own(directory)) = owner(task, dir)? else { return Ok(None) };
    Ok(Some(Own(match (&directory[..], name) {
        // The thread's own directory shows the same.
        (b"task", _) => Vec::new(),
        (b"", name) => name.to_vec(),
        (directory, name) => [directory, b"/", name].concat(),
    })))
}

/// Where `own` leads if it is a link that leads elsewhere for the guest than for the process behind its space.
pub(super) fn jump(task: &Task, own: &Own) -> Result<Option<Jump>, Errno> {
    match &own.0[..] {
        b"exe" => Ok(Some(Jump::Path(task.identity.exe.clone()))),
        b"cwd" => Ok(Some(Jump::File(fcntl_dupfd_cloexec(&task.directory, 0)?))),
        b"root" => Ok(Some(Jump::Path(b"/".to_vec()))),
        name => match descriptor(task, name, b"fd/") {
            Some(file) => Ok(Some(Jump::File(look(CWD, &path_of(file?), Last::Follow)?))),
            None => Ok(None),
        },
    }
}

/// What the guest sees of `file`, which is in some `/proc`.
pub(super) fn seen(task: &Task, file: OwnedFd) -> Result<Object, Errno> {
    match owner(task, file.as_fd())? {
        Owner::Guest(own) => object(task, &own),
        Owner::Stranger | Owner::Machine => Ok(Object::host(file)),
    }
}

/// What the guest gets for `file`, which was opened in some `/proc`.
pub(super) fn open_seen(task: &Task, file: OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    match owner(task, file.as_fd())? {
        Owner::Guest(own) => open(task, &own, flags),
        Owner::Stranger | Owner::Machine => Ok(file),
    }
}

/// The file `own`, without opening it.
pub(super) fn object(task: &Task, own: &Own) -> Result<Object, Errno> {
    let name = &own.0[..];
    if let Some(file) = descriptor(task, name, b"fd/") {
        let link = look(CWD, &path_of(file?), Last::Link)?;
        return Ok(Object { file: link, link: Some(shown_path(task, file?)?) });
    }
    if let Some(file) = descriptor(task, name, b"fdinfo/") {
        return Ok(Object::host(file_with(name, &fdinfo(file?)?)?));
    }
    let file = look(CWD, &own.of_space(task)?, Last::Link)?;
    if contents(task, own)?.is_none() {
        own.check()?;
    }
    let link = match name {
        b"exe" => Some(task.identity.exe.clone()),
        b"cwd" => Some(shown_path(task, task.directory.as_fd())?),
        b"root" => Some(b"/".to_vec()),
        _ => None,
    };
    Ok(Object { file, link })
}

/// Opens the file `own`, to be read.
pub(super) fn open(task: &Task, own: &Own, flags: OFlags) -> Result<OwnedFd, Errno> {
    if flags.contains(OFlags::PATH) {
        return object(task, own).map(|object| object.file);
    }
    if descriptor(task, &own.0, b"fd/").is_some() {
        return Err(Errno::LOOP);
    }
    let contents = contents(task, own)?;
    if contents.is_none() {
        look(CWD, &own.of_space(task)?, Last::Link)?;
        own.check()?;
    }
    if flags.intersects(OFlags::RWMODE | OFlags::TRUNC) {
        return Err(Errno::ACCESS);
    }
    match contents {
        Some(_) if flags.contains(OFlags::DIRECTORY) => Err(Errno::NOTDIR),
        Some(contents) => file_with(&own.0, &contents),
        None => {
            let flags = flags & (OFlags::DIRECTORY | OFlags::NONBLOCK) | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::open(own.of_space(task)?, flags, Mode::empty())
        }
    }
}

impl Own {
    /// May the guest read this of the process behind its space?
    fn check(&self) -> Result<(), Errno> {
        let name = String::from_utf8_lossy(&self.0);
        let is_below = READABLE_BELOW.iter().any(|directory| name.starts_with(directory));
        if is_below || READABLE.contains(&&*name) { Ok(()) } else { Err(Errno::ACCESS) }
    }

    /// The host's path of the file that stands in for this one.
    fn of_space(&self, task: &Task) -> Result<CString, Errno> {
        let directory = format!("/proc/{}/", task.space_pid());
        CString::new([directory.as_bytes(), &self.0].concat()).map_err(|_| Errno::INVAL)
    }
}

/// What the guest's process says about itself.
fn contents(task: &Task, own: &Own) -> Result<Option<Vec<u8>>, Errno> {
    let identity = &task.identity;
    Ok(match &own.0[..] {
        b"cmdline" => Some(identity.cmdline.clone()),
        b"environ" => Some(identity.environ.clone()),
        b"auxv" => Some(identity.auxv.clone()),
        b"comm" => Some([&identity.comm[..], b"\n"].concat()),
        name => descriptor(task, name, b"fdinfo/").transpose()?.map(fdinfo).transpose()?,
    })
}

/// What the host knows about an open file: position, flags and more. It is copied, as the number may become another
/// file's.
fn fdinfo(file: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    std::fs::read(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).map_err(|_| Errno::NOENT)
}

/// A file that has these contents.
fn file_with(name: &[u8], contents: &[u8]) -> Result<OwnedFd, Errno> {
    let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?;
    let mut rest = contents;
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest)?;
        rest = &rest[written..];
    }
    rustix::fs::seek(&file, SeekFrom::Start(0))?;
    rustix::fs::fchmod(&file, Mode::RUSR | Mode::RGRP | Mode::ROTH)?;
    Ok(file)
}

/// The guest's descriptor that `name` is, if that is in `directory`.
fn descriptor<'a>(task: &'a Task, name: &[u8], directory: &[u8]) -> Option<Result<BorrowedFd<'a>, Errno>> {
    let name = name.strip_prefix(directory)?;
    let is_number = name.iter().all(u8::is_ascii_digit) && (name == b"0" || !name.starts_with(b"0"));
    let file = number(name).filter(|_| is_number).and_then(|number| task.files.get(number).ok());
    Some(file.ok_or(Errno::NOENT))
}

/// The path of an open file, as the guest is told it.
pub(crate) fn shown_path(task: &Task, file: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let path = host_path(file)?;
    let space = format!("/proc/{}", task.space_pid());
    match path.strip_prefix(space.as_bytes()) {
        Some(rest) if rest.is_empty() || rest.starts_with(b"/") => {
            Ok([format!("/proc/{}", task.identity.pid).as_bytes(), rest].concat())
        }
        _ => Ok(path),
    }
}

/// The number of a process that a directory of `/proc` is for. What follows it says that the process is gone.
fn number(name: &[u8]) -> Option<i32> {
    let digits = name.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let digits = std::str::from_utf8(&name[..digits]).ok().filter(|digits| !digits.is_empty())?;
    Some(digits.parse().unwrap_or(i32::MAX))
}

/// The first component of a path, and what follows.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().position(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (path, b""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_too_large_is_nobodys_and_still_a_number() {
        assert_eq!(number(b"1230"), Some(1230));
        assert_eq!(number(b"1230 (deleted)"), Some(1230));
        assert_eq!(number(b"99999999999"), Some(i32::MAX));
        assert_eq!(number(b"meminfo"), None);
    }
}
