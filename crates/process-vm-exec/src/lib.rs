#![doc = include_str!("../README.md")]

pub use rustix::io::Errno;
pub use syscalls::Sysno;

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("process-vm-exec is for Linux on x86-64");

mod arch;
mod attach;
mod call;
mod context;
mod descriptors;
mod detection;
mod engine;
mod error;
mod executor;
mod exit;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod maps;
mod memory;
mod name;
mod procfs;
mod ptrace;
mod refusal;
mod registry;
pub mod rewriting;
mod signal;
mod space;
mod stat;
mod sync;

pub use crate::arch::x86_64::Registers;
pub use crate::arch::x86_64::xstate::size as xstate_size;
pub use crate::attach::owners::{Exposure, Owner};
pub use crate::attach::thread::{Rseq, ThreadState};
pub use crate::call::{Call, Returned};
pub use crate::context::{Calls, Context, Interrupter};
pub use crate::detection::Detection;
pub use crate::error::{DescriptorError, Error, Result};
pub use crate::executor::filter::ServiceCalls;
pub use crate::executor::region::DEFAULT_REGION;
pub use crate::exit::{Access, Arch, Exit, Fault, Syscall, WaitStatus};
pub use crate::memory::{Mapping, Protection};
pub use crate::name::{Engine, UnknownEngine};
pub use crate::refusal::{AttachError, Capability, EngineError, NotPermitted, ThreadError};
pub use crate::registry::RegisteredFile;
pub use crate::signal::{SigInfo, SignalSet};
pub use crate::space::{
    AddressSpace, AddressSpaceBuilder, LiveProcess, LiveProcessBuilder, Rewriting, Scratch, Space, Tls,
};
pub use rustix::process::Pid;

/// The examples of the repository's documents: they compile.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
#[doc = include_str!("../../../docs/live-processes.md")]
struct Documents;
