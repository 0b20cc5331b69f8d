//! Names of flags, signals and errors.

use std::fmt::Write;

use process_vm_exec::Errno;

/// Values and their names.
pub(super) type Names = &'static [(u64, &'static str)];

/// A list of names of the constants of `libc`.
macro_rules! names {
    ($($name:ident)*) => { &[$((libc::$name as u64, stringify!($name))),*] };
}

mod lists {
    use super::Names;

    pub(in super::super) const PROTECTION: Names = names!(PROT_READ PROT_WRITE PROT_EXEC);
    pub(in super::super) const MAPPING: Names = names!(
        MAP_SHARED MAP_PRIVATE MAP_FIXED MAP_ANONYMOUS MAP_32BIT MAP_GROWSDOWN MAP_DENYWRITE MAP_LOCKED
        MAP_NORESERVE MAP_POPULATE MAP_NONBLOCK MAP_STACK MAP_HUGETLB MAP_FIXED_NOREPLACE
    );
    pub(in super::super) const MREMAP: Names = names!(MREMAP_MAYMOVE MREMAP_FIXED);
    pub(in super::super) const OPEN: Names = names!(
        O_CREAT O_EXCL O_NOCTTY O_TRUNC O_APPEND O_NONBLOCK O_SYNC O_DIRECT O_DIRECTORY O_NOFOLLOW O_NOATIME
        O_CLOEXEC O_PATH
    );
    pub(in super::super) const ACCESS: Names = names!(R_OK W_OK X_OK);
    pub(in super::super) const AT: Names = names!(
        AT_SYMLINK_NOFOLLOW AT_REMOVEDIR AT_SYMLINK_FOLLOW AT_NO_AUTOMOUNT AT_EMPTY_PATH
    );
    pub(in super::super) const WHENCE: Names = names!(SEEK_SET SEEK_CUR SEEK_END SEEK_DATA SEEK_HOLE);
    pub(in super::super) const CLOCKS: Names = names!(
        CLOCK_REALTIME CLOCK_MONOTONIC CLOCK_PROCESS_CPUTIME_ID CLOCK_THREAD_CPUTIME_ID CLOCK_MONOTONIC_RAW
        CLOCK_REALTIME_COARSE CLOCK_MONOTONIC_COARSE CLOCK_BOOTTIME
    );
    pub(in super::super) const FCNTL: Names = names!(
        F_DUPFD F_GETFD F_SETFD F_GETFL F_SETFL F_GETLK F_SETLK F_SETLKW F_DUPFD_CLOEXEC F_GETPIPE_SZ
        F_SETPIPE_SZ F_ADD_SEALS F_GET_SEALS F_OFD_GETLK F_OFD_SETLK F_OFD_SETLKW
    );
    pub(in super::super) const IOCTL: Names = names!(
        TCGETS TCSETS TCSETSW TCSETSF TIOCGPGRP TIOCSPGRP TIOCGWINSZ TIOCSWINSZ FIONREAD FIONBIO FIOCLEX FIONCLEX
        FICLONE
    );
    pub(in super::super) const MADVISE: Names = names!(
        MADV_NORMAL MADV_RANDOM MADV_SEQUENTIAL MADV_WILLNEED MADV_DONTNEED MADV_FREE MADV_HUGEPAGE
        MADV_NOHUGEPAGE MADV_DONTDUMP
    );
    pub(in super::super) const SIGMASK: Names = names!(SIG_BLOCK SIG_UNBLOCK SIG_SETMASK);
    pub(in super::super) const RESOURCES: Names = names!(
        RLIMIT_CPU RLIMIT_FSIZE RLIMIT_DATA RLIMIT_STACK RLIMIT_CORE RLIMIT_RSS RLIMIT_NPROC RLIMIT_NOFILE
        RLIMIT_MEMLOCK RLIMIT_AS
    );
    pub(super) const SIGNALS: Names = names!(
        SIGHUP SIGINT SIGQUIT SIGILL SIGTRAP SIGABRT SIGBUS SIGFPE SIGKILL SIGUSR1 SIGSEGV SIGUSR2 SIGPIPE SIGALRM
        SIGTERM SIGSTKFLT SIGCHLD SIGCONT SIGSTOP SIGTSTP SIGTTIN SIGTTOU SIGURG SIGXCPU SIGXFSZ SIGVTALRM SIGPROF
        SIGWINCH SIGIO SIGPWR SIGSYS
    );
    pub(super) const ERRORS: Names = names!(
        EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK EBUSY
        EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK
        EPIPE EDOM ERANGE EDEADLK ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP ENODATA EOVERFLOW ELIBBAD EUSERS
        ENOTSOCK EDESTADDRREQ EMSGSIZE EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT EOPNOTSUPP EAFNOSUPPORT EADDRINUSE
        EADDRNOTAVAIL ENETUNREACH ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN ETIMEDOUT ECONNREFUSED
        EHOSTUNREACH EALREADY EINPROGRESS ESTALE EDQUOT
    );
}

