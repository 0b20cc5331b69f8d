//! Where a path leads.
//!
//! The host walks it, but for the links of `/proc` that jump into a process's descriptors, directory or executable
//! ("magic links", openat2(2)): those would be this process's. Paths with such links are walked here, component by
//! component. What a walk ends at is looked at before the guest gets it ([`super::proc`]), whatever its path was.

use std::{
    ffi::{CStr, CString},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use process_vm_exec::Errno;
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags},
    io::fcntl_dupfd_cloexec,
};

use super::proc::{self, Jump};
use crate::{abi::int, guest::GuestMemory, task::Task};

/// The descriptor that stands for the current directory.
pub(crate) const AT_FDCWD: i32 = libc::AT_FDCWD;

/// As many links as Linux follows in one path (`MAXSYMLINKS`, linux/namei.h).
const LINKS_MAX: usize = 40;
/// To look at a file without opening it.
const LOOK: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// Whether a link at the end of a path is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Last {
    Follow,
    Link,
}

impl Last {
    /// From `AT_SYMLINK_NOFOLLOW` among the flags of a call.
    pub(crate) const fn from_flags(flags: i32) -> Self {
        if flags & libc::AT_SYMLINK_NOFOLLOW != 0 { Self::Link } else { Self::Follow }
    }

    const fn open_flags(self) -> OFlags {
        match self {
            Self::Follow => LOOK,
            Self::Link => LOOK.union(OFlags::NOFOLLOW),
        }
    }
}

/// A file that exists, as the guest sees it.
#[derive(Debug)]
pub(crate) struct Object {
    /// The host's file (`O_PATH`).
    pub(crate) file: OwnedFd,
    /// Where it leads, if it is a link that leads elsewhere for the guest than for the host.
    pub(crate) link: Option<Vec<u8>>,
}

impl Object {
    pub(crate) const fn host(file: OwnedFd) -> Self {
        Self { file, link: None }
    }

    /// A path of the very file, for calls that take no descriptor. Following it follows no link of the guest's.
    pub(crate) fn path(&self) -> CString {
        path_of(self.file.as_fd())
    }
}

/// A directory and a name in it, for calls that make or remove names. They follow no link there.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) dir: OwnedFd,
    pub(crate) name: CString,
}

/// Where a walk ended.
enum Walked {
    /// At a name, which is no link that should be followed and perhaps nothing at all.
    Name(Entry),
    /// At a file that a link jumped to.
    File(OwnedFd),
}

impl Task {
    /// The file at the path at `addr`, from the directory `dir`.
    pub(crate) fn object(&self, dir: u64, addr: u64, last: Last) -> Result<Object, Errno> {
        self.object_at(dir, &self.space.fetch_path(addr)?, last)
    }

    /// As [`object`](Self::object), for calls with flags: `AT_SYMLINK_NOFOLLOW`, and `AT_EMPTY_PATH`, with which an
    /// empty path (or none) stands for `dir` itself.
    pub(crate) fn object_with(&self, dir: u64, addr: u64, flags: i32) -> Result<Object, Errno> {
        let empty = flags & libc::AT_EMPTY_PATH != 0;
        let path = if empty && addr == 0 { CString::default() } else { self.space.fetch_path(addr)? };
        if empty && path.is_empty() {
            return self.seen(fcntl_dupfd_cloexec(self.base(dir)?, 0)?);
        }
        self.object_at(dir, &path, Last::from_flags(flags))
    }

    pub(crate) fn object_at(&self, dir: u64, path: &CStr, last: Last) -> Result<Object, Errno> {
        match self.open_by_host(dir, path, last.open_flags(), Mode::empty(), ResolveFlags::empty()) {
            Ok(file) => self.seen(file),
            Err(errno) if may_be_ours(errno) => match self.walk(dir, path, last)? {
                Walked::File(file) => self.seen(file),
                Walked::Name(entry) => match proc::own_entry(self, entry.dir.as_fd(), entry.name.to_bytes())?
                {
                    Some(own) => proc::object(self, &own),
                    None => self.seen(look(&entry.dir, &entry.name, Last::Link)?),
                },
            },
            Err(errno) => Err(errno),
        }
    }

