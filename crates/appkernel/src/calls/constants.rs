//! Constants by their names, for those who type a call. All that a trace shows, and further ones that it never meets
//! or would show in another way.

#![expect(clippy::cast_sign_loss, reason = "negative constants are sign extended, as in registers")]

use super::names::{self, Names, names};

const OPEN: Names = names!(
    O_RDONLY O_WRONLY O_RDWR O_ACCMODE O_DSYNC O_RSYNC O_ASYNC O_TMPFILE O_NDELAY
);
const OTHER: Names = names!(
    AT_FDCWD AT_EACCESS F_OK PROT_NONE PROT_GROWSDOWN PROT_GROWSUP MAP_ANON MAP_FILE MAP_SHARED_VALIDATE MAP_SYNC
    MAP_EXECUTABLE MREMAP_DONTUNMAP FD_CLOEXEC LOCK_SH LOCK_EX LOCK_UN LOCK_NB F_RDLCK F_WRLCK F_UNLCK
    F_SEAL_SEAL F_SEAL_SHRINK F_SEAL_GROW F_SEAL_WRITE F_SEAL_FUTURE_WRITE
    MFD_CLOEXEC MFD_ALLOW_SEALING MFD_HUGETLB EFD_CLOEXEC EFD_NONBLOCK EFD_SEMAPHORE TFD_CLOEXEC TFD_NONBLOCK
    TIMER_ABSTIME EPOLL_CLOEXEC EPOLL_CTL_ADD EPOLL_CTL_DEL EPOLL_CTL_MOD IN_CLOEXEC IN_NONBLOCK
    AF_UNIX AF_INET AF_INET6 AF_NETLINK SOCK_STREAM SOCK_DGRAM SOCK_RAW SOCK_SEQPACKET SOCK_CLOEXEC SOCK_NONBLOCK
    SOL_SOCKET SO_TYPE SO_ERROR SO_DOMAIN SO_PROTOCOL SO_RCVBUF SO_SNDBUF SO_REUSEADDR SO_KEEPALIVE SO_BROADCAST
    SO_ACCEPTCONN SO_OOBINLINE SO_PRIORITY SHUT_RD SHUT_WR SHUT_RDWR MSG_DONTWAIT MSG_PEEK MSG_NOSIGNAL MSG_WAITALL
    PRIO_PROCESS PRIO_PGRP PRIO_USER SCHED_OTHER SCHED_FIFO SCHED_RR SCHED_BATCH SCHED_IDLE WNOHANG WUNTRACED
    WCONTINUED __WALL GRND_NONBLOCK RENAME_NOREPLACE RENAME_EXCHANGE FALLOC_FL_KEEP_SIZE FALLOC_FL_PUNCH_HOLE
    STATX_BASIC_STATS STATX_BTIME STATX_ALL CLOSE_RANGE_UNSHARE CLOSE_RANGE_CLOEXEC POSIX_FADV_NORMAL
    POSIX_FADV_RANDOM POSIX_FADV_SEQUENTIAL POSIX_FADV_WILLNEED POSIX_FADV_DONTNEED POSIX_FADV_NOREUSE
    ADDR_NO_RANDOMIZE READ_IMPLIES_EXEC TCFLSH TCSBRK
);
const PRCTL: Names = names!(
    linux_raw_sys::prctl;
    PR_SET_MM_START_CODE PR_SET_MM_END_CODE PR_SET_MM_START_DATA PR_SET_MM_END_DATA PR_SET_MM_START_STACK
    PR_SET_MM_START_BRK PR_SET_MM_BRK PR_SET_MM_ARG_START PR_SET_MM_ARG_END PR_SET_MM_ENV_START PR_SET_MM_ENV_END
    PR_SET_MM_AUXV PR_SET_MM_EXE_FILE PR_SET_MM_MAP PR_SET_MM_MAP_SIZE PR_SET_VMA_ANON_NAME PR_CAP_AMBIENT_IS_SET
    PR_CAP_AMBIENT_RAISE PR_CAP_AMBIENT_LOWER PR_CAP_AMBIENT_CLEAR_ALL PR_SPEC_STORE_BYPASS
    PR_SPEC_INDIRECT_BRANCH PR_SPEC_L1D_FLUSH PR_SPEC_ENABLE PR_SPEC_DISABLE PR_SPEC_FORCE_DISABLE
    PR_SCHED_CORE_GET PR_SCHED_CORE_CREATE PR_SCHED_CORE_SHARE_TO PR_SCHED_CORE_SHARE_FROM PR_TSC_ENABLE
    PR_TSC_SIGSEGV PR_MDWE_REFUSE_EXEC_GAIN PR_MDWE_NO_INHERIT
);

const ALL: &[Names] = &[
    names::PROTECTION,
    names::MAPPING,
    names::MREMAP,
    names::OPEN,
    names::ACCESS,
    names::AT,
    names::WHENCE,
    names::CLOCKS,
    names::FCNTL,
    names::IOCTL,
    names::MADVISE,
    names::SIGMASK,
    names::RESOURCES,
    names::PRCTL,
    names::USAGE,
    names::TIMERS,
    names::RANDOM,
    names::MLOCK,
    names::MSYNC,
    names::STACK,
    names::ACTION,
    names::SIGNALS,
    OPEN,
    OTHER,
    PRCTL,
];

/// The value of the constant with this name, as a register has it: negative ones are sign extended.
pub fn constant(name: &str) -> Option<u64> {
    ALL.iter().copied().flatten().find(|&&(_, candidate)| candidate == name).map(|&(value, _)| value)
}

/// The names of all constants that [`constant`] knows.
pub fn constant_names() -> impl Iterator<Item = &'static str> {
    ALL.iter().copied().flatten().map(|&(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_have_the_values_of_the_c_library() {
        assert_eq!(constant("O_CLOEXEC"), Some(libc::O_CLOEXEC.cast_unsigned().into()));
        assert_eq!(constant("AT_FDCWD"), Some(i64::from(libc::AT_FDCWD).cast_unsigned()));
        assert_eq!(constant("MADV_DONTNEED"), Some(libc::MADV_DONTNEED.cast_unsigned().into()));
        assert_eq!(constant("PR_SET_NAME"), Some(libc::PR_SET_NAME.cast_unsigned().into()));
        assert_eq!(constant("O_NOTHING"), None);
    }

    #[test]
    fn a_name_has_one_value() {
        for name in constant_names() {
            let values = ALL.iter().copied().flatten().filter(|&&(_, candidate)| candidate == name);
            assert!(values.map(|&(value, _)| value).all(|value| Some(value) == constant(name)), "{name}");
        }
    }
}
