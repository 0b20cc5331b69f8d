//! Names and attributes: making, moving, linking and removing files, and changing what is known about them.

use process_vm_exec::Errno;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Timestamps, UTIME_NOW, Uid};
use rustix::time::Timespec;

use super::{
    AT_FDCWD, Last, Object,
    status::{FLAGS, known_flags},
};
use crate::{
    abi::{Answer, Args, from_int, i64_at, int, long, uint},
    guest::GuestMemory,
    task::Task,
};

const HERE: u64 = from_int(AT_FDCWD);

/// mkdir(2)
pub(crate) fn mkdir(task: &mut Task, [path, mode, ..]: Args) -> Answer {
    mkdirat(task, [HERE, path, mode, 0, 0, 0])
}

/// mkdirat(2)
pub(crate) fn mkdirat(task: &mut Task, [dir, path, mode, ..]: Args) -> Answer {
    let entry = task.entry(dir, path)?;
    rustix::fs::mkdirat(entry.dir, &entry.name, new_mode(task, mode)).map(|()| 0)
}

/// mknod(2)
pub(crate) fn mknod(task: &mut Task, [path, mode, device, ..]: Args) -> Answer {
    mknodat(task, [HERE, path, mode, device, 0, 0])
}

/// mknodat(2)
pub(crate) fn mknodat(task: &mut Task, [dir, path, mode, device, ..]: Args) -> Answer {
    let entry = task.entry(dir, path)?;
    let kind = match uint(mode) & libc::S_IFMT {
        0 => FileType::RegularFile,
        kind => FileType::from_raw_mode(kind),
    };
    rustix::fs::mknodat(entry.dir, &entry.name, kind, new_mode(task, mode), u64::from(uint(device)))
        .map(|()| 0)
}

/// The permissions of a new file.
fn new_mode(task: &Task, mode: u64) -> Mode {
    Mode::from_raw_mode(uint(mode) & 0o7777 & !task.umask)
}

/// unlink(2)
pub(crate) fn unlink(task: &mut Task, [path, ..]: Args) -> Answer {
    unlinkat(task, [HERE, path, 0, 0, 0, 0])
}

/// rmdir(2)
pub(crate) fn rmdir(task: &mut Task, [path, ..]: Args) -> Answer {
    unlinkat(task, [HERE, path, from_int(libc::AT_REMOVEDIR), 0, 0, 0])
}

/// unlinkat(2)
pub(crate) fn unlinkat(task: &mut Task, [dir, path, flags, ..]: Args) -> Answer {
    let flags = AtFlags::from_bits_retain(uint(flags));
    let entry = task.entry(dir, path)?;
    rustix::fs::unlinkat(entry.dir, &entry.name, flags).map(|()| 0)
}

/// rename(2)
pub(crate) fn rename(task: &mut Task, [from, to, ..]: Args) -> Answer {
    renameat2(task, [HERE, from, HERE, to, 0, 0])
}

/// renameat(2)
pub(crate) fn renameat(task: &mut Task, [from_dir, from, to_dir, to, ..]: Args) -> Answer {
    renameat2(task, [from_dir, from, to_dir, to, 0, 0])
}

/// renameat2(2)
pub(crate) fn renameat2(task: &mut Task, [from_dir, from, to_dir, to, flags, _]: Args) -> Answer {
    let from = task.entry(from_dir, from)?;
    let to = task.entry(to_dir, to)?;
    let flags = RenameFlags::from_bits_retain(uint(flags));
    rustix::fs::renameat_with(from.dir, &from.name, to.dir, &to.name, flags).map(|()| 0)
}

/// link(2)
pub(crate) fn link(task: &mut Task, [from, to, ..]: Args) -> Answer {
    linkat(task, [HERE, from, HERE, to, 0, 0])
}

/// linkat(2)
pub(crate) fn linkat(task: &mut Task, [from_dir, from, to_dir, to, flags, _]: Args) -> Answer {
    let flags = known_flags(flags, libc::AT_SYMLINK_FOLLOW | libc::AT_EMPTY_PATH)?;
    let nofollow = if flags & libc::AT_SYMLINK_FOLLOW != 0 { 0 } else { libc::AT_SYMLINK_NOFOLLOW };
    let from = task.object_with(from_dir, from, flags | nofollow)?;
    let to = task.entry(to_dir, to)?;
    rustix::fs::linkat(CWD, from.path(), to.dir, &to.name, AtFlags::SYMLINK_FOLLOW).map(|()| 0)
}

/// symlink(2)
pub(crate) fn symlink(task: &mut Task, [target, path, ..]: Args) -> Answer {
    symlinkat(task, [target, HERE, path, 0, 0, 0])
}

/// symlinkat(2)
pub(crate) fn symlinkat(task: &mut Task, [target, dir, path, ..]: Args) -> Answer {
    let target = task.space.fetch_path(target)?;
    let entry = task.entry(dir, path)?;
    rustix::fs::symlinkat(&target, entry.dir, &entry.name).map(|()| 0)
}

