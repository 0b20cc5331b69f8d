//! `pvx`: programs run, measured and checked with process-vm-exec.

#![forbid(unsafe_code)]

mod bench;
mod call;
mod check;
mod engine;
mod generate;
mod inspect;
mod live;
mod output;
mod run;
mod trace_file;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use process_vm_exec::{Engine, UnknownEngine};

/// The exit status for a command line, or an environment, that makes no sense.
const USAGE: u8 = 2;

/// Run programs in another address space, under an application kernel; reach into live processes.
#[derive(Debug, Parser)]
#[command(name = "pvx", version, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::RunArgs),
    Call(call::CallArgs),
    Inspect(inspect::InspectArgs),
    Bench(bench::BenchArgs),
    Check(check::CheckArgs),
    Completions(generate::CompletionsArgs),
    Manual(generate::ManualArgs),
    #[command(hide = true)]
    BenchTarget(bench::TargetArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(args),
        Command::Call(args) => call::call(&args),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::BenchTarget(args) => bench::target(&args),
        Command::Check(args) => check::check(&args),
        Command::Completions(args) => generate::completions(&args),
        Command::Manual(args) => generate::manual(&args),
    };
    result.unwrap_or_else(|error| fail(&error))
}

fn fail(error: &anyhow::Error) -> ExitCode {
    // Of the command line's engines those that are none have been refused: this one is from the environment.
    if let Some(unknown) = error.chain().find_map(|cause| cause.downcast_ref::<UnknownEngine>()) {
        output::say(format_args!("pvx: {}: {unknown}", Engine::VARIABLE));
        return ExitCode::from(USAGE);
    }
    output::say(format_args!("pvx: {error:#}"));
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn tables_in_the_help_fit_into_its_width_and_are_not_broken() {
        for command in Cli::command().get_subcommands() {
            let table = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let long = table.lines().find(|line| line.chars().count() > 100);
            assert_eq!(long, None, "{}", command.get_name());
        }
    }
}
