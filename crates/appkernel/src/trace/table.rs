//! The arguments of each system call.

use syscalls::Sysno;

use super::flags::{self, Names};

/// How an argument is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
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
    /// Bytes that the guest gets; the result is how many.
    Data,
    /// Two integers that the guest gets.
    OutInts,
    /// A list of strings.
    Strings,
    /// A `struct timespec` that the guest passes in.
    Time,
    Signal,
    /// Flags, any of these.
    Bits(Names),
    /// One of these.
    One(Names),
    /// The flags of open(2).
    OpenFlags,
}

use Kind::{
    Bits, Data, Dir, Hex, Int, Long, Octal, Offset, One, OpenFlags, OutInts, Path, Signal, Size, Strings,
    Text, Time,
};

/// The arguments of `call`; `None` for calls that are not in the table.
pub(super) fn kinds(call: Sysno) -> Option<&'static [Kind]> {
    const AT: Kind = Bits(flags::AT);
    Some(match call {
        Sysno::read => &[Int, Data, Size],
        Sysno::write => &[Int, Text, Size],
        Sysno::pread64 => &[Int, Data, Size, Long],
        Sysno::pwrite64 => &[Int, Text, Size, Long],
        Sysno::readv | Sysno::writev => &[Int, Hex, Size],
        Sysno::preadv | Sysno::pwritev => &[Int, Hex, Size, Long],
        Sysno::lseek => &[Int, Long, One(flags::WHENCE)],
        Sysno::getdents64 => &[Int, Hex, Size],
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
        Sysno::fcntl => &[Int, One(flags::FCNTL), Hex],
        Sysno::flock => &[Int, Hex],
        Sysno::ioctl => &[Int, One(flags::IOCTL), Hex],
        Sysno::poll => &[Hex, Size, Int],
        Sysno::ppoll => &[Hex, Size, Time, Hex, Size],
        Sysno::select => &[Int, Hex, Hex, Hex, Hex],
        Sysno::pselect6 => &[Int, Hex, Hex, Hex, Time, Hex],
        Sysno::epoll_create1 => &[Hex],
        Sysno::epoll_ctl => &[Int, Int, Int, Hex],
        Sysno::epoll_wait => &[Int, Hex, Int, Int],
        Sysno::stat | Sysno::lstat | Sysno::statfs => &[Path, Hex],
        Sysno::fstat | Sysno::fstatfs => &[Int, Hex],
        Sysno::newfstatat => &[Dir, Path, Hex, AT],
        Sysno::statx => &[Dir, Path, AT, Hex, Hex],
        Sysno::access => &[Path, Bits(flags::ACCESS)],
        Sysno::faccessat => &[Dir, Path, Bits(flags::ACCESS)],
        Sysno::faccessat2 => &[Dir, Path, Bits(flags::ACCESS), AT],
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
        Sysno::getxattr | Sysno::lgetxattr => &[Path, Path, Hex, Size],
        Sysno::listxattr | Sysno::llistxattr => &[Path, Hex, Size],
        Sysno::socket => &[Int, Hex, Int],
        Sysno::socketpair => &[Int, Hex, Int, OutInts],
        Sysno::connect | Sysno::bind => &[Int, Hex, Int],
        Sysno::listen | Sysno::shutdown => &[Int, Int],
        Sysno::accept | Sysno::getsockname | Sysno::getpeername => &[Int, Hex, Hex],
        Sysno::sendto => &[Int, Text, Size, Hex, Hex, Int],
        Sysno::recvfrom => &[Int, Data, Size, Hex, Hex, Hex],
        Sysno::sendmsg | Sysno::recvmsg => &[Int, Hex, Hex],
        Sysno::setsockopt | Sysno::getsockopt => &[Int, Int, Int, Hex, Hex],
        Sysno::brk => &[Hex],
        Sysno::mmap => &[Hex, Size, Bits(flags::PROTECTION), Bits(flags::MAPPING), Int, Offset],
        Sysno::munmap | Sysno::mlock | Sysno::munlock => &[Hex, Size],
        Sysno::mprotect => &[Hex, Size, Bits(flags::PROTECTION)],
        Sysno::mremap => &[Hex, Size, Size, Bits(flags::MREMAP), Hex],
        Sysno::madvise => &[Hex, Size, One(flags::MADVISE)],
        Sysno::mincore => &[Hex, Size, Hex],
        Sysno::msync => &[Hex, Size, Hex],
        Sysno::exit | Sysno::exit_group | Sysno::getpgid | Sysno::getsid | Sysno::setuid | Sysno::setgid => {
            &[Int]
        }
        Sysno::execve => &[Path, Strings, Hex],
        Sysno::wait4 => &[Int, Hex, Hex, Hex],
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
        | Sysno::rt_sigreturn => &[],
        Sysno::setpgid => &[Int, Int],
        Sysno::getgroups => &[Int, Hex],
        Sysno::prctl => &[Int, Hex, Hex, Hex, Hex],
        Sysno::arch_prctl => &[Hex, Hex],
        Sysno::set_tid_address | Sysno::uname | Sysno::sysinfo | Sysno::times | Sysno::time => &[Hex],
        Sysno::set_robust_list => &[Hex, Size],
        Sysno::rseq => &[Hex, Size, Hex, Hex],
        Sysno::futex => &[Hex, Hex, Int, Hex, Hex, Hex],
        Sysno::getrandom => &[Hex, Size, Hex],
        Sysno::getrlimit | Sysno::setrlimit => &[One(flags::RESOURCES), Hex],
        Sysno::prlimit64 => &[Int, One(flags::RESOURCES), Hex, Hex],
        Sysno::getrusage => &[Int, Hex],
        Sysno::sched_getaffinity | Sysno::sched_setaffinity => &[Int, Size, Hex],
        Sysno::clock_gettime | Sysno::clock_getres => &[One(flags::CLOCKS), Hex],
        Sysno::gettimeofday => &[Hex, Hex],
        Sysno::nanosleep => &[Time, Hex],
        Sysno::clock_nanosleep => &[One(flags::CLOCKS), Hex, Time, Hex],
        Sysno::alarm => &[Int],
        Sysno::setitimer => &[Int, Hex, Hex],
        Sysno::rt_sigaction => &[Signal, Hex, Hex, Size],
        Sysno::rt_sigprocmask => &[One(flags::SIGMASK), Hex, Hex, Size],
        Sysno::sigaltstack => &[Hex, Hex],
        Sysno::kill | Sysno::tkill => &[Int, Signal],
        Sysno::tgkill => &[Int, Int, Signal],
        _ => return None,
    })
}
