//! Descriptors' flags and locks (fcntl(2), flock(2)), and what devices take (ioctl(2)).

use std::os::fd::BorrowedFd;

use nix::fcntl::FcntlArg;
use process_vm_exec::Errno;
use rustix::{
    fs::{FlockOperation, OFlags, SealFlags},
    process::Pid,
    termios::{
        ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios,
        Winsize,
    },
};

use super::Cloexec;
use crate::{
    abi::{Answer, Args, Record, errno, field, from_int, int, size, u32_at, uint, ushort},
    guest::GuestMemory,
    task::Task,
};

/// fcntl(2)
pub(crate) fn fcntl(task: &mut Task, [fd, command, arg, ..]: Args) -> Answer {
    let fd = int(fd);
    match int(command) {
        libc::F_DUPFD => task.files.duplicate(fd, int(arg), Cloexec::No).map(from_int),
        libc::F_DUPFD_CLOEXEC => task.files.duplicate(fd, int(arg), Cloexec::Yes).map(from_int),
        libc::F_GETFD => Ok(u64::from(task.files.cloexec(fd)? == Cloexec::Yes)),
        libc::F_SETFD => {
            let cloexec = if int(arg) & libc::FD_CLOEXEC != 0 { Cloexec::Yes } else { Cloexec::No };
            task.files.set_cloexec(fd, cloexec).map(|()| 0)
        }
        libc::F_GETFL => Ok(rustix::fs::fcntl_getfl(task.files.get(fd)?)?.bits().into()),
        libc::F_SETFL => {
            let flags = OFlags::from_bits_retain(uint(arg));
            rustix::fs::fcntl_setfl(task.files.get(fd)?, flags).map(|()| 0)
        }
        command @ (libc::F_GETLK
        | libc::F_SETLK
        | libc::F_SETLKW
        | libc::F_OFD_GETLK
        | libc::F_OFD_SETLK
        | libc::F_OFD_SETLKW) => lock(task, fd, command, arg),
        libc::F_GETPIPE_SZ => rustix::pipe::fcntl_getpipe_size(task.files.get(fd)?).map(|size| size as u64),
        libc::F_SETPIPE_SZ => {
            rustix::pipe::fcntl_setpipe_size(task.files.get(fd)?, size(arg)).map(|size| size as u64)
        }
        libc::F_GET_SEALS => Ok(rustix::fs::fcntl_get_seals(task.files.get(fd)?)?.bits().into()),
        libc::F_ADD_SEALS => {
            let seals = SealFlags::from_bits_retain(uint(arg));
            rustix::fs::fcntl_add_seals(task.files.get(fd)?, seals).map(|()| 0)
        }
        _ => {
            task.files.get(fd)?;
            Err(Errno::INVAL)
        }
    }
}

/// Locks on ranges of files. They belong to this process, as its guest's only owner.
fn lock(task: &mut Task, fd: i32, command: i32, addr: u64) -> Answer {
    // struct flock of asm-generic/fcntl.h
    let record: [u8; 32] = task.space.fetch(addr)?;
    let mut lock = libc::flock {
        l_type: i16::from_ne_bytes(field(&record, 0)),
        l_whence: i16::from_ne_bytes(field(&record, 2)),
        l_start: i64::from_ne_bytes(field(&record, 8)),
        l_len: i64::from_ne_bytes(field(&record, 16)),
        l_pid: i32::from_ne_bytes(field(&record, 24)),
    };
    let query = matches!(command, libc::F_GETLK | libc::F_OFD_GETLK);
    let arg = match command {
        libc::F_GETLK => FcntlArg::F_GETLK(&mut lock),
        libc::F_SETLK => FcntlArg::F_SETLK(&lock),
        libc::F_SETLKW => FcntlArg::F_SETLKW(&lock),
        libc::F_OFD_GETLK => FcntlArg::F_OFD_GETLK(&mut lock),
        libc::F_OFD_SETLK => FcntlArg::F_OFD_SETLK(&lock),
        _ => FcntlArg::F_OFD_SETLKW(&lock),
    };
    nix::fcntl::fcntl(task.files.get(fd)?, arg).map_err(errno)?;
    if query {
        let record = Record::<32>::new()
            .put(0, lock.l_type.to_ne_bytes())
            .put(2, lock.l_whence.to_ne_bytes())
            .put(8, lock.l_start.to_ne_bytes())
            .put(16, lock.l_len.to_ne_bytes())
            .put(24, lock.l_pid.to_ne_bytes());
        task.space.store(addr, record.bytes())?;
    }
    Ok(0)
}

/// flock(2)
pub(crate) fn flock(task: &mut Task, [fd, operation, ..]: Args) -> Answer {
    let operation = match int(operation) {
        libc::LOCK_SH => FlockOperation::LockShared,
        libc::LOCK_EX => FlockOperation::LockExclusive,
        libc::LOCK_UN => FlockOperation::Unlock,
        operation if operation == libc::LOCK_SH | libc::LOCK_NB => FlockOperation::NonBlockingLockShared,
        operation if operation == libc::LOCK_EX | libc::LOCK_NB => FlockOperation::NonBlockingLockExclusive,
        operation if operation == libc::LOCK_UN | libc::LOCK_NB => FlockOperation::NonBlockingUnlock,
        _ => return Err(Errno::INVAL),
    };
    rustix::fs::flock(task.files.get(int(fd))?, operation).map(|()| 0)
}

