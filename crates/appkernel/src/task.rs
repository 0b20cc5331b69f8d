//! A task: one flow of control in an address space, and the state that its system calls work on.

use std::{
    ffi::CString,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use process_vm_exec::{
    AddressSpace, Arch, Context, Engine, Errno, Exit, Fault, Pid, Rewriting, SignalSet, Syscall, WaitStatus,
};
use rustix::fs::{CWD, Mode, OFlags};

use crate::{
    dispatch,
    files::FileTable,
    limits::Limits,
    loader::{self, LoadError},
    memory::Heap,
    program::{Program, ProgramError},
    signals::Signals,
    stats::Stats,
    time::Timers,
    trace::Tracer,
};

/// What a processor says to an address that is none (Intel SDM volume 3, 6.15, "General Protection"), and Linux makes of
/// it.
pub(crate) const GENERAL_PROTECTION: Fault =
    Fault { signal: libc::SIGSEGV, code: libc::SI_KERNEL, addr: 0, access: None, trapno: 13, error_code: 0 };

/// The umask that this process had before tasks had it set to 0.
static UMASK: Mutex<u32> = Mutex::new(0);

/// Sets the process's umask to 0, and returns what it was before a task did so.
fn take_umask() -> u32 {
    // Whoever panicked with the lock has left a umask behind.
    let mut umask = UMASK.lock().unwrap_or_else(PoisonError::into_inner);
    match rustix::process::umask(Mode::empty()).as_raw_mode() {
        0 => {}
        new => *umask = new,
    }
    *umask
}

/// Why a program could not be started, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program's files are missing or no good.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// It could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The address space failed.
    #[error(transparent)]
    Space(#[from] process_vm_exec::Error),
    /// The supervisor's own surroundings failed.
    #[error("{}", process_vm_exec::Error::Host { call: what, errno: *errno })]
    Host {
        /// What was tried.
        what: &'static str,
        /// How it failed.
        errno: Errno,
    },
}

/// How to make address spaces for programs.
#[derive(Debug)]
#[non_exhaustive]
pub struct Config {
    /// The engine; the best one there is if `None`.
    pub engine: Option<Engine>,
    /// Whether call sites may be rewritten.
    pub rewriting: Rewriting,
    /// Prints every system call, if there is one.
    pub tracer: Option<Tracer>,
}

impl Default for Config {
    fn default() -> Self {
        Self { engine: None, rewriting: Rewriting::On, tracer: None }
    }
}

impl Config {
    fn create_space(&self) -> process_vm_exec::Result<AddressSpace> {
        /// Whatever a program has mapped, nothing done to it takes so long: it keeps the answer back.
        const TIME_LIMIT: Duration = Duration::from_secs(60);
        let builder = AddressSpace::builder().rewriting(self.rewriting).time_limit(TIME_LIMIT);
        match self.engine {
            Some(engine) => builder.engine(engine),
            None => builder,
        }
        .create()
    }
}

/// What a task does after an exit has been dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It goes on behind the system call, with the answer.
    Continue,
    /// Its registers have been set: it goes on wherever they say (`execve`, `rt_sigreturn`).
    Jump,
    /// It is over.
    End(WaitStatus),
}

/// One flow of control and everything that belongs to it.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use appkernel::{Config, Program, Task};
/// let program = Program::open(c"/bin/true", vec![c"true".to_owned()], Vec::new())?;
/// let mut task = Task::start(program, Config::default())?;
/// let status = task.run()?;
/// # let _ = status;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Task {
    pub(crate) space: Arc<AddressSpace>,
    pub(crate) context: Context,
    pub(crate) config: Config,
    pub(crate) next: Next,
    pub(crate) files: FileTable,
    /// The current directory (`O_PATH`).
    pub(crate) directory: OwnedFd,
    /// Permissions that new files do not get.
    pub(crate) umask: u32,
    pub(crate) identity: Identity,
    pub(crate) heap: Heap,
    pub(crate) signals: Signals,
    pub(crate) timers: Timers,
    pub(crate) limits: Limits,
    pub(crate) stats: Stats,
    /// Through which all data of reads and writes passes.
    pub(crate) buffer: Vec<u8>,
}

/// What a process says about itself in `/proc/self`.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) pid: i32,
    /// The executable's path, without links.
    pub(crate) exe: Vec<u8>,
    /// The thread's name, 15 bytes at most (`PR_SET_NAME`).
    pub(crate) comm: Vec<u8>,
    pub(crate) cmdline: Vec<u8>,
    pub(crate) environ: Vec<u8>,
    pub(crate) auxv: Vec<u8>,
}

impl Identity {
    fn new(pid: i32, program: &Program, auxv: Vec<u8>) -> Self {
        let base = program.execfn.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let joined = |strings: &[CString]| {
            strings.iter().flat_map(|string| string.as_bytes_with_nul()).copied().collect()
        };
        Self {
            pid,
            exe: program.exe.clone(),
            comm: base[..base.len().min(15)].to_vec(),
            cmdline: joined(&program.args),
            environ: joined(&program.env),
            auxv,
        }
    }
}

