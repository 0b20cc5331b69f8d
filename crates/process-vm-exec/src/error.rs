//! What can go wrong.

use std::time::Duration;

use rustix::io::Errno;

use crate::exit::Exit;
use crate::name::{Engine, UnknownEngine};
use crate::refusal::{AttachError, EngineError, ThreadError};

/// A result of this library.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call of this library failed. [`Error::errno`] gives the number that a system call would.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call of the host failed.
    #[error("{call}: {errno}{}", limit(*errno))]
    Host {
        /// What was called, and for what.
        call: &'static str,
        /// Its errno.
        errno: Errno,
    },
    /// A system call executed in the address space failed.
    #[error("{call} in the address space: {errno}{}", limit(*errno))]
    Space {
        /// Which one.
        call: &'static str,
        /// Its errno.
        errno: Errno,
    },
    /// An address range overlaps the executor's pages, which guests may not change.
    #[error("{addr:#x}+{len:#x} overlaps pages that the executor needs; choose another address")]
    Reserved {
        /// Start of the range asked for.
        addr: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// A region cannot begin there: see [`AddressSpaceBuilder::region`](crate::AddressSpaceBuilder::region).
    #[error(
        "no region of the executor's pages can begin at {start:#x}: choose a multiple of 4 GiB from 0x1_0000_0000 to \
         0x7fdf_0000_0000"
    )]
    Region {
        /// Where it was to begin.
        start: u64,
    },
    /// A context cannot be loaded into a processor.
    #[error("the context cannot run: {0}")]
    Context(&'static str),
    /// The engine asked for does not work on this machine.
    #[error("engine `{engine}` does not work here: {why}")]
    Engine {
        /// The engine.
        engine: Engine,
        /// What it lacks, and what to do about it.
        why: EngineError,
    },
    /// `PROCESS_VM_EXEC_ENGINE` names no engine.
    #[error("PROCESS_VM_EXEC_ENGINE: {0}")]
    UnknownEngine(#[from] UnknownEngine),
    /// A live process cannot be attached to; nothing of it has changed.
    #[error("cannot attach to process {pid}: {why}")]
    Attach {
        /// The process.
        pid: i32,
        /// What stands in the way, and what to do about it.
        why: AttachError,
        /// What a system call would say.
        errno: Errno,
    },
    /// What the caller has was not passed to a live process that has fewer rights: see
    /// [`LiveProcessBuilder::exposure`](crate::LiveProcessBuilder::exposure).
    #[error(
        "the caller's {what} is not passed to process {pid}, whose user (uid {uid}) could take it there; use the \
         process's own, or allow it (LiveProcessBuilder::exposure)"
    )]
    Exposed {
        /// What: a descriptor, or the working directory.
        what: &'static str,
        /// The process.
        pid: i32,
        /// Its user.
        uid: u32,
    },
    /// A call in a live process was not made, for what it does with the caller's descriptors.
    #[error("{call}: {why}")]
    Descriptor {
        /// The call.
        call: &'static str,
        /// What stands in the way, and what to do about it.
        why: DescriptorError,
    },
    /// A thread of a live process cannot be asked.
    #[error("cannot ask thread {tid}: {why}")]
    Thread {
        /// The thread.
        tid: i32,
        /// What stands in the way, and what to do about it.
        why: ThreadError,
        /// What a system call would say.
        errno: Errno,
    },
    /// A function called in a space did not return.
    #[error("the function at {addr:#x} did not return: {exit:?}")]
    Function {
        /// The function.
        addr: u64,
        /// What happened instead.
        exit: Box<Exit>,
    },
    /// A call took longer than the space's time limit, see [`AddressSpaceBuilder::time_limit`](crate::AddressSpaceBuilder::time_limit). Its
    /// process has been killed: the guest may have kept the answer back.
    #[error("the address space did not answer within {limit:?}, and has been killed")]
    TimedOut {
        /// The limit.
        limit: Duration,
    },
    /// The space's service task is confined to other calls.
    #[error(
        "{call} is not among the calls that an address space makes; create it with `AddressSpaceBuilder::service_calls(ServiceCalls::All)` \
         (in C: `PVX_ALL_CALLS`)"
    )]
    Confined {
        /// The call.
        call: &'static str,
    },
    /// The call would end the task that executes it, or make one that nobody looks after.
    #[error(
        "{call} would end the task that executes calls there, or make another that nobody looks after (`AddressSpace::fork` copies a created space)"
    )]
    EndOfTask {
        /// The call.
        call: &'static str,
    },
    /// The address space's task is gone.
    #[error("the address space is gone: its task died")]
    Dead,
    /// As many tasks or spaces as this library manages are alive already.
    #[error("too many {0}; drop some first")]
    TooMany(&'static str),
}

/// What to do where a limit of the process is the reason: of these errors no other is.
fn limit(errno: Errno) -> &'static str {
    match errno {
        Errno::MFILE => "; raise RLIMIT_NOFILE (`ulimit -n`)",
        Errno::FBIG => "; raise RLIMIT_FSIZE (`ulimit -f`)",
        _ => "",
    }
}

/// What a call may not do with the caller's descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DescriptorError {
    /// An argument is a descriptor, and its number was given.
    #[error("its argument {0} is a descriptor; pass it with `Call::fd`")]
    Number(usize),
    /// The call closes descriptors of the caller's by their numbers.
    #[error("it closes the caller's descriptors; say so with `Call::with_descriptor_numbers`")]
    Closes,
    /// A descriptor was passed where calls mean the target's.
    #[error("it means the target's descriptors; give the number of one")]
    Targets,
}

impl Error {
    pub(crate) fn host(call: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Host { call, errno }
    }

    /// The errno that says best what happened.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Host { errno, .. }
            | Self::Space { errno, .. }
            | Self::Attach { errno, .. }
            | Self::Thread { errno, .. } => *errno,
            Self::Function { .. } => Errno::FAULT,
            Self::Reserved { .. } | Self::Region { .. } | Self::Context(_) | Self::UnknownEngine(_) => {
                Errno::INVAL
            }
            Self::Engine { .. } => Errno::NOSYS,
            Self::TimedOut { .. } => Errno::TIMEDOUT,
            Self::Confined { .. } => Errno::PERM,
            Self::EndOfTask { .. } => Errno::OPNOTSUPP,
            Self::Exposed { .. } => Errno::ACCESS,
            Self::Descriptor { .. } => Errno::BADF,
            Self::Dead => Errno::SRCH,
            Self::TooMany(_) => Errno::AGAIN,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_names_no_engine_is_told_all_of_them() {
        let text = "native,rewrite".parse::<Engine>().unwrap_err().to_string();
        let told = text.split_once("use one of ").expect("what to do").1;
        for engine in Engine::ALL {
            assert!(told.split(", ").any(|name| name == engine.name()), "{text}");
        }
    }
}
