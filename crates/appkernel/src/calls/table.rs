//! The arguments of each system call.

use syscalls::Sysno;

use super::{
    names::{self, Names},
    records::{self, Record},
};

/// What an argument is: how it is shown, and what may be given for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A C `int`, among them descriptors.
    Int,
    /// A C `long`.
    Long,
    /// A `size_t`.
    Size,
    /// An address, or anything else in hexadecimal.
    Hex,
    /// An offset, in hexadecimal.
    Offset,
    /// Permissions.
    Octal,
    /// A descriptor that may be `AT_FDCWD`.
    Dir,
    /// A path.
    Path,
    /// Bytes that the guest passes in; the next argument is how many.
    Text,
    /// Bytes that the guest gets; the next argument is how many fit, the result is how many there are.
    Data,
    /// Two integers that the guest gets.
    OutInts,
    /// A record that the guest gets.
    Out(&'static Record),
    /// Where the length of the buffer before it stands, and then that of what is in it.
    Length,
    /// The size of a set of signals as the kernel has them: 8.
    SigsetSize,
    /// A list of strings.
    Strings,
    /// A list of the environment's variables.
    Environment,
    /// A `struct timespec` that the guest passes in.
    Time,
    /// A signal's number.
    Signal,
    /// Flags, any of these.
    Bits(Names),
    /// One of these.
    One(Names),
    /// The flags of open(2).
    OpenFlags,
}

use Kind::{
    Bits, Data, Dir, Environment, Hex, Int, Length, Long, Octal, Offset, One, OpenFlags, Out, OutInts, Path,
    Signal, SigsetSize, Size, Strings, Text, Time,
};

