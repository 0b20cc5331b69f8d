#![doc = include_str!("../README.md")]

pub use rustix::io::Errno;
pub use syscalls::Sysno;

mod arch;
mod attach;
mod builder;
mod context;
mod engine;
mod error;
mod executor;
mod exit;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod maps;
mod memory;
mod procfs;
mod ptrace;
mod scratch;
mod signal;
mod space;
mod sync;

pub use crate::arch::x86_64::Registers;
pub use crate::arch::x86_64::xstate::size as xstate_size;
pub use crate::attach::thread::{Rseq, ThreadState};
pub use crate::attach::{Exposure, Owner, Tls};
pub use crate::builder::{Builder, Rewriting, ServiceCalls};
pub use crate::context::{Calls, Context, Interrupter};
pub use crate::engine::{Detection, Engine};
pub use crate::error::{Error, Result};
pub use crate::exit::{Access, Arch, Exit, Fault, Syscall, WaitStatus};
pub use crate::memory::{Mapping, Protection};
pub use crate::scratch::Scratch;
pub use crate::signal::{SigInfo, SignalSet};
pub use crate::space::{AddressSpace, Call};

/// The examples of the repository's README: they compile.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