impl Task {
    /// Loads `program` into a new address space. It inherits this process's descriptors 0, 1 and 2, its current
    /// directory and its umask. The latter becomes 0 in this process, since it would apply a second time; the next
    /// task inherits it nevertheless.
    ///
    /// # Errors
    /// No engine, no memory, or arguments that do not fit.
    pub fn start(program: Program, mut config: Config) -> Result<Self, Error> {
        let space = config.create_space()?;
        let loaded = loader::load(&space, &program)?;
        let directory = rustix::fs::openat(CWD, c".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Error::Host { what: "the current directory cannot be opened", errno })?;
        let files = FileTable::inherit()
            .map_err(|errno| Error::Host { what: "the standard descriptors cannot be duplicated", errno })?;
        let pid = rustix::process::getpid().as_raw_pid();
        if let Some(tracer) = &mut config.tracer {
            tracer.start(&program, loaded.environment);
        }
        Ok(Self {
            space: Arc::new(space),
            context: Context::new(loaded.entry, loaded.stack_pointer),
            config,
            next: Next::Continue,
            files,
            directory,
            umask: take_umask(),
            identity: Identity::new(pid, &program, loaded.auxv),
            heap: Heap::new(loaded.heap),
            signals: Signals::default(),
            timers: Timers::default(),
            limits: Limits::default(),
            stats: Stats::default(),
            buffer: Vec::new(),
        })
    }

    /// Runs the task to its end.
    ///
    /// # Errors
    /// When the address space fails; the program's own failures are a [`WaitStatus`].
    pub fn run(&mut self) -> Result<WaitStatus, Error> {
        let status = loop {
            let exit = match self.space.run(&mut self.context, &SignalSet::all()) {
                // The guest chose registers that no processor takes, as the address of a handler for example.
                Err(process_vm_exec::Error::Context(_)) => Exit::Fault(GENERAL_PROTECTION),
                exit => exit?,
            };
            match exit {
                Exit::Syscall => {
                    let call = *self.context.syscall();
                    self.answer(&call);
                }
                Exit::Fault(fault) => {
                    self.stats.faults += 1;
                    self.raise_fault(&fault);
                }
                Exit::Signal(info) => {
                    self.stats.signals += 1;
                    self.signals.post(info);
                }
                Exit::Interrupted => self.stats.interruptions += 1,
                Exit::Died(status) => break status,
            }
            if self.wants_attention() {
                self.deliver_signals();
            }
            if let Next::End(status) = self.next {
                break status;
            }
        };
        self.count_program();
        if let Some(tracer) = &mut self.config.tracer {
            tracer.end(status);
        }
        Ok(status)
    }

    /// What happened. How calls got here is counted when a program ends.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The program in the address space is over: its context and space take their counts with them.
    fn count_program(&mut self) {
        self.stats.add_program(self.context.calls(), self.space.rewritten_sites());
    }

    /// The number of the process that the address space belongs to; 0, which is nobody's, once it is dead.
    pub(crate) fn space_pid(&self) -> i32 {
        self.space.pid().map_or(0, Pid::as_raw_pid)
    }

    fn answer(&mut self, call: &Syscall) {
        self.next = Next::Continue;
        self.stats.count(call);
        let handler = match call.arch {
            Arch::X86_64 => dispatch::handler(call.nr),
            Arch::I386 => None,
        };
        let tracing = self.config.tracer.is_some();
        if tracing {
            self.trace_entry(call);
        }
        let answer = match handler {
            Some(handler) => handler(self, call.args),
            None => Err(Errno::NOSYS),
        };
        if self.next == Next::Continue {
            self.context.set_return(answer);
        }
        if tracing {
            self.trace_exit(call, answer);
        }
        self.signals.note_answer(call, answer);
    }

    /// Replaces the program (execve(2)). Until the new one is loaded completely, the old one is untouched.
    pub(crate) fn replace_program(&mut self, program: &Program) -> Result<(), Errno> {
        let load_errno = |error| match error {
            LoadError::Space(error) => error.errno(),
            LoadError::TooManyArguments { .. } => Errno::TOOBIG,
            LoadError::Random(errno) => errno,
        };
        let space = self.config.create_space().map_err(|error| error.errno())?;
        let loaded = loader::load(&space, program).map_err(load_errno)?;
        let context = Context::new(loaded.entry, loaded.stack_pointer);
        self.timers.move_to(&context)?;
        self.count_program();
        self.space = Arc::new(space);
        self.context = context;
        self.files.close_on_exec();
        self.identity = Identity::new(self.identity.pid, program, loaded.auxv);
        self.heap = Heap::new(loaded.heap);
        self.signals.reset_handlers();
        self.next = Next::Jump;
        Ok(())
    }
}