/// The arguments of `call`; `None` for calls that are not in the table.
pub fn kinds(call: Sysno) -> Option<&'static [Kind]> {
    const AT: Kind = Bits(names::AT);
    Some(match call {
        Sysno::read => &[Int, Data, Size],
        Sysno::write => &[Int, Text, Size],
        Sysno::pread64 => &[Int, Data, Size, Long],
        Sysno::pwrite64 => &[Int, Text, Size, Long],
        Sysno::readv | Sysno::writev => &[Int, Hex, Size],
        Sysno::preadv | Sysno::pwritev => &[Int, Hex, Size, Long],
        Sysno::lseek => &[Int, Long, One(names::WHENCE)],
        Sysno::getdents64 => &[Int, Data, Size],
        Sysno::fsync | Sysno::fdatasync | Sysno::close | Sysno::dup | Sysno::fchdir | Sysno::syncfs => &[Int],
        Sysno::ftruncate => &[Int, Long],
        Sysno::fallocate => &[Int, Hex, Long, Long],
        Sysno::fadvise64 => &[Int, Long, Long, Int],
        Sysno::sendfile => &[Int, Int, Hex, Size],
        Sysno::copy_file_range => &[Int, Hex, Int, Hex, Size, Hex],
        Sysno::open => &[Path, OpenFlags, Octal],
        Sysno::openat => &[Dir, Path, OpenFlags, Octal],
        Sysno::creat | Sysno::mkdir | Sysno::chmod => &[Path, Octal],
        Sysno::mkdirat | Sysno::fchmodat => &[Dir, Path, Octal],
        Sysno::fchmod => &[Int, Octal],
        Sysno::close_range => &[Int, Int, Hex],
        Sysno::dup2 => &[Int, Int],
        Sysno::dup3 => &[Int, Int, OpenFlags],
        Sysno::pipe => &[OutInts],
        Sysno::pipe2 => &[OutInts, OpenFlags],
        Sysno::eventfd2 => &[Int, Hex],
        Sysno::memfd_create => &[Path, Hex],
        Sysno::chdir | Sysno::unlink | Sysno::rmdir => &[Path],
        Sysno::getcwd => &[Data, Size],
        Sysno::umask => &[Octal],
        Sysno::fcntl => &[Int, One(names::FCNTL), Hex],
        Sysno::flock => &[Int, Hex],
        Sysno::ioctl => &[Int, One(names::IOCTL), Hex],
        Sysno::poll => &[Hex, Size, Int],
        Sysno::ppoll => &[Hex, Size, Time, Hex, Size],
        Sysno::select => &[Int, Hex, Hex, Hex, Hex],
        Sysno::pselect6 => &[Int, Hex, Hex, Hex, Time, Hex],
        Sysno::epoll_create1 => &[Hex],
        Sysno::epoll_ctl => &[Int, Int, Int, Hex],
        Sysno::epoll_wait => &[Int, Hex, Int, Int],
        Sysno::stat | Sysno::lstat => &[Path, Out(records::STAT)],
        Sysno::statfs => &[Path, Out(records::STATFS)],
        Sysno::fstat => &[Int, Out(records::STAT)],
        Sysno::fstatfs => &[Int, Out(records::STATFS)],
        Sysno::newfstatat => &[Dir, Path, Out(records::STAT), AT],
        Sysno::statx => &[Dir, Path, AT, Hex, Out(records::STATX)],
        Sysno::access => &[Path, Bits(names::ACCESS)],
        Sysno::faccessat => &[Dir, Path, Bits(names::ACCESS)],
        Sysno::faccessat2 => &[Dir, Path, Bits(names::ACCESS), AT],
        Sysno::readlink => &[Path, Data, Size],
        Sysno::readlinkat => &[Dir, Path, Data, Size],
        Sysno::unlinkat => &[Dir, Path, AT],
        Sysno::rename | Sysno::link | Sysno::symlink => &[Path, Path],
        Sysno::renameat => &[Dir, Path, Dir, Path],
        Sysno::renameat2 => &[Dir, Path, Dir, Path, Hex],
        Sysno::linkat => &[Dir, Path, Dir, Path, AT],
        Sysno::symlinkat => &[Path, Dir, Path],
        Sysno::chown | Sysno::lchown => &[Path, Int, Int],
        Sysno::fchown => &[Int, Int, Int],
        Sysno::fchownat => &[Dir, Path, Int, Int, AT],
        Sysno::truncate => &[Path, Long],
        Sysno::utimensat => &[Dir, Path, Hex, AT],
        Sysno::getxattr | Sysno::lgetxattr => &[Path, Path, Data, Size],
        Sysno::fgetxattr => &[Int, Path, Data, Size],
        Sysno::setxattr | Sysno::lsetxattr => &[Path, Path, Text, Size, Hex],
        Sysno::fsetxattr => &[Int, Path, Text, Size, Hex],
        Sysno::flistxattr => &[Int, Data, Size],
        Sysno::removexattr | Sysno::lremovexattr => &[Path, Path],
        Sysno::listxattr | Sysno::llistxattr => &[Path, Data, Size],
        Sysno::socket => &[Int, Hex, Int],
        Sysno::socketpair => &[Int, Hex, Int, OutInts],
        Sysno::connect | Sysno::bind => &[Int, Hex, Int],
        Sysno::listen | Sysno::shutdown => &[Int, Int],
        Sysno::accept | Sysno::getsockname | Sysno::getpeername => &[Int, Out(records::SOCKADDR), Length],
        Sysno::sendto => &[Int, Text, Size, Hex, Hex, Int],
        Sysno::recvfrom => &[Int, Data, Size, Hex, Hex, Hex],
        Sysno::sendmsg | Sysno::recvmsg => &[Int, Hex, Hex],
        Sysno::setsockopt => &[Int, Int, Int, Hex, Hex],
        Sysno::getsockopt => &[Int, Int, Int, Out(records::OPTION), Length],
        Sysno::brk => &[Hex],
        Sysno::mmap => &[Hex, Size, Bits(names::PROTECTION), Bits(names::MAPPING), Int, Offset],
        Sysno::munmap | Sysno::mlock | Sysno::munlock => &[Hex, Size],
        Sysno::mprotect => &[Hex, Size, Bits(names::PROTECTION)],
        Sysno::mremap => &[Hex, Size, Size, Bits(names::MREMAP), Hex],
        Sysno::madvise => &[Hex, Size, One(names::MADVISE)],
        Sysno::mincore => &[Hex, Size, Hex],
        Sysno::msync => &[Hex, Size, Bits(names::MSYNC)],
        Sysno::mlockall => &[Bits(names::MLOCK)],
        Sysno::munlockall => &[],
        Sysno::mseal => &[Hex, Size, Hex],
        Sysno::pkey_mprotect => &[Hex, Size, Bits(names::PROTECTION), Int],
        Sysno::process_madvise => &[Int, Hex, Size, One(names::MADVISE), Hex],
        Sysno::exit | Sysno::exit_group | Sysno::getpgid | Sysno::getsid | Sysno::setuid | Sysno::setgid => {
            &[Int]
        }
        Sysno::execve => &[Path, Strings, Environment],
        Sysno::execveat => &[Dir, Path, Strings, Environment, AT],
        Sysno::wait4 => &[Int, Out(records::STATUS), Hex, Out(records::RUSAGE)],
        Sysno::getpid
        | Sysno::gettid
        | Sysno::getppid
        | Sysno::getpgrp
        | Sysno::setsid
        | Sysno::getuid
        | Sysno::geteuid
        | Sysno::getgid
        | Sysno::getegid
        | Sysno::sched_yield
        | Sysno::pause
        | Sysno::sync
        | Sysno::fork
        | Sysno::vfork
        | Sysno::inotify_init
        | Sysno::vhangup
        | Sysno::rt_sigreturn => &[],
        Sysno::setpgid => &[Int, Int],
        Sysno::getgroups => &[Int, Hex],
        Sysno::prctl => &[One(names::PRCTL), Hex, Hex, Hex, Hex],
        Sysno::arch_prctl => &[Hex, Hex],
        Sysno::set_tid_address => &[Hex],
        Sysno::uname => &[Out(records::UTSNAME)],
        Sysno::sysinfo => &[Out(records::SYSINFO)],
        Sysno::times => &[Out(records::TMS)],
        Sysno::time => &[Out(records::LONG)],
        Sysno::getresuid | Sysno::getresgid => &[Out(records::UINT), Out(records::UINT), Out(records::UINT)],
        Sysno::getcpu => &[Out(records::UINT), Out(records::UINT)],
        Sysno::personality => &[Hex],
        Sysno::getpriority => &[Int, Int],
        Sysno::setpriority => &[Int, Int, Int],
        Sysno::sched_getscheduler | Sysno::sched_get_priority_max | Sysno::sched_get_priority_min => &[Int],
        Sysno::pidfd_open => &[Int, Hex],
        Sysno::pidfd_getfd => &[Int, Int, Hex],
        Sysno::get_robust_list => &[Int, Out(records::ULONG), Out(records::ULONG)],
        Sysno::set_robust_list => &[Hex, Size],
        Sysno::rseq => &[Hex, Size, Hex, Hex],
        Sysno::futex => &[Hex, Hex, Int, Hex, Hex, Hex],
        Sysno::getrandom => &[Data, Size, Bits(names::RANDOM)],
        Sysno::getrlimit => &[One(names::RESOURCES), Out(records::RLIMIT)],
        Sysno::setrlimit => &[One(names::RESOURCES), Hex],
        Sysno::prlimit64 => &[Int, One(names::RESOURCES), Hex, Out(records::RLIMIT)],
        Sysno::getrusage => &[One(names::USAGE), Out(records::RUSAGE)],
        Sysno::sched_getaffinity => &[Int, Size, Out(records::CPUS)],
        Sysno::sched_setaffinity => &[Int, Size, Hex],
        Sysno::clock_gettime | Sysno::clock_getres => &[One(names::CLOCKS), Out(records::TIMESPEC)],
        Sysno::gettimeofday => &[Out(records::TIMEVAL), Hex],
        Sysno::nanosleep => &[Time, Hex],
        Sysno::clock_nanosleep => &[One(names::CLOCKS), Hex, Time, Hex],
        Sysno::alarm => &[Int],
        Sysno::getitimer => &[One(names::TIMERS), Out(records::ITIMERVAL)],
        Sysno::setitimer => &[One(names::TIMERS), Hex, Out(records::ITIMERVAL)],
        Sysno::timerfd_gettime => &[Int, Out(records::ITIMERSPEC)],
        Sysno::timerfd_create => &[One(names::CLOCKS), Hex],
        Sysno::rt_sigaction => &[Signal, Hex, Out(records::SIGACTION), SigsetSize],
        Sysno::rt_sigprocmask => &[One(names::SIGMASK), Hex, Out(records::SIGSET), SigsetSize],
        Sysno::rt_sigpending => &[Out(records::SIGSET), SigsetSize],
        Sysno::sigaltstack => &[Hex, Out(records::STACK)],
        Sysno::kill | Sysno::tkill => &[Int, Signal],
        Sysno::tgkill => &[Int, Int, Signal],
        _ => return None,
    })
}

/// Whether what `call` returns is an address, to be shown in hexadecimal.
pub const fn returns_address(call: Sysno) -> bool {
    matches!(call, Sysno::mmap | Sysno::brk | Sysno::mremap | Sysno::shmat | Sysno::rt_sigreturn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_six_arguments_at_most() {
        assert!(Sysno::iter().filter_map(kinds).all(|kinds| kinds.len() <= 6));
    }

    #[test]
    fn bytes_come_with_their_size_and_lengths_with_their_buffer() {
        for call in Sysno::iter() {
            let kinds = kinds(call).unwrap_or_default();
            for (index, kind) in kinds.iter().enumerate() {
                match kind {
                    Text | Data => assert_eq!(kinds.get(index + 1), Some(&Size), "{call}"),
                    Length => assert!(matches!(kinds[index - 1], Out(_)), "{call}"),
                    _ => {}
                }
            }
        }
    }
}
