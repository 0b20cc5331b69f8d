//! What is known about files: status, access and file systems.

use process_vm_exec::Errno;
use rustix::fs::{Access, AtFlags, CWD, Stat, StatFs, Statx, StatxFlags, StatxTimestamp};

use super::{AT_FDCWD, Last};
use crate::{
    abi::{Answer, Args, Record, from_int, int, size, uint},
    guest::GuestMemory,
    task::Task,
};

/// stat(2)
pub(crate) fn stat(task: &mut Task, [path, result, ..]: Args) -> Answer {
    newfstatat(task, [from_int(AT_FDCWD), path, result, 0, 0, 0])
}

/// lstat(2)
pub(crate) fn lstat(task: &mut Task, [path, result, ..]: Args) -> Answer {
    newfstatat(task, [from_int(AT_FDCWD), path, result, from_int(libc::AT_SYMLINK_NOFOLLOW), 0, 0])
}

/// fstat(2)
pub(crate) fn fstat(task: &mut Task, [fd, result, ..]: Args) -> Answer {
    let status = rustix::fs::fstat(task.files.get(int(fd))?)?;
    store_stat(task, result, &status)
}

/// newfstatat(2)
pub(crate) fn newfstatat(task: &mut Task, [dir, path, result, flags, ..]: Args) -> Answer {
    let flags = known_flags(flags, FLAGS | libc::AT_NO_AUTOMOUNT)?;
    let status = rustix::fs::fstat(task.object_with(dir, path, flags)?.file)?;
    store_stat(task, result, &status)
}

/// statx(2)
pub(crate) fn statx(task: &mut Task, [dir, path, flags, mask, result, _]: Args) -> Answer {
    let flags = known_flags(flags, FLAGS | libc::AT_NO_AUTOMOUNT | libc::AT_STATX_SYNC_TYPE)?;
    let object = task.object_with(dir, path, flags)?;
    let sync = AtFlags::from_bits_retain((flags & libc::AT_STATX_SYNC_TYPE).cast_unsigned());
    let mask = StatxFlags::from_bits_retain(uint(mask));
    let status = rustix::fs::statx(object.file, c"", sync | AtFlags::EMPTY_PATH, mask)?;
    task.space.store(result, statx_record(&status).bytes())?;
    Ok(0)
}

/// The flags that calls with a path have in common.
pub(super) const FLAGS: i32 = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;

/// The flags of a call, if it knows all of them.
pub(super) fn known_flags(flags: u64, known: i32) -> Result<i32, Errno> {
    let flags = int(flags);
    if flags & !known != 0 { Err(Errno::INVAL) } else { Ok(flags) }
}

fn store_stat(task: &Task, addr: u64, status: &Stat) -> Answer {
    // struct stat of asm/stat.h
    let record = Record::<144>::new()
        .put(0, status.st_dev.to_ne_bytes())
        .put(8, status.st_ino.to_ne_bytes())
        .put(16, status.st_nlink.to_ne_bytes())
        .put(24, status.st_mode.to_ne_bytes())
        .put(28, status.st_uid.to_ne_bytes())
        .put(32, status.st_gid.to_ne_bytes())
        .put(40, status.st_rdev.to_ne_bytes())
        .put(48, status.st_size.to_ne_bytes())
        .put(56, status.st_blksize.to_ne_bytes())
        .put(64, status.st_blocks.to_ne_bytes())
        .put(72, status.st_atime.to_ne_bytes())
        .put(80, status.st_atime_nsec.to_ne_bytes())
        .put(88, status.st_mtime.to_ne_bytes())
        .put(96, status.st_mtime_nsec.to_ne_bytes())
        .put(104, status.st_ctime.to_ne_bytes())
        .put(112, status.st_ctime_nsec.to_ne_bytes());
    task.space.store(addr, record.bytes())?;
    Ok(0)
}

