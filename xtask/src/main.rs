//! `cargo xtask`: the chores of this repository.

#![forbid(unsafe_code)]

mod kernel;
mod step;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The chores of this repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// The system call process_vm_exec(2): build its kernel, boot it, test it
    #[command(subcommand)]
    Kernel(kernel::Chore),
}

fn main() -> ExitCode {
    let Chore::Kernel(chore) = Cli::parse().chore;
    kernel::run(&chore).unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
