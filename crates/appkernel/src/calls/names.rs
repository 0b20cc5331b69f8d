//! Names of flags, signals and errors.

#![expect(clippy::cast_sign_loss, reason = "negative constants are sign extended, as in registers")]

use std::fmt::Write;

use process_vm_exec::Errno;

/// Values and their names.
pub type Names = &'static [(u64, &'static str)];

/// A list of names of constants: of `libc`, or of the module that is named first.
macro_rules! names {
    ($source:path; $($name:ident)*) => {
        &{
            use $source as source;
            [$((source::$name as u64, stringify!($name))),*]
        }
    };
    ($($name:ident)*) => { names!(libc; $($name)*) };
}
pub(super) use names;

mod lists {
    use super::Names;

    pub(crate) const PROTECTION: Names = names!(PROT_READ PROT_WRITE PROT_EXEC);
    pub(crate) const MAPPING: Names = names!(
        MAP_SHARED MAP_PRIVATE MAP_FIXED MAP_ANONYMOUS MAP_32BIT MAP_GROWSDOWN MAP_DENYWRITE MAP_LOCKED
        MAP_NORESERVE MAP_POPULATE MAP_NONBLOCK MAP_STACK MAP_HUGETLB MAP_FIXED_NOREPLACE
    );
    pub(crate) const MREMAP: Names = names!(MREMAP_MAYMOVE MREMAP_FIXED);
    pub(crate) const OPEN: Names = names!(
        linux_raw_sys::general;
        O_CREAT O_EXCL O_NOCTTY O_TRUNC O_APPEND O_NONBLOCK O_SYNC O_DIRECT O_LARGEFILE O_DIRECTORY O_NOFOLLOW
        O_NOATIME O_CLOEXEC O_PATH
    );
    pub(crate) const ACCESS: Names = names!(R_OK W_OK X_OK);
    pub(crate) const AT: Names = names!(
        AT_SYMLINK_NOFOLLOW AT_REMOVEDIR AT_SYMLINK_FOLLOW AT_NO_AUTOMOUNT AT_EMPTY_PATH
    );
    pub(crate) const WHENCE: Names = names!(SEEK_SET SEEK_CUR SEEK_END SEEK_DATA SEEK_HOLE);
    pub(crate) const CLOCKS: Names = names!(
        CLOCK_REALTIME CLOCK_MONOTONIC CLOCK_PROCESS_CPUTIME_ID CLOCK_THREAD_CPUTIME_ID CLOCK_MONOTONIC_RAW
        CLOCK_REALTIME_COARSE CLOCK_MONOTONIC_COARSE CLOCK_BOOTTIME CLOCK_REALTIME_ALARM CLOCK_BOOTTIME_ALARM CLOCK_TAI
    );
    pub(crate) const FCNTL: Names = names!(
        F_DUPFD F_GETFD F_SETFD F_GETFL F_SETFL F_GETLK F_SETLK F_SETLKW F_DUPFD_CLOEXEC F_GETPIPE_SZ
        F_SETPIPE_SZ F_SETOWN F_GETOWN F_SETLEASE F_GETLEASE F_NOTIFY F_ADD_SEALS F_GET_SEALS F_OFD_GETLK F_OFD_SETLK F_OFD_SETLKW
    );
    pub(crate) const IOCTL: Names = names!(
        TCGETS TCSETS TCSETSW TCSETSF TIOCGPGRP TIOCSPGRP TIOCGWINSZ TIOCSWINSZ FIONREAD FIONBIO FIOCLEX FIONCLEX
        FICLONE
    );
    pub(crate) const MADVISE: Names = names!(
        linux_raw_sys::general;
        MADV_NORMAL MADV_RANDOM MADV_SEQUENTIAL MADV_WILLNEED MADV_DONTNEED MADV_FREE MADV_REMOVE MADV_DONTFORK
        MADV_DOFORK MADV_HWPOISON MADV_SOFT_OFFLINE MADV_MERGEABLE MADV_UNMERGEABLE MADV_HUGEPAGE MADV_NOHUGEPAGE
        MADV_DONTDUMP MADV_DODUMP MADV_WIPEONFORK MADV_KEEPONFORK MADV_COLD MADV_PAGEOUT MADV_POPULATE_READ
        MADV_POPULATE_WRITE MADV_DONTNEED_LOCKED MADV_COLLAPSE MADV_GUARD_INSTALL MADV_GUARD_REMOVE
    );
    pub(crate) const SIGMASK: Names = names!(SIG_BLOCK SIG_UNBLOCK SIG_SETMASK);
    pub(crate) const RESOURCES: Names = names!(
        RLIMIT_CPU RLIMIT_FSIZE RLIMIT_DATA RLIMIT_STACK RLIMIT_CORE RLIMIT_RSS RLIMIT_NPROC RLIMIT_NOFILE
        RLIMIT_MEMLOCK RLIMIT_AS RLIMIT_LOCKS RLIMIT_SIGPENDING RLIMIT_MSGQUEUE RLIMIT_NICE RLIMIT_RTPRIO
        RLIMIT_RTTIME
    );
    pub(crate) const PRCTL: Names = names!(
        linux_raw_sys::prctl;
        PR_SET_PDEATHSIG PR_GET_PDEATHSIG PR_GET_DUMPABLE PR_SET_DUMPABLE PR_GET_KEEPCAPS PR_SET_KEEPCAPS
        PR_GET_TIMING PR_SET_TIMING PR_SET_NAME PR_GET_NAME PR_GET_SECCOMP PR_SET_SECCOMP PR_CAPBSET_READ
        PR_CAPBSET_DROP PR_GET_TSC PR_SET_TSC PR_GET_SECUREBITS PR_SET_SECUREBITS PR_SET_TIMERSLACK
        PR_GET_TIMERSLACK PR_MCE_KILL PR_MCE_KILL_GET PR_SET_MM PR_SET_PTRACER PR_SET_CHILD_SUBREAPER
        PR_GET_CHILD_SUBREAPER PR_SET_NO_NEW_PRIVS PR_GET_NO_NEW_PRIVS PR_GET_TID_ADDRESS PR_SET_THP_DISABLE
        PR_GET_THP_DISABLE PR_CAP_AMBIENT PR_GET_SPECULATION_CTRL PR_SET_SPECULATION_CTRL PR_SET_IO_FLUSHER
        PR_GET_IO_FLUSHER PR_SET_SYSCALL_USER_DISPATCH PR_SCHED_CORE PR_SET_MDWE PR_GET_MDWE PR_SET_VMA PR_GET_AUXV
        PR_SET_MEMORY_MERGE PR_GET_MEMORY_MERGE
    );
    pub(crate) const USAGE: Names = names!(RUSAGE_SELF RUSAGE_CHILDREN RUSAGE_THREAD);
    pub(crate) const TIMERS: Names = names!(ITIMER_REAL ITIMER_VIRTUAL ITIMER_PROF);
    pub(crate) const RANDOM: Names = names!(GRND_NONBLOCK GRND_RANDOM GRND_INSECURE);
    pub(crate) const MLOCK: Names = names!(MCL_CURRENT MCL_FUTURE MCL_ONFAULT);
    pub(crate) const MSYNC: Names = names!(MS_ASYNC MS_INVALIDATE MS_SYNC);
    pub(crate) const STACK: Names = names!(SS_ONSTACK SS_DISABLE);
    pub(crate) const ACTION: Names = names!(
        linux_raw_sys::general;
        SA_NOCLDSTOP SA_NOCLDWAIT SA_SIGINFO SA_ONSTACK SA_RESTART SA_NODEFER SA_RESETHAND
        SA_RESTORER
    );
    pub(crate) const SIGNALS: Names = names!(
        SIGHUP SIGINT SIGQUIT SIGILL SIGTRAP SIGABRT SIGBUS SIGFPE SIGKILL SIGUSR1 SIGSEGV SIGUSR2 SIGPIPE SIGALRM
        SIGTERM SIGSTKFLT SIGCHLD SIGCONT SIGSTOP SIGTSTP SIGTTIN SIGTTOU SIGURG SIGXCPU SIGXFSZ SIGVTALRM SIGPROF
        SIGWINCH SIGIO SIGPWR SIGSYS
    );
    pub(crate) const ERRORS: Names = names!(
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
pub(crate) fn signal_name(signal: i32) -> String {
    name_of_signal(signal).map_or_else(|| format!("signal {signal}"), str::to_owned)
}

/// The name of a signal that has one of its own: real-time signals have none.
pub fn name_of_signal(signal: i32) -> Option<&'static str> {
    let found = lists::SIGNALS.iter().find(|&&(number, _)| i64::try_from(number) == Ok(signal.into()));
    found.map(|&(_, name)| name)
}

/// An errno as strace(1) shows it: `-1 ENOENT (No such file or directory)`.
pub fn error(errno: Errno) -> String {
    let number = errno.raw_os_error();
    let found = lists::ERRORS.iter().find(|&&(error, _)| i64::try_from(error) == Ok(number.into()));
    let name = found.map_or_else(|| format!("errno {number}"), |&(_, name)| name.to_owned());
    let text = std::io::Error::from_raw_os_error(number).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    format!("-1 {name} ({text})")
}

/// Appends the names of the bits of `value`, and what is left of it in hexadecimal.
///
/// # Errors
/// None but those of writing to a `String`, which has none.
pub fn describe_bits(value: u64, names: Names, line: &mut String) -> std::fmt::Result {
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

/// The flags of open(2) by name: `O_RDWR|O_CLOEXEC`.
pub fn open_flags(flags: u32) -> String {
    let mut line = String::new();
    let written = describe_open(flags, &mut line);
    debug_assert!(written.is_ok(), "writing to a String does not fail");
    line
}

/// Appends the flags of open(2), whose two lowest bits are a number.
pub(crate) fn describe_open(flags: u32, line: &mut String) -> std::fmt::Result {
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