/// struct statx of linux/stat.h
fn statx_record(status: &Statx) -> Record<256> {
    let record = Record::new()
        .put(0, status.stx_mask.to_ne_bytes())
        .put(4, status.stx_blksize.to_ne_bytes())
        .put(8, status.stx_attributes.bits().to_ne_bytes())
        .put(16, status.stx_nlink.to_ne_bytes())
        .put(20, status.stx_uid.to_ne_bytes())
        .put(24, status.stx_gid.to_ne_bytes())
        .put(28, status.stx_mode.to_ne_bytes())
        .put(32, status.stx_ino.to_ne_bytes())
        .put(40, status.stx_size.to_ne_bytes())
        .put(48, status.stx_blocks.to_ne_bytes())
        .put(56, status.stx_attributes_mask.bits().to_ne_bytes())
        .put(128, status.stx_rdev_major.to_ne_bytes())
        .put(132, status.stx_rdev_minor.to_ne_bytes())
        .put(136, status.stx_dev_major.to_ne_bytes())
        .put(140, status.stx_dev_minor.to_ne_bytes())
        .put(144, status.stx_mnt_id.to_ne_bytes())
        .put(152, status.stx_dio_mem_align.to_ne_bytes())
        .put(156, status.stx_dio_offset_align.to_ne_bytes());
    let times = [status.stx_atime, status.stx_btime, status.stx_ctime, status.stx_mtime];
    times.iter().enumerate().fold(record, |record, (index, time)| put_time(record, 64 + index * 16, time))
}

fn put_time(record: Record<256>, offset: usize, time: &StatxTimestamp) -> Record<256> {
    record.put(offset, time.tv_sec.to_ne_bytes()).put(offset + 8, time.tv_nsec.to_ne_bytes())
}

/// access(2)
pub(crate) fn access(task: &mut Task, [path, mode, ..]: Args) -> Answer {
    faccessat2(task, [from_int(AT_FDCWD), path, mode, 0, 0, 0])
}

/// faccessat(2), as the kernel has it: without flags
pub(crate) fn faccessat(task: &mut Task, [dir, path, mode, ..]: Args) -> Answer {
    faccessat2(task, [dir, path, mode, 0, 0, 0])
}

/// faccessat2(2)
pub(crate) fn faccessat2(task: &mut Task, [dir, path, mode, flags, ..]: Args) -> Answer {
    let flags = known_flags(flags, FLAGS | libc::AT_EACCESS)?;
    let mode = uint(mode);
    if mode & !7 != 0 {
        return Err(Errno::INVAL);
    }
    let object = task.object_with(dir, path, flags)?;
    let effective = AtFlags::from_bits_retain((flags & libc::AT_EACCESS).cast_unsigned());
    rustix::fs::accessat(CWD, object.path(), Access::from_bits_retain(mode), effective)?;
    Ok(0)
}

/// readlink(2)
pub(crate) fn readlink(task: &mut Task, [path, addr, len, ..]: Args) -> Answer {
    readlinkat(task, [from_int(AT_FDCWD), path, addr, len, 0, 0])
}

/// readlinkat(2)
pub(crate) fn readlinkat(task: &mut Task, [dir, path, addr, len, ..]: Args) -> Answer {
    if int(len) <= 0 {
        return Err(Errno::INVAL);
    }
    // An empty path means a link that was opened itself, even without a flag that says so.
    let object = task.object_with(dir, path, FLAGS)?;
    let target = match object.link {
        Some(target) => target,
        None => rustix::fs::readlinkat(&object.file, c"", Vec::new())?.into_bytes(),
    };
    let count = target.len().min(size(u64::from(uint(len))));
    task.space.store(addr, &target[..count])?;
    Ok(count as u64)
}

/// statfs(2)
pub(crate) fn statfs(task: &mut Task, [path, result, ..]: Args) -> Answer {
    let status = rustix::fs::fstatfs(task.object(from_int(AT_FDCWD), path, Last::Follow)?.file)?;
    store_statfs(task, result, &status)
}

/// fstatfs(2)
pub(crate) fn fstatfs(task: &mut Task, [fd, result, ..]: Args) -> Answer {
    let status = rustix::fs::fstatfs(task.files.get(int(fd))?)?;
    store_statfs(task, result, &status)
}

fn store_statfs(task: &Task, addr: u64, status: &StatFs) -> Answer {
    // struct statfs of asm-generic/statfs.h; the identifier of the file system stays zero
    let record = Record::<120>::new()
        .put(0, status.f_type.to_ne_bytes())
        .put(8, status.f_bsize.to_ne_bytes())
        .put(16, status.f_blocks.to_ne_bytes())
        .put(24, status.f_bfree.to_ne_bytes())
        .put(32, status.f_bavail.to_ne_bytes())
        .put(40, status.f_files.to_ne_bytes())
        .put(48, status.f_ffree.to_ne_bytes())
        .put(64, status.f_namelen.to_ne_bytes())
        .put(72, status.f_frsize.to_ne_bytes())
        .put(80, status.f_flags.to_ne_bytes());
    task.space.store(addr, record.bytes())?;
    Ok(0)
}
