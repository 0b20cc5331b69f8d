//! The engines by their names.

use std::{fmt, str::FromStr};

/// How a context gets onto a processor in the other address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
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

    /// Are executors traced, and do nothing by themselves?
    pub(crate) fn traces(self) -> bool {
        matches!(self, Self::Ptrace | Self::Native)
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Engine {
    type Err = UnknownEngine;

    fn from_str(name: &str) -> Result<Self, UnknownEngine> {
        Self::ALL
            .into_iter()
            .find(|engine| engine.name() == name)
            .ok_or_else(|| UnknownEngine(name.to_owned()))
    }
}

/// The name of no engine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no engine; use one of {engines}", engines = Engine::ALL.map(Engine::name).join(", "))]
pub struct UnknownEngine(pub(crate) String);
