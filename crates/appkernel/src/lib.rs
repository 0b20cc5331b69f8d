//! An application kernel: runs Linux programs in address spaces of their own and answers their system calls from
//! its own file table and process state. The host kernel sees none of them.
//!
//! A [`Program`] is found and checked, a [`Task`] is started with it and run to its end:
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use appkernel::{Config, Program, Task};
//!
//! let args = ["echo", "hello"].map(|arg| std::ffi::CString::new(arg).unwrap());
//! let program = Program::open(c"/bin/echo", args.into(), Vec::new())?;
//! let status = Task::start(program, Config::default())?.run()?;
//! println!("{status:?}");
//! # Ok(())
//! # }
//! ```
//!
//! What it is as yet: one task without children and threads, on the host's file system and with the caller's
//! rights. It isolates a program's system calls, it does not confine what they may reach, but for the caller's own
//! process and its descendants, which are out of reach.

#![forbid(unsafe_code)]

mod abi;
pub mod calls;
mod credentials;
mod dispatch;
pub mod elf;
mod files;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod guest;
mod limits;
mod loader;
mod memory;
mod net;
mod process;
mod program;
mod signals;
mod stack;
mod stats;
mod task;
mod time;
mod trace;

pub use crate::{
    loader::LoadError,
    program::{Program, ProgramError},
    stats::Stats,
    task::{Config, Error, Task},
    trace::Tracer,
};
