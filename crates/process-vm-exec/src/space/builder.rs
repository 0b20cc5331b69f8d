//! How a space is to be, before it is made or attached to.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use syscalls::Sysno;

use super::created::AddressSpace;
use super::live::LiveProcess;
use crate::attach;
use crate::attach::owners::{Exposure, Owner, Owners};
use crate::detection;
use crate::engine::rewrite::Rewriter;
use crate::engine::trap::Trampoline;
use crate::error::{Error, Result};
use crate::executor::filter::{self, ServiceCalls};
use crate::executor::keeper::Birth;
use crate::executor::machine::DEFAULT_SPIN_BUDGET_NS;
use crate::executor::region::Region;
use crate::name::Engine;
use crate::refusal::EngineError;
use crate::rewriting;

/// How a space is to be created: see [`AddressSpace::builder`].
#[derive(Clone, Copy, Debug)]
pub struct AddressSpaceBuilder {
    engine: Option<Engine>,
    rewriting: Rewriting,
    spin_budget_ns: u64,
    time_limit: Option<Duration>,
    service_calls: ServiceCalls,
    region: Option<u64>,
}

/// Whether the `rewrite` engine may rewrite call sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rewriting {
    /// It may.
    On,
    /// It must not: the guest's text stays as it is, and `rewrite` is as `trap`.
    Off,
    /// It must not, but the supervisor does, as a [`Planner`](crate::rewriting::Planner) tells it. GS is the stubs', for as long as a context's
    /// GS base is 0. What registers show is as it is: the supervisor asks the planner what it means. The engine is
    /// [`Engine::Rewrite`] then; another cannot be asked for.
    Planned,
}

impl Default for AddressSpaceBuilder {
    fn default() -> Self {
        Self {
            engine: None,
            rewriting: Rewriting::On,
            spin_budget_ns: DEFAULT_SPIN_BUDGET_NS,
            time_limit: None,
            service_calls: ServiceCalls::Memory,
            region: None,
        }
    }
}

impl AddressSpaceBuilder {
    /// Uses this engine instead of the best that works.
    #[must_use]
    pub fn engine(mut self, engine: Engine) -> Self {
        self.engine = Some(engine);
        self
    }

    /// Whether call sites may be rewritten; on unless told otherwise.
    #[must_use]
    pub fn rewriting(mut self, rewriting: Rewriting) -> Self {
        self.rewriting = rewriting;
        self
    }

    /// For how many nanoseconds either side stays awake for the other; then it sleeps and costs nothing. 50,000
    /// unless told otherwise. 0 sleeps at once, which suits guests that compute much and call little.
    #[must_use]
    pub fn spin_budget_ns(mut self, spin_budget_ns: u64) -> Self {
        self.spin_budget_ns = spin_budget_ns;
        self
    }

    /// How long whatever is executed in the space for its supervisor may take: a [`map`](super::Space::map), a
    /// [`fork`](AddressSpace::fork), a [`syscall`](AddressSpace::syscall), but not a [`run`](super::Space::run). Then the space is killed, and the call returns
    /// [`Error::TimedOut`](crate::Error::TimedOut). No limit unless told otherwise, so that calls may wait; two seconds for a context's extended
    /// state, which no honest guest keeps back.
    ///
    /// A hostile guest can keep answers from being seen, and a stop signal keeps a process from answering. A supervisor that runs guests it does not trust sets some seconds here, or has another thread
    /// [`kill`](super::Space::kill) the space; other spaces do not wait for this one in any case.
    #[must_use]
    pub fn time_limit(mut self, time_limit: Duration) -> Self {
        self.time_limit = Some(time_limit);
        self
    }

    /// Which system calls can be executed in the space: those of [`ServiceCalls::Memory`] unless told otherwise.
    /// Forks have the same.
    #[must_use]
    pub fn service_calls(mut self, service_calls: ServiceCalls) -> Self {
        self.service_calls = service_calls;
        self
    }

    /// Where the [region](super::Space::region) of the executor's pages begins: at that of
    /// [`DEFAULT_REGION`](crate::DEFAULT_REGION) unless told otherwise. A multiple of 4 GiB from 4 GiB on, below
    /// `0x7fe0_0000_0000`: where the guest has nothing, and will have nothing. Forks have the same. All spaces of a supervisor with the same
    /// region are children of one process, which the first of them starts.
    ///
    /// ```
    /// use process_vm_exec::{AddressSpace, Mapping, Protection};
    ///
    /// # fn main() -> process_vm_exec::Result<()> {
    /// let space = AddressSpace::builder().region(0x6000_0000_0000).create()?;
    /// assert_eq!(space.region().start, 0x6000_0000_0000);
    /// let there = space.map(Mapping::anonymous(4096, Protection::READ).at(0x7000_0000_0000))?;
    /// assert_eq!(there, 0x7000_0000_0000);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn region(mut self, start: u64) -> Self {
        self.region = Some(start);
        self
    }

    /// Creates the space.
    ///
    /// # Errors
    /// [`Error::Region`](crate::Error::Region) if the region cannot begin where it should; [`Error::Engine`](crate::Error::Engine) if the engine does not work here, [`Error::Host`](crate::Error::Host) or [`Error::Space`](crate::Error::Space) if the kernel refuses what it
    /// takes, such as another process.
    pub fn create(self) -> Result<AddressSpace> {
        let Self { engine, rewriting, spin_budget_ns, time_limit, service_calls, region } = self;
        let region = region.map_or(Ok(Region::DEFAULT), Region::at)?;
        let engine = match (engine, rewriting) {
            (Some(engine), Rewriting::Planned) if engine != Engine::Rewrite => {
                return Err(Error::Engine { engine, why: EngineError::Plans });
            }
            (None, Rewriting::On | Rewriting::Off) => detection::default_engine()?,
            (engine, _) => {
                let engine = engine.unwrap_or(Engine::Rewrite);
                engine.require().map(|()| engine)?
            }
        };
        AddressSpace::with(region, Settings { engine, rewriting, spin_budget_ns, time_limit, service_calls })
    }
}

