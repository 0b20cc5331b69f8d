//! `pvx inspect`: what can be known about a live process, in one report.

mod descriptors;
mod memory;
mod process;
mod report;
mod signals;
mod text;
mod threads;
mod timers;
mod visits;

use std::process::ExitCode;

use anyhow::{Context, Result};
use process_vm_exec::{Call, LiveProcess, Owner, Sysno};
use procfs::{
    ProcError,
    process::{Process, Stat},
};

use self::{
    memory::Memory,
    report::Report,
    text::Length,
    threads::{Address, Thread},
};
use crate::{
    live::{self, Calls, with_scratch},
    output,
};

/// Report what a live process is and has: memory, threads, signals, descriptors, rights, limits.
///
/// Most of it is what /proc tells. Signal handlers and lists of robust futexes only the process itself can tell, so pvx
/// attaches to it for a moment. Registers, alternate signal stacks, rseq, interval timers and what prctl(2) tells only a
/// thread itself knows: each is stopped twice, for well below a millisecond, and asks the kernel. It goes on with what
/// it did, also if pvx is killed.
///
/// Exit status: 0 if there is a report, also if something could not be had: the report says what and why. 1 if there
/// is no such process, or nothing of it may be read.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  pvx inspect 1234                a page about the process
  pvx inspect --all 1234          every mapping, thread and descriptor
  pvx inspect --no-attach 1234    only what /proc tells; the process is not touched
  pvx inspect --json 1234         all of it for a program; docs/inspect.md explains the fields")]
pub(crate) struct InspectArgs {
    /// Print JSON instead of text; it is always complete
    #[arg(long)]
    json: bool,
    /// Show all mappings, threads and descriptors, where there are many
    #[arg(long)]
    all: bool,
    /// Do not attach to the process: report only what /proc tells
    #[arg(long)]
    no_attach: bool,
    /// The process
    #[arg(allow_negative_numbers = true, value_parser = live::pid)]
    pid: i32,
}

/// What /proc does not tell.
const ASKED_FOR: &[&str] = &[
    "handlers",
    "robust lists",
    "other registers",
    "rseq",
    "alternate signal stacks",
    "own settings of threads",
    "interval timers",
];

/// Looks and reports.
pub(crate) fn inspect(args: &InspectArgs) -> Result<ExitCode> {
    let mut report = from_proc(args.pid)?;
    if args.no_attach {
        report.lacks_what_is_asked_for(&"not attached, as --no-attach says");
    } else {
        from_inside(args.pid, &mut report);
    }
    let length = if args.all { Length::All } else { Length::Page };
    output::report(&report, args.json, |report| text::describe(report, length))?;
    Ok(ExitCode::SUCCESS)
}

/// What /proc tells, before there is an executor in the process to be seen there.
fn from_proc(pid: i32) -> Result<Report> {
    live::require_proc()?;
    let readable = |error| match error {
        ProcError::NotFound(_) => {
            anyhow::anyhow!("there is no process {pid}; `ps` lists those that are there")
        }
        ProcError::PermissionDenied(_) => {
            anyhow::anyhow!(
                "process {pid} may not be looked at; run as its user, or with CAP_SYS_PTRACE, which root has unless it was \
                 taken away"
            )
        }
        // What the library says of these is for its authors.
        ProcError::Incomplete(_) | ProcError::InternalError(_) | ProcError::Other(_) => {
            anyhow::anyhow!(
                "process {pid} cannot be looked at: /proc says something unknown of it, or it is just ending"
            )
        }
        error => anyhow::anyhow!("process {pid} cannot be looked at: {error}"),
    };
    let process = Process::new(pid).map_err(readable)?;
    let (stat, status) = (process.stat().map_err(readable)?, process.status().map_err(readable)?);
    let process = by_living_thread(process, &stat);
    let mut report = Report { pid, ..Report::default() };
    report.identity = Some(process::Identity::of(&process, &stat, &status));
    report.memory = report.section("memory", Memory::of(&process));
    report.threads = report.section("threads", threads::threads(&process));
    report.signals = Some(signals::Signals::of(&status));
    report.timers = report.section("timers", timers::timers(&process));
    report.credentials = Some(process::Credentials::of(&process, &status));
    report.namespaces = report.section("namespaces", process::namespaces(&process));
    report.limits = report.section("limits", process::limits(&process));
    report.descriptors = report.section("descriptors", descriptors::descriptors(process.pid));
    report.settings = Some(process::Settings::of(&process, &stat, &status));
    Ok(report)
}