    /// The directory and the name that the path at `addr` ends with, from the directory `dir`.
    pub(crate) fn entry(&self, dir: u64, addr: u64) -> Result<Entry, Errno> {
        self.entry_at(dir, &self.space.fetch_path(addr)?)
    }

    pub(crate) fn entry_at(&self, dir: u64, path: &CStr) -> Result<Entry, Errno> {
        let bytes = path.to_bytes();
        // Slashes at the end stay with the name: they say that it is a directory's.
        let end = bytes.iter().rposition(|&byte| byte != b'/').map_or(0, |last| last + 1);
        let start = bytes[..end].iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        let directory = match &bytes[..start] {
            b"" if bytes.starts_with(b"/") => c"/".to_owned(),
            b"" => c".".to_owned(),
            directory => c_string(directory)?,
        };
        let name = if end == 0 { path.to_owned() } else { c_string(&bytes[start..])? };
        Ok(Entry { dir: self.object_at(dir, &directory, Last::Follow)?.file, name })
    }

    /// Opens the file at `path`, perhaps a new one.
    pub(crate) fn open_at(
        &self,
        dir: u64,
        path: &CStr,
        flags: OFlags,
        mode: Mode,
        resolve: ResolveFlags,
    ) -> Result<OwnedFd, Errno> {
        match self.open_by_host(dir, path, flags, mode, resolve) {
            Ok(file) => self.opened(file, flags),
            Err(errno) if may_be_ours(errno) && resolve.is_empty() => {
                self.open_by_walk(dir, path, flags, mode)
            }
            result => result,
        }
    }

    fn open_by_walk(&self, dir: u64, path: &CStr, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let exclusive = flags.contains(OFlags::CREATE | OFlags::EXCL);
        let last = if exclusive || flags.contains(OFlags::NOFOLLOW) { Last::Link } else { Last::Follow };
        let file = match self.walk(dir, path, last)? {
            Walked::File(file) => reopen(file.as_fd(), flags)?,
            Walked::Name(Entry { dir, name }) => {
                if let Some(own) = proc::own_entry(self, dir.as_fd(), name.to_bytes())? {
                    return proc::open(self, &own, flags);
                }
                rustix::fs::openat(dir, &name, flags | OFlags::NOFOLLOW, mode)?
            }
        };
        self.opened(file, flags)
    }

    /// Opens what `object` is.
    pub(crate) fn open_object(&self, object: &Object, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.opened(reopen(object.file.as_fd(), flags)?, flags)
    }

    /// What the guest gets where `file` has been opened for it.
    fn opened(&self, file: OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        if is_in_proc(file.as_fd())? { proc::open_seen(self, file, flags) } else { Ok(file) }
    }

    /// What the guest sees where the host's walk has ended.
    fn seen(&self, file: OwnedFd) -> Result<Object, Errno> {
        if is_in_proc(file.as_fd())? { proc::seen(self, file) } else { Ok(Object::host(file)) }
    }

    fn open_by_host(
        &self,
        dir: u64,
        path: &CStr,
        flags: OFlags,
        mode: Mode,
        resolve: ResolveFlags,
    ) -> Result<OwnedFd, Errno> {
        let scoped = resolve.intersects(ResolveFlags::IN_ROOT | ResolveFlags::BENEATH);
        let base = if path.to_bytes().starts_with(b"/") && !scoped {
            self.directory.as_fd()
        } else {
            self.base(dir)?
        };
        rustix::fs::openat2(base, path, flags, mode, resolve | ResolveFlags::NO_MAGICLINKS)
    }

