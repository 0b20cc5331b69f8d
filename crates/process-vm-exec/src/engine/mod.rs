//! Engines: how a context gets onto a processor in the other space.

use std::{fmt, str::FromStr};

#[cfg(fuzzing)]
pub(crate) mod fuzzing;
pub(crate) mod native;
pub(crate) mod ptrace;
pub(crate) mod rewrite;
pub(crate) mod trap;

use crate::arch::x86_64::Registers;
use crate::error::Error;
use crate::executor::task;
use crate::exit::{Arch, Fault, Syscall};
use crate::signal::SigInfo;

/// How a context gets onto a processor in the other address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// ptrace(2) with `PTRACE_SYSEMU`: works everywhere, slow. The reference for the others.
    Ptrace,
    /// A resident executor; system calls reach it as `SIGSYS` (Syscall User Dispatch).
    Trap,
    /// `trap`, and call sites that have trapped are rewritten to jump to the executor without a signal.
    Rewrite,
    /// process_vm_exec(2) itself, on a kernel that has it: the calling thread runs the context.
    Native,
}

impl Engine {
    /// All of them, the best first.
    pub const ALL: [Self; 4] = [Self::Native, Self::Rewrite, Self::Trap, Self::Ptrace];

    /// Its name on command lines and in `PROCESS_VM_EXEC_ENGINE`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ptrace => "ptrace",
            Self::Trap => "trap",
            Self::Rewrite => "rewrite",
            Self::Native => "native",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Engine {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|engine| engine.name() == name)
            .ok_or_else(|| Error::UnknownEngine(name.to_owned()))
    }
}
/// What works on this machine.
#[derive(Clone, Debug)]
pub struct Detection {
    /// The engine that [`AddressSpace::create`](crate::AddressSpace::create) uses.
    pub best: Engine,
    /// Every engine, the best first, and what it lacks here; `None` where it works.
    pub engines: Vec<(Engine, Option<String>)>,
}

impl Engine {
    /// The environment variable that overrides the choice.
    pub const VARIABLE: &'static str = "PROCESS_VM_EXEC_ENGINE";

    /// Finds the best engine that works here, or takes the one that `PROCESS_VM_EXEC_ENGINE` names.
    ///
    /// # Errors
    /// If the variable names no engine, or one that does not work here.
    pub fn detect() -> Result<Detection, Error> {
        let engines = Self::ALL.map(|engine| (engine, engine.lacks()));
        let best = match std::env::var(Self::VARIABLE) {
            Ok(name) => {
                let chosen: Self = name.parse()?;
                chosen.require()?;
                chosen
            }
            Err(_) => engines
                .iter()
                .find(|(_, lack)| lack.is_none())
                .map(|&(engine, _)| engine)
                .ok_or_else(|| Self::Ptrace.require().expect_err("no engine works"))?,
        };
        Ok(Detection { best, engines: engines.into() })
    }

    /// # Errors
    /// [`Error::Engine`] if it does not work here.
    pub(crate) fn require(self) -> Result<(), Error> {
        match self.lacks() {
            Some(why) => Err(Error::Engine { engine: self, why }),
            None => Ok(()),
        }
    }

    /// What it lacks on this machine.
    fn lacks(self) -> Option<String> {
        match self {
            Self::Rewrite => task::lacks().or_else(rewrite::lacks),
            Self::Trap => task::lacks(),
            Self::Ptrace => None,
            Self::Native => native::lacks(),
        }
    }

    /// Are executors traced, and do nothing by themselves?
    pub(crate) fn traces(self) -> bool {
        matches!(self, Self::Ptrace | Self::Native)
    }
}

/// A place where a context runs: a task in the address space, seen through one engine. One context at a time uses
/// it, and keeps it from run to run; between runs it holds the context's state.
pub(crate) trait Seat: Send + Sync + fmt::Debug {
    /// Goes to the guest, and comes back when it has made a call, faulted, or been stopped. The guest goes on with
    /// all the state it left, but for `rax`.
    fn answer(&self, rax: u64) -> Event;

    /// Goes to the guest, and comes back, as [`answer`](Self::answer) does; the guest goes on with these registers.
    fn load(&self, registers: &Registers) -> Event;

    /// Reads the call that has just been reported, whose entry was `arch`'s. Into where it is to be: a processor
    /// that copies on what it has just stored, in pieces of another size, stalls.
    fn read_call(&self, arch: Arch, call: &mut Syscall);

    /// The registers that the guest left, of which `rax` may be out of date.
    fn registers(&self) -> Registers;

    /// The extended state that the guest left, [`xstate::size`](crate::arch::x86_64::xstate::size) bytes.
    fn xstate(&self) -> Result<Vec<u8>, Error>;

    /// Replaces the extended state; `area` has been validated.
    fn set_xstate(&self, area: &[u8]) -> Result<(), Error>;

    /// No context has run here: the extended state is the initial one.
    fn has_initial_xstate(&self) -> bool;

    /// Can this thread use it? Else it has to be left; its state can still be read.
    fn is_usable(&self) -> bool;

    /// Makes the run that goes on, or else the next one, end with [`Event::Interrupted`].
    fn interrupt(&self);

    /// Kills the process that it is in.
    fn kill(&self);

    /// Was there an interrupt that no run has reported? It is forgotten.
    fn take_interrupt(&self) -> bool;
}

/// Why a guest came back.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// It made a system call, which [`Seat::read_call`] tells.
    Call { arch: Arch, how: Called },
    /// An instruction faulted.
    Fault { rax: u64, fault: Fault },
    /// A signal came from outside.
    Signal { rax: u64, info: SigInfo },
    /// It was interrupted.
    Interrupted { rax: u64 },
    /// The process is dead.
    Died,
}

/// How a system call reached the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Called {
    /// By a signal or stop, so that rewriting the site could pay.
    Trapped,
    /// From a rewritten site.
    Rewritten,
}
