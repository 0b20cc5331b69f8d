//! Which arguments of a system call are descriptors, and which results: so that they can be the caller's in another
//! process.

use syscalls::Sysno;

/// The descriptors of one system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptors {
    /// Bit n for the n-th argument, counted from 0.
    pub(crate) arguments: u8,
    pub(crate) made: Made,
    pub(crate) executed: Executed,
}

/// Descriptors that a call makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    None,
    /// Its result is one.
    Result,
    /// Two, in the array of `int` that this argument points to.
    Pair(usize),
}

/// Where a call has to be executed to mean the caller's descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Executed {
    /// In the other space, with copies of the descriptors.
    There,
    /// By the caller itself: it is about the table of descriptors, and not about memory.
    Here,
    /// The same, and it closes descriptors by their numbers.
    HereByNumber,
}

/// The descriptor that an argument is: its lower half. Negative ones mean something else, such as `AT_FDCWD`.
pub(crate) fn number(argument: u64) -> Option<i32> {
    i32::try_from(argument & 0xffff_ffff).ok()
}

impl Descriptors {
    /// None.
    pub(crate) const NONE: Self = Self { arguments: 0, made: Made::None, executed: Executed::There };

    /// Those of `nr`, from the prototypes of the manual pages. Calls that take descriptors inside structures (sendmsg,
    /// ppoll, io_submit ...) have those of the executor there.
    pub(crate) fn of(nr: Sysno, args: &[u64; 6]) -> Self {
        use Sysno as S;
        let is_one_of =
            |commands: [i32; 2]| commands.map(|command| u64::from(command.unsigned_abs())).contains(&args[1]);
        let here = |arguments, made, executed| Self { arguments, made, executed };
        let (arguments, made) = match nr {
            S::close => return here(0b1, Made::None, Executed::HereByNumber),
            S::close_range | S::dup2 | S::dup3 => return here(0b11, Made::None, Executed::HereByNumber),
            S::dup => return here(0b1, Made::Result, Executed::Here),
            S::fcntl if is_one_of([libc::F_DUPFD, libc::F_DUPFD_CLOEXEC]) => {
                return here(0b1, Made::Result, Executed::Here);
            }
            S::fcntl if is_one_of([libc::F_GETFD, libc::F_SETFD]) => {
                return here(0b1, Made::None, Executed::Here);
            }
            S::read
            | S::write
            | S::pread64
            | S::pwrite64
            | S::readv
            | S::writev
            | S::preadv
            | S::pwritev
            | S::preadv2
            | S::pwritev2
            | S::fstat
            | S::lseek
            | S::ioctl
            | S::fsync
            | S::fdatasync
            | S::ftruncate
            | S::getdents
            | S::getdents64
            | S::fchdir
            | S::fchmod
            | S::fchown
            | S::fstatfs
            | S::flock
            | S::fallocate
            | S::fadvise64
            | S::readahead
            | S::sync_file_range
            | S::syncfs
            | S::vmsplice
            | S::connect
            | S::bind
            | S::listen
            | S::shutdown
            | S::getsockname
            | S::getpeername
            | S::setsockopt
            | S::getsockopt
            | S::sendto
            | S::recvfrom
            | S::sendmsg
            | S::recvmsg
            | S::sendmmsg
            | S::recvmmsg
            | S::epoll_wait
            | S::epoll_pwait
            | S::epoll_pwait2
            | S::fgetxattr
            | S::fsetxattr
            | S::flistxattr
            | S::fremovexattr
            | S::inotify_add_watch
            | S::inotify_rm_watch
            | S::timerfd_settime
            | S::timerfd_gettime
            | S::mkdirat
            | S::mknodat
            | S::fchownat
            | S::futimesat
            | S::newfstatat
            | S::unlinkat
            | S::readlinkat
            | S::fchmodat
            | S::fchmodat2
            | S::faccessat
            | S::faccessat2
            | S::utimensat
            | S::statx
            | S::setxattrat
            | S::getxattrat
            | S::listxattrat
            | S::removexattrat
            | S::cachestat
            | S::landlock_add_rule
            | S::landlock_restrict_self
            | S::name_to_handle_at
            | S::pidfd_send_signal
            | S::setns
            | S::process_madvise
            | S::process_mrelease
            | S::io_uring_enter
            | S::io_uring_register
            | S::finit_module
            | S::mq_timedsend
            | S::mq_timedreceive
            | S::mq_notify
            | S::mq_getsetattr
            | S::quotactl_fd
            | S::fsconfig
            | S::mount_setattr => (0b1, Made::None),
            S::openat
            | S::openat2
            | S::accept
            | S::accept4
            | S::open_by_handle_at
            | S::open_tree
            | S::fsmount
            | S::fspick
            | S::pidfd_getfd => (0b1, Made::Result),
            S::fcntl => (0b1, Made::None),
            S::signalfd | S::signalfd4 if number(args[0]).is_some() => (0b1, Made::None),
            S::open
            | S::creat
            | S::socket
            | S::epoll_create
            | S::epoll_create1
            | S::eventfd
            | S::eventfd2
            | S::timerfd_create
            | S::inotify_init
            | S::inotify_init1
            | S::memfd_create
            | S::memfd_secret
            | S::userfaultfd
            | S::perf_event_open
            | S::fanotify_init
            | S::pidfd_open
            | S::fsopen
            | S::signalfd
            | S::signalfd4
            | S::io_uring_setup
            | S::mq_open
            | S::landlock_create_ruleset => (0, Made::Result),
            S::pipe | S::pipe2 => (0, Made::Pair(0)),
            S::socketpair => (0, Made::Pair(3)),
            S::mmap if args[3] & libc::MAP_ANONYMOUS as u64 == 0 => (0b1_0000, Made::None),
            S::sendfile | S::tee => (0b11, Made::None),
            S::splice | S::copy_file_range => (0b101, Made::None),
            S::renameat | S::renameat2 | S::linkat | S::move_mount => (0b101, Made::None),
            S::symlinkat => (0b10, Made::None),
            S::fanotify_mark => (0b1001, Made::None),
            S::epoll_ctl => (0b101, Made::None),
            S::kexec_file_load => (0b11, Made::None),
            _ => (0, Made::None),
        };
        Self { arguments, made, executed: Executed::There }
    }

    /// Which of these arguments are descriptors.
    pub(crate) fn among(self, args: [u64; 6]) -> impl Iterator<Item = usize> + use<> {
        (0..args.len()).filter(move |&n| self.arguments >> n & 1 != 0 && number(args[n]).is_some())
    }
}
