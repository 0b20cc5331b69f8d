//! How a space is to be, before it is made or attached to.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use syscalls::Sysno;

use crate::attach::target::Target;
use crate::attach::{Exposure, Owner};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::executor::filter;
use crate::executor::keeper::{Birth, Keeper};
use crate::executor::machine::DEFAULT_SPIN_BUDGET_NS;
use crate::space::{AddressSpace, Origin};

/// How a space is to be: see [`AddressSpace::builder`].
#[derive(Clone, Copy, Debug)]
pub struct Builder {
    engine: Option<Engine>,
    rewriting: Rewriting,
    pub(crate) spin_budget_ns: u64,
    time_limit: Option<Duration>,
    service_calls: ServiceCalls,
    owners: Owners,
}

/// Whose things calls in a live process mean.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owners {
    pub(crate) files: Owner,
    pub(crate) directory: Owner,
    pub(crate) handlers: Owner,
    pub(crate) exposure: Exposure,
}

impl Default for Owners {
    fn default() -> Self {
        let callers = Owner::Caller;
        Self { files: callers, directory: callers, handlers: callers, exposure: Exposure::Refused }
    }
}

impl Owners {
    /// What of the target an executor shares besides memory: flags of clone(2).
    pub(crate) fn shared(self) -> libc::c_int {
        let flag = |owner, flag| if owner == Owner::Target { flag } else { 0 };
        flag(self.files, libc::CLONE_FILES)
            | flag(self.directory, libc::CLONE_FS)
            | flag(self.handlers, libc::CLONE_SIGHAND)
    }
}

/// Whether the `rewrite` engine may rewrite call sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewriting {
    /// It may.
    On,
    /// It must not: the guest's text stays as it is, and `rewrite` is as `trap`.
    Off,
}

/// Which system calls can be executed in a created space: see [`Builder::service_calls`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceCalls {
    /// Those about memory (mmap(2), mprotect(2), madvise(2) and their kin, shmat(2), mbind(2), membarrier(2)), processors,
    /// clocks and futexes, and those that only tell something (getpid(2), getcwd(2), uname(2)). A seccomp filter keeps
    /// the space's process to them and to what the library itself needs.
    Memory,
    /// All. Those that change how the space's process itself lives (clone(2), execve(2), exit(2), rt_sigprocmask(2),
    /// sigaltstack(2), close(2) of what it has not opened for you) are the end of what this library promises of it.
    All,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            engine: None,
            rewriting: Rewriting::On,
            spin_budget_ns: DEFAULT_SPIN_BUDGET_NS,
            time_limit: None,
            service_calls: ServiceCalls::Memory,
            owners: Owners::default(),
        }
    }
}

impl Builder {
    /// Uses this engine instead of the best that works. [`attach`](Self::attach) takes no notice of it: in a live process it is
    /// `trap`, always.
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

    /// How long whatever is executed in a created space for its supervisor may take: a [`map`](AddressSpace::map), a
    /// [`fork`](AddressSpace::fork), a [`syscall`](AddressSpace::syscall), but not a [`run`](AddressSpace::run). Then the space is killed, and the call returns
    /// [`Error::TimedOut`](crate::Error::TimedOut). No limit unless told otherwise, so that calls may wait; two seconds for a context's extended
    /// state, which no honest guest keeps back.
    ///
    /// A hostile guest can keep answers from being seen, and a stop signal keeps a process from answering. A supervisor that runs guests it does not trust sets some seconds here, or has another thread
    /// [`kill`](AddressSpace::kill) the space; other spaces do not wait for this one in any case.
    #[must_use]
    pub fn time_limit(mut self, time_limit: Duration) -> Self {
        self.time_limit = Some(time_limit);
        self
    }

    /// Which system calls can be executed in a created space: those of [`ServiceCalls::Memory`] unless told otherwise.
    /// Forks have the same.
    #[must_use]
    pub fn service_calls(mut self, service_calls: ServiceCalls) -> Self {
        self.service_calls = service_calls;
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
    /// [run](AddressSpace::run) there has the executor's in any case.
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

    /// Puts an executor into a live process: see [`AddressSpace::attach`].
    ///
    /// # Errors
    /// As for [`AddressSpace::attach`].
    pub fn attach(self, target: BorrowedFd<'_>) -> Result<AddressSpace> {
        // Whatever was chosen: the target's text is not ours to rewrite, its signals are not ours to take, and a tracer
        // besides the caretaker would be in the way of the removal.
        let engine = Engine::Trap;
        engine.require()?;
        let settings = Self { engine: Some(engine), rewriting: Rewriting::Off, ..self };
        let (service, target) = Target::attach(target, self.owners, engine, self.spin_budget_ns)?;
        Ok(AddressSpace::new(Origin::Attached(target), service, settings, None))
    }

    /// Creates the space.
    ///
    /// # Errors
    /// [`Error::Engine`](crate::Error::Engine) if the engine does not work here, [`Error::Host`](crate::Error::Host) or
    /// [`Error::Space`](crate::Error::Space) if the kernel refuses what it takes, such as another process.
    pub fn create(self) -> Result<AddressSpace> {
        let engine = match self.engine {
            Some(engine) => engine.require().map(|()| engine)?,
            None => default_engine()?,
        };
        let settings = Self { engine: Some(engine), ..self };
        let keeper = Keeper::get()?;
        let service = keeper.create(settings.service_calls, settings.birth())?;
        let rewriter = settings.rewrites().then(Arc::default);
        Ok(AddressSpace::new(Origin::Created(keeper), service, settings, rewriter))
    }

    /// How the process of such a space is to be.
    pub(crate) fn birth(&self) -> Birth {
        let Self { spin_budget_ns, time_limit, .. } = *self;
        Birth { engine: self.engine_in_use(), spin_budget_ns, time_limit }
    }

    /// Can this call be executed in such a space?
    pub(crate) fn require_call(&self, call: Sysno) -> Result<()> {
        match self.service_calls {
            ServiceCalls::Memory if !filter::is_about_memory(call) => {
                Err(Error::Confined { call: call.name() })
            }
            ServiceCalls::Memory | ServiceCalls::All => Ok(()),
        }
    }

    pub(crate) fn engine_in_use(&self) -> Engine {
        self.engine.expect("`create` has chosen one")
    }

    fn rewrites(&self) -> bool {
        self.engine == Some(Engine::Rewrite) && self.rewriting == Rewriting::On
    }
}

/// What [`Engine::detect`] says, asked once.
fn default_engine() -> Result<Engine> {
    static ENGINE: std::sync::OnceLock<Engine> = std::sync::OnceLock::new();
    match ENGINE.get() {
        Some(&engine) => Ok(engine),
        None => Ok(*ENGINE.get_or_init({
            let best = Engine::detect()?.best;
            move || best
        })),
    }
}