// Requests of asm-generic/ioctls.h
const TCGETS: u32 = 0x5401;
const TCSETS: u32 = 0x5402;
const TCSETSW: u32 = 0x5403;
const TCSETSF: u32 = 0x5404;
const TIOCGPGRP: u32 = 0x540f;
const TIOCSPGRP: u32 = 0x5410;
const TIOCGWINSZ: u32 = 0x5413;
const TIOCSWINSZ: u32 = 0x5414;
const FIONREAD: u32 = 0x541b;
const FIONBIO: u32 = 0x5421;
const TIOCGSID: u32 = 0x5429;
const FIONCLEX: u32 = 0x5450;
const FIOCLEX: u32 = 0x5451;
const FICLONE: u32 = 0x4004_9409;
/// The size of the kernel's `struct termios`.
const TERMIOS: usize = 36;

/// ioctl(2), for the requests that safe interfaces exist for; `ENOTTY` for the others.
pub(crate) fn ioctl(task: &mut Task, [fd, request, arg, ..]: Args) -> Answer {
    let fd = int(fd);
    let file = task.files.get(fd)?;
    match uint(request) {
        TCGETS => {
            let termios = rustix::termios::tcgetattr(file)?;
            task.space.store(arg, termios_record(&termios).bytes())?;
        }
        TCSETS => set_termios(task, file, OptionalActions::Now, arg)?,
        TCSETSW => set_termios(task, file, OptionalActions::Drain, arg)?,
        TCSETSF => set_termios(task, file, OptionalActions::Flush, arg)?,
        TIOCGPGRP => {
            let group = rustix::termios::tcgetpgrp(file)?.as_raw_pid();
            task.space.store(arg, &group.to_ne_bytes())?;
        }
        TIOCSPGRP => {
            let group = task.space.fetch_i32(arg)?;
            let group = Pid::from_raw(group.max(0)).ok_or(Errno::INVAL)?;
            rustix::termios::tcsetpgrp(file, group)?;
        }
        TIOCGSID => {
            let session = rustix::termios::tcgetsid(file)?.as_raw_pid();
            task.space.store(arg, &session.to_ne_bytes())?;
        }
        TIOCGWINSZ => {
            let size = rustix::termios::tcgetwinsize(file)?;
            let record = Record::<8>::new()
                .put(0, size.ws_row.to_ne_bytes())
                .put(2, size.ws_col.to_ne_bytes())
                .put(4, size.ws_xpixel.to_ne_bytes())
                .put(6, size.ws_ypixel.to_ne_bytes());
            task.space.store(arg, record.bytes())?;
        }
        TIOCSWINSZ => {
            let record = task.space.fetch_u64(arg)?;
            let size = Winsize {
                ws_row: ushort(record),
                ws_col: ushort(record >> 16),
                ws_xpixel: ushort(record >> 32),
                ws_ypixel: ushort(record >> 48),
            };
            rustix::termios::tcsetwinsize(file, size)?;
        }
        FIONREAD => {
            let count = uint(rustix::io::ioctl_fionread(file)?);
            task.space.store(arg, &count.to_ne_bytes())?;
        }
        FIONBIO => rustix::io::ioctl_fionbio(file, task.space.fetch_i32(arg)? != 0)?,
        FICLONE => rustix::fs::ioctl_ficlone(file, task.files.get(int(arg))?)?,
        FIOCLEX => task.files.set_cloexec(fd, Cloexec::Yes)?,
        FIONCLEX => task.files.set_cloexec(fd, Cloexec::No)?,
        _ => return Err(Errno::NOTTY),
    }
    Ok(0)
}

/// The control characters in the order of `c_cc` (asm-generic/termbits.h).
const SPECIAL_CODES: [SpecialCodeIndex; 17] = [
    SpecialCodeIndex::VINTR,
    SpecialCodeIndex::VQUIT,
    SpecialCodeIndex::VERASE,
    SpecialCodeIndex::VKILL,
    SpecialCodeIndex::VEOF,
    SpecialCodeIndex::VTIME,
    SpecialCodeIndex::VMIN,
    SpecialCodeIndex::VSWTC,
    SpecialCodeIndex::VSTART,
    SpecialCodeIndex::VSTOP,
    SpecialCodeIndex::VSUSP,
    SpecialCodeIndex::VEOL,
    SpecialCodeIndex::VREPRINT,
    SpecialCodeIndex::VDISCARD,
    SpecialCodeIndex::VWERASE,
    SpecialCodeIndex::VLNEXT,
    SpecialCodeIndex::VEOL2,
];

fn termios_record(termios: &Termios) -> Record<TERMIOS> {
    let record = Record::new()
        .put(0, termios.input_modes.bits().to_ne_bytes())
        .put(4, termios.output_modes.bits().to_ne_bytes())
        .put(8, termios.control_modes.bits().to_ne_bytes())
        .put(12, termios.local_modes.bits().to_ne_bytes())
        .put(16, [termios.line_discipline]);
    SPECIAL_CODES
        .into_iter()
        .enumerate()
        .fold(record, |record, (index, code)| record.put(17 + index, [termios.special_codes[code]]))
}

fn set_termios(task: &Task, file: BorrowedFd<'_>, when: OptionalActions, addr: u64) -> Result<(), Errno> {
    let record: [u8; TERMIOS] = task.space.fetch(addr)?;
    let mut termios = rustix::termios::tcgetattr(file)?;
    termios.input_modes = InputModes::from_bits_retain(u32_at(&record, 0));
    termios.output_modes = OutputModes::from_bits_retain(u32_at(&record, 4));
    termios.control_modes = ControlModes::from_bits_retain(u32_at(&record, 8));
    termios.local_modes = LocalModes::from_bits_retain(u32_at(&record, 12));
    termios.line_discipline = record[16];
    for (index, code) in SPECIAL_CODES.into_iter().enumerate() {
        termios.special_codes[code] = record[17 + index];
    }
    rustix::termios::tcsetattr(file, when, &termios)
}