/// How a live process is to be attached to: see [`LiveProcess::builder`].
#[derive(Clone, Copy, Debug)]
pub struct LiveProcessBuilder {
    spin_budget_ns: u64,
    owners: Owners,
    region: Option<u64>,
}

impl Default for LiveProcessBuilder {
    fn default() -> Self {
        Self { spin_budget_ns: DEFAULT_SPIN_BUDGET_NS, owners: Owners::default(), region: None }
    }
}

impl LiveProcessBuilder {
    /// For how many nanoseconds either side stays awake for the other; then it sleeps and costs nothing. 50,000
    /// unless told otherwise. 0 sleeps at once.
    #[must_use]
    pub fn spin_budget_ns(mut self, spin_budget_ns: u64) -> Self {
        self.spin_budget_ns = spin_budget_ns;
        self
    }

    /// Whose descriptors calls in a live process mean: the caller's, unless told otherwise. Descriptors among a call's
    /// arguments are passed there, and those it returns come back.
    #[must_use]
    pub fn files(mut self, files: Owner) -> Self {
        self.owners.files = files;
        self
    }

    /// Whose working directory and umask calls in a live process mean: the caller's, as they are when it attaches,
    /// unless told otherwise.
    ///
    /// A target that shares them may execute a set-user-ID program meanwhile: the kernel gives such a program none of its
    /// rights while somebody else has the same directory (execve(2)). It runs as if the bit were not set.
    #[must_use]
    pub fn directory(mut self, directory: Owner) -> Self {
        self.owners.directory = directory;
        self
    }

    /// Whose signal handlers calls in a live process mean: the executor's own, unless told otherwise. What is
    /// [run](super::Space::run) there has the executor's in any case.
    #[must_use]
    pub fn handlers(mut self, handlers: Owner) -> Self {
        self.owners.handlers = handlers;
        self
    }

    /// Whether descriptors and the working directory of the caller may be passed to a live process with fewer rights than the
    /// caller's: not unless told otherwise, [`Error::Exposed`](crate::Error::Exposed) says so instead.
    ///
    /// They are in a task there that has the target's credentials, for as long as the call lasts. Whoever has those
    /// may take them from it (pidfd_getfd(2), ptrace(2)): the target's user, unless that could take them from the
    /// caller as well. It may be allowed for what that user may have.
    #[must_use]
    pub fn exposure(mut self, exposure: Exposure) -> Self {
        self.owners.exposure = exposure;
        self
    }

    /// Where the [region](super::Space::region) of the executor's pages begins; as for
    /// [`AddressSpaceBuilder::region`]. Unless told otherwise it is the first possible one of which the process uses nothing.
    #[must_use]
    pub fn region(mut self, start: u64) -> Self {
        self.region = Some(start);
        self
    }

    /// Attaches to the process of `target`, a pidfd (pidfd_open(2)): see [`LiveProcess::attach`].
    ///
    /// # Errors
    /// As for [`LiveProcess::attach`].
    pub fn attach(self, target: BorrowedFd<'_>) -> Result<LiveProcess> {
        LiveProcess::with(target, self.owners, self.region.map(Region::at).transpose()?, self.spin_budget_ns)
    }

    /// Attaches to the process that has this number now.
    ///
    /// # Errors
    /// As for [`LiveProcess::attach`].
    pub fn attach_pid(self, pid: i32) -> Result<LiveProcess> {
        self.attach(attach::open(pid)?.as_fd())
    }
}

/// How a space is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) engine: Engine,
    pub(crate) rewriting: Rewriting,
    pub(crate) spin_budget_ns: u64,
    pub(crate) time_limit: Option<Duration>,
    pub(crate) service_calls: ServiceCalls,
}

impl Settings {
    /// How the process of such a space is to be.
    pub(crate) fn birth(&self) -> Birth {
        let Self { engine, spin_budget_ns, time_limit, .. } = *self;
        Birth { engine, spin_budget_ns, time_limit }
    }

    /// Can this call be executed in such a space?
    pub(crate) fn require_call(&self, call: Sysno) -> Result<()> {
        match self.service_calls {
            ServiceCalls::All if filter::is_the_end_of_its_task(call) => {
                Err(Error::EndOfTask { call: call.name() })
            }
            ServiceCalls::Memory if !filter::is_about_memory(call) => {
                Err(Error::Confined { call: call.name() })
            }
            ServiceCalls::Memory | ServiceCalls::All => Ok(()),
        }
    }

    /// Who rewrites sites in a new space.
    pub(crate) fn trampoline(&self, region: Region) -> Trampoline {
        match (self.engine, self.rewriting) {
            (Engine::Rewrite, Rewriting::On) => Trampoline::Rewritten(Arc::new(Rewriter::new(region))),
            (Engine::Rewrite, Rewriting::Planned) => {
                rewriting::prepare();
                Trampoline::Planned(Arc::default())
            }
            _ => Trampoline::Unused,
        }
    }
}
