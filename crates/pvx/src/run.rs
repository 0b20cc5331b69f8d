//! `pvx run`: a program in an address space of its own, its system calls answered here.

use std::{
    env,
    ffi::{CString, OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Result};
use appkernel::{Config, Error, Program, ProgramError, Stats, Task, Tracer, elf::ElfError};
use process_vm_exec::{Engine, Errno, Rewriting, WaitStatus};

use crate::{
    engine::engine,
    live,
    output::say,
    trace_file::{Gap, TraceFile},
};

/// Exit statuses of shells for programs that are not there, and for such as cannot be run.
const NOT_FOUND: u8 = 127;
const CANNOT_RUN: u8 = 126;
/// Where programs are looked for when `PATH` is not set (confstr(3), `_CS_PATH`).
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Run a program and answer its system calls.
///
/// The program sees this machine's files with your rights; its system calls do not reach the kernel but this
/// process. Its exit status is passed on; death by signal N exits with 128 + N. 127 says that the program was not found,
/// 126 that it cannot be run. 1 also says that a trace could not be written though the program succeeded.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  pvx run ls -l                          with the best engine that works here
  pvx run --engine ptrace --trace date   every system call on standard error
  pvx run --stats -- python3 -c 'print(1)'")]
pub(crate) struct RunArgs {
    /// native, rewrite, trap or ptrace; the best that works unless given
    #[arg(long, value_name = "NAME", value_parser = engine)]
    engine: Option<Engine>,
    /// Print every system call to standard error, as strace does
    #[arg(long)]
    trace: bool,
    /// Print every system call to FILE
    #[arg(long, value_name = "FILE")]
    trace_file: Option<PathBuf>,
    /// Leave the program's code as it is, even with the engine `rewrite`
    #[arg(long)]
    no_rewriting: bool,
    /// Print at the end how often each system call was made, and what else happened
    #[arg(long)]
    stats: bool,
    /// The program: a path, or a name that is looked up in PATH
    program: OsString,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Runs the program to its end.
pub(crate) fn run(args: RunArgs) -> Result<ExitCode> {
    live::require_proc()?;
    let trace = args.trace_file.as_deref().map(TraceFile::create).transpose()?;
    let gap = trace.as_ref().map(TraceFile::gap);
    let config = config(&args, trace);
    let program = match find(&args) {
        Ok(program) => program,
        Err(error) => return Ok(refuse(&error)),
    };
    let mut task = match Task::start(program, config) {
        Ok(task) => task,
        Err(Error::Program(error)) => return Ok(refuse(&error)),
        Err(error @ Error::Load(_)) => {
            say(format_args!("pvx: {}: cannot be loaded: {error}", args.program.display()));
            return Ok(ExitCode::from(CANNOT_RUN));
        }
        Err(error) => return Err(error.into()),
    };
    let status = task.run().with_context(|| format!("{} cannot go on", args.program.display()))?;
    report(&args, task.stats());
    let whole = gap.is_none_or(|gap| tell(&gap));
    // Of two failures the program's own is what its callers ask for.
    Ok(if status == WaitStatus::Exited(0) && !whole { ExitCode::FAILURE } else { exit_code(status) })
}

fn config(args: &RunArgs, trace: Option<TraceFile>) -> Config {
    let mut config = Config::default();
    config.engine = args.engine;
    if args.no_rewriting {
        config.rewriting = Rewriting::Off;
    }
    config.tracer = match trace {
        Some(file) => Some(Tracer::new(file)),
        None if args.trace => Some(Tracer::new(std::io::stderr())),
        None => None,
    };
    config
}

/// Finds the program as a shell does: a name without a slash in the directories of `PATH`.
fn find(args: &RunArgs) -> Result<Program, ProgramError> {
    let name = args.program.as_os_str();
    if name.as_bytes().contains(&b'/') || name.is_empty() {
        return open(args, name);
    }
    let path = env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let mut denied = None;
    for directory in env::split_paths(&path) {
        // An empty directory is the current one.
        let candidate = if directory.as_os_str().is_empty() { PathBuf::from(".") } else { directory };
        let candidate = candidate.join(name);
        // A directory that may not be searched has nothing for us.
        if candidate.symlink_metadata().is_err() {
            continue;
        }
        match open(args, candidate.as_os_str()) {
            Err(ProgramError::Open { errno: Errno::NOENT | Errno::NOTDIR, .. }) => {}
            Err(
                error @ (ProgramError::Open { errno: Errno::ACCESS, .. }
                | ProgramError::NotExecutable { .. }
                | ProgramError::NotAFile { .. }),
            ) => denied = denied.or(Some(error)),
            found => return found,
        }
    }
    Err(denied.unwrap_or(ProgramError::Open { path: name.display().to_string(), errno: Errno::NOENT }))
}

fn open(args: &RunArgs, path: &OsStr) -> Result<Program, ProgramError> {
    let strings: Vec<_> =
        std::iter::once(&args.program).chain(&args.args).map(|arg| c_string(arg.clone())).collect();
    let env = env::vars_os().map(|(name, value)| {
        let mut entry = name;
        entry.push("=");
        entry.push(value);
        c_string(entry)
    });
    Program::open(&c_string(path.to_owned()), strings, env.collect())
}

/// Arguments and environment came in as C strings, so they have no NUL inside.
fn c_string(string: OsString) -> CString {
    let bytes: Vec<u8> = string.into_vec().into_iter().take_while(|&byte| byte != 0).collect();
    CString::new(bytes).unwrap_or_default()
}

/// Says in one line what is wrong with the program and what to do.
fn refuse(error: &ProgramError) -> ExitCode {
    match advice(error) {
        Some(advice) => say(format_args!("pvx: {error}; {advice}")),
        None => say(format_args!("pvx: {error}")),
    }
    match error {
        ProgramError::Open { errno: Errno::NOENT | Errno::NOTDIR, .. } => ExitCode::from(NOT_FOUND),
        _ => ExitCode::from(CANNOT_RUN),
    }
}

/// What to do about it, where that is known.
fn advice(error: &ProgramError) -> Option<&'static str> {
    Some(match error {
        ProgramError::Open { errno: Errno::NOENT | Errno::NOTDIR, .. } => {
            "check the name, or give a path that exists"
        }
        ProgramError::Open { errno: Errno::ACCESS, .. } => "run as a user who may read it",
        ProgramError::Open { errno: Errno::LOOP, .. } => "its symbolic links lead in a circle: mend them",
        _ if error.errno() == Errno::MFILE => "raise RLIMIT_NOFILE (`ulimit -n`)",
        ProgramError::Open { .. } => return None,
        ProgramError::NotAFile { .. } => "name a program in it",
        ProgramError::NotExecutable { .. } => "make it executable: chmod +x",
        ProgramError::Elf { why: ElfError::NotElf, .. } => "run it through its interpreter",
        ProgramError::Elf { why: ElfError::Foreign(_), .. } => "build it for x86-64 Linux",
        ProgramError::Elf { why: ElfError::NotAProgram(_), .. } => "link it into a program",
        ProgramError::Elf { .. } => "the file is damaged: build or install it anew",
        ProgramError::Script { .. } | ProgramError::TooDeep { .. } => {
            "run it through its interpreter: pvx run sh SCRIPT"
        }
        ProgramError::Interpreter { .. } => "install the interpreter that it names",
    })
}

fn report(args: &RunArgs, stats: &Stats) {
    let unknown = stats.unknown();
    if !unknown.is_empty() {
        say(format_args!(
            "pvx: {} made system calls that are not implemented (they failed with ENOSYS): {}",
            args.program.display(),
            unknown.join(", ")
        ));
    }
    if args.stats {
        say(format_args!("{:>10}  system call", "count"));
        for (name, count) in stats.syscalls() {
            say(format_args!("{count:>10}  {name}"));
        }
        let without_signal = format!("of them without a signal ({:.1} %)", stats.rewritten_percent());
        for (what, count) in [
            ("system calls", stats.calls.rewritten + stats.calls.trapped),
            (without_signal.as_str(), stats.calls.rewritten),
            ("rewritten sites", stats.rewritten_sites as u64),
            ("faults", stats.faults),
            ("signals from outside", stats.signals),
            ("interruptions", stats.interruptions),
        ] {
            say(format_args!("{count:>10}  {what}"));
        }
    }
}

/// Says what a trace lacks; `true` if it is complete.
fn tell(gap: &Gap) -> bool {
    if let Some(errno) = gap.why() {
        say(format_args!("pvx: the trace is not complete: {errno}; choose another --trace-file"));
    }
    gap.why().is_none()
}

fn exit_code(status: WaitStatus) -> ExitCode {
    let code = match status {
        WaitStatus::Exited(status) => status,
        WaitStatus::Signaled(signal) => 128 + signal,
    };
    ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX))
}