pub(super) use lists::*;

/// A signal's name, or its number.
pub(super) fn signal_name(signal: i32) -> String {
    let found = lists::SIGNALS.iter().find(|&&(number, _)| i64::try_from(number) == Ok(signal.into()));
    found.map_or_else(|| format!("signal {signal}"), |&(_, name)| name.to_owned())
}

/// `-1 ENOENT (No such file or directory)`
pub(super) fn error(errno: Errno) -> String {
    let number = errno.raw_os_error();
    let found = lists::ERRORS.iter().find(|&&(error, _)| i64::try_from(error) == Ok(number.into()));
    let name = found.map_or_else(|| format!("errno {number}"), |&(_, name)| name.to_owned());
    let text = std::io::Error::from_raw_os_error(number).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    format!("-1 {name} ({text})")
}

/// Appends the names of the bits of `value`, and what is left of it in hexadecimal.
pub(super) fn describe_bits(value: u64, names: Names, line: &mut String) -> std::fmt::Result {
    let mut rest = value;
    let mut separator = "";
    for &(bits, name) in names {
        if bits != 0 && rest & bits == bits {
            write!(line, "{separator}{name}")?;
            separator = "|";
            rest &= !bits;
        }
    }
    if rest != 0 {
        write!(line, "{separator}{rest:#x}")
    } else if value == 0 {
        line.write_str("0")
    } else {
        Ok(())
    }
}

/// Appends the flags of open(2), whose two lowest bits are a number.
pub(super) fn describe_open(flags: u32, line: &mut String) -> std::fmt::Result {
    line.write_str(match flags.cast_signed() & libc::O_ACCMODE {
        libc::O_RDONLY => "O_RDONLY",
        libc::O_WRONLY => "O_WRONLY",
        libc::O_RDWR => "O_RDWR",
        _ => "O_ACCMODE",
    })?;
    let rest = flags & !libc::O_ACCMODE.cast_unsigned();
    if rest != 0 {
        line.push('|');
        describe_bits(rest.into(), lists::OPEN, line)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_named_and_unknown_ones_shown() {
        let mut line = String::new();
        describe_open(0x8_0000 | 1 | 0o100 | 0x8000_0000, &mut line).unwrap();
        assert_eq!(line, "O_WRONLY|O_CREAT|O_CLOEXEC|0x80000000");
        line.clear();
        describe_bits(0, lists::PROTECTION, &mut line).unwrap();
        assert_eq!(line, "0");
    }

    #[test]
    fn errors_have_their_name_and_their_text() {
        assert_eq!(error(Errno::NOENT), "-1 ENOENT (No such file or directory)");
        assert_eq!(signal_name(11), "SIGSEGV");
        assert_eq!(signal_name(40), "signal 40");
    }
}