/// chmod(2)
pub(crate) fn chmod(task: &mut Task, [path, mode, ..]: Args) -> Answer {
    fchmodat(task, [HERE, path, mode, 0, 0, 0])
}

/// fchmodat(2), as the kernel has it: without flags
pub(crate) fn fchmodat(task: &mut Task, [dir, path, mode, ..]: Args) -> Answer {
    let object = task.object(dir, path, Last::Follow)?;
    let mode = Mode::from_raw_mode(uint(mode) & 0o7777);
    rustix::fs::chmod(object.path(), mode).map(|()| 0)
}

/// fchmod(2)
pub(crate) fn fchmod(task: &mut Task, [fd, mode, ..]: Args) -> Answer {
    let mode = Mode::from_raw_mode(uint(mode) & 0o7777);
    rustix::fs::fchmod(task.files.get(int(fd))?, mode).map(|()| 0)
}

/// chown(2)
pub(crate) fn chown(task: &mut Task, [path, user, group, ..]: Args) -> Answer {
    fchownat(task, [HERE, path, user, group, 0, 0])
}

/// lchown(2)
pub(crate) fn lchown(task: &mut Task, [path, user, group, ..]: Args) -> Answer {
    fchownat(task, [HERE, path, user, group, from_int(libc::AT_SYMLINK_NOFOLLOW), 0])
}

/// fchownat(2)
pub(crate) fn fchownat(task: &mut Task, [dir, path, user, group, flags, _]: Args) -> Answer {
    let object = task.object_with(dir, path, known_flags(flags, FLAGS)?)?;
    rustix::fs::chown(object.path(), user_id(user), group_id(group)).map(|()| 0)
}

/// fchown(2)
pub(crate) fn fchown(task: &mut Task, [fd, user, group, ..]: Args) -> Answer {
    rustix::fs::fchown(task.files.get(int(fd))?, user_id(user), group_id(group)).map(|()| 0)
}

/// -1 leaves the owner as it is.
fn user_id(id: u64) -> Option<Uid> {
    Some(uint(id)).filter(|&id| id != u32::MAX).map(Uid::from_raw)
}

fn group_id(id: u64) -> Option<Gid> {
    Some(uint(id)).filter(|&id| id != u32::MAX).map(Gid::from_raw)
}

/// truncate(2)
pub(crate) fn truncate(task: &mut Task, [path, len, ..]: Args) -> Answer {
    let len = u64::try_from(long(len)).map_err(|_| Errno::INVAL)?;
    let object = task.object(HERE, path, Last::Follow)?;
    let file = task.open_object(&object, OFlags::WRONLY | OFlags::CLOEXEC)?;
    rustix::fs::ftruncate(file, len).map(|()| 0)
}

/// utimensat(2)
pub(crate) fn utimensat(task: &mut Task, [dir, path, times, flags, ..]: Args) -> Answer {
    let times = if times == 0 {
        both_now()
    } else {
        let record: [u8; 32] = task.space.fetch(times)?;
        Timestamps {
            last_access: Timespec { tv_sec: i64_at(&record, 0), tv_nsec: i64_at(&record, 8) },
            last_modification: Timespec { tv_sec: i64_at(&record, 16), tv_nsec: i64_at(&record, 24) },
        }
    };
    if path == 0 {
        return rustix::fs::futimens(task.files.get(int(dir))?, &times).map(|()| 0);
    }
    let object = task.object_with(dir, path, known_flags(flags, FLAGS)?)?;
    set_times(&object, &times)
}

/// utime(2)
pub(crate) fn utime(task: &mut Task, [path, times, ..]: Args) -> Answer {
    let times = if times == 0 {
        both_now()
    } else {
        let record: [u8; 16] = task.space.fetch(times)?;
        let at = |offset| Timespec { tv_sec: i64_at(&record, offset), tv_nsec: 0 };
        Timestamps { last_access: at(0), last_modification: at(8) }
    };
    set_times(&task.object(HERE, path, Last::Follow)?, &times)
}

/// utimes(2)
pub(crate) fn utimes(task: &mut Task, [path, times, ..]: Args) -> Answer {
    let times = if times == 0 {
        both_now()
    } else {
        let record: [u8; 32] = task.space.fetch(times)?;
        let at = |offset| {
            let tv_nsec = i64_at(&record, offset + 8).checked_mul(1000).ok_or(Errno::INVAL)?;
            Ok::<_, Errno>(Timespec { tv_sec: i64_at(&record, offset), tv_nsec })
        };
        Timestamps { last_access: at(0)?, last_modification: at(16)? }
    };
    set_times(&task.object(HERE, path, Last::Follow)?, &times)
}

fn both_now() -> Timestamps {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    Timestamps { last_access: now, last_modification: now }
}

fn set_times(object: &Object, times: &Timestamps) -> Answer {
    rustix::fs::utimensat(CWD, object.path(), times, AtFlags::empty()).map(|()| 0)
}
