//! What is measured: cases, placements, and one prepared subject of both.

use anyhow::Result;
use process_vm_exec::Engine;

use super::{baseline, cpus::Cpus, guest, live};

/// What one round is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Case {
    Syscall,
    Fault,
    Interrupt,
    Create,
    Map,
    Copy,
    Attach,
    RemoteSyscall,
    InjectPtrace,
    NativeGetppid,
    CacheLine,
    Spawn,
}

impl Case {
    pub(super) const ALL: [Self; 12] = [
        Self::Syscall,
        Self::Fault,
        Self::Interrupt,
        Self::Create,
        Self::Map,
        Self::Copy,
        Self::Attach,
        Self::RemoteSyscall,
        Self::InjectPtrace,
        Self::NativeGetppid,
        Self::CacheLine,
        Self::Spawn,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Syscall => "syscall",
            Self::Fault => "fault",
            Self::Interrupt => "interrupt",
            Self::Create => "create",
            Self::Map => "map",
            Self::Copy => "copy",
            Self::Attach => "attach",
            Self::RemoteSyscall => "remote-syscall",
            Self::InjectPtrace => "inject-ptrace",
            Self::NativeGetppid => "native-getppid",
            Self::CacheLine => "cache-line",
            Self::Spawn => "spawn",
        }
    }

    /// A case by its name.
    pub(super) fn parse(name: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|case| case.name() == name);
        found.ok_or_else(|| format!("use one of {names}"))
    }

    /// Is it about a live process? Then there is one way to do it, whatever engine runs contexts.
    pub(super) const fn only_engine(self) -> Option<Engine> {
        match self {
            Self::Attach | Self::RemoteSyscall => Some(Engine::Trap),
            Self::InjectPtrace => Some(Engine::Ptrace),
            _ => None,
        }
    }

    /// The case whose best `ptrace` median this one is compared with.
    pub(super) const fn reference(self) -> Self {
        match self {
            Self::Attach | Self::RemoteSyscall => Self::InjectPtrace,
            case if case.is_baseline() => Self::Syscall,
            case => case,
        }
    }

    /// Is it measured without any engine?
    pub(super) const fn is_baseline(self) -> bool {
        matches!(self, Self::NativeGetppid | Self::CacheLine | Self::Spawn)
    }
}

/// Where supervisor and guest run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placement {
    TwoCpus,
    OneCpu,
}

impl Placement {
    pub(super) const ALL: [Self; 2] = [Self::TwoCpus, Self::OneCpu];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::TwoCpus => "two-cpus",
            Self::OneCpu => "one-cpu",
        }
    }
}

/// One line of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) case: Case,
    /// `None` for a baseline.
    pub(super) engine: Option<Engine>,
    pub(super) placement: Placement,
}

/// Does so many rounds and returns the nanoseconds that one took on average.
pub(super) type Rounds = Box<dyn FnMut(u32) -> Result<f64>>;

impl Subject {
    /// What stands in the engine's place for a baseline.
    pub(super) const BASELINE: &str = "baseline";

    pub(super) const fn engine_name(self) -> &'static str {
        match self.engine {
            Some(engine) => engine.name(),
            None => Self::BASELINE,
        }
    }

    /// Sets up everything that is not to be measured.
    pub(super) fn prepare(self, cpus: &Cpus) -> Result<Rounds> {
        match (self.case, self.engine) {
            (Case::Syscall, Some(engine)) => guest::syscall_rounds(engine, self.placement, cpus),
            (Case::Fault, Some(engine)) => guest::fault_rounds(engine, self.placement, cpus),
            (Case::Interrupt, Some(engine)) => guest::interrupt_rounds(engine, self.placement, cpus),
            (Case::Create, Some(engine)) => guest::create_rounds(engine, self.placement, cpus),
            (Case::Map, Some(engine)) => guest::map_rounds(engine, self.placement, cpus),
            (Case::Copy, Some(engine)) => guest::copy_rounds(engine, self.placement, cpus),
            (Case::Attach, _) => Ok(live::attach_rounds(self.placement, cpus)),
            (Case::RemoteSyscall, _) => Ok(live::syscall_rounds(self.placement, cpus)),
            (Case::InjectPtrace, _) => Ok(live::inject_rounds(self.placement, cpus)),
            (Case::CacheLine, _) => baseline::cache_line_rounds(cpus),
            (Case::Spawn, _) => baseline::spawn_rounds(self.placement, cpus),
            (_, _) => Ok(baseline::getppid_rounds()),
        }
    }
}
