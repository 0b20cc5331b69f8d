//! Why something cannot be done, and what to do about it: an engine used, a live process attached to, a thread of it asked.

/// What an [`Engine`](crate::Engine) lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// Instructions that read and write segment bases.
    #[error("processor or kernel lacks FSGSBASE (Ivy Bridge or Zen, Linux 5.9)")]
    Fsgsbase,
    /// Room for the processor's extended state.
    #[error("the processor's extended state is larger than a mailbox")]
    LargeState,
    /// A way to be told of the guest's system calls.
    #[error("the kernel has neither Syscall User Dispatch (Linux 5.11) nor seccomp filters")]
    Dispatch,
    /// Instructions that move bits without touching a flag.
    #[error("the processor lacks BMI2 (Haswell or Zen)")]
    Bmi2,
    /// The system call.
    #[error("this kernel has no process_vm_exec(2); `cargo xtask kernel build` makes one that has")]
    NoSystemCall,
    /// Call sites that lead to its stubs, as plans have them.
    #[error("it has no use for plans of call sites; choose `rewrite`, or another `Rewriting` than `Planned`")]
    Plans,
    /// A live process that is under seccomp: contexts cannot run there.
    #[error("the target has a seccomp filter, which would judge the executor; only calls can be made there")]
    Seccomp,
}

/// A capability (capabilities(7)) that would help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Capability {
    /// To trace what others may not.
    SysPtrace,
    /// To set seccomp aside, and to look at filters.
    SysAdmin,
}

impl Capability {
    /// Its number.
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::SysPtrace => 19,
            Self::SysAdmin => 21,
        }
    }

    /// What to do without it.
    fn is_needed(self) -> String {
        format!("run with {self}, which root has unless it was taken away")
    }
}

impl std::fmt::Display for Capability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::SysPtrace => "CAP_SYS_PTRACE",
            Self::SysAdmin => "CAP_SYS_ADMIN",
        })
    }
}

/// Why a live process cannot be attached to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// Nothing has this number.
    #[error("there is no such process")]
    NoProcess,
    /// It ended meanwhile.
    #[error("it has just ended")]
    Ended,
    /// Whichever thread was chosen ended meanwhile.
    #[error("its threads end before one can be stopped; try again")]
    ThreadsEnd,
    /// It has ended, and its parent has not waited for it.
    #[error("it has ended already (a zombie)")]
    Zombie,
    /// A pidfd has no number here.
    #[error("it has ended, or is in a pid namespace that is not below this one")]
    NoNumber,
    /// The caller is in no need of that.
    #[error("it is the calling process itself")]
    Itself,
    /// The number of a thread was given.
    #[error("it is a thread, not a process; give the process (Tgid in /proc/PID/status)")]
    Thread,
    /// It has no memory of its own.
    #[error("it is a kernel thread, or is just ending: it has no memory")]
    NoMemory,
    /// A process can have one tracer.
    #[error("process {tracer} ({name}) traces it; that has to detach first")]
    Traced {
        /// Who.
        tracer: u64,
        /// The tracer's name, as far as it is known.
        name: String,
    },
    /// The caller may not trace it.
    #[error(transparent)]
    NotPermitted(#[from] NotPermitted),
    /// Seccomp judges its calls, and the caller may not set that aside.
    #[error("seccomp judges its calls; to set that aside, {}", Capability::SysAdmin.is_needed())]
    Seccomp,
    /// Seccomp judges its calls, and nobody can set that aside.
    #[error("seccomp judges its calls, and this kernel cannot set that aside (CONFIG_CHECKPOINT_RESTORE)")]
    SeccompStays,
    /// Its status cannot be read.
    #[error("/proc/PID/status cannot be read")]
    Status,
    /// Its memory cannot be written.
    #[error("its memory cannot be written (/proc/PID/mem)")]
    Memory,
    /// It holds back a page that has to be read, by userfaultfd(2) or a file system of its own.
    #[error("it keeps this process from reading its memory")]
    Withheld,
    /// Another supervisor is attached.
    #[error(
        "another supervisor is attached to it, whose executor is process {executor}; wait until that has detached or ended"
    )]
    Attached {
        /// That one's executor.
        executor: i32,
    },
    /// A supervisor that was killed has left a thread in the middle of something.
    #[error("a thread of it is still busy with calls of a supervisor that has ended")]
    Busy,
    /// There is no free region.
    #[error("its address space has no room for the executor's pages")]
    NoRegion,
    /// The region that was asked for is not free.
    #[error(
        "the program uses addresses of the region from {start:#x} to {end:#x}: it has {what}; choose another region, or none"
    )]
    Region {
        /// Where the region begins.
        start: u64,
        /// Where it ends.
        end: u64,
        /// What is there, and where.
        what: String,
    },
    /// No place for the instructions that make the executor.
    #[error("no text of it ends with {0} unused bytes")]
    NoPlace(u64),
    /// A thread of it had to be stopped.
    #[error("its thread does not stop: it is in an uninterruptible sleep; try again later")]
    DoesNotStop,
    /// The instructions are 64-bit ones.
    #[error("it runs 32-bit code, which cannot be helped here")]
    Code32,
    /// The executor would be one more. The kernel says the same while a thread executes another program.
    #[error(
        "it may have no more tasks (RLIMIT_NPROC, or pids.max of its control group); try again if it was in execve(2)"
    )]
    TooManyTasks,
    /// The executor could not be made, for another reason.
    #[error("a task could not be made in it")]
    NoTask,
}