/// The process as seen by a thread that has what it has. A main thread that has ended before others has nothing left.
fn by_living_thread(process: Process, stat: &Stat) -> Process {
    let has_ended = |stat: &Stat| "ZX".contains(stat.state);
    let other = || {
        let mut tasks = process.tasks().ok()?.filter_map(Result::ok);
        let living = tasks.find(|task| task.stat().is_ok_and(|stat| !has_ended(&stat)))?;
        Process::new(living.tid).ok()
    };
    if has_ended(stat) { other().unwrap_or(process) } else { process }
}

/// Asks the process itself. Where it cannot be attached to, the report says so, and so does a line on standard error.
fn from_inside(pid: i32, report: &mut Report) {
    // Nothing of ours is needed there.
    let builder = LiveProcess::builder().directory(Owner::Target).handlers(Owner::Target);
    let why = match live::attach(pid, builder) {
        Ok(space) => {
            let asked = ask(&space, report);
            live::leave(space);
            match asked {
                Ok(()) => {
                    report.attached = true;
                    return;
                }
                Err(error) => format!("{error:#}"),
            }
        }
        Err(refusal) => refusal.to_string(),
    };
    output::say(format_args!("pvx: {why}; this is what /proc tells"));
    report.lacks_what_is_asked_for(&why);
}

impl Report {
    fn lacks_what_is_asked_for(&mut self, why: &impl std::fmt::Display) {
        for what in ASKED_FOR {
            self.lacks(what, why);
        }
        if self.settings.as_ref().is_some_and(|settings| settings.dumpable.is_none()) {
            self.lacks("dumpable", &"the owner of /proc/PID tells it, but not of a process of root");
        }
    }
}

/// What a task in the process can find out.
fn ask(space: &LiveProcess, report: &mut Report) -> Result<()> {
    report.handlers =
        Some(signals::handlers(space, report.memory.as_ref()).context("asking for signal handlers")?);
    if let Some(threads) = &mut report.threads {
        robust_lists(space, threads).context("asking for robust lists")?;
    }
    visits::visit_all(space, report).context("asking threads")
}

/// Asks for the list of each thread (get_robust_list(2)); threads that are refused keep none.
fn robust_lists(space: &impl Calls, threads: &mut [Thread]) -> process_vm_exec::Result<()> {
    /// For each thread the address of the list's head, and the size of that, which is always the same.
    const ANSWER: u64 = 16;
    with_scratch(space, threads.len() as u64 * ANSWER, |scratch| {
        let places = (scratch..).step_by(16);
        let calls: Vec<_> = threads
            .iter()
            .zip(places.clone())
            .map(|(thread, at)| {
                Call::with_args(
                    Sysno::get_robust_list,
                    [u64::from(thread.tid_inside.cast_unsigned()), at, at + 8, 0, 0, 0],
                )
            })
            .collect();
        for ((thread, at), result) in threads.iter_mut().zip(places).zip(space.make(&calls)?) {
            let mut head = [0; 8];
            if result.is_ok() {
                space.read(at, &mut head)?;
                thread.robust_list = Some(Address(u64::from_le_bytes(head)));
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use process_vm_exec::{AddressSpace, ServiceCalls};

    use super::*;

    /// A created space stands for the process that is asked.
    #[test]
    fn a_space_is_asked_for_what_only_it_can_tell() {
        let space = AddressSpace::builder().service_calls(ServiceCalls::All).create().unwrap();
        let mut report = from_proc(space.pid().expect("a live space").as_raw_pid()).unwrap();
        assert!(!signals::handlers(&space, report.memory.as_ref()).unwrap().is_empty());
        let threads = report.threads.as_mut().unwrap();
        robust_lists(&space, threads).unwrap();
        let main = threads
            .iter()
            .find(|thread| thread.tid == space.pid().expect("a live space").as_raw_pid())
            .expect("its service task");
        assert!(main.robust_list.is_some(), "a task may ask for its own: {main:?}");
    }

    #[test]
    fn a_process_that_is_not_there_is_no_report() {
        assert!(from_proc(i32::MAX).unwrap_err().to_string().contains("there is no process"));
        assert!(from_proc(-1).unwrap_err().to_string().contains("there is no process"));
    }
}
