//! `pvx`: programs run, measured and checked with process-vm-exec.

#![forbid(unsafe_code)]

mod bench;
mod check;
mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Run programs in another address space, under an application kernel, and measure what that costs.
#[derive(Debug, Parser)]
#[command(name = "pvx", version, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::RunArgs),
    Bench(bench::BenchArgs),
    Check(check::CheckArgs),
    #[command(hide = true)]
    BenchTarget(bench::TargetArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(args),
        Command::Bench(args) => bench::bench(&args),
        Command::BenchTarget(args) => bench::target(&args),
        Command::Check(args) => check::check(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("pvx: {error:#}");
        ExitCode::FAILURE
    })
}