    /// The directory that `dir` stands for.
    fn base(&self, dir: u64) -> Result<BorrowedFd<'_>, Errno> {
        match int(dir) {
            AT_FDCWD => Ok(self.directory.as_fd()),
            fd => self.files.get(fd),
        }
    }

    /// Walks `path` by component, with the guest's view of `/proc`.
    fn walk(&self, dir: u64, path: &CStr, last: Last) -> Result<Walked, Errno> {
        let mut rest = Vec::new();
        let mut at = self.walk_from(dir, path)?;
        push_components(&mut rest, path.to_bytes());
        let mut links = 0;
        while let Some(name) = rest.pop() {
            let name = c_string(&name)?;
            if matches!(name.to_bytes(), b"." | b"..") {
                at = rustix::fs::openat(&at, &name, LOOK | OFlags::DIRECTORY, Mode::empty())?;
                continue;
            }
            let is_followed = !rest.is_empty() || last == Last::Follow;
            let own = proc::own_entry(self, at.as_fd(), name.to_bytes())?;
            let jump = match &own {
                Some(own) if is_followed => proc::jump(self, own)?,
                _ => None,
            };
            let target = match jump {
                Some(Jump::File(file)) => {
                    at = file;
                    None
                }
                Some(Jump::Path(path)) => Some(path),
                None => {
                    let child = match look(&at, &name, Last::Link) {
                        // Perhaps a file to be made, or one that only the guest has.
                        Err(Errno::NOENT) if rest.is_empty() => {
                            return Ok(Walked::Name(Entry { dir: at, name }));
                        }
                        child => child?,
                    };
                    let status = rustix::fs::fstat(&child)?;
                    if !is_followed || FileType::from_raw_mode(status.st_mode) != FileType::Symlink {
                        if rest.is_empty() {
                            return Ok(Walked::Name(Entry { dir: at, name }));
                        }
                        at = child;
                        continue;
                    }
                    if is_in_proc(child.as_fd())? && proc::is_magic(self, child.as_fd())? {
                        at = look(&at, &name, Last::Follow)?;
                        None
                    } else {
                        Some(rustix::fs::readlinkat(&child, c"", Vec::new())?.into_bytes())
                    }
                }
            };
            links += 1;
            if links > LINKS_MAX {
                return Err(Errno::LOOP);
            }
            if let Some(target) = target {
                if target.starts_with(b"/") {
                    at = look(CWD, c"/", Last::Follow)?;
                }
                push_components(&mut rest, &target);
            }
        }
        Ok(Walked::File(at))
    }

    /// The directory that a walk along `path` begins in.
    fn walk_from(&self, dir: u64, path: &CStr) -> Result<OwnedFd, Errno> {
        match path.to_bytes() {
            [] => Err(Errno::NOENT),
            [b'/', ..] => look(CWD, c"/", Last::Follow),
            _ => fcntl_dupfd_cloexec(self.base(dir)?, 0),
        }
    }
}

/// Errors of the host's walk that a link into a process can cause, or one to a descriptor that only the guest has.
const fn may_be_ours(errno: Errno) -> bool {
    matches!(errno, Errno::LOOP | Errno::NOENT)
}

/// Puts the components of `path` on the stack `rest`, the first on top. A path that ends with a slash goes on to `.`,
/// so that it must lead to a directory.
fn push_components(rest: &mut Vec<Vec<u8>>, path: &[u8]) {
    if path.ends_with(b"/") {
        rest.push(b".".to_vec());
    }
    let components = path.split(|&byte| byte == b'/').filter(|component| !component.is_empty());
    rest.extend(components.rev().map(<[u8]>::to_vec));
}

pub(super) fn is_in_proc(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(rustix::fs::fstatfs(file)?.f_type == PROC_SUPER_MAGIC)
}

/// Finds a file without opening it.
pub(super) fn look(dir: impl AsFd, name: &CStr, last: Last) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, name, last.open_flags(), Mode::empty())
}

/// Opens the very file that `file` is: nothing is made, and no link of the guest's is followed.
fn reopen(file: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
    if flags.contains(OFlags::CREATE | OFlags::EXCL) {
        return Err(Errno::EXIST);
    }
    let flags = flags - (OFlags::CREATE | OFlags::NOFOLLOW);
    rustix::fs::open(path_of(file), flags, Mode::empty())
}

/// The host's path of an open file, as its process's own link to it.
pub(super) fn path_of(file: BorrowedFd<'_>) -> CString {
    CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default()
}

fn c_string(bytes: &[u8]) -> Result<CString, Errno> {
    CString::new(bytes).map_err(|_| Errno::INVAL)
}

/// The path of an open file on the host.
pub(crate) fn host_path(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    rustix::fs::readlink(path_of(fd), Vec::new()).map(CString::into_bytes)
}