/// Why a process may not be traced (ptrace(2), "Ptrace access mode checking").
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotPermitted {
    /// It has a tracer.
    #[error("somebody traces it")]
    Traced,
    /// Yama forbids it to everybody.
    #[error("the sysctl kernel.yama.ptrace_scope is 3: nobody may trace anything until the next boot")]
    Nobody,
    /// Yama allows it to who has the capability.
    #[error("the sysctl kernel.yama.ptrace_scope is 2; {}", Capability::SysPtrace.is_needed())]
    Restricted,
    /// Yama allows it to ancestors.
    #[error("the sysctl kernel.yama.ptrace_scope is 1: only descendants may be traced; {}, or set it to 0", Capability::SysPtrace.is_needed())]
    Descendants,
    /// The caller has the capability.
    #[error(
        "the kernel refuses, although this process has {}: it belongs to a user namespace where that does not count, or a \
         security module protects it",
        Capability::SysPtrace
    )]
    Protected,
    /// It belongs to another user.
    #[error("it belongs to uid {theirs}, you are uid {ours}; become that user, or {}", Capability::SysPtrace.is_needed())]
    User {
        /// Its user.
        theirs: u32,
        /// The caller's.
        ours: u32,
    },
    /// It has more rights.
    #[error("it has capabilities that this process lacks; {}", Capability::SysPtrace.is_needed())]
    Capabilities,
    /// It is protected, as after a change of its credentials (prctl(2), `PR_SET_DUMPABLE`).
    #[error("it is not dumpable, or in another user namespace; {}", Capability::SysPtrace.is_needed())]
    Undumpable,
    /// The kernel does not say why.
    #[error("the kernel refuses")]
    Unknown,
}

/// Why a thread of a live process cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ThreadError {
    /// It is not there.
    #[error("it is no thread of the process, or has ended")]
    NoThread,
    /// It ended meanwhile.
    #[error("it has just ended")]
    Ended,
    /// It is the kernel's.
    #[error("it is a thread of the kernel's in the process, as io_uring(7) has them, and makes no calls")]
    Kernels,
    /// The caller may not trace it.
    #[error(transparent)]
    NotPermitted(#[from] NotPermitted),
    /// It has executed another program.
    #[error("it has other memory now")]
    OtherMemory,
    /// One thread at a time makes calls.
    #[error("a thread of the process is still busy with earlier calls")]
    Busy,
    /// It had to be stopped.
    #[error("it does not stop: it is in an uninterruptible sleep, as in a vfork(2); try again later")]
    DoesNotStop,
    /// The instructions that it would execute are 64-bit ones.
    #[error("it runs 32-bit code, which cannot be helped here")]
    Code32,
    /// It is still about its calls.
    #[error("its calls took too long and were given up")]
    TooLong,
    /// A request of ptrace(2) failed.
    #[error("it could not be traced")]
    NotTraced,
    /// Its calls would come to itself (prctl(2), `PR_SET_SYSCALL_USER_DISPATCH`).
    #[error("it dispatches its system calls to itself")]
    Dispatches,
    /// A filter judges its calls, and only who has the capability may look at that.
    #[error("a seccomp filter judges its calls; {}", Capability::SysAdmin.is_needed())]
    Seccomp,
    /// Its filter cannot be looked at, for another reason.
    #[error("its seccomp filter cannot be looked at")]
    UnknownFilter,
    /// It has nothing left but read(2), write(2), exit(2) and sigreturn(2).
    #[error("it is under strict seccomp, and may make no calls")]
    StrictSeccomp,
    /// Its filter would not let a call pass.
    #[error("its seccomp filter does not allow it to call {0}")]
    Forbidden(&'static str),
    /// It would not be as before.
    #[error("{0} is not for a thread that is to go on as before")]
    Unsuitable(&'static str),
    /// They have to be in one page.
    #[error("these are more calls than it can make at once")]
    TooManyCalls,
}
