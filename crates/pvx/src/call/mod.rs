//! `pvx call`: one system call in a live process.

mod perform;
mod plan;
mod show;
mod word;

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use process_vm_exec::{Exposure, LiveProcess, Owner};

use self::plan::Plan;
use crate::{USAGE, live, output};

/// The exit status for a process that cannot be attached to.
const REFUSED: u8 = 126;

/// Run one system call in a live process.
///
/// The call is made by a task of this library in the process's memory, beside its own threads, which run on. Memory is
/// always the process's own. Whose descriptors, directory and signal handlers are meant, the options say. What else
/// belongs to a task (its number, credentials, signal mask, timers, what prctl sets) is that of the library's task, not
/// of the process: `pvx inspect` shows the process's.
///
/// A call that waits for ever ends with pvx (^C). Nothing of it stays in the process, unless the buffers of its arguments
/// were larger than 23 MiB: they stay mapped then.
///
/// Exit status: 0 if the call succeeded, 1 if it failed, 2 if the command line is wrong (nothing was touched), 126 if
/// the process cannot be attached to.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Arguments of the call:
  10 0x1f 0644 -1            numbers; C has the same forms. Permissions are octal always
  PROT_READ|PROT_WRITE       constants by name, joined with others or with numbers; NULL is 0
  /etc/hostname              strings, where the call takes a path or bytes; 0x... is an address
                             there
  @text:hello @hex:00ff      bytes put into the process, whose address is passed, where the call
                             takes one; shown afterwards if the call changed them
  @out:64                    so many bytes for the call to fill, shown afterwards
  0.5                        seconds, where the call takes a time
  _                          left to pvx, as are those omitted at the end: buffers that the call
                             fills, sizes, times, and lists. Numbers, flags and descriptors pvx
                             cannot know: give them, or _ for 0

Examples:
  pvx call 1234 getcwd
  pvx call 1234 --files target dup2 5 1
  pvx call 1234 --files target read 3 _ 100
  pvx call 1234 madvise 0x7f1200000000 4096 MADV_DONTNEED
  pvx call 1234 --handlers target rt_sigaction SIGINT
  pvx call 1234 --json getrlimit RLIMIT_NOFILE")]
pub(crate) struct CallArgs {
    /// Whose descriptors the call means: pvx's own, which end with it, or the process's
    #[arg(long, value_name = "caller|target", default_value = "caller", value_parser = owner)]
    files: Owner,
    /// Whose working directory and umask the call means
    #[arg(long, value_name = "caller|target", default_value = "target", value_parser = owner)]
    directory: Owner,
    /// Whose signal handlers the call means
    #[arg(long, value_name = "caller|target", default_value = "caller", value_parser = owner)]
    handlers: Owner,
    /// Pass pvx's own descriptors and directory to a process with fewer rights too: its user may take them there
    #[arg(long)]
    expose: bool,
    /// Print JSON instead of text: the call, its args, its result or error, and buffers by argument, with text or fields
    /// and always in hex; docs/pvx.md explains the fields
    #[arg(long)]
    json: bool,
    /// The process
    #[arg(allow_negative_numbers = true, value_parser = live::pid)]
    pid: i32,
    /// The system call, as syscalls(2) calls it
    name: String,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Makes the call and shows what became of it.
pub(crate) fn call(args: &CallArgs) -> Result<ExitCode> {
    let plan = match Plan::new(&args.name, &args.args) {
        Ok(plan) => plan,
        Err(why) => {
            output::say(format_args!("pvx: {why}"));
            return Ok(ExitCode::from(USAGE));
        }
    };
    let exposure = if args.expose { Exposure::Allowed } else { Exposure::Refused };
    let CallArgs { files, directory, handlers, .. } = *args;
    let builder =
        LiveProcess::builder().files(files).directory(directory).handlers(handlers).exposure(exposure);
    let space = match live::attach(args.pid, builder) {
        Ok(space) => space,
        Err(refusal) => {
            output::say(format_args!("pvx: {refusal}"));
            return Ok(ExitCode::from(REFUSED));
        }
    };
    let outcome = perform::perform(&space, &plan, files);
    live::leave(space);
    let failed = |error| anyhow!("{} in process {}: {}", args.name, args.pid, live::explain(&error));
    let outcome = outcome.map_err(failed)?;
    let report = show::Report::new(plan.call, &outcome);
    output::report(&report, args.json, |_| show::describe(plan.call, &outcome))?;
    Ok(if outcome.result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn owner(word: &str) -> Result<Owner, String> {
    match word {
        "caller" => Ok(Owner::Caller),
        "target" => Ok(Owner::Target),
        _ => Err("use caller or target".to_owned()),
    }
}
